"""Arrays in HDF5 files (.h5), read without following anything that the file points to outside itself.

An HDF5 file can hold links to other files, data sets whose bytes lie elsewhere (external storage, virtual data sets),
and objects that are pickled or of variable length. None of these is read. Sizes are judged before decoding.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from statefield.datasets.readers.limits import require_memory
from statefield.errors import DataError

SUFFIXES = (".h5", ".hdf5")


def read_array(path: str | os.PathLike[str], name: str, ndim: int) -> np.ndarray:
    """The data set `name` at the top of an HDF5 file, an array of `ndim` axes in the file's own dtype.

    Raises:
        DataError: no HDF5 file, damaged, no such data set, one that lies outside the file, one that is no array of
            numbers of `ndim` axes, or one larger than the memory limit.
    """
    path = Path(path)
    with opened(path) as file:
        item = _own_dataset(path, file, name)
        if item.dtype.kind not in "biuf":
            raise DataError(f"{path}: {name!r} holds values of type {item.dtype}; integers or floats are needed.")
        if len(item.shape) != ndim or 0 in item.shape:
            raise DataError(f"{path}: {name!r} has the shape {item.shape}; {ndim} axes of length >= 1 are needed.")
        for shape, of_a_chunk in ((item.shape, ""), (item.chunks or (), " in one chunk")):
            num_values = math.prod(shape)
            what = f"{' x '.join(map(str, shape))} values of {item.dtype}{of_a_chunk}"
            require_memory(path, num_values * max(4, item.dtype.itemsize), what)
        values: np.ndarray = item[()]
        return values


def array_shapes(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """The arrays at the top of an HDF5 file by name, with their shapes; what is a link or a group is left out."""
    path = Path(path)
    with opened(path) as file:
        return {
            name: tuple(file[name].shape)
            for name in file.keys()  # noqa: SIM118  iterating the file itself is the same, but reads worse
            if isinstance(file.get(name, getlink=True), h5py.HardLink)
            and file.get(name, getclass=True) is h5py.Dataset
            and file[name].shape is not None
        }


def _own_dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    if name not in file.keys():  # noqa: SIM118  `in file` would follow the link
        raise DataError(f"{path}: there is no {name!r} in it, but {', '.join(sorted(file.keys())) or 'nothing'}.")
    link = file.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise DataError(f"{path}: {name!r} is a link to another place, which is not followed; store the array itself.")
    if file.get(name, getclass=True) is not h5py.Dataset:
        raise DataError(f"{path}: {name!r} is no array but a group or a type; an array is needed.")
    item = file[name]
    if item.is_virtual or item.external:
        raise DataError(f"{path}: {name!r} keeps its values in other files, which are not read; store them here.")
    return item


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file for reading; whatever h5py raises while it is open becomes a `DataError` that names it."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        # h5py turns the library's errors into these; all of them mean a file that cannot be read
        raise DataError(
            f"{path}: this is no HDF5 file that can be read, or it is damaged or cut off ({error}). Copy or download "
            "it again."
        ) from error
