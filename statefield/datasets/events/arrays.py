"""Events as text (.csv, .txt), NumPy arrays (.npz, .npy) and HDF5 (.h5: DSEC's layout and Prophesee's)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Any

import h5py
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from statefield.datasets.events.stream import BYTES_PER_EVENT, DEFAULT_CHUNK, Events, joined, made, within_memory
from statefield.datasets.readers.digits import whole_number
from statefield.datasets.readers.hdf5 import opened
from statefield.datasets.readers.limits import require_memory
from statefield.datasets.readers.npz import read_array
from statefield.errors import DataError

_NAMES = {
    "t": ("t", "ts", "time", "timestamp", "timestamps", "t_us"),
    "x": ("x", "xs", "col", "column"),
    "y": ("y", "ys", "row"),
    "p": ("p", "ps", "pol", "polarity", "polarities", "on"),
}
_COLUMNS = "txyp"
_HDF5_FILTERS = {32001: ("Blosc", "hdf5plugin"), 32015: ("Zstandard", "hdf5plugin"), 32004: ("LZ4", "hdf5plugin")}
_ECF = 0x8ECF
Array = NDArray[Any]


def read_text(path: Path, columns: str | None = None) -> Events:
    """All events of a text file; see `text_chunks`."""
    return joined(within_memory(path, text_chunks(path, columns=columns)))


def text_chunks(path: Path, events_per_chunk: int = DEFAULT_CHUNK, columns: str | None = None) -> Iterator[Events]:
    """Events, a line each: four numbers divided by commas or blanks.

    Args:
        columns: their order, four letters such as "xypt". None: as the first line names them (t, x, y, p or polarity),
            or "txyp" in a file without names. Times with a decimal point are seconds, others microseconds.

    Raises:
        DataError: a line that is not four numbers, or values that cannot be; names the line.
    """
    order = _order(columns, path)
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        first = 1
        in_seconds: bool | None = None
        while lines := list(itertools.islice(file, events_per_chunk)):
            rows = [line.replace(",", " ").replace(";", " ").split() for line in lines]
            if first == 1 and rows[0] and not _is_number(rows[0][0]):
                order = order if columns else _named_order(rows[0], path)
                rows = rows[1:]
                first = 2
            start = first
            first += len(rows)
            while rows and not rows[-1]:
                rows.pop()
            if not rows:
                continue
            if in_seconds is None:
                in_seconds = any("." in row[order.index("t")] for row in rows[:100] if len(row) == 4)
            yield _of_rows(rows, order, in_seconds, path, start)


def read_arrays(path: Path, columns: str | None = None) -> Events:
    """Events of an .npz or .npy file: arrays t, x, y, p (or usual other names), a structured array, or rows of four.

    Args:
        columns: the order in rows of four, such as "txyp". None finds the time (never falling, the largest) and the
            polarity (0, 1, -1 alone) by themselves; the other two are x and y.

    Raises:
        DataError: other content, columns that cannot be told apart, values that cannot be; see also `read_array`.
    """
    if path.suffix == ".npz":
        if not path.is_file():
            raise DataError(f"{path}: no such file.")
        names = _npz_names(path)
        chosen = {key: next((name for name in known if name in names), None) for key, known in _NAMES.items()}
        if all(chosen.values()):
            t, x, y, p = (read_array(path, str(chosen[key]), 1) for key in _COLUMNS)
            return made(t, x, y, p, where=path)
        if len(names) != 1:
            raise DataError(
                f"{path}: arrays {', '.join(names)}; t, x, y and p are needed, or one array of rows of four."
            )
        rows = read_array(path, names[0], 2)
    else:
        rows = _npy_array(path)
    if rows.dtype.names:
        fields = {name.lower(): name for name in rows.dtype.names}
        found = [next((fields[name] for name in _NAMES[key] if name in fields), None) for key in _COLUMNS]
        if None in found:
            raise DataError(f"{path}: fields {', '.join(rows.dtype.names)}; t, x, y and p are needed.")
        t, x, y, p = (rows[name] for name in found if name is not None)
        return made(t, x, y, p, where=path)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise DataError(f"{path}: an array of shape {rows.shape}; rows of four are needed: t, x, y, polarity.")
    order = _order(columns, path) if columns else _found_order(rows, path)
    t, x, y, p = (rows[:, order.index(key)] for key in _COLUMNS)
    return made(t, x, y, p, where=path)


def read_hdf5(path: Path) -> Events:
    """All events of an HDF5 file; see `hdf5_chunks`."""
    with opened(path) as file:  # a few hundred bytes can claim any length, of which nothing is stored
        _, count = _event_arrays(path, file)
        require_memory(path, BYTES_PER_EVENT * count, f"{count} events")
    return joined(within_memory(path, hdf5_chunks(path)))


def hdf5_chunks(path: Path, events_per_chunk: int = DEFAULT_CHUNK) -> Iterator[Events]:
    """Events of an HDF5 file: `events/{t,x,y,p}` with `t_offset` (DSEC), or `CD/events` of Prophesee.

    Raises:
        DataError: another layout, data outside the file, values that cannot be, or data compressed by a filter that is
            not installed; the filter and what provides it are told.
    """
    with opened(path) as file:
        width, height = _hdf5_size(file)
        arrays, count = _event_arrays(path, file)
        if isinstance(arrays, h5py.Dataset):
            for start in range(0, max(1, count), events_per_chunk):
                part = arrays[start : start + events_per_chunk]
                yield made(part["t"], part["x"], part["y"], part["p"], width, height, path, start)
            return
        offset = _offset(path, file)
        for start in range(0, max(1, count), events_per_chunk):
            t, x, y, p = (arrays[key][start : start + events_per_chunk] for key in _COLUMNS)
            yield made(t.astype(np.int64) + offset, x, y, p, width, height, path, start)


def _event_arrays(path: Path, file: h5py.File) -> tuple[h5py.Dataset | dict[str, h5py.Dataset], int]:
    """Prophesee's table, or the four arrays of DSEC's layout by their letters; and how many events there are."""
    if "CD" in file and isinstance(file["CD"], h5py.Group) and "events" in file["CD"]:
        table = _own(path, file, "CD/events")
        names = table.dtype.names or ()
        if not {"x", "y", "p", "t"} <= set(names):
            raise DataError(f"{path}: CD/events has the fields {', '.join(names) or 'none'}; x, y, p, t are needed.")
        return table, len(table)
    group = "events/" if "events" in file and isinstance(file["events"], h5py.Group) else ""
    arrays = {key: _own(path, file, f"{group}{key}") for key in _COLUMNS}
    lengths = {key: array.shape for key, array in arrays.items()}
    if len(set(lengths.values())) > 1 or len(arrays["t"].shape) != 1:
        raise DataError(f"{path}: {group}t, x, y and p are of shapes {lengths}; one length is needed.")
    return arrays, len(arrays["t"])


def _order(columns: str | None, path: Path) -> str:
    order = columns or _COLUMNS
    if sorted(order) != sorted(_COLUMNS):
        raise DataError(f"{path}: columns={order!r}; the four letters t, x, y, p in the file's order are needed.")
    return order


def _named_order(cells: list[str], path: Path) -> str:
    found = [next((key for key, names in _NAMES.items() if cell.lower() in names), "") for cell in cells]
    if sorted(found) != sorted(_COLUMNS):
        raise DataError(f"{path}, line 1: the columns {', '.join(cells)[:80]}; those of t, x, y and p are needed.")
    return "".join(found)


def _of_rows(rows: list[list[str]], order: str, in_seconds: bool, path: Path, first: int) -> Events:
    for number, row in enumerate(rows, start=first):
        if len(row) != 4:
            raise DataError(f"{path}, line {number}: {len(row)} columns; four are needed: {', '.join(order)}.")
    try:
        # times as integers where they are: float64 has no room for microseconds since 1970 and a fraction
        texts = list(zip(*rows, strict=True))
        t = np.array(texts[order.index("t")], dtype=np.float64 if in_seconds else np.int64)
        x, y, p = (np.array(texts[order.index(key)], dtype=np.float64) for key in "xyp")
    except (ValueError, OverflowError):
        number, cell = next(
            ((n, c) for n, row in enumerate(rows, start=first) for c in row if not _is_number(c)), (first, rows[0][0])
        )
        raise DataError(f"{path}, line {number}: {cell[:40]!r} is no number that can stand there.") from None
    return made(np.round(t * 1e6) if in_seconds else t, x, y, p, where=path, first=first)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _npz_names(path: Path) -> list[str]:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return [member.filename.removesuffix(".npy") for member in archive.infolist()]
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise DataError(f"{path}: this is no .npz file that can be read ({error}).") from error


def _npy_array(path: Path) -> Array:
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        with path.open("rb") as file:
            version = npy.read_magic(file)
            shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(file)
            stored = path.stat().st_size - file.tell()
        if dtype.hasobject:
            raise DataError(f"{path}: it holds Python objects, which are not read; numbers are needed.")
        count = int(np.prod(shape, dtype=np.float64))
        require_memory(path, count * max(dtype.itemsize, 8), f"{' x '.join(map(str, shape))} values of {dtype}")
        if count * dtype.itemsize > stored:  # or NumPy would take memory for the claim first
            raise ValueError(f"{count * dtype.itemsize} bytes of values are said to follow, and {stored} do")
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError, KeyError, TypeError, TokenError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: this is no .npy file that can be read, or it is cut off ({error}).") from error


def _found_order(rows: Array, path: Path) -> str:
    """The columns of rows of four, by their values."""
    if not len(rows):
        return _COLUMNS
    is_polarity = [bool(np.isin(rows[:, c], (-1, 0, 1)).all()) for c in range(4)]
    rises = [bool((np.diff(rows[:, c].astype(np.float64)) >= 0).all()) for c in range(4)]
    polarity = [c for c in range(4) if is_polarity[c]]
    time = [c for c in range(4) if rises[c] and c not in polarity]
    if len(polarity) != 1 or not time:
        raise DataError(f"{path}: which of its four columns are t, x, y and p cannot be told; say columns='txyp'.")
    chosen = max(time, key=lambda c: rows[:, c].max())
    others = iter("xy")
    return "".join("p" if c == polarity[0] else "t" if c == chosen else next(others) for c in range(4))


def _own(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """A data set that lies in the file itself and whose filters are installed."""
    place: Any = file
    for part in name.split("/"):
        if not isinstance(place, h5py.Group) or part not in place.keys():  # noqa: SIM118  `in place` follows links
            raise DataError(
                f"{path}: there is no {name!r}; needed are events/t, x, y, p (DSEC) or CD/events (Prophesee)."
            )
        if not isinstance(place.get(part, getlink=True), h5py.HardLink):
            raise DataError(f"{path}: {name!r} is a link to another place, which is not followed.")
        place = place[part]
    if not isinstance(place, h5py.Dataset) or place.is_virtual or place.external:
        raise DataError(f"{path}: {name!r} is no array within the file.")
    created = place.id.get_create_plist()
    for index in range(created.get_nfilters()):
        number = created.get_filter(index)[0]
        if not h5py.h5z.filter_avail(number):
            known, package = _HDF5_FILTERS.get(number, (f"number {number}", ""))
            if number == _ECF:
                help_text = "Prophesee's ECF: install its hdf5_ecf plugin, or convert with metavision_file_to_csv"
            elif package and _activated(package) and h5py.h5z.filter_avail(number):
                continue
            else:
                help_text = f"{known}: pip install {package}" if package else f"the filter of {known}"
            raise DataError(f"{path}: {name!r} is compressed by a filter that is not installed, {help_text}.")
    if place.chunks:
        size = int(np.prod(place.chunks, dtype=np.float64)) * place.dtype.itemsize
        require_memory(path, size, f"chunks of {size} bytes")
    return place


def _activated(package: str) -> bool:
    """hdf5plugin registers its filters when it is imported."""
    import importlib

    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


def _offset(path: Path, file: h5py.File) -> int:
    if "t_offset" not in file.keys():  # noqa: SIM118
        return 0
    value = np.asarray(_own(path, file, "t_offset")[()])
    if value.size != 1 or value.dtype.kind not in "iu":
        raise DataError(f"{path}: t_offset is no single whole number of microseconds.")
    return int(value.reshape(-1)[0])


def _hdf5_size(file: h5py.File) -> tuple[int, int]:
    width, height = file.attrs.get("width", 0), file.attrs.get("height", 0)
    geometry = file.attrs.get("geometry", "")
    text = geometry.decode() if isinstance(geometry, bytes) else str(geometry)
    sides = [whole_number(part) for part in text.split("x")]
    if len(sides) == 2 and None not in sides:
        width, height = sides
    sizes = [
        int(value) if isinstance(value, (int, np.integer)) and 0 < value < 2**16 else 0 for value in (width, height)
    ]
    return sizes[0], sizes[1]
