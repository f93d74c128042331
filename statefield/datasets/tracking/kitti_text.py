"""KITTI tracking labels: `frame id type truncated occluded alpha left top right bottom ... [score]`, frames from 0.

Seventeen columns in the ground truth, an eighteenth in results, its confidence. Rows of type DontCare are regions in
which unmatched boxes are not errors.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from statefield.datasets.tracking.bad_rows import BadRows
from statefield.datasets.tracking.track_boxes import TrackBoxes, without_bad_boxes
from statefield.errors import DataError

# as TrackEval numbers them
KITTI_CLASSES = {
    "car": 1,
    "van": 2,
    "truck": 3,
    "pedestrian": 4,
    "person": 5,
    "cyclist": 6,
    "tram": 7,
    "misc": 8,
    "dontcare": 9,
    "car_2": 1,
}
_OTHER_SPELLINGS = {"person_sitting": "person"}
_NUMBERS = (0, 1, 3, 4, 6, 7, 8, 9, 17)  # frame, id, truncated, occluded, left, top, right, bottom, score
_HARDEST_OCCLUSION, _MOST_TRUNCATION = 2, 0


def read_kitti_tracks(path: Path, *, num_frames: int | None, is_ground_truth: bool, bad: BadRows) -> TrackBoxes:
    """A label file of a sequence. Ids below 0 mean no track: such boxes are left out, but for DontCare regions.

    In the ground truth `counts` is False where a box is truncated, or occluded beyond level 2: TrackEval does not
    evaluate it. The same id may be a car and a pedestrian in one frame: whoever chooses a class sees to its ids.

    Raises: DataError for a file that cannot be read, and, as `bad` wills, for its first bad row.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DataError(f"{path} is not a file that can be read ({error.strerror}). Name a label file.") from error
    rows: list[list[float]] = []
    classes: list[int] = []
    lines: list[int] = []
    for line, content in enumerate(text.splitlines(), start=1):
        if not (cells := content.split()):
            continue
        if len(cells) < 10:
            bad.add(
                "wrong number of columns",
                line,
                f"{len(cells)} columns, KITTI's labels have 17 (frame id type truncated occluded alpha left ...)",
            )
            continue
        name = cells[2].lower()
        number = KITTI_CLASSES.get(_OTHER_SPELLINGS.get(name, name))
        if number is None:
            bad.add("unknown type", line, f"type {cells[2][:40]!r}; KITTI has {', '.join(KITTI_CLASSES)}")
            continue
        try:
            row = [float(cells[column]) if column < len(cells) else 1.0 for column in _NUMBERS]
        except ValueError as error:
            bad.add("not a number", line, f"a column is no number ({error})")
            continue
        if not all(map(math.isfinite, row)):
            bad.add("NaN or infinite", line, "a column is not finite")
            continue
        rows.append([*row, row[6] - row[4], row[7] - row[5]])
        classes.append(number)
        lines.append(line)
    values = np.array(rows, np.float64).reshape(len(rows), len(_NUMBERS) + 2)
    where = {"frame": 0, "id": 1, "width": 9, "height": 10}
    at = np.array(lines, np.int64)
    kept = without_bad_boxes(values, at, bad, columns=where, num_frames=num_frames, first_frame=0)
    kind = np.array(classes, np.int64)
    region = (kind == KITTI_CLASSES["dontcare"]) & is_ground_truth
    kept &= region | (values[:, 1] >= 0)
    truncated, occluded = np.trunc(values[:, 2]), np.trunc(values[:, 3])
    evaluated = (truncated <= _MOST_TRUNCATION) & (occluded <= _HARDEST_OCCLUSION) if is_ground_truth else ~region
    boxes = TrackBoxes(
        frame=values[:, 0].astype(np.int64),
        ids=values[:, 1].astype(np.int64),
        corners=np.ascontiguousarray(values[:, 4:8]),
        size=np.ascontiguousarray(values[:, 9:11]),
        classes=kind,
        confidence=values[:, 8].copy() if not is_ground_truth else np.ones(len(values)),
        counts=evaluated,
        lines=at,
        ignored=region,
    )
    return boxes.where(kept).by_frame()
