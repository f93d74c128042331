"""Defective files, as they come from broken downloads, odd writers and bad intent. Each writer replaces one file.

A case is the 3-D volume of `fakes.medical.write_pairs_of_volumes`: [X, Y, Z] = 20 x 24 x 8 at 0.8, 0.9, 2.5 mm.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from fakes.medical import write_volume
from PIL import Image

_TOO_LARGE = "GB decoded; the limit is|1032 times that at most"


@dataclass(frozen=True)
class Defect:
    """A file gone wrong. spoil: makes it so, in place; reason: what the message must say beside the file's name."""

    name: str
    spoil: Callable[[Path], object]
    reason: str


def image_defects() -> list[Defect]:
    """What is refused in an image, wherever it is read."""
    return [
        Defect("truncated_gz", lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "cut off or damaged"),
        Defect("empty_file", lambda p: p.write_bytes(b""), "0 bytes found|cut off"),
        Defect("not_gzip", lambda p: p.write_bytes(b"<html>404</html>" * 30), "damaged"),
        Defect("claims_100_gb", lambda p: _claim(p, (3000, 3000, 2800)), _TOO_LARGE),
        Defect("claims_more_than_gzip_can_hold", lambda p: _claim(p, (1000, 1000, 900)), "1032 times that at most"),
        Defect("dims_overflow", lambda p: _claim(p, (1 << 40, 1 << 40, 16)), _TOO_LARGE),
        Defect("inflates_beyond_the_header", _inflate, "dimensions do not match the file"),
        Defect("negative_dimension", lambda p: _patch(p, 42, "h", -5), "dimensions .* found"),
        Defect("five_axes", lambda p: write_volume(p, np.ones((4, 4, 2, 2, 2))), "5 axes"),
        Defect("four_axes", lambda p: write_volume(p, _image((20, 24, 8, 3)), _affine()), "3 channels"),
        Defect("singular_affine", lambda p: _place(p, np.diag([0.8, 0.9, 0.0, 1.0])), "cannot be inverted"),
        Defect("nan_affine", lambda p: _place(p, np.diag([0.8, np.nan, 2.5, 1.0])), "cannot be inverted"),
        Defect("zero_spacing", lambda p: _pixdim(p, 0.0), "spacings 0.8, 0.9, 0 mm .* no size"),
        Defect("nan_spacing", lambda p: _pixdim(p, np.nan), "spacings 0.8, 0.9, nan mm .* no size"),
        Defect("nan_voxels", lambda p: _voxels(p, {(1, 2, 3): np.nan}), r"1 of 3840 voxels are NaN .* \(1, 2, 3\)"),
        Defect("infinite_voxels", lambda p: _voxels(p, {(0, 0, 0): np.inf, (1, 1, 1): -np.inf}), "2 of 3840 voxels"),
        Defect("colour_voxels", _colour, "scalar integer or float"),
    ]


def picture_defects() -> list[Defect]:
    """What is refused in a picture, wherever it is read; name: the file's, as its ending decides who reads it."""
    transparent = np.dstack([np.full((16, 16, 3), 90, np.uint8), np.full((16, 16, 1), 128, np.uint8)])
    return [
        Defect("alpha.png", lambda p: Image.fromarray(transparent).save(p), "256 pixels are transparent"),
        Defect("colour.png", lambda p: Image.fromarray(transparent[..., :3]).save(p), "3 channels"),
        Defect("bomb.png", write_bomb_png, "too many pixels"),
        Defect("strip.tif", write_bomb_tiff, "too many pixels|cut off"),
        Defect("page.html.png", lambda p: p.write_bytes(b"<html>404</html>"), "no picture"),
        Defect("two_frames.tif", _two_frames, "2 frames"),
        Defect(
            "nan.tif", lambda p: Image.fromarray(np.full((16, 16), np.nan, np.float32)).save(p), "256 pixels are NaN"
        ),
    ]


def label_defects() -> list[Defect]:
    """What is refused in a label map of the classes 0, 1 and 2, wherever it is read."""
    affine = _affine()
    labels = np.zeros((20, 24, 8))
    labels[2:6, 2:6, 2:6] = 1
    return [
        Defect("four_axes", lambda p: write_volume(p, np.zeros((20, 24, 8, 3)), affine), "three axes are needed"),
        Defect("gap_in_values", lambda p: write_volume(p, labels * 5 + (labels == 0) * 2, affine), "label values 5"),
        Defect(
            "half_values", lambda p: write_volume(p, labels * 0.5, affine, np.float32), r"no integers, such as 0\.5"
        ),
        Defect("nan_values", lambda p: write_volume(p, labels * np.nan, affine, np.float32), "no integers"),
        Defect("negative", lambda p: write_volume(p, labels * -3, affine), "label values -3"),
        Defect(
            "above_the_classes", lambda p: write_volume(p, labels * 3, affine, np.uint8), "declared classes are 0 to 2"
        ),
        Defect("other_shape", lambda p: write_volume(p, labels[:, :, :7], affine), "shapes"),
        Defect("shifted", lambda p: write_volume(p, labels, affine + _entry(0, 3, 1.5)), "affines differ by up to 1.5"),
        Defect("rotated", lambda p: write_volume(p, labels, _rotated(affine)), "affines differ"),
        Defect("truncated_gz", lambda p: p.write_bytes(p.read_bytes()[:-20]), "cut off or damaged"),
        Defect("claims_100_gb", lambda p: _claim(p, (3000, 3000, 2800)), _TOO_LARGE),
    ]


def accepted_labels() -> list[Defect]:
    """Label maps that are odd and sound; reason: what is logged ("" where nothing needs to be said)."""
    affine = _affine()
    labels = np.zeros((20, 24, 8))
    labels[2:6, 2:6, 2:6] = 1
    turned = nib.orientations.inv_ornt_aff([[0, -1], [1, 1], [2, 1]], labels.shape)
    return [
        Defect("whole_floats", lambda p: write_volume(p, labels, affine, np.float32), "stored as float32"),
        Defect("scaled_floats", lambda p: write_volume(p, labels, affine, np.float64), "stored as float64"),
        Defect("affine_noise", lambda p: write_volume(p, labels, affine + _entry(1, 3, 1e-8), np.uint8), ""),
        Defect("affine_rounding", lambda p: write_volume(p, labels, affine + _entry(1, 3, 5e-4), np.uint8), ""),
        Defect("mirrored_storage", lambda p: write_volume(p, labels[::-1], affine @ turned, np.uint8), ""),
        Defect("trailing_axis", lambda p: write_volume(p, labels[..., None], affine, np.uint8), ""),
        Defect("negative_spacing", lambda p: (write_volume(p, labels, affine), _pixdim(p, -2.5)), "negative spacings"),
        Defect("padded_file", _pad, "16 bytes after the voxels are ignored"),
    ]


def write_bomb_png(path: Path, side: int = 60_000) -> Path:
    """A grey PNG of a few hundred bytes whose header claims `side` x `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def write_bomb_tiff(path: Path, side: int = 60_000) -> Path:
    """A TIFF of a hundred bytes whose tags claim `side` x `side` pixels in one strip."""
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 4, side), (279, 4, 100)]
    entries = b"".join(struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value) for tag, kind, value in tags)
    path.write_bytes(b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


def _affine() -> np.ndarray:
    return np.diag([-0.8, -0.9, 2.5, 1.0])


def _entry(row: int, column: int, value: float) -> np.ndarray:
    change = np.zeros((4, 4))
    change[row, column] = value
    return change


def _rotated(affine: np.ndarray) -> np.ndarray:
    angle = np.deg2rad(2.0)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ affine


def _image(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, shape)


def _content(path: Path) -> bytearray:
    return bytearray(gzip.decompress(path.read_bytes()))


def _patch(path: Path, offset: int, kind: str, *values: float) -> None:
    content = _content(path)
    struct.pack_into(f"<{len(values)}{kind}", content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content), mtime=0))


def _claim(path: Path, shape: tuple[int, int, int]) -> None:
    """A NIfTI-2 file of about a kilobyte whose header claims `shape` voxels of float32."""
    header = nib.Nifti2Header()
    header.set_data_dtype(np.float32)
    header["dim"][:4] = [3, *shape]
    header["dim"][4:] = 1
    header["pixdim"][1:4] = 1
    header["vox_offset"], header["magic"] = 544, b"n+2\0\r\n\x1a\n"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + bytes(100_000), mtime=0))
    assert path.stat().st_size < 2000


def _inflate(path: Path) -> None:
    path.write_bytes(gzip.compress(bytes(_content(path)) + bytes(50_000_000), 9, mtime=0))


def _pad(path: Path) -> None:
    path.write_bytes(gzip.compress(bytes(_content(path)) + bytes(16), mtime=0))


def _place(path: Path, affine: np.ndarray) -> None:
    """The sform as given, without a qform: nibabel itself would not write it."""
    _patch(path, 280, "f", *(float(v) for v in affine[:3].ravel()))
    _patch(path, 252, "h", 0, 1)


def _pixdim(path: Path, value: float) -> None:
    """The spacing of the third axis, in a file that has a qform alone."""
    _patch(path, 88, "f", value)
    _patch(path, 252, "h", 1, 0)


def _voxels(path: Path, values: dict[tuple[int, int, int], float]) -> None:
    image = _image((20, 24, 8)).astype(np.float32)
    for place, value in values.items():
        image[place] = value
    write_volume(path, image, _affine(), np.float32)


def _two_frames(path: Path) -> None:
    frames = [Image.fromarray(np.full((16, 16), value, np.uint8)) for value in (1, 2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def _colour(path: Path) -> None:
    rgb = np.zeros((20, 24, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(rgb, _affine()).to_filename(path)
