"""MambaTrack (arXiv 2408.09178): learned predictions, and tracks that were lost patched by them until they return."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from statefield.tasks.tracking.motion import MotionModel
from statefield.tasks.tracking.motion.model import Boxes
from statefield.tasks.tracking.trackers.boxes import Index, assign, overlap
from statefield.tasks.tracking.trackers.tracker import TRACKERS, FrameTracks, Tracker

__all__ = ["MambaTrack"]


@TRACKERS.register("mambatrack")
class MambaTrack(Tracker):
    """Two stages of overlap: tracks that were seen in the last frame, then the others with what is left.

    Args:
        motion: MTP with its weights (`statefield.tasks.tracking.motion.learned`), as published; any other fits too.
        high: detections above this score are matched; those left above `new` begin tracks.
        low: where given, detections between `low` and `high` are matched with what the first stage left, as ByteTrack
            does; the paper has no such stage.
        first_overlap, second_overlap: of a track and its detection at least, in the two stages. The paper gives no
            values: these are ByteTrack's.
        max_age: frames that a track survives unseen. Meanwhile its predictions are its history (tracklet patching).

    Raises:
        ConfigError: no motion model: the learned one has no weights of its own accord.

    Source: sections 3.3 and 3.4 of the paper; there is no code of the authors.
    """

    motion_name = "mtp"

    def __init__(
        self,
        motion: MotionModel | None = None,
        *,
        high: float = 0.6,
        new: float = 0.6,
        low: float | None = None,
        first_overlap: float = 0.1,
        second_overlap: float = 0.5,
        max_age: int = 30,
    ) -> None:
        super().__init__(motion)
        self.high, self.new, self.low, self.max_age = high, new, low, max_age
        self.first_overlap, self.second_overlap = first_overlap, second_overlap

    def associate(self, boxes: Boxes, scores: NDArray[np.float64]) -> FrameTracks:
        predicted = self.predict()
        similar = overlap(predicted, boxes)
        high = np.flatnonzero(scores > self.high)
        active = np.flatnonzero(self.columns["missed"] == 1)  # counted for this frame already
        lost = np.flatnonzero(self.columns["missed"] > 1)

        def match(tracks: Index, detections: Index, least: float) -> tuple[Index, Index]:
            """See the pairs; what is left of tracks and of detections."""
            rows, found = assign(similar[np.ix_(tracks, detections)], least)
            self.see(tracks[rows], boxes[detections[found]], scores[detections[found]])
            return np.delete(tracks, rows), np.delete(detections, found)

        left, high = match(active, high, self.first_overlap)
        if self.low is not None:
            low = np.flatnonzero((scores > self.low) & (scores <= self.high))
            left, _ = match(left, low, self.second_overlap)
        _, high = match(np.concatenate((lost, left)), high, self.second_overlap)
        self.keep(self.columns["missed"] <= self.max_age)
        high = high[scores[high] > self.new]
        self.begin(boxes[high], scores[high])
        return self.report(self.columns["missed"] == 0)
