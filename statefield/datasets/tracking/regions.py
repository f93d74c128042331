"""Regions as VOT writes them: rectangles, polygons, masks, and single numbers that say what happened instead.

A line is a region: `x,y,w,h`; `x1,y1,x2,y2,x3,y3,...` (three corners and more); `mX,Y,W,H,` and run lengths of a mask,
row by row, the first of zeros; or one number: 0 unknown, 1 the tracker was initialised, 2 it failed. The toolkit also
writes trajectories in binary (`.bin`). Source: votchallenge/toolkit 56f0053, vot/region/io.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.readers.limits import require_memory
from statefield.datasets.tracking.number_rows import text_lines
from statefield.errors import DataError

UNKNOWN, INITIALISED, FAILED = 0, 1, 2
_FORMS = "x,y,w,h, or x1,y1,x2,y2,x3,y3,..., or a mask m..., or one of 0, 1, 2"
_MOST_PIXELS = 2**28


@dataclass(frozen=True)
class Special:
    """No region but what happened: `code` is UNKNOWN, INITIALISED or FAILED; in ground truth, no target."""

    code: int


@dataclass(frozen=True)
class Rectangle:
    """`box`: [4] float64, x, y, width, height in pixels."""

    box: NDArray[np.float64]


@dataclass(frozen=True)
class Polygon:
    """`corners`: [N, 2] float64, x and y of N >= 3 corners in pixels."""

    corners: NDArray[np.float64]


@dataclass(frozen=True)
class Mask:
    """`pixels`: bool [H, W]; `left` and `top` are the image column and row of its first pixel."""

    pixels: NDArray[np.bool_]
    left: int
    top: int


Region = Special | Rectangle | Polygon | Mask


def read_regions(path: Path) -> list[Region]:
    """The regions of a file, one for each frame; text, or the toolkit's binary form.

    Raises:
        DataError: a line that is no region, or a damaged binary file; names file and line.
    """
    if path.suffix == ".bin":
        return _read_binary(path)
    lines = text_lines(path)
    if not lines:
        raise DataError(f"{path}: an empty file; a region for each frame is needed: {_FORMS}.")
    return [_region(line, path, number) for number, line in enumerate(lines, start=1)]


def region_of(numbers: list[float], where: str) -> Region:
    """The region that a row of numbers is. NaN anywhere is unknown, as in the toolkit."""
    if len(numbers) == 1 and numbers[0] in (UNKNOWN, INITIALISED, FAILED):
        return Special(int(numbers[0]))
    values = np.array(numbers, dtype=np.float64)
    if len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0):
        if np.isnan(values).any():
            return Special(UNKNOWN)
        if np.isinf(values).any():
            raise DataError(f"{where}: an infinite coordinate.")
        if len(values) > 4:
            return Polygon(values.reshape(-1, 2))
        if (values[2:] < 0).any():
            raise DataError(f"{where}: a rectangle of negative size, {values[2]:g} x {values[3]:g}.")
        return Rectangle(values)
    raise DataError(f"{where}: {len(numbers)} numbers ({str(numbers)[:60]}) are no region. A region is {_FORMS}.")


def bounding_box(region: Region) -> NDArray[np.float64]:
    """[4] float64, x, y, width, height of the smallest upright rectangle around it; NaN for a special one."""
    if isinstance(region, Rectangle):
        return region.box
    if isinstance(region, Polygon):
        low = region.corners.min(axis=0)
        return np.concatenate([low, region.corners.max(axis=0) - low])
    if isinstance(region, Mask) and region.pixels.any():
        columns, rows = (np.flatnonzero(region.pixels.any(axis=axis)) for axis in (0, 1))
        return np.array(
            [region.left + columns[0], region.top + rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1], dtype=np.float64
        )
    return np.full(4, np.nan)


def _region(line: str, path: Path, number: int) -> Region:
    where = f"{path}, line {number}"
    text = line.strip()
    try:
        if text.startswith("m"):
            values = [int(cell) for cell in text[1:].split(",")]
            return _mask(values[:4], np.array(values[4:], dtype=np.int64), path, where)
        return region_of([float(cell) for cell in text.replace("\t", ",").split(",")], where)
    except (ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: {text[:60]!r} is no region. A region is {_FORMS}.") from error


def _mask(header: list[int], runs: NDArray[np.int64], path: Path, where: str) -> Mask:
    if len(header) < 4 or min(header[2:]) < 0 or header[2] * header[3] > _MOST_PIXELS:
        raise DataError(f"{where}: a mask begins with the left, top, width and height of its part of the image.")
    left, top, width, height = header
    require_memory(path, width * height, f"a mask of {width} x {height} pixels")
    total = int(runs.sum())
    if (runs < 0).any() or total > width * height:
        raise DataError(f"{where}: the runs of a mask of {width} x {height} pixels cover {total}.")
    flat = np.zeros(width * height, dtype=np.bool_)
    flat[:total] = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return Mask(flat.reshape(height, width), left, top)


def _read_binary(path: Path) -> list[Region]:
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    require_memory(path, path.stat().st_size, f"{path.stat().st_size} bytes")
    data = path.read_bytes()
    at = 0

    def take(form: str) -> tuple[float, ...]:
        nonlocal at
        values = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(f"<{form}")
        return values

    regions: list[Region] = []
    try:
        version, count = (int(value) for value in take("hI"))
        if version != 1:
            raise DataError(f"{path}: a binary trajectory of version {version}; version 1 is known.")
        for number in range(1, count + 1):
            where = f"{path}, region {number}"
            kind = int(take("B")[0])
            if kind == 0:
                regions.append(region_of([take("I")[0]], where))
            elif kind == 1:
                regions.append(region_of(list(take("ffff")), where))
            elif kind == 2:
                regions.append(region_of(list(take(f"{2 * int(take('H')[0])}f")), where))
            elif kind == 3:
                *header, num_runs = (int(value) for value in take("hhHHH"))
                regions.append(_mask(header, np.array(take(f"{num_runs}H"), dtype=np.int64), path, where))
            else:
                raise DataError(f"{where}: a region of kind {kind}; 0 to 3 are known.")
    except struct.error as error:
        raise DataError(f"{path}: cut off at byte {at} of {len(data)}. Copy it again.") from error
    return regions
