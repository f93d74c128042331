"""Which boxes of a frame overlap, and by how much: all frames of a sequence at once.

Boxes overlap few others, so what follows (matching, HOTA, CLEAR, ...) works on lists of pairs and not on a matrix a
frame. The values are those of the matrices that TrackEval makes, bit for bit: the order of boxes decides ties there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

EPS = float(np.finfo(np.float64).eps)
_PAIRS_AT_ONCE = 1 << 18
_INT16_PX = 32_000.0


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
        return self.first[1:] - self.first[:-1]


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
        return self.at(np.flatnonzero(chosen))

    def at(self, positions: Integers) -> Overlaps:
        """The pairs at `positions`."""
        return Overlaps(
            self.gt.take(positions), self.tracker.take(positions), self.frame.take(positions), self.iou.take(positions)
        )


def overlaps(gt_corners: Floats, gt_frames: Frames, tracker_corners: Floats, tracker_frames: Frames) -> Overlaps:
    """Every pair of boxes of one frame that overlap.

    Args:
        gt_corners: float64 [N, 4], left, top, right, bottom in pixels, sorted by frame.
        gt_frames: where each frame's boxes are among them.
        tracker_corners: float64 [M, 4], likewise.
        tracker_frames: where each frame's boxes are among those.

    The IoU is that of continuous boxes, without a pixel added to their sides. A box without area overlaps nothing.
    """
    gt, tracker = np.ascontiguousarray(gt_corners.T), np.ascontiguousarray(tracker_corners.T)
    gt_outside, tracker_outside = _outside(gt, tracker)
    gt_counts, tracker_counts = gt_frames.counts, tracker_frames.counts
    found: list[tuple[Integers, Integers, Integers]] = []
    for chosen, most_gt, most_tracker in _blocks(gt_counts, tracker_counts):
        gt_at, left, top, right, bottom = _padded(gt_outside, gt_frames, gt_counts, chosen, most_gt)
        tracker_at, *sides = _padded(tracker_outside, tracker_frames, tracker_counts, chosen, most_tracker)
        its_left, its_top, its_right, its_bottom = (side[:, None, :] for side in sides)
        meet = right[:, :, None] > its_left
        meet &= left[:, :, None] < its_right
        meet &= bottom[:, :, None] > its_top
        meet &= top[:, :, None] < its_bottom
        flat = np.flatnonzero(meet)
        row = flat // most_tracker
        block_frame = row // most_gt
        column = flat - row * most_tracker
        found.append((gt_at.ravel().take(row), tracker_at[:, 0].take(block_frame) + column, chosen.take(block_frame)))
    empty = np.empty(0, np.int64)
    candidates = (np.concatenate([empty, *each]) for each in (zip(*found, strict=True) if found else ([], [], [])))
    return _intersecting(gt, tracker, *candidates)


def _outside(gt: Floats, tracker: Floats) -> tuple[NDArray[Any], NDArray[Any]]:
    """The corners [4, boxes] in int16, to whole pixels outwards: what overlaps does so still, and is found faster.

    As they are where a side is beyond the numbers of int16.
    """
    if any(len(each[0]) and max(-each.min(), each.max()) > _INT16_PX for each in (gt, tracker)):
        return gt, tracker
    rounded = []
    for each in (gt, tracker):
        sides = np.empty(each.shape, np.int16)
        sides[:2], sides[2:] = np.floor(each[:2]), np.ceil(each[2:])
        rounded.append(sides)
    return rounded[0], rounded[1]


def _blocks(gt_counts: Integers, tracker_counts: Integers) -> Iterator[tuple[Integers, int, int]]:
    """Frames with boxes on both sides, as many at once as fit when padded; and the most boxes of any of them."""
    both = np.flatnonzero((gt_counts > 0) & (tracker_counts > 0))
    most_gt = most_tracker = start = 0
    counts = zip(gt_counts[both].tolist(), tracker_counts[both].tolist(), strict=True)
    for position, (num_gt, num_tracker) in enumerate(counts):
        wider_gt, wider_tracker = max(most_gt, num_gt), max(most_tracker, num_tracker)
        if position > start and wider_gt * wider_tracker * (position - start + 1) > _PAIRS_AT_ONCE:
            yield both[start:position], most_gt, most_tracker
            start, wider_gt, wider_tracker = position, num_gt, num_tracker
        most_gt, most_tracker = wider_gt, wider_tracker
    if start < len(both):
        yield both[start:], most_gt, most_tracker


def _padded(
    corners: NDArray[Any], frames: Frames, counts: Integers, chosen: Integers, most: int
) -> tuple[NDArray[Any], ...]:
    """The boxes' positions, lefts, tops, rights and bottoms, each [len(chosen), most]; what is padded meets nothing."""
    place = np.arange(most)
    missing = place >= counts[chosen][:, None]
    at = frames.first[chosen][:, None] + place
    left, top, right, bottom = (side.take(at, mode="clip") for side in corners)
    left[missing] = np.iinfo(np.int16).max if left.dtype == np.int16 else np.inf
    right[missing] = np.iinfo(np.int16).min if right.dtype == np.int16 else -np.inf
    return at, left, top, right, bottom


def _intersecting(
    gt_corners: Floats, tracker_corners: Floats, gt: Integers, tracker: Integers, frame: Integers
) -> Overlaps:
    """The IoU of candidates, those without one left out; operations in the order in which TrackEval has them."""
    wide = np.minimum(gt_corners[2].take(gt), tracker_corners[2].take(tracker))
    wide -= np.maximum(gt_corners[0].take(gt), tracker_corners[0].take(tracker))
    high = np.minimum(gt_corners[3].take(gt), tracker_corners[3].take(tracker))
    high -= np.maximum(gt_corners[1].take(gt), tracker_corners[1].take(tracker))
    gt_area, tracker_area = _areas(gt_corners).take(gt), _areas(tracker_corners).take(tracker)
    intersection = wide * high
    union = gt_area + tracker_area - intersection
    some = (wide > 0) & (high > 0) & (gt_area > EPS) & (tracker_area > EPS) & (union > EPS) & (intersection > 0)
    at = np.flatnonzero(some)
    iou = intersection.take(at) / union.take(at)
    return Overlaps(gt.take(at), tracker.take(at), frame.take(at), iou)


def _areas(corners: Floats) -> Floats:
    """float64 [N] from corners float64 [4, N]."""
    return (corners[2] - corners[0]) * (corners[3] - corners[1])
