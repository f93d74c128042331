"""Arrays in MATLAB files (.mat): version 5 through scipy, version 7.3, which is HDF5, as `hdf5` reads it.

Names and sizes are read first, and judged before an array is decoded. Nothing but plain arrays of numbers is read.
"""

from __future__ import annotations

import logging
import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np
import scipy.io

from statefield.datasets.readers import hdf5
from statefield.datasets.readers.limits import require_memory
from statefield.errors import DataError

SUFFIXES = (".mat",)
_NUMBERS = ("double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "logical")
# what scipy's reader raises for files that are cut off, altered, or of MATLAB 4 by accident
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    MemoryError,
    OverflowError,
    EOFError,
    struct.error,
    zlib.error,
)

# of version 5, by the numbers of MATLAB's "MAT-File Format"
_MATRIX, _COMPRESSED = 14, 15
_STORED_NUMBERS = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13}
_FULL_NUMBERS = range(6, 16)  # classes of arrays: double to uint64
_COMPLEX = 0x0800
_HEADER = 2**16  # bytes: more than flags, axes and name of a variable ever take

logger = logging.getLogger(__name__)


def read_matlab(path: str | os.PathLike[str], names: Sequence[str], ndim: int) -> np.ndarray:
    """One array of `ndim` axes, in MATLAB's order of axes and the file's own dtype.

    Args:
        names: what the array may be called, the likeliest first. Where none of them is in the file but a single array
            of `ndim` axes is, that one is read and its name logged: copies of public scenes rename their variables.

    Raises:
        DataError: no such file, no MATLAB file, damaged; none or several arrays that could be meant; one that is
            empty, holds no numbers, or is larger than the memory limit.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    if h5py.is_hdf5(path):
        # MATLAB stores its axes from last to first
        return hdf5.read_array(path, _choose(path, names, ndim, hdf5.array_shapes(path)), ndim).T
    try:
        listed = scipy.io.whosmat(path)
    except (*_DAMAGE, scipy.io.matlab.MatReadError, NotImplementedError) as error:
        raise _unreadable(path, error) from error
    variables = {name: (tuple(shape), kind) for name, shape, kind in listed}
    if len(variables) < len(listed):
        raise DataError(f"{path}: two variables have the same name, so the file is damaged. Copy or download it again.")
    name = _choose(path, names, ndim, {name: shape for name, (shape, _) in variables.items()})
    shape, kind = variables[name]
    if kind not in _NUMBERS:
        raise DataError(f"{path}: {name!r} is of MATLAB's class {kind}; an array of numbers is needed.")
    if 0 in shape:
        raise DataError(f"{path}: {name!r} has the shape {shape}; axes of length >= 1 are needed.")
    require_memory(path, 8 * math.prod(shape), f"{' x '.join(map(str, shape))} values in {name!r}")
    try:
        _require_numbers(path, name)
        array = scipy.io.loadmat(path, variable_names=[name])[name]
    except (*_DAMAGE, scipy.io.matlab.MatReadError, NotImplementedError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or array.shape != shape:
        raise DataError(f"{path}: {name!r} is not the array of real numbers that its header says; copy it again.")
    return array


def _require_numbers(path: Path, name: str) -> None:
    """Raise ValueError unless the variable is stored as real numbers: scipy takes the file's word for the type of the
    stored numbers, and a type that does not exist ends the process.
    """
    with path.open("rb") as file:
        start = file.read(128)
        if 0 in start[:4]:
            return  # version 4, which scipy reads in Python
        order = "<" if start[126:128] == b"IM" else ">"
        for header in _variable_headers(file, order):
            (flags,) = struct.unpack_from(f"{order}I", header, 16)
            _, at = _element(header, 24, order)  # the lengths of the axes
            found, at = _element(header, at, order)
            if found.decode("latin1") != name:
                continue
            kind, _ = _tag(header, at, order)
            if flags & 0xFF not in _FULL_NUMBERS or flags & _COMPLEX:
                raise ValueError(f"an array with the flags {flags:#x}, where one of real numbers is needed")
            if kind not in _STORED_NUMBERS:
                raise ValueError(f"numbers of the type {kind}, which there is not")
            return
    raise ValueError(f"no variable {name!r}")


def _variable_headers(file: BinaryIO, order: str) -> Iterator[bytes]:
    """The first bytes of each variable, from its own tag on."""
    while tag := file.read(8):
        kind, length = struct.unpack(f"{order}II", tag)
        after = file.tell() + length
        if kind == _COMPRESSED:
            yield zlib.decompressobj().decompress(file.read(min(length, _HEADER)), _HEADER)
        elif kind == _MATRIX:
            yield tag + file.read(min(length, _HEADER))
        else:
            raise ValueError(f"an element of the type {kind} where a variable is expected")
        file.seek(after)


def _tag(header: bytes, at: int, order: str) -> tuple[int, int]:
    """Type and length in bytes of the element at `at`, as they are stored."""
    word, length = struct.unpack_from(f"{order}II", header, at)
    return (word & 0xFFFF, word >> 16) if word >> 16 else (word, length)


def _element(header: bytes, at: int, order: str) -> tuple[bytes, int]:
    """The content of the element at `at`, and where the next one begins."""
    _, length = _tag(header, at, order)
    (word,) = struct.unpack_from(f"{order}I", header, at)
    begin = at + (4 if word >> 16 else 8)  # up to four bytes stand in the tag itself
    after = at + 8 if word >> 16 else begin + (length + 7) // 8 * 8
    if after > len(header):
        raise ValueError("a variable's header that does not end")
    return header[begin : begin + length], after


def _choose(path: Path, names: Sequence[str], ndim: int, shapes: dict[str, tuple[int, ...]]) -> str:
    for name in names:
        if name in shapes:
            if len(shapes[name]) != ndim:
                raise DataError(f"{path}: {name!r} has the shape {shapes[name]}; {ndim} axes are needed.")
            return name
    fitting = [name for name, shape in shapes.items() if len(shape) == ndim and min(shape, default=0) > 1]
    if len(fitting) == 1:
        logger.info("%s: reading %r, its only array of %d axes", path, fitting[0], ndim)
        return fitting[0]
    found = ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items())) or "nothing"
    raise DataError(
        f"{path}: none of {', '.join(map(repr, names))} is in it, and {len(fitting)} arrays of {ndim} axes are, where "
        f"one is needed to be sure. It holds: {found}."
    )


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: this is no MATLAB file that can be read, or it is damaged or cut off ({type(error).__name__}: "
        f"{error}). Copy or download it again."
    )
