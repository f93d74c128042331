"""Event files of every kind, from bytes written here and from a real recording."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
from fakes.events import event_packet, write_aedat4

from statefield.datasets.events import Events, event_chunks, read_events
from statefield.datasets.events.arrays import read_arrays, read_text
from statefield.datasets.events.evt import read_header
from statefield.errors import ConfigError, DataError, ShapeError

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[3] / "../shared/data"))
T = np.array([5, 70, 70, 130, 4000], dtype=np.int64)
X = np.array([1, 2, 639, 0, 7])
Y = np.array([3, 4, 479, 0, 9])
P = np.array([1, 0, 1, 1, 0])


def _equal(events, t=T, x=X, y=Y, p=P):
    return (
        events.t.tolist() == list(t)
        and events.x.tolist() == list(x)
        and events.y.tolist() == list(y)
        and events.on.tolist() == [bool(value > 0) for value in p]
    )


def _same_in_chunks(path, events):
    for size in (1, 2, 3, 1000):
        parts = list(event_chunks(path, size))
        assert all(len(part) == size for part in parts[:-1])
        for name in ("t", "x", "y", "on"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert joined.tolist() == getattr(events, name).tolist()


def _evt2(path, words, header="% evt 2.0\n% geometry 640x480\n% end\n"):
    path.write_bytes(header.encode() + np.array(words, dtype="<u4").tobytes())
    return path


def _evt2_event(t, x, y, p):
    return (p << 28) | ((t & 63) << 22) | (x << 11) | y


def test_evt2_by_hand(tmp_path):
    words = [_evt2_event(9, 5, 5, 1)]  # before the first time: left out
    last = None
    for event in zip(T.tolist(), X.tolist(), Y.tolist(), P.tolist(), strict=True):
        if event[0] >> 6 != last:
            last = event[0] >> 6
            words.append((8 << 28) | last)
        words += [_evt2_event(*event), 0xA << 28, 0xE << 28]  # triggers and others are left out
    path = _evt2(tmp_path / "a.raw", words)
    events = read_events(path)
    assert _equal(events)
    assert events.size == (640, 480)
    _same_in_chunks(path, events)


def test_evt2_time_goes_on_where_its_34_bits_start_again(tmp_path):
    top = 2**28 - 1
    words = [(8 << 28) | top, _evt2_event(63, 0, 0, 1), 8 << 28, _evt2_event(1, 0, 0, 1), (8 << 28) | 1]
    words += [(8 << 28), _evt2_event(2, 0, 0, 1)]  # a little out of order is no new start
    assert read_events(_evt2(tmp_path / "a.raw", words)).t.tolist() == [2**34 - 1, 2**34 + 1, 2**34 + 2]


def _evt3_slowly(words):
    """The format word by word."""
    found = []
    base, time, row, column, on, turns, last = None, None, 0, 0, 0, 0, None
    for word in words:
        kind, value = word >> 12, word & 0xFFF
        if kind == 8:
            if last is not None and last - value >= 4095 - 10:
                turns += 1
            last, base = value, (turns << 24) + (value << 12)
            time = base
        elif kind == 6 and base is not None:
            time = base + value
        elif kind == 0:
            row = word & 0x7FF
        elif kind == 2 and time is not None:
            found.append((time, word & 0x7FF, row, (word >> 11) & 1))
        elif kind == 3:
            column, on = word & 0x7FF, (word >> 11) & 1
        elif kind in (4, 5):
            length = 12 if kind == 4 else 8
            if time is not None:
                found += [(time, column + bit, row, on) for bit in range(length) if word >> bit & 1]
            column += length
    return found


def _evt3(path, words):
    path.write_bytes(b"% format EVT3;height=2048;width=4096\n% end\n" + np.array(words, dtype="<u2").tobytes())
    return path


@pytest.mark.parametrize("at_once", [2**19, 7, 1])
def test_evt3_equals_decoding_word_by_word(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr("statefield.datasets.events.evt._WORDS_AT_ONCE", at_once)
    generator = np.random.default_rng(5)
    kinds = generator.choice([0, 2, 3, 4, 5, 6, 7, 8, 0xA, 0xE, 0xF], size=600)
    words = ((kinds << 12) | generator.integers(0, 2**12, 600)).tolist()
    words = [word & ~0x400 if word >> 12 in (0, 2, 3) else word for word in words]
    wanted = _evt3_slowly(words)
    assert len(wanted) > 300
    events = read_events(_evt3(tmp_path / "a.raw", words))
    assert list(zip(events.t, events.x, events.y, events.on, strict=True)) == wanted
    if at_once == 7:
        _same_in_chunks(tmp_path / "a.raw", events)


def test_evt3_time_goes_on_where_its_24_bits_start_again(tmp_path):
    words = [0x8FFF, 0x6001, 0x2000, 0x8000, 0x2000, 0x6005, 0x2000]
    assert read_events(_evt3(tmp_path / "a.raw", words)).t.tolist() == [0xFFF001, 2**24, 2**24 + 5]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x00\x01\x02", "no raw file of Prophesee"),
        (b"% evt 2.1\n% end\n", r"EVT 2\.0 and EVT 3\.0 are read"),
        (b"% Date today\n% end\n", "is not told"),
        (b"% evt 2.0\n% end\n\x00\x00\x00", "3 bytes after the last whole word"),
        (
            b"% evt 2.0\n% geometry 4x4\n% end\n" + struct.pack("<II", 8 << 28, _evt2_event(0, 4, 0, 1)),
            "event 0 has a column outside 0 to 3: 4",
        ),
    ],
)
def test_broken_raw_files_are_named(tmp_path, content, said):
    path = tmp_path / "a.raw"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.raw.*{said}"):
        read_events(path)


def test_an_empty_recording_has_a_size_and_no_event(tmp_path):
    events = read_events(_evt2(tmp_path / "a.raw", []))
    assert (len(events), events.size) == (0, (640, 480))
    assert list(event_chunks(tmp_path / "a.raw")) == []


def test_files_larger_than_the_memory_limit_are_refused_and_read_in_chunks(tmp_path, monkeypatch):
    path = _evt2(tmp_path / "a.raw", [8 << 28] + [_evt2_event(0, 1, 1, 1)] * 1000)
    monkeypatch.setenv("STATEFIELD_MEMORY_LIMIT_GB", "0.00001")
    with pytest.raises(DataError, match="STATEFIELD_MEMORY_LIMIT_GB"):
        read_events(path)
    assert sum(len(part) for part in event_chunks(path, 100)) == 1000


def _two_packets():
    cut = [part.tolist() for array in (T, X, Y, P) for part in (array[:2], array[2:])]
    return [(0, b"a frame"), (1, event_packet(*cut[0::2])), (0, b""), (1, event_packet(*cut[1::2]))]


def test_aedat4_without_compression(tmp_path):
    path = write_aedat4(tmp_path / "a.aedat4", _two_packets())
    events = read_events(path)
    assert _equal(events)
    assert events.size == (640, 480)
    _same_in_chunks(path, events)


@pytest.mark.parametrize(("number", "package"), [(1, "lz4"), (3, "zstandard")])
def test_aedat4_with_compression_or_the_name_of_what_is_missing(tmp_path, number, package, monkeypatch):
    try:
        module = pytest.importorskip("lz4.frame" if package == "lz4" else package)
        squeeze = module.compress if package == "lz4" else module.ZstdCompressor().compress
        path = write_aedat4(tmp_path / "a.aedat4", _two_packets()[1::2], number, squeeze)
        assert _equal(read_events(path))
        damaged = path.read_bytes()
        path.write_bytes(damaged[:-4] + b"\xff\xff\xff\xff")
        with pytest.raises(DataError, match="cannot be unpacked"):
            read_events(path)
    except pytest.skip.Exception:
        path = write_aedat4(tmp_path / "a.aedat4", _two_packets(), number)
        with pytest.raises(DataError, match=f"pip install {package}"):
            read_events(path)


def test_broken_aedat4_files_are_named(tmp_path):
    path = write_aedat4(tmp_path / "a.aedat4", _two_packets())
    whole = path.read_bytes()
    for content, said in (
        (b"#!AER-DAT3.1\r\n", "no AEDAT 4 file"),
        (whole[:16], "its header claims"),
        (whole[:-5], "cut off within the packet"),
        (whole.replace(b"EVTS", b"IMUS"), "no stream of events"),
        (whole[:-8] + b"\xff" * 8, "event 4 has a column"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.aedat4.*{said}"):
            read_events(path)
    packet = bytearray(_two_packets()[1][1])
    packet[4:8] = struct.pack("<I", 10**6)
    with pytest.raises(DataError, match="points outside of itself"):
        read_events(write_aedat4(path, [(1, bytes(packet))]))
    with pytest.raises(DataError, match="number 9"):
        read_events(write_aedat4(path, [], compression=9))


@pytest.mark.parametrize(
    "text",
    [
        "5,1,3,1\n70,2,4,0\n70,639,479,1\n130,0,0,1\n4000,7,9,0\n",
        "x y polarity t\n1 3 1 5\n2 4 -1 70\n639 479 1 70\n0 0 1 130\n7 9 0 4000\n\n",
        "0.000005 1 3 1\n0.00007 2 4 0\n0.00007 639 479 1\n0.00013 0 0 1\n0.004 7 9 0\n",
    ],
)
def test_text_with_and_without_names_in_microseconds_and_seconds(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text)
    events = read_events(path)
    assert _equal(events)
    _same_in_chunks(path, events)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5,1,3,1\n5,1,3\n", "line 2: 3 columns"),
        ("5,1,3,1\n5,x,3,1\n", "line 2: 'x' is no number"),
        ("5,1,3,7\n", "event 1 has a polarity that is neither"),
        ("5,1.5,3,1\n", "a column outside"),
        ("-5,1,3,1\n", "a negative time"),
        ("a,b,c,d\n1,2,3,4\n", "line 1: the columns a, b, c, d"),
    ],
)
def test_broken_text_is_named(tmp_path, text, said):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"a\.csv.*{said}"):
        read_events(path)


def test_microseconds_since_1970_keep_every_digit(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1677325148906693,1,1,1\n1677325148906694,1,1,1\n")
    assert np.diff(read_text(path).t.astype(np.int64)).tolist() == [1]


def test_arrays_of_numpy(tmp_path):
    np.savez(tmp_path / "named.npz", t=T, x=X, y=Y, p=P)
    np.savez(tmp_path / "other.npz", timestamps=T, x=X, y=Y, polarity=P)
    np.savez(tmp_path / "rows.npz", events=np.stack([X, Y, P, T], axis=1))
    np.save(tmp_path / "rows.npy", np.stack([T, X, Y, P], axis=1))
    kinds = np.dtype([("x", "<u2"), ("y", "<u2"), ("t", "<i8"), ("p", "?")])
    structured = np.zeros(5, kinds)
    for name, array in (("t", T), ("x", X), ("y", Y), ("p", P)):
        structured[name] = array
    np.save(tmp_path / "fields.npy", structured)
    for name in ("named.npz", "other.npz", "rows.npz", "rows.npy", "fields.npy"):
        events = read_events(tmp_path / name)
        assert _equal(events), name
        _same_in_chunks(tmp_path / name, events)
    np.save(tmp_path / "unclear.npy", np.ones((3, 4), dtype=int))
    with pytest.raises(DataError, match="cannot be told; say columns"):
        read_events(tmp_path / "unclear.npy")
    assert len(read_arrays(tmp_path / "unclear.npy", columns="xypt")) == 3
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    with pytest.raises(DataError, match="Python objects"):
        read_events(tmp_path / "objects.npy")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "rows.npy").read_bytes()[:-9])
    with pytest.raises(DataError, match="cut off"):
        read_events(tmp_path / "cut.npy")


def test_damaged_headers_of_numpy_files_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.stack([T, X, Y, P], axis=1))
    np.savez(tmp_path / "a.npz", t=T, x=X, y=Y, p=P)
    for name in ("a.npy", "a.npz"):
        whole = (tmp_path / name).read_bytes()
        for damaged in (whole.replace(b"}", b"{"), whole.replace(b"'shape'", b"'shapf'"), whole[:30], b""):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(DataError, match=name):
                read_events(tmp_path / name)


def test_hdf5_as_dsec_and_as_prophesee_lay_it_out(tmp_path):
    with h5py.File(tmp_path / "dsec.h5", "w") as file:
        for name, array in (("t", (T - 5).astype("u4")), ("x", X), ("y", Y), ("p", P.astype("u1"))):
            file[f"events/{name}"] = array
        file["t_offset"] = 5
    kinds = np.dtype([("x", "<u2"), ("y", "<u2"), ("p", "<i2"), ("t", "<i8")])
    table = np.zeros(5, kinds)
    for name, array in (("t", T), ("x", X), ("y", Y), ("p", P)):
        table[name] = array
    with h5py.File(tmp_path / "prophesee.hdf5", "w") as file:
        file["CD/events"] = table
        file.attrs["geometry"] = "640x480"
    for name in ("dsec.h5", "prophesee.hdf5"):
        events = read_events(tmp_path / name)
        assert _equal(events), name
        _same_in_chunks(tmp_path / name, events)
    assert read_events(tmp_path / "prophesee.hdf5").size == (640, 480)


def test_hdf5_that_cannot_be_read_says_why(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["frames"] = np.zeros(3)
    with pytest.raises(DataError, match=r"a\.h5: there is no 't'; needed are events/t"):
        read_events(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        for name in "txy":
            file[f"events/{name}"] = np.arange(3)
        file["events/p"] = h5py.ExternalLink("c.h5", "p")
    with pytest.raises(DataError, match="is a link to another place"):
        read_events(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        for name in "txyp":
            file.create_dataset(f"events/{name}", data=np.ones(3, "i4"), chunks=(3,), shuffle=True)
    monkeypatch.setattr("statefield.datasets.events.arrays.h5py.h5z.filter_avail", lambda number: False)
    with pytest.raises(DataError, match="'events/t' is compressed by a filter that is not installed"):
        read_events(tmp_path / "c.h5")
    monkeypatch.setattr("statefield.datasets.events.arrays._ECF", 2)  # shuffle's own number
    with pytest.raises(DataError, match="Prophesee's ECF"):
        read_events(tmp_path / "c.h5")


def test_other_endings_and_missing_files(tmp_path):
    with pytest.raises(DataError, match=r"files ending in \.raw"):
        read_events(tmp_path / "a.bag")
    for ending in ("raw", "aedat4", "csv", "npz", "npy", "h5"):
        with pytest.raises(DataError, match="no such file"):
            read_events(tmp_path / f"a.{ending}")
    with pytest.raises(ConfigError, match="at least 1"):
        list(event_chunks(tmp_path / "a.raw", 0))


def test_events_are_of_one_length_and_of_their_types():
    with pytest.raises(ShapeError, match="x is int64"):
        Events(T.astype(np.uint64), X, Y, P > 0)
    events = Events(T.astype(np.uint64), X.astype(np.uint16), Y.astype(np.uint16), P > 0)
    assert events.size == (640, 480)  # the smallest that holds them
    assert events.between(70, 130).t.tolist() == [70, 70]


@pytest.mark.shared_data
def test_a_real_recording_has_the_published_digests():
    path = DATA / "events/faery_streams/evt2.raw"
    if not path.is_file():
        pytest.skip(f"no recording at {path} (STATEFIELD_DATA)")
    reference = json.loads((DATA / "REFERENCE.json").read_text())["faery_evt2"]
    events = read_events(path)
    assert len(events) == reference["events"]
    assert list(events.size) == reference["size"]
    assert (events.t[0], events.t[-1]) == (913716224, 913812095)
    for name, digest in reference["sha3_224"].items():
        assert hashlib.sha3_224(getattr(events, name).tobytes()).hexdigest() == digest
    assert read_header(path).fields["serial_number"] == "00000157"
