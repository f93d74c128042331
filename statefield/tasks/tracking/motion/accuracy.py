"""How well a motion model knows where a track will be: the overlap of its prediction with the next box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from statefield.tasks.tracking.motion.model import MotionModel, corners
from statefield.tasks.tracking.motion.windows import SequenceTracks

__all__ = ["NextBox", "next_box", "paired_overlap"]

_MOVED = 0.8


@dataclass(frozen=True)
class NextBox:
    """A mergeable state: states of sequences add.

    Attributes:
        count: predictions. overlap: the sum of their IoU with the box that came.
        moved: predictions where the box that came overlaps the last one by less than 0.8. moved_overlap: of those.
    """

    count: int = 0
    overlap: float = 0.0
    moved: int = 0
    moved_overlap: float = 0.0

    def __add__(self, other: NextBox) -> NextBox:
        return NextBox(
            self.count + other.count,
            self.overlap + other.overlap,
            self.moved + other.moved,
            self.moved_overlap + other.moved_overlap,
        )

    def summarise(self) -> dict[str, float]:
        """Means over all boxes: `IoU`, and `IoU_moved` of the fast ones; NaN where there is none. And their counts."""
        return {
            "IoU": self.overlap / self.count if self.count else float("nan"),
            "IoU_moved": self.moved_overlap / self.moved if self.moved else float("nan"),
            "boxes": self.count,
            "boxes_moved": self.moved,
        }


def next_box(tracks: SequenceTracks, make: Callable[[], MotionModel]) -> NextBox:
    """Lead a motion model along true tracks, frame by frame, and compare what it expects with what comes.

    A track that is away for a frame begins anew. Counted is a box whose track was there in the two frames before, so
    that a step was known.
    """
    model = make()
    order = np.argsort(tracks.frame, kind="stable")
    boxes, since, ids = corners(tracks.boxes)[order], tracks.since[order], tracks.ids[order]
    frames, starts = np.unique(tracks.frame[order], return_index=True)
    state = NextBox()
    held = np.zeros(0, dtype=np.int64)  # ids of the model's rows
    before = np.zeros((0, 4))
    last_frame = None
    for frame, rows in zip(frames, np.split(np.arange(len(order)), starts[1:]), strict=True):
        if last_frame is not None and frame != last_frame + 1:
            model.keep(np.zeros(len(held), dtype=bool))
            held, before = held[:0], before[:0]
        last_frame = frame
        expected = model.predict(np.zeros(len(held), dtype=bool))
        _, of_held, of_rows = np.intersect1d(held, ids[rows], assume_unique=True, return_indices=True)
        here = rows[of_rows]
        counted = since[here] >= 2
        state += _compared(expected[of_held][counted], before[of_held][counted], boxes[here][counted])
        model.update(of_held, boxes[here])
        model.keep(of_held)
        new = rows[np.isin(ids[rows], held, invert=True)]
        model.start(boxes[new])
        held, before = np.concatenate((ids[here], ids[new])), np.concatenate((boxes[here], boxes[new]))
    return state


def _compared(expected: np.ndarray, before: np.ndarray, came: np.ndarray) -> NextBox:
    found = paired_overlap(expected, came)
    moved = paired_overlap(before, came) < _MOVED
    return NextBox(len(found), float(found.sum()), int(moved.sum()), float(found[moved].sum()))


def paired_overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes side by side, [N, 4] and [N, 4] -> [N]; 0 for a box without area."""
    sides = np.maximum(np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2]), 0)
    shared = sides.prod(axis=1)
    union = (one[:, 2:] - one[:, :2]).prod(axis=1) + (other[:, 2:] - other[:, :2]).prod(axis=1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
