"""Pictures (PNG, JPEG, TIFF, BMP, GIF) and NIfTI volumes."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zlib
from collections.abc import Callable

import nibabel as nib
import numpy as np
from fakes.bad_input import write_bomb_png, write_bomb_tiff
from hardening.case import Case, Write, both, patched, write_bytes
from PIL import Image

_GREY = np.random.default_rng(0).integers(0, 255, (20, 24)).astype(np.uint8)
_PREDICT = "medical predict --run RUN AT/p.jpg --output AT/out.png --device cpu"
_SCORE = "medical evaluate --classes 3 --jobs 1 --json AT/o.json --report AT/o.html --spacing-mm 1 1 AT/t.png AT/"
_EVALUATE = "medical evaluate AT/p.{end} AT/t.{end} --classes 3 --jobs 1 --json AT/o.json --csv AT/o.csv"


def picture_bytes(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    """A sound picture as a file of this kind."""
    stream = io.BytesIO()
    (image or Image.fromarray(_GREY)).save(stream, kind, **options)
    return stream.getvalue()


def volume_bytes(*, nifti2: bool = False) -> bytes:
    """Labels 0 and 1 of 6 x 5 x 4 voxels as an unpacked NIfTI file."""
    labels = np.zeros((6, 5, 4), np.uint8)
    labels[2:4, 1:3, 1:3] = 1
    kind = nib.Nifti2Image if nifti2 else nib.Nifti1Image
    return kind(labels, np.diag([0.8, 0.9, 2.5, 1.0])).to_bytes()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *, depth: int = 8, colour: int = 0, between: bytes = b"", rows: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = _chunk(b"IDAT", zlib.compress(rows or bytes((width + 1) * height)))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + between + body + _chunk(b"IEND", b"")


def _loop(name: str) -> Write:
    return lambda at: (at / name).symlink_to(name)


def _folder(name: str) -> Write:
    return lambda at: (at / name).mkdir()


def _closed(write: Write, name: str) -> Write:
    return both(write, lambda at: (at / name).chmod(0))


def pictures() -> list[Case]:
    """What `medical evaluate` is given as a predicted mask, and `medical predict` as a photograph."""
    cases: list[tuple[str, str, Write, str]] = []
    for kind, end in (("PNG", "png"), ("TIFF", "tif"), ("BMP", "bmp"), ("GIF", "gif"), ("JPEG", "jpg")):
        sound = picture_bytes(kind)
        for cut in (0, 10, len(sound) // 2):
            cases.append((f"{kind}_cut_at_{cut}", f"p.{end}", write_bytes(f"p.{end}", sound[:cut]), "cut off"))
        cases.append((f"{kind}_is_a_page", f"p.{end}", write_bytes(f"p.{end}", b"<!DOCTYPE html>404"), "no picture"))
        if end in ("png", "jpg"):  # a mask and a photograph
            cases.append(
                (f"{kind}_is_a_folder", f"p.{end}", _folder(f"p.{end}"), "no image|a file found where a folder")
            )
    frames = [Image.fromarray(_GREY), Image.fromarray(255 - _GREY)]
    several = {"save_all": True, "append_images": frames[1:]}
    text_bomb = _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(5_000_000), 9))
    cmyk = picture_bytes("JPEG", Image.fromarray(_GREY).convert("CMYK"))
    colours = np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)
    defects: list[tuple[str, str, bytes, str]] = [
        ("no_width", "p.png", _png(0, 20), "damaged"),
        ("bad_depth", "p.png", _png(20, 20, depth=7), "damaged"),
        ("bad_colour", "p.png", _png(20, 20, colour=5), "damaged"),
        ("few_rows", "p.png", _png(24, 20, rows=bytes(30)), "damaged"),
        ("text_bomb", "p.png", _png(24, 20, between=text_bomb), "damaged"),
        ("damaged_rows", "p.png", patched(picture_bytes("PNG"), 60, b"\xff" * 20), "damaged"),
        ("animated_png", "p.png", picture_bytes("PNG", frames[0], **several), "2 frames"),
        ("animated_gif", "p.gif", picture_bytes("GIF", frames[0], **several), "2 frames"),
        ("colours", "p.png", picture_bytes("PNG", Image.fromarray(colours)), "colours found"),
        ("cmyk", "p.jpg", cmyk, "colour mode CMYK"),
        ("nan", "p.tif", picture_bytes("TIFF", Image.fromarray(np.full((20, 24), np.nan, np.float32))), "no integers"),
        ("above_the_classes", "p.png", picture_bytes("PNG", Image.fromarray(_GREY)), "declared classes are 0 to 2"),
    ]
    cases += [(name, file, write_bytes(file, content), says) for name, file, content, says in defects]
    cases += [
        ("link_to_itself", "p.png", _loop("p.png"), "nothing found"),
        ("link_to_nothing", "p.png", lambda at: (at / "p.png").symlink_to("b.png"), "nothing found"),
        ("pipe", "p.png", lambda at: os.mkfifo(at / "p.png"), "nothing found"),
        ("bomb_png", "p.png", lambda at: write_bomb_png(at / "p.png"), "too many pixels"),
        ("bomb_tiff", "p.tif", lambda at: write_bomb_tiff(at / "p.tif"), "too many pixels|cut off"),
    ]
    if os.geteuid():
        cases.append(("closed", "p.png", _closed(write_bytes("p.png", _png(24, 20)), "p.png"), "permission"))
    truth = picture_bytes("PNG", Image.fromarray(_GREY % 3))
    found = []
    for name, file, write, says in cases:
        if file.endswith(".jpg"):  # no mask is read from JPEG
            found.append(Case(name, write, _PREDICT, (file, says), run="pictures"))
        else:
            said = "t.png" if name == "PNG_is_a_folder" else file  # beside a folder, the file is what is wrong
            found.append(Case(name, both(write, write_bytes("t.png", truth)), _SCORE + file, (said, says)))
    return found


def volumes() -> list[Case]:
    """What `medical evaluate` is given as a prediction; its target is sound."""
    sound = volume_bytes()
    field: Callable[[int, str, object], bytes] = lambda at, form, value: patched(sound, at, struct.pack(form, value))  # noqa: E731
    defects: dict[str, tuple[bytes, str]] = {
        f"cut_at_{cut}": (sound[:cut], "cut off|damaged") for cut in (0, 3, 100, 347, 348, 352, 400, len(sound) - 1)
    }
    defects |= {
        "says_nifti2": (field(0, "<i", 540), "NIfTI|damaged|dimensions|spacings"),
        "no_axes": (field(40, "<h", 0), "dimensions"),
        "nine_axes": (field(40, "<h", 9), "dimensions|damaged"),
        "negative_axis": (field(42, "<h", -6), "dimensions"),
        "axis_of_0": (field(44, "<h", 0), "dimensions"),
        "longer_axis": (field(46, "<h", 30_000), "cut off"),
        "unknown_type": (field(70, "<h", 9999), "damaged|type"),
        "type_0": (field(70, "<h", 0), "damaged|type"),
        "complex_type": (field(70, "<h", 32), "cut off|type"),
        "colour_type": (field(70, "<h", 128), "cut off|type"),
        "long_double_type": (field(70, "<h", 1536), "cut off|type|not supported"),
        "voxels_before_the_header": (field(108, "<f", -5.0), "damaged"),
        "voxels_at_nan": (field(108, "<f", float("nan")), "damaged|cannot be"),
        "voxels_at_infinity": (field(108, "<f", float("inf")), "damaged|cannot be"),
        "voxels_behind_the_end": (field(108, "<f", 1e6), "cut off"),
        "slope_infinite": (field(112, "<f", float("inf")), "scaling|integers|slope"),
        "intercept_nan": (patched(field(112, "<f", 1.0), 116, struct.pack("<f", float("nan"))), "scaling|integers"),
        "half_slope": (field(112, "<f", 0.5), "no integers"),
        "header_apart": (patched(sound, 344, b"ni1\0"), "apart"),
        "other_magic": (patched(sound, 344, b"abc\0"), "NIfTI|apart"),
        "affine_nan": (field(280, "<f", float("nan")), "affine"),
        "affine_infinite": (field(296, "<f", float("inf")), "affine"),
        "affine_of_nothing": (patched(sound, 280, bytes(48)), "affine"),
        "all_ones": (b"\xff" * 4000, "the header gives the spacings nan"),
        "all_zeros": (bytes(4000), "the header gives the spacings 0, 0, 0"),
        "nifti2_of_2_60_voxels": (
            patched(volume_bytes(nifti2=True), 16, struct.pack("<4q", 3, 1 << 20, 1 << 20, 1 << 20)),
            "GB decoded|cut off",
        ),
    }
    cases = [
        Case(
            f"nii_{name}",
            both(write_bytes("p.nii", content), write_bytes("t.nii", sound)),
            _EVALUATE.format(end="nii"),
            ("p.nii", says),
        )
        for name, (content, says) in defects.items()
    ]
    packed = gzip.compress(sound, mtime=0)
    archives = {
        **{f"cut_at_{cut}": (packed[:cut], "cut off") for cut in (0, 1, 9, 15, len(packed) // 2, len(packed) - 1)},
        "not_packed": (sound, "damaged"),
        "packed_twice": (gzip.compress(packed, mtime=0), "NIfTI|damaged|cut off"),
        "wrong_sum": (patched(packed, len(packed) - 8, b"abcd"), "damaged"),
        "zeros_for_ever": (gzip.compress(sound + bytes(20_000_000), 9, mtime=0), "dimensions do not match"),
    }
    cases += [
        Case(
            f"nii_gz_{name}",
            both(write_bytes("p.nii.gz", content), write_bytes("t.nii.gz", packed)),
            _EVALUATE.format(end="nii.gz"),
            ("p.nii.gz", says),
        )
        for name, (content, says) in archives.items()
    ]
    return cases
