"""ByteTrack (arXiv 2110.06864): detections of low score are matched too, with what high ones left."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from statefield.tasks.tracking.motion import MotionModel
from statefield.tasks.tracking.motion.model import Boxes
from statefield.tasks.tracking.trackers.boxes import Index, assign, overlap
from statefield.tasks.tracking.trackers.tracker import TRACKERS, FrameTracks, Tracker

__all__ = ["ByteTrack"]


@TRACKERS.register("bytetrack")
class ByteTrack(Tracker):
    """ByteTrack as its code has it, with the settings of its MOT17 models.

    Args:
        motion: ByteTrack's own Kalman filter unless another is given.
        high: detections above this score are of the first stage, those between it and `low` of the second.
        new: what the stages left begins a track from this score on.
        first_cost, second_cost, unconfirmed_cost: 1 - overlap at most, in each stage; the first and the third
            have the overlap times the detection's score.
        max_age: frames that a track survives unseen.
        duplicate: tracks that overlap by more than 1 - this, one seen and one not, are one: the younger goes.

    A track that began in the last frame is unconfirmed until it is seen once more, and not told.
    """

    motion_name = "kalman_byte"

    def __init__(
        self,
        motion: MotionModel | None = None,
        *,
        high: float = 0.6,
        new: float = 0.7,
        low: float = 0.1,
        first_cost: float = 0.9,
        second_cost: float = 0.5,
        unconfirmed_cost: float = 0.7,
        max_age: int = 30,
        duplicate: float = 0.15,
    ) -> None:
        super().__init__(motion)
        self.high, self.new, self.low, self.max_age, self.duplicate = high, new, low, max_age, duplicate
        self.first_cost, self.second_cost, self.unconfirmed_cost = first_cost, second_cost, unconfirmed_cost

    def own_columns(self) -> dict[str, Any]:
        return {"confirmed": False, "lost": False}

    def associate(self, boxes: Boxes, scores: NDArray[np.float64]) -> FrameTracks:
        predicted = self.predict()
        similar = overlap(predicted, boxes)
        fused = similar * scores
        high = np.flatnonzero(scores > self.high)
        low = np.flatnonzero((scores > self.low) & (scores < self.high))
        confirmed, lost = self.columns["confirmed"], self.columns["lost"].copy()

        def match(tracks: Index, detections: Index, gain: Boxes, cost: float) -> tuple[Index, Index]:
            """See the pairs; what is left of tracks and of detections."""
            rows, found = assign(gain[np.ix_(tracks, detections)], 1 - cost)
            self.see(tracks[rows], boxes[detections[found]], scores[detections[found]])
            return np.delete(tracks, rows), np.delete(detections, found)

        left, high = match(np.flatnonzero(confirmed), high, fused, self.first_cost)
        left, _ = match(left[~lost[left]], low, similar, self.second_cost)
        forgotten, high = match(np.flatnonzero(~confirmed), high, fused, self.unconfirmed_cost)
        self.columns["lost"] = self.columns["missed"] > 0
        self.columns["confirmed"] = confirmed | (self.columns["missed"] == 0)
        stays = self.columns["missed"] <= self.max_age
        stays[forgotten] = False
        self.keep(stays)
        high = high[scores[high] >= self.new]
        self.begin(boxes[high], scores[high], confirmed=self.frame == 1)
        self._drop_duplicates()
        return self.report(self.columns["confirmed"] & ~self.columns["lost"])

    def _drop_duplicates(self) -> None:
        seen, lost = np.flatnonzero(~self.columns["lost"]), np.flatnonzero(self.columns["lost"])
        if not len(seen) or not len(lost):
            return
        places = self.motion.boxes()
        first, second = np.nonzero(overlap(places[seen], places[lost]) > 1 - self.duplicate)
        if not len(first):
            return
        first, second = seen[first], lost[second]
        older = self._time(first) > self._time(second)
        stays = np.ones(len(self), dtype=bool)
        stays[np.where(older, second, first)] = False
        self.keep(stays)

    def _time(self, rows: Index) -> NDArray[np.int64]:
        """Frames from a track's begin to when it was last seen."""
        return self.columns["age"][rows] - self.columns["missed"][rows]
