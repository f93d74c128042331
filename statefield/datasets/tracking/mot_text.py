"""MOTChallenge text: `frame,id,left,top,width,height,confidence or flag,class,visibility`, frames from 1.

Ground truth and results share the form. Column 7 of a ground truth is 0 where a box is not to be evaluated
("zero-marked"), column 8 its class (`MOT_CLASSES`); MOT15 has world coordinates there instead. In results, column 7 is
the detector's confidence and the columns after it are -1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from statefield.datasets.tracking.bad_rows import BadRows
from statefield.datasets.tracking.number_table import NumberTable, read_number_table
from statefield.datasets.tracking.track_boxes import TrackBoxes, without_bad_boxes, without_repeated_ids
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
    boxes = _boxes(table, num_frames, bad)
    values = table.values[np.searchsorted(table.lines, boxes.lines)]
    classes = boxes.classes
    if has_classes:
        classes = values[:, _CLASS].astype(np.int64)
        wrong = (classes < 1) | (classes > len(MOT_CLASSES)) | (classes != values[:, _CLASS])
        for row in np.flatnonzero(wrong)[:1]:
            raise DataError(
                f"{path}, line {boxes.lines[row]}: class {values[row, _CLASS]:g} in column 8; classes are 1 to "
                f"{len(MOT_CLASSES)} (1 is a pedestrian). Where the column is no class, as in MOT15, say "
                "--benchmark MOT15."
            )
    counts = np.trunc(values[:, _FLAG]) != 0
    boxes = TrackBoxes(
        boxes.frame, boxes.ids, boxes.corners, boxes.size, classes, np.ones(len(boxes)), counts, boxes.lines
    )
    return without_repeated_ids(boxes.by_frame(), bad, _FIRST_FRAME)


def read_mot_results(path: Path, *, num_frames: int | None, bad: BadRows) -> TrackBoxes:
    """What a tracker wrote for a sequence: six columns or more; confidence 1 where there is no seventh.

    Raises: DataError, as `read_mot_ground_truth` does.
    """
    table = read_number_table(path, columns=_READ, at_least=_FLAG, bad=bad)
    boxes = _boxes(table, num_frames, bad)
    values = table.values[np.searchsorted(table.lines, boxes.lines)]
    kept = np.ones(len(boxes), bool)
    if values.shape[1] > _CLASS:
        for row in np.flatnonzero(values[:, _CLASS] >= 2):
            bad.add(
                "class other than pedestrian",
                int(boxes.lines[row]),
                f"class {values[row, _CLASS]:g} in column 8; only pedestrians are scored (1, or -1 for no word)",
            )
            kept[row] = False
    confidence = values[:, _FLAG] if values.shape[1] > _FLAG else np.ones(len(boxes))
    boxes = TrackBoxes(
        boxes.frame, boxes.ids, boxes.corners, boxes.size, boxes.classes, confidence, boxes.counts, boxes.lines
    )
    return without_repeated_ids(boxes.where(kept).by_frame(), bad, _FIRST_FRAME)


def _boxes(table: NumberTable, num_frames: int | None, bad: BadRows) -> TrackBoxes:
    """Rows as boxes in the file's order, bad ones left out; class 1, confidence 1, to be evaluated."""
    kept = without_bad_boxes(
        table.values, table.lines, bad, columns=_COLUMNS, num_frames=num_frames, first_frame=_FIRST_FRAME
    )
    values, lines = (table.values, table.lines) if kept.all() else (table.values[kept], table.lines[kept])
    size = np.ascontiguousarray(values[:, 4:6])
    corners = np.concatenate([values[:, 2:4], values[:, 2:4] + size], axis=1)
    return TrackBoxes(
        frame=values[:, 0].astype(np.int64) - _FIRST_FRAME,
        ids=values[:, 1].astype(np.int64),
        corners=corners,
        size=size,
        classes=np.ones(len(values), np.int64),
        confidence=np.ones(len(values)),
        counts=np.ones(len(values), bool),
        lines=lines,
    )
