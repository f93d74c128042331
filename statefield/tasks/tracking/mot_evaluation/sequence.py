"""One sequence ready for the metrics: the boxes that a benchmark's rules leave, and which of them overlap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from statefield.datasets.tracking.track_boxes import TrackBoxes
from statefield.tasks.tracking.mot_evaluation.overlaps import Floats, Frames, Integers, Mask, Overlaps, overlaps

_CELLS_FOR_EACH = 4


@dataclass(frozen=True)
class MotSequence:
    """Ground truth and tracker of one sequence.

    Args:
        num_frames: F, frames without any box included.
        all_gt: ground-truth boxes, sorted by frame.
        all_tracker: the tracker's boxes, sorted by frame.
        gt_at: int64 [N], which of the ground truth take part.
        tracker_at: int64 [M], which of the tracker's boxes do.
        pairs: which of those overlap, by their positions among those that take part.
    """

    num_frames: int
    all_gt: TrackBoxes
    all_tracker: TrackBoxes
    gt_at: Integers
    tracker_at: Integers
    pairs: Overlaps

    @classmethod
    def of(cls, num_frames: int, gt: TrackBoxes, tracker: TrackBoxes) -> MotSequence:
        """Without any rule of a benchmark: all boxes are kept."""
        gt_frames, tracker_frames = Frames.of(gt.frame, num_frames), Frames.of(tracker.frame, num_frames)
        pairs = overlaps(gt.corners, gt_frames, tracker.corners, tracker_frames)
        return cls(num_frames, gt, tracker, np.arange(len(gt)), np.arange(len(tracker)), pairs)

    def keeping(self, gt: Mask, tracker: Mask) -> MotSequence:
        """The sequence with some of its boxes: `gt` bool [N] and `tracker` bool [M] say which."""
        if gt.all() and tracker.all():
            return self
        gt_now, tracker_now = np.cumsum(gt) - 1, np.cumsum(tracker) - 1
        kept = self.pairs.where(gt.take(self.pairs.gt) & tracker.take(self.pairs.tracker))
        moved = Overlaps(gt_now.take(kept.gt), tracker_now.take(kept.tracker), kept.frame, kept.iou)
        gt_at, tracker_at = self.gt_at.compress(gt), self.tracker_at.compress(tracker)
        return MotSequence(self.num_frames, self.all_gt, self.all_tracker, gt_at, tracker_at, moved)

    @cached_property
    def gt(self) -> TrackBoxes:
        """The ground-truth boxes."""
        return self.all_gt.at(self.gt_at)

    @cached_property
    def tracker(self) -> TrackBoxes:
        """The tracker's boxes."""
        return self.all_tracker.at(self.tracker_at)

    @property
    def num_gt(self) -> int:
        return len(self.gt_at)

    @property
    def num_tracker(self) -> int:
        return len(self.tracker_at)

    @cached_property
    def gt_frames(self) -> Frames:
        return Frames.of(self.all_gt.frame.take(self.gt_at), self.num_frames)

    @cached_property
    def tracker_frames(self) -> Frames:
        return Frames.of(self.all_tracker.frame.take(self.tracker_at), self.num_frames)

    @cached_property
    def gt_ids(self) -> Integers:
        """int64 [N], the ground-truth tracks as 0, 1, ... in the order of the file's ids."""
        return _numbered(self.all_gt.ids.take(self.gt_at))

    @cached_property
    def tracker_ids(self) -> Integers:
        """int64 [M], likewise."""
        return _numbered(self.all_tracker.ids.take(self.tracker_at))

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
        return TrackPairs.of(
            self.gt_ids.take(self.pairs.gt), self.tracker_ids.take(self.pairs.tracker), self.num_tracker_ids
        )


def _numbered(values: Integers) -> Integers:
    """int64 [N], the place of each value among the different ones, sorted, from 0."""
    return _different(values - values.min())[1] if len(values) else values


def _different(values: Integers) -> tuple[Integers, Integers]:
    """As `numpy.unique` with the inverse, of values that are not below 0."""
    largest = int(values.max(initial=-1)) + 1
    if largest > _CELLS_FOR_EACH * len(values):
        different = np.unique(values)
        return different, np.searchsorted(different, values)
    occurs = np.zeros(largest, bool)  # a table is many times as fast as the inverse of `numpy.unique`
    occurs[values] = True
    different = np.flatnonzero(occurs)
    position = np.zeros(largest, np.int64)
    position[different] = np.arange(len(different))
    return different, position.take(values)


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
        unique, inverse = _different(gt * num_tracker_ids + tracker)
        unique_gt, unique_tracker = np.divmod(unique, max(num_tracker_ids, 1))
        return cls(unique_gt, unique_tracker, inverse)

    def sums(self, weights: Floats | None = None) -> Floats:
        """float64 [P], the sum of `weights` [E] (ones where there are none) of each pair, added frame by frame."""
        return np.bincount(self.number, weights, minlength=len(self.gt)).astype(np.float64)
