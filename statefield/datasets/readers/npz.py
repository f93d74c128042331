"""Arrays in NumPy's .npz archives, never through pickle, and judged by their headers before they are unpacked."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.lib import format as npy

from statefield.datasets.readers.limits import require_memory
from statefield.errors import DataError

# what zipfile and NumPy raise for bytes that are no archive, no member or no header of an array (which NumPy parses)
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    SyntaxError,
    KeyError,
    TypeError,
    TokenError,
)


def read_array(path: str | os.PathLike[str], name: str, ndim: int) -> np.ndarray:
    """The array `name` of an .npz file, of `ndim` axes, in the file's own dtype.

    Raises:
        DataError: no .npz file, damaged, no such array, objects instead of numbers, other axes, an archive member that
            is larger than its array (or said to be so), or an array larger than the memory limit.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        with zipfile.ZipFile(path) as archive:
            return _array(path, archive, name, ndim)
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(
            f"{path}: this is no .npz file that can be read, or it is damaged or cut off ({error}). Copy or download "
            "it again."
        ) from error


def _array(path: Path, archive: zipfile.ZipFile, name: str, ndim: int) -> np.ndarray:
    members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
    if name not in members:
        raise DataError(f"{path}: there is no {name!r} in it, but {', '.join(sorted(members)) or 'nothing'}.")
    with archive.open(members[name]) as stream:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
        if dtype.kind not in "biuf":
            raise DataError(f"{path}: {name!r} holds values of type {dtype}; integers or floats are needed.")
        if len(shape) != ndim or 0 in shape:
            raise DataError(f"{path}: {name!r} has the shape {shape}; {ndim} axes of length >= 1 are needed.")
        num_values = math.prod(shape)
        what = f"{' x '.join(map(str, shape))} values of {dtype}"
        require_memory(path, num_values * max(4, dtype.itemsize), what)
    with archive.open(members[name]) as stream:
        return npy.read_array(stream, allow_pickle=False)
