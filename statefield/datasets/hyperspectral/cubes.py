"""One file with a cube of bands and no labels: what a trained classifier is asked to map.

.mat (its only array of three axes), .npy, GeoTIFF (.tif), ENVI (the data file or its header .hdr).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np

from statefield.datasets.hyperspectral.adapter import plain_meta
from statefield.datasets.readers import raster
from statefield.datasets.readers.limits import require_memory
from statefield.datasets.readers.matlab import read_matlab
from statefield.datasets.sample import Meta
from statefield.errors import DataError

_ENVI_DATA = ("", ".img", ".dat", ".raw", ".bsq", ".bil", ".bip")


@dataclass(frozen=True, eq=False)
class Cube:
    """values: float32 [C, H, W], the file's own. valid: bool [H, W], where every band has a finite value that is data.

    meta: the place on the ground, where the file has one.
    """

    values: np.ndarray
    valid: np.ndarray
    meta: Meta


def read_cube(path: str | os.PathLike[str]) -> Cube:
    """The cube of a file; of .mat and .npy the bands are the last axis, as scenes are published.

    Raises:
        DataError: no such file, damaged, larger than the memory limit, no cube of real numbers.
        ConfigError: a URL or another name that is no file's.
    """
    path = raster.local_path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; a cube as .mat, .npy, GeoTIFF or ENVI is needed.")
    suffix = path.suffix.lower()
    if suffix in (".mat", ".npy"):
        cube = read_matlab(path, (path.stem,), 3) if suffix == ".mat" else _read_array(path)
        values = np.ascontiguousarray(np.moveaxis(cube, -1, 0), dtype=np.float32)
        return Cube(values, _finite(values), plain_meta(path.stem, path))
    if suffix == ".hdr":
        path = _data_of(path)
    driver = raster.DRIVER if suffix in raster.SUFFIXES else "ENVI"
    with raster.opened(path, driver=driver) as dataset:
        header = raster.header_of(dataset)
        if any("complex" in kind for kind in header.dtypes):
            raise DataError(f"{path}: bands of complex numbers found; integers or floats are needed.")
        itemsize = max(4, *(np.dtype(kind).itemsize for kind in header.dtypes))
        pixels = header.height * header.width
        require_memory(
            path,
            header.num_bands * (itemsize + 5) * pixels,
            f"{header.num_bands} bands of {header.height} x {header.width} pixels",
        )
        values = dataset.read().astype(np.float32)
        valid = np.asarray((dataset.read_masks() > 0).all(0)) & _finite(values)
    return Cube(values, valid, raster.meta_of(header, case=path.stem))


def _finite(values: np.ndarray) -> np.ndarray:
    return np.asarray(np.isfinite(values).all(0))


def _read_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError, TokenError, TypeError) as error:
        raise DataError(f"{path}: this is no array that can be read ({error}). Copy or save it again.") from error
    if array.ndim != 3 or array.dtype.kind not in "biuf" or not array.size:
        raise DataError(
            f"{path}: an array of shape {array.shape} and type {array.dtype} found; rows x columns x bands of real "
            "numbers are needed."
        )
    require_memory(path, 4 * array.size, f"an array of shape {array.shape}")
    return array


def _data_of(header: Path) -> Path:
    """The data file beside an ENVI header: NAME.hdr of NAME, NAME.dat and so on, or NAME.dat.hdr of NAME.dat."""
    for suffix in _ENVI_DATA:
        beside = header.with_suffix(suffix)
        if beside.is_file():
            return beside
    raise DataError(
        f"{header}: no data file beside this ENVI header; {header.stem}, or {header.stem} with one of "
        f"{', '.join(_ENVI_DATA[1:])}, is needed."
    )
