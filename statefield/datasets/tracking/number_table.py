"""Text files of numbers, a row a line, read at once: what NumPy's own readers take 0.3 microseconds a number for.

Tracks are kept as text, a line a box, ten numbers a line: a benchmark has some millions of numbers. Here the digits of
a column's numbers are read together, place by place. A number is its digits, an integer below 2**53, divided by a
power of ten below 10**23: both are exact in float64, so the one division rounds as `float(text)` does (Clinger, How to
read floating point numbers accurately, PLDI 1990). Any other number (an exponent, twenty digits) goes through
`float`, and a file in which something is no number is read again line by line, to say which line.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.tracking.bad_rows import BadRows
from statefield.errors import DataError

_COMMA, _MINUS, _DOT, _NEWLINE, _ZERO, _NINE = (ord(character) for character in ",-.\n09")
_MOST_DIGITS = 18  # an int64 holds any number of 18 digits
_EXACT = 2**53
_POWERS = 10 ** np.arange(_MOST_DIGITS + 1, dtype=np.int64)
_LARGEST_BYTES = 2**31
_BLOCK_BYTES = 1 << 18  # what is made of so much text stays in the processor's cache

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class NumberTable:
    """The rows of a file.

    Args:
        values: float64 [rows, columns read], finite.
        lines: int64 [rows], each row's line in the file, counted from 1.
        num_columns: how many columns the file has, also those not read.
    """

    values: NDArray[np.float64]
    lines: Integers
    num_columns: int


def read_number_table(path: Path, *, columns: int, at_least: int, bad: BadRows) -> NumberTable:
    """The first `columns` columns of a file of numbers, or as many as it has.

    Args:
        path: a text file. Columns are divided by commas, semicolons, or blanks; empty lines say nothing.
        columns: how many columns to read.
        at_least: fewer columns than this are an error.
        bad: told of rows that are no numbers, are not finite or have another number of columns than the first.

    Raises: DataError for a file that is missing or no text, and, as `bad` wills, for its first bad row.
    """
    data = _content(path)
    table = _read_quickly(data, columns)
    if table is None:
        table = _read_carefully(data, columns, bad)
    if len(table.values) and table.num_columns < at_least:
        raise DataError(
            f"{path}, line {table.lines[0]}: {table.num_columns} columns, {at_least} or more are needed (frame, id, "
            "left, top, width, height, ...). Check that it is a file of tracks."
        )
    return table


def _content(path: Path) -> bytes:
    """The file with commas between columns and newlines between rows."""
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise DataError(
                f"{path} has {path.stat().st_size:,} bytes: files of tracks up to 2 GiB are read. Split it."
            )
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"{path} is not a file that can be read ({error.strerror}). Name a file of tracks.") from error
    if b"\0" in data[:4096]:
        raise DataError(f"{path} is no text file. Files of tracks are text, a line a box: frame,id,left,top,width,...")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    first = data[: data.find(b"\n")] if b"\n" in data else data
    if b"," in first:
        return data.replace(b", ", b",") if b", " in data else data
    if b";" in first:
        return data.replace(b";", b",").replace(b", ", b",")
    return b"\n".join(b",".join(line.split()) for line in data.split(b"\n"))


def _read_quickly(data: bytes, columns: int) -> NumberTable | None:
    """The table, or None where a row is not as the others or something is no number."""
    data = data.rstrip(b"\n") + b"\n"
    if len(data) == 1:
        return NumberTable(np.empty((0, columns)), np.empty(0, np.int64), 0)
    blocks: list[NDArray[np.float64]] = []
    num_columns = start = 0
    while start < len(data):
        stop = data.find(b"\n", start + _BLOCK_BYTES) + 1 or len(data)
        block = _read_block(data[start:stop], columns)
        if block is None or (blocks and block[1] != num_columns):
            return None
        num_columns = block[1]
        blocks.append(block[0])
        start = stop
    values = np.concatenate(blocks)
    return NumberTable(values, np.arange(1, len(values) + 1), num_columns)


def _read_block(data: bytes, columns: int) -> tuple[NDArray[np.float64], int] | None:
    """The values of some lines, and how many columns there are."""
    text = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero(text < _ZERO)
    kinds = text[marks]
    is_newline = kinds == _NEWLINE
    num_rows = int(np.count_nonzero(is_newline))
    last_marks = np.flatnonzero(is_newline | (kinds == _COMMA))  # the mark that ends each number
    num_columns, rest = divmod(len(last_marks), num_rows)
    if rest or np.count_nonzero(is_newline[last_marks[num_columns - 1 :: num_columns]]) != num_rows:
        return None
    ends = marks[last_marks]
    starts = np.empty_like(ends)
    starts[0], starts[1:] = 0, ends[:-1] + 1
    marks_inside = np.diff(last_marks, prepend=-1) - 1
    is_odd: NDArray[np.bool_] = np.zeros(len(ends), bool)  # with an exponent, a blank, a sign of plus: read one by one
    if text.max() > _NINE:
        is_odd[np.searchsorted(ends, np.flatnonzero(text > _NINE))] = True
    others = np.flatnonzero((kinds != _DOT) & (kinds != _MINUS) & (kinds != _COMMA) & ~is_newline)
    is_odd[np.searchsorted(last_marks, others)] = True
    read = min(columns, num_columns)
    grid = (num_rows, num_columns)
    starts, ends, marks_inside, last_marks = (
        array.reshape(grid)[:, :read].ravel() for array in (starts, ends, marks_inside, last_marks)
    )
    is_odd = is_odd.reshape(grid)[:, :read].ravel()
    dots = np.where(is_odd, 0, marks_inside - (text[starts] == _MINUS))
    if dots.min() < 0 or dots.max() > 1:
        return None
    dot_at = marks[last_marks[dots > 0] - 1]
    if np.any(text[dot_at] != _DOT):
        return None
    values = _numbers(data, text, starts, ends, dots, dot_at, is_odd)
    if values is None:
        return None
    return values.reshape(num_rows, read), num_columns


def _numbers(
    data: bytes,
    text: NDArray[np.uint8],
    starts: Integers,
    ends: Integers,
    dots: Integers,
    dot_at: Integers,
    is_odd: NDArray[np.bool_],
) -> NDArray[np.float64] | None:
    """The numbers text[starts:ends]; None where one is none.

    Each has at most a minus before it and as many dots within as `dots` says; `dot_at` tells where they are.
    """
    negative = (text[starts] == _MINUS) & ~is_odd
    digits_from = starts + negative
    fractional = np.flatnonzero(dots)
    whole_digits = ends - digits_from
    whole_digits[fractional] = dot_at - digits_from[fractional]
    fraction_digits = ends[fractional] - dot_at - 1
    digits = whole_digits.copy()
    digits[fractional] += fraction_digits
    if digits.min() < 1:
        return None  # an empty cell
    is_odd = is_odd | (digits > _MOST_DIGITS)
    whole_digits[is_odd] = 0
    fraction_digits[is_odd[fractional]] = 0
    whole = _digits(text, digits_from, whole_digits)
    values = whole.astype(np.float64)
    power = _POWERS[fraction_digits]
    mantissa = whole[fractional] * power + _digits(text, dot_at + 1, fraction_digits)
    values[fractional] = mantissa / power
    is_odd |= whole > _EXACT
    is_odd[fractional[mantissa > _EXACT]] = True
    np.negative(values, out=values, where=negative)
    for index in np.flatnonzero(is_odd):
        try:
            values[index] = float(data[starts[index] : ends[index]])
        except ValueError:
            return None
    return values if np.all(np.isfinite(values)) else None


def _digits(text: NDArray[np.uint8], starts: Integers, lengths: Integers) -> Integers:
    """The integers text[starts : starts + lengths], all at once, place by place."""
    values = np.zeros(len(starts), np.int64)
    if not len(starts):
        return values
    shortest, longest = int(lengths.min()), int(lengths.max())
    for place in range(shortest):
        values *= 10
        values += text[starts + place] - np.uint8(_ZERO)
    rest = np.flatnonzero(lengths > shortest)
    for place in range(shortest, longest):
        values[rest] = values[rest] * 10 + (text[starts[rest] + place] - np.uint8(_ZERO))
        rest = rest[lengths[rest] > place + 1]
    return values


def _read_carefully(data: bytes, columns: int, bad: BadRows) -> NumberTable:
    """Line by line, telling `bad` of each that is not as it should be."""
    rows: list[list[float]] = []
    lines: list[int] = []
    num_columns = 0
    text = data.decode("utf-8", errors="replace")
    for line, content in zip(itertools.count(1), text.split("\n"), strict=False):
        if not content.strip():
            continue
        cells = content.split(",")
        if not num_columns:
            num_columns = len(cells)
        if len(cells) != num_columns:
            first = f"line {lines[0]} has" if lines else "those before have"
            bad.add("wrong number of columns", line, f"{len(cells)} columns, {first} {num_columns}")
            continue
        row: list[float] = []
        for column, cell in enumerate(cells[:columns], start=1):
            try:
                value = float(cell)
            except ValueError:
                bad.add("not a number", line, f"column {column} is {cell.strip()[:40]!r}, which is no number")
                break
            if not math.isfinite(value):
                bad.add("NaN or infinite", line, f"column {column} is {cell.strip()}, which is not finite")
                break
            row.append(value)
        else:
            rows.append(row)
            lines.append(line)
    read = min(columns, num_columns) if num_columns else columns
    return NumberTable(np.array(rows, np.float64).reshape(len(rows), read), np.array(lines, np.int64), num_columns)
