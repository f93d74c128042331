"""Recordings of event cameras: AEDAT 4, Prophesee's raw files, HDF5, arrays of NumPy and text."""

from __future__ import annotations

import io
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from fakes.events import event_packet, write_aedat4
from hardening.case import Case, patched, write_bytes

from statefield.kernels import native

_TRACK = "sot track AT/{name} --run RUN --init 1 1 5 5 --output AT/out --device cpu"
_WORDS = [8 << 28, (1 << 28) | (5 << 22) | (3 << 11) | 4]


def aedat4_bytes(squeeze: Callable[[bytes], bytes] = lambda content: content, compression: int = 0) -> bytes:
    """A sound file of three events."""
    with tempfile.TemporaryDirectory() as folder:
        packet = event_packet([5, 70, 4000], [1, 2, 3], [4, 3, 2], [0, 1, 1])
        return write_aedat4(Path(folder) / "a.aedat4", [(1, packet)], compression, squeeze).read_bytes()


def raw_bytes(header: str = "% evt 2.0\n% geometry 640x480\n% end\n", words: list[int] | None = None) -> bytes:
    """A sound file of one event in EVT 2.0."""
    words = _WORDS if words is None else words
    return header.encode() + struct.pack(f"<{len(words)}I", *words)


def npz_bytes(**arrays: object) -> bytes:
    """The arrays as .npz; without any, a sound file of two events."""
    stream = io.BytesIO()
    np.savez(stream, **(arrays or {"t": [5, 70], "x": [1, 2], "y": [4, 3], "p": [0, 1]}))
    return stream.getvalue()


def hdf5_bytes(change: Callable[[h5py.File], object] = lambda file: None) -> bytes:
    """A sound file in DSEC's layout, or what `change` makes of it."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, values in (("t", [5, 70]), ("x", [1, 2]), ("y", [4, 3]), ("p", [0, 1])):
            file[f"events/{name}"] = np.array(values)
        change(file)
    return stream.getvalue()


def _swapped(file: h5py.File, name: str, value: object) -> None:
    del file[name]
    file[name] = value


def _archive(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def _npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + data


def _dangling(file: h5py.File) -> None:
    del file["events/t"]
    file["events/t"] = h5py.SoftLink("/nowhere")


def _abroad(file: h5py.File) -> None:
    del file["events/t"]
    file["events/t"] = h5py.ExternalLink("/etc/passwd", "/t")


def recordings() -> list[Case]:
    """What `sot track` is given to follow an object through."""
    sound = aedat4_bytes()
    place = sound.index(b"sizeX")
    long_side = sound.replace(b">640<", b">" + b"9" * 3 + b"<")
    lying_packet = len(sound) - len(event_packet([5, 70, 4000], [1, 2, 3], [4, 3, 2], [0, 1, 1])) - 4
    aedat = {
        "empty": b"",
        "a_page": b"<html>404</html>",
        "of_version_3": b"#!AER-DAT3.1\r\n" + sound[14:],
        **{f"cut_at_{cut}": sound[:cut] for cut in (14, 16, 60, place, len(sound) - 1, len(sound) - 40)},
        "header_of_4_gb": patched(sound, 14, b"\xff\xff\xff\xff"),
        "header_of_0": patched(sound, 14, bytes(4)),
        "table_elsewhere": patched(sound, 18, b"\xff\xff\xff\x7f"),
        "no_events": sound.replace(b"EVTS", b"IMUS"),
        "side_too_small": long_side.replace(b">480<", b">002<"),
        "packet_of_2_gb": patched(sound, lying_packet, b"\xff\xff\xff\x7f"),
        "packet_negative": patched(sound, lying_packet, b"\xff\xff\xff\xff"),
        "unknown_compression": aedat4_bytes(compression=9),
        "compressed_in_name_alone": aedat4_bytes(compression=1),
        "zstandard_in_name_alone": aedat4_bytes(compression=3),
    }
    raw = {
        "empty": b"",
        "a_page": b"<html>404</html>",
        "no_version": raw_bytes("% date 2020\n% end\n"),
        "version_9": raw_bytes("% evt 9.0\n% end\n"),
        "version_2_1": raw_bytes("% evt 2.1\n% end\n"),
        "cut_in_a_word": raw_bytes()[:-1],
        "no_event": raw_bytes(words=[]),
        "event_outside": raw_bytes("% evt 2.0\n% geometry 2x2\n% end\n"),
        "sides_of_5000_digits": raw_bytes(f"% evt 2.0\n% geometry {'9' * 5000}x{'9' * 5000}\n% end\n", []),
        "line_without_end": b"% evt 2.0" + bytes(2**20),
    }
    hdf5 = {
        "empty": b"",
        "cut_off": hdf5_bytes()[:600],
        "no_events": hdf5_bytes(lambda file: file.__delitem__("events")),
        "no_time": hdf5_bytes(lambda file: file.__delitem__("events/t")),
        "two_lengths": hdf5_bytes(lambda file: _swapped(file, "events/t", np.arange(9))),
        "time_of_texts": hdf5_bytes(lambda file: _swapped(file, "events/t", [b"a", b"b"])),
        "time_a_group": hdf5_bytes(lambda file: (file.__delitem__("events/t"), file.create_group("events/t"))),
        "columns_negative": hdf5_bytes(lambda file: _swapped(file, "events/x", np.array([-1, 2]))),
        "link_to_nothing": hdf5_bytes(_dangling),
        "link_abroad": hdf5_bytes(_abroad),
        "offset_of_two": hdf5_bytes(lambda file: file.__setitem__("t_offset", [1, 2])),
        "claims_10_12_events": hdf5_bytes(
            lambda file: [
                (file.__delitem__(f"events/{key}"), file.create_dataset(f"events/{key}", (10**12,), "i8", chunks=True))
                for key in "txyp"
            ]
        ),
    }
    arrays = {
        "empty": b"",
        "cut_off": npz_bytes()[:200],
        "no_arrays": npz_bytes(a=[1, 2], b=[3, 4]),
        "two_lengths": npz_bytes(t=[5, 70, 80], x=[1, 2], y=[4, 3], p=[0, 1]),
        "code": npz_bytes(t=np.array([print], dtype=object), x=[1], y=[1], p=[1]),
        "a_pickle": _archive("t.npy", pickle.dumps(print)),
        "of_times_nan": npz_bytes(t=[np.nan, 1.0], x=[1, 2], y=[4, 3], p=[0, 1]),
        "claims_a_terabyte": _archive("a.npy", _npy("{'descr': '<f8', 'fortran_order': False, 'shape': (10**11, 4)}")),
        "shape_of_2_70": _archive(
            "a.npy", _npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**70}, 4), }}")
        ),
    }
    texts = {
        "of_words": b"no events\n",
        "of_three": b"1,2,3\n",
        "of_times_nan": b"t,x,y,p\nnan,1,2,1\n",
        "of_20_digits": b"99999999999999999999,1,2,1\n",
        "binary": bytes(range(256)),
    }
    kinds = (("aedat4", aedat), ("raw", raw), ("h5", hdf5), ("npz", arrays), ("csv", texts))
    return [
        Case(
            f"{end}_{name}", write_bytes(f"a.{end}", content), _TRACK.format(name=f"a.{end}"), (f"a.{end}",), run="sot"
        )
        for end, contents in kinds
        for name, content in contents.items()
    ]


def environment() -> list[Case]:
    """Nonsense in the variables that the kernels look at."""
    words = _TRACK.format(name="a.csv")
    rows = b"".join(b"%d,%d,%d,1\n" % (1000 * n, n % 60, n % 40) for n in range(200))
    values = [("STATEFIELD_KERNELS", text) for text in ("cuda", "Native", "native,triton", " ", "../x", "\u00b2")]
    if not native.unavailable():
        values += [("STATEFIELD_ISA", text) for text in ("avx9", "AVX2", "plain avx2", "/etc/passwd")]
    return [
        Case(f"{name}_{n}", write_bytes("a.csv", rows), words, (name,), run="sot", environment={name: value})
        for n, (name, value) in enumerate(values)
    ]
