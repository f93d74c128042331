"""Which boxes of a frame overlap, and by how much: all frames of a sequence at once.

Boxes overlap few others, so what follows (matching, HOTA, CLEAR, ...) works on lists of pairs and not on a matrix a
frame. The values are those of the matrices that TrackEval makes, bit for bit: the order of boxes decides ties there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

EPS = float(np.finfo(np.float64).eps)
_PAIRS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Frames:
    """Where each frame's boxes stand in lists that are sorted by frame.

    Args:
        first: int64 [F + 1], the first box of each frame, and behind the last the number of boxes.
    """

    first: Integers

    @classmethod
    def of(cls, frame: Integers, num_frames: int) -> Frames:
        """From `frame`, int64 [N], sorted, below `num_frames`."""
        first = np.zeros(num_frames + 1, np.int64)
        np.cumsum(np.bincount(frame, minlength=num_frames), out=first[1:])
        return cls(first)

    @property
    def counts(self) -> Integers:
        """int64 [F], the boxes of each frame."""
        return np.diff(self.first)


@dataclass(frozen=True)
class Overlaps:
    """The E pairs of a ground-truth box and a tracker's box of one frame with an IoU above 0.

    Sorted by frame, then by ground-truth box, then by the tracker's box.

    Args:
        gt: int64 [E], positions among the ground-truth boxes of the sequence.
        tracker: int64 [E], positions among the tracker's boxes.
        frame: int64 [E].
        iou: float64 [E], in (0, 1].
    """

    gt: Integers
    tracker: Integers
    frame: Integers
    iou: Floats

    def __len__(self) -> int:
        return len(self.iou)

    def where(self, chosen: Mask) -> Overlaps:
        """The pairs of which `chosen` [E] is True."""
        return Overlaps(self.gt[chosen], self.tracker[chosen], self.frame[chosen], self.iou[chosen])


def overlaps(gt_corners: Floats, gt_frames: Frames, tracker_corners: Floats, tracker_frames: Frames) -> Overlaps:
    """Every pair of boxes of one frame that overlap.

    Args:
        gt_corners: float64 [N, 4], left, top, right, bottom in pixels, sorted by frame.
        gt_frames: where each frame's boxes are among them.
        tracker_corners: float64 [M, 4], likewise.
        tracker_frames: where each frame's boxes are among those.

    The IoU is that of continuous boxes, without a pixel added to their sides. A box without area overlaps nothing.
    """
    gt_counts, tracker_counts = gt_frames.counts, tracker_frames.counts
    rows: list[Integers] = []
    columns: list[Integers] = []
    both = np.flatnonzero((gt_counts > 0) & (tracker_counts > 0))
    start = 0
    while start < len(both):
        # as many frames as fit, padded to the largest of them
        stop, most_gt, most_tracker = start, 0, 0
        while stop < len(both):
            wider_gt = max(most_gt, int(gt_counts[both[stop]]))
            wider_tracker = max(most_tracker, int(tracker_counts[both[stop]]))
            if stop > start and wider_gt * wider_tracker * (stop - start + 1) > _PAIRS_AT_ONCE:
                break
            most_gt, most_tracker = wider_gt, wider_tracker
            stop += 1
        chosen = both[start:stop]
        left, right, gt_at = _padded(gt_corners, gt_frames, chosen, most_gt)
        other_left, other_right, tracker_at = _padded(tracker_corners, tracker_frames, chosen, most_tracker)
        meet = np.minimum(right[:, :, None], other_right[:, None, :]) > np.maximum(
            left[:, :, None], other_left[:, None, :]
        )
        flat = np.flatnonzero(meet)
        row, column = np.divmod(flat, most_tracker)
        rows.append(gt_at.ravel()[row])
        columns.append(tracker_at.ravel()[(row // most_gt) * most_tracker + column])
        start = stop
    gt = np.concatenate(rows) if rows else np.empty(0, np.int64)
    tracker = np.concatenate(columns) if columns else np.empty(0, np.int64)
    return _intersecting(gt_corners, gt, gt_frames, tracker_corners, tracker)


def _padded(corners: Floats, frames: Frames, chosen: Integers, most: int) -> tuple[Floats, Floats, Integers]:
    """Left and right sides [len(chosen), most] and the boxes' positions; what is padded meets nothing."""
    first, counts = frames.first[chosen], frames.counts[chosen]
    place = np.arange(most)
    exists = place < counts[:, None]
    at = np.where(exists, first[:, None] + place, 0)
    left = np.where(exists, corners[at, 0], np.inf)
    right = np.where(exists, corners[at, 2], -np.inf)
    return left, right, at


def _intersecting(
    gt_corners: Floats, gt: Integers, gt_frames: Frames, tracker_corners: Floats, tracker: Integers
) -> Overlaps:
    """The IoU of candidates, those without one left out; operations in the order in which TrackEval has them."""
    high = np.minimum(gt_corners[gt, 3], tracker_corners[tracker, 3]) - np.maximum(
        gt_corners[gt, 1], tracker_corners[tracker, 1]
    )
    tall = high > 0
    gt, tracker, high = gt[tall], tracker[tall], high[tall]
    wide = np.minimum(gt_corners[gt, 2], tracker_corners[tracker, 2]) - np.maximum(
        gt_corners[gt, 0], tracker_corners[tracker, 0]
    )
    intersection = wide * high
    gt_area, tracker_area = box_areas(gt_corners)[gt], box_areas(tracker_corners)[tracker]
    union = gt_area + tracker_area - intersection
    some = (gt_area > EPS) & (tracker_area > EPS) & (union > EPS) & (intersection > 0)
    if not some.all():
        gt, tracker, intersection, union = gt[some], tracker[some], intersection[some], union[some]
    frame = np.repeat(np.arange(len(gt_frames.counts)), gt_frames.counts)[gt]
    return Overlaps(gt, tracker, frame, intersection / union)


def box_areas(corners: Floats) -> Floats:
    """float64 [N] from corners float64 [N, 4]."""
    return (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
