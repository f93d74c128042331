"""Text files of one row of numbers a frame: boxes, flags, labels. Commas, tabs, semicolons and blanks separate."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.readers.limits import require_memory
from statefield.errors import DataError

_SEPARATORS = str.maketrans(",;\t", "   ")
_BYTES_PER_CHARACTER = 16  # of the strings and floats that a text becomes on its way to an array


def text_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file without trailing blanks or empty last lines.

    Raises:
        DataError: no such file, no text, or larger than the memory limit.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    size = path.stat().st_size
    require_memory(path, size * _BYTES_PER_CHARACTER, f"{size} bytes of text")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: this is no text file ({error.reason} at byte {error.start}).") from error
    lines = [line.rstrip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def read_rows(path: str | os.PathLike[str], columns: int | Sequence[int], what: str) -> NDArray[np.float64]:
    """The numbers of a text file, [rows, columns] float64; NaN is allowed, infinity is not.

    Args:
        columns: how many numbers a row has; of several possible counts, all rows have the same.
        what: names a row in errors, such as "a box: x, y, width, height".

    Raises:
        DataError: a row with another number of columns, an empty row, or something that is no number; names the line.
    """
    path = Path(path)
    allowed = (columns,) if isinstance(columns, int) else tuple(columns)
    lines = text_lines(path)
    if not lines:
        raise DataError(f"{path}: an empty file; rows of {what} are needed.")
    rows = [line.translate(_SEPARATORS).split() for line in lines]
    count = len(rows[0]) if len(rows[0]) in allowed else allowed[0]
    for number, row in enumerate(rows, start=1):
        if len(row) != count:
            wanted = " or ".join(str(n) for n in allowed) if number == 1 else str(count)
            raise DataError(
                f"{path}, line {number}: {len(row)} columns ({lines[number - 1][:60]!r}); {wanted} are needed: {what}."
            )
    try:
        values = np.array(rows, dtype=np.float64)
    except ValueError:
        number, cell = next((n, c) for n, row in enumerate(rows, start=1) for c in row if not _is_number(c))
        raise DataError(f"{path}, line {number}: {cell[:40]!r} is no number; a row is {what}.") from None
    if np.isinf(values).any():
        number = int(np.argmax(np.isinf(values).any(axis=1))) + 1
        raise DataError(f"{path}, line {number}: an infinite value; a row is {what}.")
    return values


def read_flags(path: str | os.PathLike[str], what: str) -> NDArray[np.float64]:
    """All numbers of a text file in one row, whether they stand in a line or below each other: [count] float64."""
    path = Path(path)
    cells = [(n, cell) for n, line in enumerate(text_lines(path), 1) for cell in line.translate(_SEPARATORS).split()]
    for number, cell in cells:
        if not _is_number(cell):
            raise DataError(f"{path}, line {number}: {cell[:40]!r} is no number; {what} is needed.")
    return np.array([float(cell) for _, cell in cells])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
