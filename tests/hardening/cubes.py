"""Cubes of hyperspectral scenes: ENVI's header and data, MATLAB's files and arrays of NumPy."""

from __future__ import annotations

import io
import struct

import numpy as np
import scipy.io
from hardening.case import Case, Write, both, patched, write_bytes, write_text

_PREDICT = "hyperspectral predict AT/{name} --run RUN -o AT/out.tif"
HEADER = (
    "ENVI\nsamples = 5\nlines = 4\nbands = 6\nheader offset = 0\nfile type = ENVI Standard\ndata type = 4\n"
    "interleave = bsq\nbyte order = 0\n"
)
DATA = np.arange(120, dtype="<f4").tobytes()


def _envi(header: str | bytes, data: bytes = DATA) -> Write:
    return both(
        write_bytes("a.dat", data), write_bytes("a.hdr", header if isinstance(header, bytes) else header.encode())
    )


def matlab_bytes(**arrays: object) -> bytes:
    """The arrays as MATLAB's version 5; without any, a sound cube."""
    stream = io.BytesIO()
    scipy.io.savemat(stream, arrays or {"a": np.ones((4, 5, 6))}, format="5")
    return stream.getvalue()


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def _claim(shape: str, kind: str = "<f8") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + bytes(64)


def cubes() -> list[Case]:
    """What `hyperspectral predict` is asked to map."""
    headers = {
        "empty": "",
        "of_words": "this is no header\n",
        "binary": bytes(range(256)),
        "without_samples": HEADER.replace("samples = 5\n", ""),
        "without_bands": HEADER.replace("bands = 6\n", ""),
        "no_lines": HEADER.replace("lines = 4", "lines = 0"),
        "negative_lines": HEADER.replace("lines = 4", "lines = -4"),
        "lines_of_words": HEADER.replace("lines = 4", "lines = four"),
        "lines_of_20_digits": HEADER.replace("lines = 4", "lines = " + "9" * 20),
        "lines_of_5000_digits": HEADER.replace("lines = 4", "lines = " + "9" * 5000),
        "bands_of_ten_billion": HEADER.replace("bands = 6", "bands = 10000000000"),
        "a_million_by_a_million": HEADER.replace("samples = 5", "samples = 1000000").replace(
            "lines = 4", "lines = 1000000"
        ),
        "more_lines": HEADER.replace("lines = 4", "lines = 400"),
        "other_bands": HEADER.replace("bands = 6", "bands = 3"),
        "unknown_type": HEADER.replace("data type = 4", "data type = 99"),
        "type_of_words": HEADER.replace("data type = 4", "data type = float"),
        "complex_type": HEADER.replace("data type = 4", "data type = 6").replace("lines = 4", "lines = 2"),
        "wider_type": HEADER.replace("data type = 4", "data type = 5"),
        "unknown_interleave": HEADER.replace("interleave = bsq", "interleave = zigzag").replace(
            "lines = 4", "lines = 9"
        ),
        "offset_beyond": HEADER.replace("header offset = 0", "header offset = 100000"),
        "offset_negative": HEADER.replace("header offset = 0", "header offset = -100000"),
        "only_nodata": HEADER + "data ignore value = 7\n",
    }
    contents = {
        "only_nodata": np.full(120, 7, "<f4").tobytes(),
        "cut_off": DATA[:-9],
        "empty_data": b"",
        "nan": np.full(120, np.nan, "<f4").tobytes(),
    }
    headers |= {name: HEADER for name in contents if name not in headers}
    cases = [
        Case(
            f"envi_{name}",
            _envi(text, contents.get(name, DATA)),
            _PREDICT.format(name=file),
            ("a.hdr|a.dat",),
            run="scene",
        )
        for number, (name, text) in enumerate(headers.items())
        for file in (("a.hdr", "a.dat")[number % 2],)
    ]
    sound = matlab_bytes()
    files = {
        "a.mat": {
            "empty": b"",
            "a_page": b"<html>404</html>",
            **{f"cut_at_{cut}": sound[:cut] for cut in (4, 127, 200, len(sound) // 2)},
            "of_two_axes": matlab_bytes(a=np.ones((4, 5))),
            "two_cubes": matlab_bytes(b=np.ones((4, 5, 6)), c=np.ones((4, 5, 6))),
            "of_text": matlab_bytes(a="no cube"),
            "of_cells": matlab_bytes(a=np.array([[1, "b"]], dtype=object)),
            "complex": matlab_bytes(a=np.ones((4, 5, 6), complex)),
            "other_bands": matlab_bytes(a=np.ones((4, 5, 7))),
            "all_nan": matlab_bytes(a=np.full((4, 5, 6), np.nan)),
            "axis_of_2_31": patched(
                sound, sound.index(struct.pack("<3i", 4, 5, 6)), struct.pack("<3i", 2**31 - 1, 5, 6)
            ),
            **{  # which scipy looks up without a check: the process ended by a signal
                f"numbers_of_type_{kind}": sound.replace(struct.pack("<2I", 9, 960), struct.pack("<2I", kind, 960))
                for kind in (0, 8, 14, 19, 20, 4096)
            },
            "class_unknown": sound.replace(struct.pack("<3I", 6, 8, 6), struct.pack("<3I", 6, 8, 0x0240)),
            "a_name_twice": sound + sound[128:],
            "axis_negative": patched(sound, sound.index(struct.pack("<3i", 4, 5, 6)), struct.pack("<3i", -4, 5, 6)),
        },
        "a.npy": {
            "empty": b"",
            "cut_off": _npy(np.zeros((4, 5, 6)))[:200],
            "code": _npy(np.array([print], dtype=object)),
            "of_two_axes": _npy(np.zeros((4, 5))),
            "of_texts": _npy(np.full((4, 5, 6), "a")),
            "empty_axis": _npy(np.zeros((4, 0, 6))),
            "claims_a_terabyte": _claim("(500000, 50000, 6)"),
            "shape_of_2_70": _claim(f"({2**70}, 5, 6)"),
            "shape_negative": _claim("(-4, 5, 6)"),
            "shape_of_words": _claim("('a', 5, 6)"),
            "kind_unknown": _claim("(4, 5, 6)", "zz"),
            "header_deep": b"\x93NUMPY\x02\0" + struct.pack("<I", 9000) + b"(" * 9000,
        },
    }
    cases += [
        Case(f"{file[2:]}_{name}", write_bytes(file, content), _PREDICT.format(name=file), (file,), run="scene")
        for file, contents in files.items()
        for name, content in contents.items()
    ]
    words = _PREDICT.format(name="a.hdr")
    cases += [
        Case("header_alone", write_text("a.hdr", HEADER), words, ("a.hdr", "no data file"), run="scene"),
        Case("data_alone", write_bytes("a.dat", DATA), _PREDICT.format(name="a.dat"), ("a.dat",), run="scene"),
        Case("missing", lambda at: None, words, ("a.hdr", "no such file"), run="scene"),
        Case("a_folder", lambda at: (at / "a.hdr").mkdir(), words, ("a.hdr", "no such file"), run="scene"),
        Case("map_of_another_kind", _envi(HEADER), words.replace("out.tif", "out.jpg"), ("out.jpg",), run="scene"),
        Case("unknown_classifier", _envi(HEADER), f"{words} --classifier forest", ("forest",), run="scene"),
    ]
    return cases
