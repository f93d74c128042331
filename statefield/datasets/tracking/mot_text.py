"""MOTChallenge text: `frame,id,left,top,width,height,confidence or flag,class,visibility`, frames from 1.

Ground truth and results share the form. Column 7 of a ground truth is 0 where a box is not to be evaluated
("zero-marked"), column 8 its class (`MOT_CLASSES`); MOT15 has world coordinates there instead. In results, column 7 is
the detector's confidence and the columns after it are -1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.tracking.bad_rows import BadRows
from statefield.datasets.tracking.number_table import NumberTable, read_number_table
from statefield.datasets.tracking.track_boxes import (
    Floats,
    Integers,
    TrackBoxes,
    sorted_order,
    without_bad_boxes,
    without_repeated_ids,
)
from statefield.errors import DataError

# MOT16, MOT17 and MOT20 number the classes of their ground truth so
MOT_CLASSES = (
    "pedestrian",
    "person_on_vehicle",
    "car",
    "bicycle",
    "motorbike",
    "non_mot_vehicle",
    "static_person",
    "distractor",
    "occluder",
    "occluder_on_ground",
    "occluder_full",
    "reflection",
    "crowd",
)
_COLUMNS = {"frame": 0, "id": 1, "width": 4, "height": 5}
_FIRST_FRAME = 1
_FLAG, _CLASS, _READ = 6, 7, 8


def read_mot_ground_truth(path: Path, *, num_frames: int | None, has_classes: bool, bad: BadRows) -> TrackBoxes:
    """The ground truth of a sequence.

    Args:
        path: gt.txt.
        num_frames: the length of the sequence where it is known; frames beyond are bad rows.
        has_classes: whether column 8 is a class (MOT16, MOT17, MOT20, DanceTrack, SportsMOT) or something else (MOT15).
        bad: told of every row that cannot be meant.

    Raises: DataError for a file that cannot be read, or has fewer columns than its benchmark.
    """
    table = read_number_table(path, columns=_READ, at_least=_READ if has_classes else _FLAG + 1, bad=bad)
    values, lines = _rows(table, num_frames, bad)
    classes = np.ones(len(lines), np.int64)
    if has_classes:
        classes = values[:, _CLASS].astype(np.int64)
        wrong = (classes < 1) | (classes > len(MOT_CLASSES)) | (classes != values[:, _CLASS])
        for row in _by_line(wrong, lines)[:1]:
            raise DataError(
                f"{path}, line {lines[row]}: class {values[row, _CLASS]:g} in column 8; classes are 1 to "
                f"{len(MOT_CLASSES)} (1 is a pedestrian). Where the column is no class, as in MOT15, say "
                "--benchmark MOT15."
            )
    counts = np.trunc(values[:, _FLAG]) != 0
    boxes = _boxes(values, lines, classes=classes, confidence=np.ones(len(lines)), counts=counts)
    return without_repeated_ids(boxes, bad, _FIRST_FRAME)


def read_mot_results(path: Path, *, num_frames: int | None, bad: BadRows) -> TrackBoxes:
    """What a tracker wrote for a sequence: six columns or more; confidence 1 where there is no seventh.

    Raises: DataError, as `read_mot_ground_truth` does.
    """
    table = read_number_table(path, columns=_READ, at_least=_FLAG, bad=bad)
    values, lines = _rows(table, num_frames, bad)
    if values.shape[1] > _CLASS:
        is_other = values[:, _CLASS] >= 2
        for row in _by_line(is_other, lines).tolist():
            bad.add(
                "class other than pedestrian",
                int(lines[row]),
                f"class {values[row, _CLASS]:g} in column 8; only pedestrians are scored (1, or -1 for no word)",
            )
        if is_other.any():
            values, lines = values[~is_other], lines[~is_other]
    num_boxes = len(lines)
    boxes = _boxes(
        values,
        lines,
        classes=np.ones(num_boxes, np.int64),
        confidence=values[:, _FLAG] if values.shape[1] > _FLAG else np.ones(num_boxes),
        counts=np.ones(num_boxes, bool),
    )
    return without_repeated_ids(boxes, bad, _FIRST_FRAME)


def _rows(table: NumberTable, num_frames: int | None, bad: BadRows) -> tuple[Floats, Integers]:
    """The rows that can be meant, sorted by frame, and their lines."""
    values, lines = table.values, table.lines
    kept = without_bad_boxes(values, lines, bad, columns=_COLUMNS, num_frames=num_frames, first_frame=_FIRST_FRAME)
    if not kept.all():
        values, lines = values[kept], lines[kept]
    frame = values[:, 0]
    if np.any(frame[1:] < frame[:-1]):
        order = sorted_order(frame.astype(np.int64))
        values, lines = values.T.take(order, axis=1).T, lines.take(order)
    return values, lines


def _by_line(chosen: NDArray[np.bool_], lines: Integers) -> Integers:
    """The positions of chosen rows, as they follow each other in the file."""
    rows = np.flatnonzero(chosen)
    return rows[np.argsort(lines[rows])]


def _boxes(
    values: Floats, lines: Integers, *, classes: Integers, confidence: Floats, counts: NDArray[np.bool_]
) -> TrackBoxes:
    """Sorted rows as boxes."""
    sides = values.T
    corners = np.empty((4, len(values)))
    corners[:2] = sides[2:4]
    np.add(sides[2:4], sides[4:6], out=corners[2:])
    return TrackBoxes(
        frame=sides[0].astype(np.int64) - _FIRST_FRAME,
        ids=sides[1].astype(np.int64),
        corners=corners.T,
        size=sides[4:6].T,
        classes=classes,
        confidence=confidence,
        counts=counts,
        lines=lines,
    )
