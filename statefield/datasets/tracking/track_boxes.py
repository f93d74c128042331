"""The boxes of one file of tracks, sorted by frame, and the checks that every format shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.tracking.bad_rows import BadRows

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TrackBoxes:
    """N boxes of one sequence in the order of their frames, and within a frame in the order of their file.

    Args:
        frame: int64 [N], from 0.
        ids: int64 [N], the track of each box as the file names it.
        corners: float64 [N, 4], left, top, right, bottom in pixels.
        size: float64 [N, 2], width and height in pixels as the file has them: right - left may differ in the last bit.
        classes: int64 [N], as the file's benchmark counts them; 1 where it has none.
        confidence: float64 [N]; in a ground truth, 1.
        counts: bool [N], False where the ground truth marks a box as not to be evaluated (MOTChallenge: column 7 is
            0); True in results.
        lines: int64 [N], the line of each box in its file, from 1.
        ignored: bool [N], True for KITTI's regions in which nothing is evaluated (DontCare).
    """

    frame: Integers
    ids: Integers
    corners: Floats
    size: Floats
    classes: Integers
    confidence: Floats
    counts: NDArray[np.bool_]
    lines: Integers
    ignored: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))

    def __post_init__(self) -> None:
        if len(self.ignored) != len(self.frame):
            object.__setattr__(self, "ignored", np.zeros(len(self.frame), bool))

    def __len__(self) -> int:
        return len(self.frame)

    def where(self, chosen: NDArray[np.bool_]) -> TrackBoxes:
        """The boxes of which `chosen` [N] is True."""
        return self if chosen.all() else self.at(np.flatnonzero(chosen))

    def at(self, positions: Integers) -> TrackBoxes:
        """The boxes at `positions`, int64 [M]."""
        if len(positions) == len(self) and np.array_equal(positions, np.arange(len(self))):
            return self
        columns = {each.name: getattr(self, each.name) for each in fields(self)}
        return TrackBoxes(**{name: column.T.take(positions, axis=-1).T for name, column in columns.items()})

    def by_frame(self) -> TrackBoxes:
        """The same boxes sorted by frame; the file's order is kept within a frame."""
        if np.all(self.frame[1:] >= self.frame[:-1]):
            return self
        return self.at(sorted_order(self.frame))


def sorted_order(numbers: Integers) -> Integers:
    """int64 [N], the positions of `numbers`, of 0 or more, as they are sorted; those of equal numbers as they were."""
    few = len(numbers) and numbers.max() < 2**16  # for 16 bits NumPy sorts by digits, many times as fast
    return np.argsort(numbers.astype(np.uint16) if few else numbers, kind="stable")


def without_bad_boxes(
    values: Floats,
    lines: Integers,
    bad: BadRows,
    *,
    columns: Mapping[str, int],
    num_frames: int | None,
    first_frame: int,
) -> NDArray[np.bool_]:
    """Which rows can be meant: whole frames and ids, frames within the sequence, no box of negative size.

    Args:
        values: float64 [N, C], a row a box.
        lines: their lines.
        bad: told of every other row.
        columns: where "frame", "id" and what "width" and "height" name are.
        num_frames: the length of the sequence, None where nobody knows.
        first_frame: 1 in MOTChallenge, 0 in KITTI.
    """
    frame, ids = values[:, columns["frame"]], values[:, columns["id"]]
    kept = np.ones(len(values), bool)
    last_frame = None if num_frames is None else first_frame + num_frames - 1
    checks: list[tuple[str, NDArray[np.bool_], Callable[[int], str]]] = [
        ("frame not whole", frame != np.floor(frame), lambda row: f"frame {frame[row]:g} is no whole number"),
        (
            f"frame below {first_frame}",
            frame < first_frame,
            lambda row: f"frame {frame[row]:g}, but frames are counted from {first_frame}",
        ),
        ("id not whole", ids != np.floor(ids), lambda row: f"id {ids[row]:g} is no whole number"),
        ("number too large", (np.abs(ids) >= 2**62) | (frame >= 2**31), lambda row: "a frame or id that is too large"),
    ]
    if last_frame is not None:
        beyond = frame > last_frame
        checks.append(
            (
                "frame beyond the sequence",
                beyond,
                lambda row: f"frame {frame[row]:g} is beyond the sequence, whose last frame is {last_frame}",
            )
        )
    for name in ("width", "height"):
        if name in columns:
            size = values[:, columns[name]]
            checks.append((f"negative {name}", size < 0, partial(_tell_of_size, name, size)))
    for kind, wrong, tell in checks:
        for row in np.flatnonzero(wrong & kept).tolist():
            bad.add(kind, int(lines[row]), tell(row))
            kept[row] = False
    return kept


def _tell_of_size(name: str, size: Floats, row: int) -> str:
    return f"{name} {size[row]:g} is negative"


def without_repeated_ids(boxes: TrackBoxes, bad: BadRows, first_frame: int) -> TrackBoxes:
    """The boxes without those whose id the same frame has had before; `bad` is told of each.

    Args:
        boxes: sorted by frame.
    """
    if len(boxes) < 2:
        return boxes
    low, most_frames = int(boxes.ids.min()), int(boxes.frame[-1]) + 1
    spread = int(boxes.ids.max()) - low + 1
    if spread * most_frames < 2**63:  # numbers alone are sorted many times as fast as rows of them
        keys = np.sort(boxes.frame * spread + (boxes.ids - low))
        if not np.any(keys[1:] == keys[:-1]):
            return boxes
    order = np.lexsort((boxes.lines, boxes.ids, boxes.frame))
    frame, ids, lines = boxes.frame[order], boxes.ids[order], boxes.lines[order]
    again = np.flatnonzero((frame[1:] == frame[:-1]) & (ids[1:] == ids[:-1])) + 1
    if not len(again):
        return boxes
    kept = np.ones(len(boxes), bool)
    all_one = "; every box has this id, as in a file of detections" if np.all(boxes.ids == boxes.ids[0]) else ""
    for position in again[np.argsort(lines[again])]:
        bad.add(
            "the same id twice in a frame",
            int(lines[position]),
            f"id {ids[position]} is in frame {frame[position] + first_frame} again (before: line "
            f"{lines[position - 1]}){all_one}",
        )
        kept[order[position]] = False
    return boxes.where(kept)
