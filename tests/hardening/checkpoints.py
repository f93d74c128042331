"""Weights: PyTorch files, safetensors, and what is none of both, through `convert` and in runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from hardening.case import Case, write_bytes

_CONVERT = "convert AT/{name} AT/out.safetensors --model {model}"
_MARKER = "pwned"


class _Marks:
    """Unpickled with code, this makes a file in the working folder."""

    def __reduce__(self):
        return os.system, (f"touch {_MARKER}",)


class _Opens:
    def __reduce__(self):
        return open, (_MARKER, "w")


class _Evaluates:
    def __reduce__(self):
        return eval, (f"open({_MARKER!r}, 'w').close()",)


def _saved(value: object, **options: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def _safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _of_net(arguments: str) -> bytes:
    """Weights that say they are of a net of two dates with these arguments."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return _safetensors(
        {"__metadata__": {"model": "mamba_bcd", "statefield_arguments": arguments}, "a": entry}, bytes(8)
    )


def _archive(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return stream.getvalue()


def _packed(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(1_000_000))
    return stream.getvalue()


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo("../../pwned")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"data"))
    return stream.getvalue()


def _array(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def converted() -> list[Case]:
    """What `convert` is given."""
    sound = _saved({"model": {"a": torch.zeros(3)}})
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    pytorch = {
        "empty": b"",
        "a_page": b"<html>404</html>",
        **{f"cut_at_{cut}": sound[:cut] for cut in (4, 100, len(sound) // 2, len(sound) - 1)},
        "code_that_runs_a_program": _saved({"model": {"a": torch.zeros(1)}, "x": _Marks()}),
        "code_that_opens_a_file": _saved({"state_dict": {"a": torch.zeros(1)}, "x": _Opens()}),
        "code_that_evaluates": _saved(_Evaluates()),
        "code_in_an_old_file": _saved({"x": _Marks()}, _use_new_zipfile_serialization=False),
        "a_bare_pickle_of_code": pickle.dumps(_Marks()),
        "a_whole_module": _saved(torch.nn.Linear(2, 2)),
        "an_optimizer_alone": _saved({"optimizer": {"lr": 1.0}}),
        "a_list": _saved([torch.zeros(2)]),
        "no_tensors": _saved({"model": {"a": 3}}),
        "other_names": _saved({"model": {"a.weight": torch.zeros(3)}}),
        "other_types": _saved({"model": {"a.weight": torch.zeros(3, dtype=torch.int64)}}),
        "a_zip_of_nothing": _archive(),
        "a_zip_of_another_kind": _archive(readme=b"text"),
        "a_zip_without_data": _archive(archive__data__0=b"1234"),
        "a_zip_that_leads_out": _archive(**{"..__..__pwned": b"data"}),
        "a_zip_of_no_utf8": _archive(**{"archive__\u00e9": b"data"}).replace(b"\xc3\xa9", b"\xff\xfe"),
        "a_compressed_zip": _packed(pickle.dumps({})),
        "a_tar": _tar(),
        "numpy_objects": _array(np.array([_Marks()], dtype=object)),
        "numbers_of_numpy": _array(np.zeros(3)),
    }
    safe = {
        "empty": b"",
        "four_bytes": b"\x08\0\0\0",
        "header_longer_than_the_file": _safetensors({"a": entry}, bytes(8), length=10**6),
        "header_of_2_63_bytes": _safetensors({"a": entry}, bytes(8), length=2**63),
        "header_of_2_64_bytes": _safetensors({"a": entry}, bytes(8), length=2**64 - 1),
        "header_of_0_bytes": _safetensors(b"", bytes(8), length=0),
        "header_no_json": _safetensors(b"{not json}     "),
        "header_invalid_utf8": _safetensors(b'{"\xff\xfe": 1}'),
        "header_deep": _safetensors(b"[" * 50_000),
        "header_a_list": _safetensors([1, 2]),
        "header_5000_digits": _safetensors(b'{"a": ' + b"9" * 5000 + b"}"),
        "tensor_beyond_the_file": _safetensors({"a": entry | {"data_offsets": [0, 10**12]}}, bytes(8)),
        "tensor_backwards": _safetensors({"a": entry | {"data_offsets": [8, 0]}}, bytes(8)),
        "tensor_of_another_size": _safetensors({"a": entry | {"shape": [3]}}, bytes(8)),
        "tensor_of_2_62_values": _safetensors({"a": entry | {"shape": [2**31, 2**31]}}, bytes(8)),
        "tensor_negative": _safetensors({"a": entry | {"shape": [-2]}}, bytes(8)),
        "tensors_overlap": _safetensors({"a": entry, "b": entry}, bytes(8)),
        "unknown_type": _safetensors({"a": entry | {"dtype": "F7"}}, bytes(8)),
        "a_pickle": pickle.dumps(_Marks()),
        "pytorch_inside": sound,
        "other_names": _safetensors({"a": entry}, bytes(8)),
        "cut_off": _safetensors({"a": entry}, bytes(5)),
    }
    cases = []
    for number, (name, content) in enumerate(pytorch.items()):
        model = ("spatial_mamba_nano", "mamba_bcd", "rsmamba", "mamba_evt")[number % 4 if "other" not in name else 0]
        command = _CONVERT.format(name="in.pth", model=model)
        cases.append(Case(f"pytorch_{name}", write_bytes("in.pth", content), command, ("in.pth",)))
    command = _CONVERT.format(name="in.safetensors", model="spatial_mamba_nano")
    for name, content in safe.items():
        cases.append(Case(f"safetensors_{name}", write_bytes("in.safetensors", content), command, ("in.safetensors",)))
    words = command.replace("in.safetensors", "in.pth")
    cases += [
        Case("missing", lambda at: None, words, ("in.pth", "no checkpoint")),
        Case("a_folder", lambda at: (at / "in.pth").mkdir(), words, ("in.pth", "no checkpoint")),
        Case("link_to_itself", lambda at: (at / "in.pth").symlink_to("in.pth"), words, ("in.pth", "no checkpoint")),
        Case("unknown_model", write_bytes("in.pth", sound), words.replace("nano", "nanoo"), ("spatial_mamba_nanoo",)),
        Case("unknown_argument", write_bytes("in.pth", sound), f"{words} --set depht=3", ("depht",)),
        Case("absurd_argument", write_bytes("in.pth", sound), f"{words} --set dims=-1", ("dims|in.pth",)),
    ]
    return cases


def in_runs() -> list[Case]:
    """Weights where a command looks for a run's."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    contents = {
        "pickle": pickle.dumps(_Marks()),
        "of_another_net": _safetensors({"a": entry}, bytes(8)),
        "lying_header": _safetensors({"a": entry}, bytes(8), length=2**62),
        "deep_header": _safetensors(b"[" * 50_000),
        "empty": b"",
        "arguments_of_words": _of_net("{depth: 3"),
        "arguments_a_list": _of_net("[1, 2]"),
        "arguments_deep": _of_net("[" * 50_000),
        "arguments_unknown": _of_net('{"encoder": "test_resnet", "evil": 1}'),
        "arguments_absurd": _of_net('{"encoder": "test_resnet", "width": -8}'),
    }
    change = "change predict AT/a.tif AT/b.tif --run AT/net.safetensors -o AT/out.tif --device cpu"
    track = "sot track AT/frames --weights AT/net.safetensors --output AT/out --init 1 1 5 5 --device cpu"
    return [
        Case(f"{kind}_{name}", _with_pictures(content), command, ("net.safetensors",))
        for kind, command in (("change", change), ("track", track))
        for name, content in contents.items()
    ]


def _with_pictures(content: bytes):
    def write(at: Path) -> None:
        from fakes.rasters import write_raster
        from hardening.images import picture_bytes

        (at / "net.safetensors").write_bytes(content)
        for name in ("a.tif", "b.tif"):
            write_raster(at / name, 20, 24)
        (at / "frames").mkdir()
        (at / "frames" / "0001.png").write_bytes(picture_bytes("PNG"))

    return write
