"""One sequence ready for the metrics: the boxes that a benchmark's rules leave, and which of them overlap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from statefield.datasets.tracking.track_boxes import TrackBoxes
from statefield.tasks.tracking.mot_evaluation.overlaps import Floats, Frames, Integers, Mask, Overlaps, overlaps


@dataclass(frozen=True)
class MotSequence:
    """Ground truth and tracker of one sequence.

    Args:
        num_frames: F, frames without any box included.
        gt: the ground-truth boxes, sorted by frame.
        tracker: the tracker's boxes, sorted by frame.
        pairs: which of them overlap.
    """

    num_frames: int
    gt: TrackBoxes
    tracker: TrackBoxes
    pairs: Overlaps

    @classmethod
    def of(cls, num_frames: int, gt: TrackBoxes, tracker: TrackBoxes) -> MotSequence:
        """Without any rule of a benchmark: all boxes are kept."""
        pairs = overlaps(
            gt.corners, Frames.of(gt.frame, num_frames), tracker.corners, Frames.of(tracker.frame, num_frames)
        )
        return cls(num_frames, gt, tracker, pairs)

    def keeping(self, gt: Mask, tracker: Mask) -> MotSequence:
        """The sequence with some of its boxes: `gt` bool [N] and `tracker` bool [M] say which."""
        if gt.all() and tracker.all():
            return self
        gt_at, tracker_at = np.cumsum(gt) - 1, np.cumsum(tracker) - 1
        kept = self.pairs.where(gt[self.pairs.gt] & tracker[self.pairs.tracker])
        moved = Overlaps(gt_at[kept.gt], tracker_at[kept.tracker], kept.frame, kept.iou)
        return MotSequence(self.num_frames, self.gt.where(gt), self.tracker.where(tracker), moved)

    @cached_property
    def gt_frames(self) -> Frames:
        return Frames.of(self.gt.frame, self.num_frames)

    @cached_property
    def tracker_frames(self) -> Frames:
        return Frames.of(self.tracker.frame, self.num_frames)

    @cached_property
    def gt_ids(self) -> Integers:
        """int64 [N], the ground-truth tracks as 0, 1, ... in the order of the file's ids."""
        return np.unique(self.gt.ids, return_inverse=True)[1].astype(np.int64)

    @cached_property
    def tracker_ids(self) -> Integers:
        """int64 [M], likewise."""
        return np.unique(self.tracker.ids, return_inverse=True)[1].astype(np.int64)

    @property
    def num_gt_ids(self) -> int:
        return len(self.gt_lengths)

    @property
    def num_tracker_ids(self) -> int:
        return len(self.tracker_lengths)

    @cached_property
    def gt_lengths(self) -> Integers:
        """int64 [G], the boxes of each ground-truth track."""
        return np.bincount(self.gt_ids).astype(np.int64)

    @cached_property
    def tracker_lengths(self) -> Integers:
        """int64 [T], the boxes of each of the tracker's tracks."""
        return np.bincount(self.tracker_ids).astype(np.int64)

    @cached_property
    def track_pairs(self) -> TrackPairs:
        """Which tracks ever overlap."""
        return TrackPairs.of(self.gt_ids[self.pairs.gt], self.tracker_ids[self.pairs.tracker], self.num_tracker_ids)


_MOST_CELLS = 1 << 22


@dataclass(frozen=True)
class TrackPairs:
    """The P pairs of a ground-truth track and a tracker's track that overlap in any frame.

    Args:
        gt: int64 [P].
        tracker: int64 [P].
        number: int64 [E], for each overlap of boxes, which of the P.
    """

    gt: Integers
    tracker: Integers
    number: Integers

    @classmethod
    def of(cls, gt: Integers, tracker: Integers, num_tracker_ids: int) -> TrackPairs:
        """From the tracks, int64 [E], of the overlaps."""
        keys = gt * num_tracker_ids + tracker
        largest = int(keys.max(initial=-1)) + 1
        if largest <= _MOST_CELLS:  # a table is several times as fast as sorting
            occurs = np.zeros(largest, bool)
            occurs[keys] = True
            unique = np.flatnonzero(occurs)
            position = np.zeros(largest, np.int64)
            position[unique] = np.arange(len(unique))
            inverse = position[keys]
        else:
            unique, inverse = np.unique(keys, return_inverse=True)
        unique_gt, unique_tracker = np.divmod(unique, max(num_tracker_ids, 1))
        return cls(unique_gt, unique_tracker, inverse)

    def sums(self, weights: Floats | None = None) -> Floats:
        """float64 [P], the sum of `weights` [E] (ones where there are none) of each pair, added frame by frame."""
        return np.bincount(self.number, weights, minlength=len(self.gt)).astype(np.float64)
