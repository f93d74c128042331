"""OC-SORT (arXiv 2203.14360): SORT that trusts observations more than its filter's memory of them.

momentum      a detection that lies in the direction in which a track went gains
recovery      what is left is matched once more by where tracks were last seen
re-update     a track that returns has its filter run again, along a straight line from where it was last seen
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from statefield.errors import ConfigError
from statefield.tasks.tracking.motion import MotionModel
from statefield.tasks.tracking.motion.kalman import SortKalman
from statefield.tasks.tracking.motion.model import MOTION_MODELS, Boxes, Rows, centred, corners
from statefield.tasks.tracking.trackers.boxes import Array, Index, assign, overlap
from statefield.tasks.tracking.trackers.tracker import TRACKERS, FrameTracks, Tracker

__all__ = ["OCSort", "ReupdatedKalman"]


@MOTION_MODELS.register("kalman_ocsort")
class ReupdatedKalman(SortKalman):
    """SORT's filter, and for tracks that return after a gap: the state from before the gap, led along a straight line.

    Of the virtual boxes between the last sighting and the present one (centres and sides interpolated) every one is an
    update, so the noise that grew in the gap and the velocity that drifted are gone (observation-centric re-update).
    """

    def __init__(self) -> None:
        super().__init__()
        self.saved = np.zeros((5, 0, 4))  # the state as it was predicted for the first frame of a gap
        self.last = np.zeros((0, 4))  # where a track was seen last: centre and sides
        self.gap = np.zeros(0, dtype=np.int64)  # frames since then

    def start(self, boxes: Boxes) -> None:
        super().start(boxes)
        count = len(boxes)
        self.saved = np.concatenate((self.saved, np.zeros((5, count, 4))), axis=1)
        self.last = np.concatenate((self.last, centred(boxes)))
        self.gap = np.concatenate((self.gap, np.zeros(count, dtype=np.int64)))

    def predict(self, coasting: NDArray[np.bool_]) -> Boxes:
        found = super().predict(coasting)
        self.gap += 1
        first = self.gap == 1
        self.saved[:, first] = self.state[:, first]
        return found

    def update(self, rows: NDArray[np.intp], boxes: Boxes) -> None:
        returned = self.gap[rows] > 1
        if returned.any():
            self._retrace(rows[returned], centred(boxes[returned]))
        self.correct(rows[~returned], self.measured(boxes[~returned]))
        self.last[rows] = centred(boxes)
        self.gap[rows] = 0

    def _retrace(self, rows: Index, now: Array) -> None:
        before, gaps = self.last[rows], self.gap[rows]
        self.state[:, rows] = self.saved[:, rows]
        for passed in range(1, gaps.max() + 1):
            going = gaps >= passed
            one = rows[going]
            if passed > 1:
                self.state[:, one] = self._predicted(one)
            share = (passed / gaps[going])[:, None]
            self.correct(one, self.measured(corners(before[going] + share * (now[going] - before[going]))))

    def _predicted(self, rows: Index) -> Array:
        """The states of some tracks one frame on."""
        part = SortKalman()
        part.state = self.state[:, rows]
        part.predict(np.zeros(len(rows), dtype=bool))
        return part.state

    def keep(self, rows: Rows) -> None:
        super().keep(rows)
        self.saved, self.last, self.gap = self.saved[:, rows], self.last[rows], self.gap[rows]


@TRACKERS.register("ocsort")
class OCSort(Tracker):
    """OC-SORT as its code has it, without the stage of low scores unless `low` is given.

    Args:
        motion: the re-updated filter unless another is given.
        high: detections above this score are used, and begin tracks. low: where given, those between are matched with
            what the first stage left.
        least_overlap: of a track and its detection. max_age: frames that a track survives unseen.
        min_hits: frames in a row that a track is seen before it is told, the first frames of a sequence aside.
        span: frames over which a direction is measured. inertia: the weight of directions beside overlap.

    Tracks are told at the boxes of their detections.
    """

    motion_name = "kalman_ocsort"

    def __init__(
        self,
        motion: MotionModel | None = None,
        *,
        high: float = 0.6,
        low: float | None = None,
        least_overlap: float = 0.3,
        max_age: int = 30,
        min_hits: int = 3,
        span: int = 3,
        inertia: float = 0.2,
    ) -> None:
        if span < 1:
            raise ConfigError(f"span {span}: a direction is measured over 1 frame or more.")
        self.span = span
        super().__init__(motion)
        self.high, self.low, self.least_overlap, self.inertia = high, low, least_overlap, inertia
        self.max_age, self.min_hits = max_age, min_hits

    def own_columns(self) -> dict[str, Any]:
        # past: boxes seen 1, 2, ..., span frames before this one, NaN where a track was not seen.
        return {"last": np.zeros(4), "past": np.full((self.span, 4), np.nan), "direction": np.zeros(2)}

    def associate(self, boxes: Boxes, scores: NDArray[np.float64]) -> FrameTracks:
        predicted = self.predict()
        high = np.flatnonzero(scores > self.high)
        similar = overlap(predicted, boxes)
        gain = similar[:, high] + self._along(boxes[high]) * scores[high]
        rows, found = assign(gain, self.least_overlap, within=False, held_to=similar[:, high])
        self.see(rows, boxes[high[found]], scores[high[found]])
        left, high = np.delete(np.arange(len(self)), rows), np.delete(high, found)
        if self.low is not None:
            low = np.flatnonzero((scores > self.low) & (scores < self.high))
            left, _ = self._match(similar, left, low, boxes, scores)
        _, high = self._match(overlap(self.columns["last"], boxes), left, high, boxes, scores)
        self.begin(boxes[high], scores[high], last=boxes[high])
        self.columns["past"] = np.concatenate((self._present(), self.columns["past"][:, :-1]), axis=1)
        seen, hits = self.columns["missed"] == 0, self.columns["hits"]
        told = self.report(seen & ((hits >= self.min_hits) | (self.frame <= self.min_hits)), self.columns["last"])
        self.keep(self.columns["missed"] <= self.max_age)
        return told

    def see(self, rows: Index, boxes: Boxes, scores: NDArray[np.float64]) -> None:
        if not len(rows):
            return
        self.columns["direction"][rows] = _direction(self._earlier(rows), boxes)
        super().see(rows, boxes, scores)
        self.columns["last"][rows] = boxes

    def _match(
        self, similar: Array, tracks: Index, detections: Index, boxes: Boxes, scores: NDArray[np.float64]
    ) -> tuple[Index, Index]:
        """See the pairs that overlap enough; what is left of tracks and of detections."""
        rows, found = assign(similar[np.ix_(tracks, detections)], self.least_overlap, within=False)
        self.see(tracks[rows], boxes[detections[found]], scores[detections[found]])
        return np.delete(tracks, rows), np.delete(detections, found)

    def _earlier(self, rows: Rows) -> Boxes:
        """Where tracks were seen `span` frames ago, or as long ago as is known within it, else where last."""
        past = self.columns["past"][rows]
        known = ~np.isnan(past[:, :, 0])
        oldest = past.shape[1] - 1 - known[:, ::-1].argmax(axis=1)
        found = past[np.arange(len(past)), oldest]
        return np.where(known.any(axis=1, keepdims=True), found, self.columns["last"][rows])

    def _present(self) -> Array:
        """This frame's boxes as the newest of `past`, [N, 1, 4], NaN for tracks that were not seen in it."""
        seen = self.columns["missed"] == 0
        return np.where(seen[:, None], self.columns["last"], np.nan)[:, None]

    def _along(self, boxes: Boxes) -> Array:
        """What each detection gains by lying where a track was heading, [N, M]: `inertia` / 2 ahead, less behind."""
        every = np.arange(len(self))
        before = self._earlier(every)
        towards = _direction(before[:, None], boxes[None])
        cosine = (self.columns["direction"][:, None] * towards).sum(-1).clip(-1, 1)
        return self.inertia * (np.pi / 2 - np.arccos(cosine)) / np.pi


def _direction(before: Boxes, now: Boxes) -> Array:
    """From centre to centre, of length 1 (0 where they coincide): [..., 2]."""
    moved = (now[..., :2] + now[..., 2:] - before[..., :2] - before[..., 2:]) / 2
    length = np.sqrt((moved**2).sum(-1, keepdims=True))
    return moved / np.maximum(length, 1e-6)
