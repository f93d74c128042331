"""SORT (arXiv 1602.00763): Kalman predictions matched with detections by overlap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from statefield.tasks.tracking.motion import MotionModel
from statefield.tasks.tracking.motion.model import Boxes
from statefield.tasks.tracking.trackers.boxes import assign, overlap
from statefield.tasks.tracking.trackers.tracker import TRACKERS, FrameTracks, Tracker

__all__ = ["Sort"]


@TRACKERS.register("sort")
class Sort(Tracker):
    """SORT as its code has it.

    Args:
        motion: SORT's own Kalman filter unless another is given.
        least_overlap: of a track and its detection. max_age: frames that a track survives unseen.
        min_hits: frames in a row that a track is seen before it is told, the first frames of a sequence aside.
    """

    motion_name = "kalman_sort"

    def __init__(
        self,
        motion: MotionModel | None = None,
        *,
        least_overlap: float = 0.3,
        max_age: int = 1,
        min_hits: int = 3,
    ) -> None:
        super().__init__(motion)
        self.least_overlap, self.max_age, self.min_hits = least_overlap, max_age, min_hits

    def associate(self, boxes: Boxes, scores: NDArray[np.float64]) -> FrameTracks:
        predicted = self.predict()
        rows, found = assign(overlap(predicted, boxes), self.least_overlap, within=False)
        self.see(rows, boxes[found], scores[found])
        rest = np.delete(np.arange(len(boxes)), found)
        self.begin(boxes[rest], scores[rest])
        seen, hits = self.columns["missed"] == 0, self.columns["hits"]
        told = self.report(seen & ((hits >= self.min_hits) | (self.frame <= self.min_hits)))
        self.keep(self.columns["missed"] <= self.max_age)
        return told
