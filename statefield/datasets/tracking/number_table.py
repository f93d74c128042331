"""Text files of numbers, a row a line, read at once: what NumPy's own readers take 0.3 microseconds a number for.

Tracks are kept as text, a line a box, ten numbers a line: a benchmark has some millions of numbers. Here the value of
the four digits that end at each byte is found for all bytes of a block at once, digit or not, and picked where a number
ends. A number is its digits, an integer below 2**53, divided by a power of ten below 10**23: both are exact in float64,
so the one division rounds as `float(text)` does (Clinger, How to read floating point numbers accurately, PLDI 1990).
Any other number (an exponent, twenty digits) goes through `float`, and a file in which something is no number is read
again line by line, to say which line.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.tracking.bad_rows import BadRows
from statefield.errors import DataError

_COMMA, _MINUS, _DOT, _NEWLINE, _ZERO, _NINE = (ord(character) for character in ",-.\n09")
_MOST_DIGITS = 15  # any integer of so many is exact in float64
_POWERS = 10 ** np.arange(_MOST_DIGITS + 1, dtype=np.int64)
_NONE = np.empty(0, np.int64)
_LARGEST_BYTES = 2**31
_BLOCK_BYTES = 1 << 17  # what is made of so much text stays in the processor's cache

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
    if b";" in first and b"," not in first:
        data = data.replace(b";", b",")
    if b"," in first or b";" in first:
        data = data.replace(b", ", b",") if b" " in data else data
    else:
        data = b"\n".join(b",".join(line.split()) for line in data.split(b"\n"))
    return data


def _read_quickly(data: bytes, columns: int) -> NumberTable | None:
    """The table, or None where a row is not as the others or something is no number."""
    if data.endswith(b"\n\n") or not data.endswith(b"\n"):
        data = data.rstrip(b"\n") + b"\n"
    if len(data) == 1:
        return NumberTable(np.empty((0, columns)), np.empty(0, np.int64), 0)
    values = np.empty((0, 0))
    num_rows = num_columns = start = row = 0
    while start < len(data):
        stop = data.find(b"\n", start + _BLOCK_BYTES) + 1 or len(data)
        block = _read_block(data[start:stop], columns)
        if block is None or (start and block[1] != num_columns):
            return None
        if not start:
            num_columns, num_rows = block[1], data.count(b"\n")
            values = np.empty((len(block[0]), num_rows))
        values[:, row : row + block[0].shape[1]] = block[0]
        row += block[0].shape[1]
        start = stop
    return NumberTable(values.T, np.arange(1, num_rows + 1), num_columns)


def _read_block(data: bytes, columns: int) -> tuple[NDArray[np.float64], int] | None:
    """The values [columns read, rows] of some lines, and how many columns there are."""
    characters = _Characters.of(data)
    kinds = characters.kinds
    last = np.flatnonzero((kinds != _DOT) & (kinds != _MINUS))  # the mark that ends each number
    is_newline = kinds == _NEWLINE
    num_rows = int(np.count_nonzero(is_newline))
    num_columns, rest = divmod(len(last), num_rows)
    if rest or np.count_nonzero(is_newline.take(last[num_columns - 1 :: num_columns])) != num_rows:
        return None
    read = min(columns, num_columns)

    def by_column(array: NDArray[Any]) -> NDArray[Any]:
        return array.reshape(num_rows, num_columns).T[:read].ravel()

    before = np.concatenate([np.zeros(2, np.uint8), kinds[:-1]])  # before[i + 1] is the mark in front of mark i
    has_dot = before[1:] == _DOT
    is_negative = (before[1:] == _MINUS) | (has_dot & (before[:-1] == _MINUS))
    values, singly = _numbers(
        characters, by_column(last), by_column(has_dot.take(last)), by_column(is_negative.take(last))
    )
    if characters.odd is not None:
        is_odd = np.zeros(len(last), bool)
        is_odd[np.searchsorted(characters.marks[last], np.flatnonzero(characters.odd))] = True
        is_odd = by_column(is_odd)
        is_odd[singly] = True
        singly = np.flatnonzero(is_odd)
    if len(singly):
        cells = data.replace(b"\n", b",").split(b",")
        column, row = np.divmod(singly, num_rows)
        try:
            values[singly] = [float(cells[cell]) for cell in (row * num_columns + column).tolist()]
        except ValueError:
            return None
        if not np.all(np.isfinite(values[singly])):
            return None
    return values.reshape(read, num_rows), num_columns


@dataclass(frozen=True)
class _Characters:
    """Lines of text and their marks: what divides runs of digits (commas, newlines, dots, minuses).

    Args:
        marks: int64 [M], where the marks are.
        kinds: uint8 [M], what they are.
        before: uint16 [bytes + 1], the integer of the up to four digits that end before each byte.
        is_long: bool [bytes + 1], whether more than four end there; None where that is so nowhere.
        odd: bool [bytes], true where numbers are not digits, a minus before them, a dot among them; None where all are.
    """

    marks: Integers
    kinds: NDArray[np.uint8]
    before: NDArray[np.uint16]
    is_long: NDArray[np.bool_] | None
    odd: NDArray[np.bool_] | None

    @classmethod
    def of(cls, data: bytes) -> _Characters:
        # bytes beside bytes, digits or not: several times as fast as to fetch the digits of each number
        text = np.frombuffer(data, np.uint8)
        value = text - np.uint8(_ZERO)
        is_digit = value < 10
        is_divider = (text == _COMMA) | (text == _NEWLINE)
        ends_run = is_divider | (text == _DOT)
        is_minus = text == _MINUS
        marks = np.flatnonzero(ends_run | is_minus)
        kinds = text.take(marks)
        misplaced = ends_run & ~_shifted(is_digit)  # no digit in front of it
        misplaced |= is_minus & ~_shifted(is_divider, first=True)  # begins no number
        odd = None
        twice = np.flatnonzero((kinds[1:] == _DOT) & (kinds[:-1] == _DOT))  # 1.2.3
        if len(marks) + np.count_nonzero(is_digit) < len(text) or misplaced.any() or len(twice):
            odd = misplaced | ~(is_digit | ends_run | is_minus)
            odd[marks[twice + 1]] = True
        digit = is_digit.view(np.uint8)
        value *= digit
        two = value.copy()
        two[1:] += value[:-1] * digit[1:] * np.uint8(10)
        pair = digit[1:] & digit[:-1]
        before = np.empty(len(text) + 1, np.uint16)
        before[0] = 0
        before[1:] = two
        before[3:] += (two[:-2] * pair[1:]) * np.uint16(100)
        five = np.zeros(len(text) + 1, np.uint8)
        five[5:] = pair[3:] & pair[1:-2] & digit[:-4]
        return cls(marks, kinds, before, five.view(bool) if five.any() else None, odd)

    def integers(self, ends: Integers) -> tuple[Integers | NDArray[np.uint16], Integers]:
        """The integers that end before the bytes `ends`, right for up to 16 digits, and which have five or more."""
        four = self.before.take(ends)
        if self.is_long is None:
            return four, _NONE
        rest = long = np.flatnonzero(self.is_long.take(ends))
        if not len(long):
            return four, long
        values = four.astype(np.int64)
        for digits in (4, 8, 12):
            if not len(rest):
                break
            ends_of_rest = ends[rest] - digits
            values[rest] += self.before.take(ends_of_rest) * _POWERS[digits]
            rest = rest[self.is_long.take(ends_of_rest)]
        return values, long


def _shifted(what: NDArray[np.bool_], *, first: bool = False) -> NDArray[np.bool_]:
    """What is true of the byte before; `first` of that before the first."""
    shifted = np.empty_like(what)
    shifted[0], shifted[1:] = first, what[:-1]
    return shifted


def _numbers(
    characters: _Characters, last: Integers, has_dot: NDArray[np.bool_], is_negative: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], Integers]:
    """The numbers that end at the marks `last`, and which of them are too long to be read so."""
    marks = characters.marks
    ends = marks.take(last)
    integers, long = characters.integers(ends)
    values = integers.astype(np.float64)
    with_dot = np.flatnonzero(has_dot)
    if len(with_dot):
        dots = marks.take(last.take(with_dot) - 1)
        power = _POWERS.take(ends.take(with_dot) - dots - 1, mode="clip")
        whole, long_whole = characters.integers(dots)
        values[with_dot] = (whole * power + integers.take(with_dot)) / power
        long = np.concatenate([long, with_dot[long_whole]])
    np.negative(values, out=values, where=is_negative)
    length = ends[long] - marks[last[long] - 1 - has_dot[long]] - 1
    return values, long[(length > _MOST_DIGITS) | (length < 0)]  # below 0: the first number has no mark before it


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
