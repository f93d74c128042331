"""ENVI's regions of interest as text (`output ROIs to ASCII`), as the contest gives the labels of Houston 2013.

    ; ENVI Output of ROIs (4.8)
    ; Number of ROIs: 2
    ; File Dimension: 1905 x 349            columns x rows
    ;
    ; ROI name: grass_healthy
    ; ROI rgb value: {0, 205, 0}
    ; ROI npts: 3
    ;
    ; ROI name: ...
    ;   ID     X     Y  ...                  what the rows hold
         1   860    14  ...                  X and Y count from 1
    (an empty line behind each region)

The regions' headers come first, then their pixels in the same order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from statefield.datasets.readers.limits import require_memory
from statefield.errors import DataError, ShapeError

_NAME = re.compile(r"^;\s*ROI name:\s*(.*?)\s*$")
_COUNT = re.compile(r"^;\s*ROI npts:\s*(\d+)\s*$")
_SIZE = re.compile(r"^;\s*File Dimensions?:\s*(\d+)\s*x\s*(\d+)\s*$")
_COLUMNS = re.compile(r"^;\s*ID\s+X\s+Y\b")


@dataclass(frozen=True, eq=False)
class Region:
    """name: as the file has it. pixels: int64 [N, 2], rows and columns from 0."""

    name: str
    pixels: np.ndarray


def read_regions(path: Path, size: tuple[int, int]) -> list[Region]:
    """The regions of a file, in its order.

    Args:
        size: rows and columns of the scene, which the file has to name, too.

    Raises:
        DataError: no such text, a region with more or fewer pixels than its header says, pixels outside the scene.
        ShapeError: a file of another scene's size.
    """
    require_memory(path, 20 * path.stat().st_size, f"{path.stat().st_size} bytes of text")
    try:
        lines = path.read_text(encoding="ascii", errors="strict").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: this is no text of regions of interest ({error}).") from error
    names = [found[1] for line in lines if (found := _NAME.match(line))]
    counts = [int(found[1]) for line in lines if (found := _COUNT.match(line))]
    sizes = [(int(found[2]), int(found[1])) for line in lines if (found := _SIZE.match(line))]
    if not names or len(names) != len(counts) or not sizes or not any(_COLUMNS.match(line) for line in lines):
        raise DataError(
            f"{path}: {len(names)} names and {len(counts)} sizes of regions found, and "
            f"{'no' if not sizes else 'the'} size of the picture; ENVI's text of regions of interest, with the columns "
            "ID, X and Y, is needed."
        )
    if sizes[0] != size:
        raise ShapeError(f"{path}: regions of a picture of {sizes[0]} rows and columns; the scene has {size}.")
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith(";")]
    if len(rows) != sum(counts):
        raise DataError(f"{path}: {len(rows)} pixels found; its regions say {sum(counts)}. It is cut off or altered.")
    places = np.empty((len(rows), 2), np.int64)
    for index, (number, fields) in enumerate(rows):
        try:
            places[index] = int(fields[2]) - 1, int(fields[1]) - 1
        except (IndexError, ValueError) as error:
            raise DataError(
                f"{path}, line {number}: {' '.join(fields)[:60]!r} is no pixel: ID, X, Y needed."
            ) from error
    outside = ((places < 0) | (places >= np.asarray(size))).any(1)
    if outside.any():
        raise DataError(
            f"{path}, line {rows[int(np.argmax(outside))][0]}: a pixel outside the scene's {size[0]} x {size[1]}."
        )
    ends = np.cumsum(counts)
    return [Region(name, part) for name, part in zip(names, np.split(places, ends[:-1]), strict=True)]
