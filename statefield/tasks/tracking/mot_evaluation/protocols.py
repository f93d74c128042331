"""What each benchmark leaves out before anything is counted, as TrackEval 1.3.0 does it."""

from __future__ import annotations

import numpy as np

from statefield.datasets.tracking.bad_rows import BadRows
from statefield.datasets.tracking.kitti_text import KITTI_CLASSES
from statefield.datasets.tracking.mot_text import MOT_CLASSES
from statefield.datasets.tracking.multi_object import Benchmark
from statefield.datasets.tracking.track_boxes import TrackBoxes, without_repeated_ids
from statefield.errors import ConfigError
from statefield.tasks.tracking.mot_evaluation.assignment import matched_pairs
from statefield.tasks.tracking.mot_evaluation.overlaps import EPS, Floats, Integers, Mask, Overlaps
from statefield.tasks.tracking.mot_evaluation.sequence import MotSequence

MATCH_THRESHOLD = 0.5
_PEDESTRIAN = 1
_DISTRACTORS = ("person_on_vehicle", "static_person", "distractor", "reflection")
_MORE_DISTRACTORS = {"MOT20": ("non_mot_vehicle",)}
_KITTI_NEIGHBOURS = {"car": "van", "pedestrian": "person"}  # boxes of these are neither hits nor false positives
_KITTI_MIN_HEIGHT_PX = 25.0
_KITTI_COVERED = 0.5


def evaluated_classes(benchmark: Benchmark) -> tuple[str, ...]:
    """The classes that a benchmark scores, each on its own."""
    return ("car", "pedestrian") if benchmark == "KITTI" else ("pedestrian",)


def mot_sequence(
    gt: TrackBoxes, tracker: TrackBoxes, num_frames: int, *, benchmark: Benchmark, has_classes: bool
) -> MotSequence:
    """A sequence of a MOTChallenge-like benchmark as it is scored.

    Where the ground truth has classes (MOT16, MOT17, MOT20, DanceTrack, SportsMOT, plain folders with a class column):

    1. the tracker's boxes are matched with all ground-truth boxes, of any class, also zero-marked, at IoU 0.5;
    2. those matched with a person on a vehicle, a static person, a distractor or a reflection (MOT20: also a
       vehicle) are left out: the class decides, not the mark;
    3. of the ground truth, pedestrians that are not zero-marked are kept. A tracker's box on a zero-marked pedestrian
       so becomes a false positive, as in TrackEval.

    Without classes (MOT15) only zero-marked ground truth is left out.

    Args:
        gt: ground truth, ids unique in each frame.
        tracker: results, likewise.
        num_frames: the length of the sequence.
        benchmark: whose distractors.
        has_classes: whether `gt.classes` mean anything.
    """
    sequence = MotSequence.of(num_frames, gt, tracker)
    if not has_classes:
        return sequence.keeping(gt.counts, np.ones(len(tracker), bool))
    names = (*_DISTRACTORS, *_MORE_DISTRACTORS.get(benchmark, ()))
    is_distractor = np.isin(gt.classes, [MOT_CLASSES.index(name) + 1 for name in names])
    kept = np.ones(len(tracker), bool)
    if is_distractor.any():
        pairs = sequence.pairs.where(sequence.pairs.iou >= MATCH_THRESHOLD - EPS)
        on_distractor = is_distractor.take(pairs.gt)
        competing = _linked(pairs, on_distractor, len(gt), len(tracker))
        matched = matched_pairs(pairs, pairs.iou, sequence.gt_frames, sequence.tracker_frames, asked=competing)
        kept[pairs.tracker.compress(matched & on_distractor)] = False
    return sequence.keeping(gt.counts & (gt.classes == _PEDESTRIAN), kept)


def _linked(pairs: Overlaps, chosen: Mask, num_gt: int, num_tracker: int) -> Mask:
    """bool [E], the chosen pairs and all that share a box with one of them, and so on: what is matched elsewhere is
    matched whatever these are.
    """
    gt, tracker = np.zeros(num_gt, bool), np.zeros(num_tracker, bool)
    linked, count = chosen, -1
    while (now := int(np.count_nonzero(linked))) > count:
        count = now
        gt[pairs.gt.compress(linked)] = True
        tracker[pairs.tracker.compress(linked)] = True
        linked = gt.take(pairs.gt) | tracker.take(pairs.tracker)
    return linked


def kitti_sequence(
    gt: TrackBoxes, tracker: TrackBoxes, num_frames: int, *, name: str, gt_bad: BadRows, tracker_bad: BadRows
) -> MotSequence:
    """A sequence of KITTI as one class of it is scored.

    1. Of the ground truth, the class and its neighbour (car: van; pedestrian: person sitting) take part; of the
       tracker's boxes, the class.
    2. They are matched at IoU 0.5. Boxes matched with the neighbour, or with a truncated or a largely occluded object,
       are left out.
    3. Unmatched boxes are left out where they are at most 25 pixels high, or more than half of them is in a DontCare
       region.
    4. Of the ground truth, the class itself is kept, neither truncated nor occluded beyond level 2.

    Args:
        gt: all classes, DontCare regions as `ignored`.
        tracker: all classes.
        num_frames: the length of the sequence.
        name: "car" or "pedestrian".
        gt_bad: told of ids that a frame has twice in the class.
        tracker_bad: likewise.

    Raises: ConfigError for another class.
    """
    if name not in _KITTI_NEIGHBOURS:
        raise ConfigError(f"class {name!r}: KITTI's evaluation has {' and '.join(_KITTI_NEIGHBOURS)}.")
    own, neighbour = KITTI_CLASSES[name], KITTI_CLASSES[_KITTI_NEIGHBOURS[name]]
    regions = gt.where(gt.ignored)
    gt = gt.where(~gt.ignored & np.isin(gt.classes, (own, neighbour)))
    tracker = without_repeated_ids(tracker.where(tracker.classes == own), tracker_bad, 0)
    sequence = MotSequence.of(num_frames, gt, tracker)
    counts = gt.counts & (gt.classes == own)
    pairs = sequence.pairs.where(sequence.pairs.iou >= MATCH_THRESHOLD - EPS)
    matched = matched_pairs(pairs, pairs.iou, sequence.gt_frames, sequence.tracker_frames)
    is_matched = np.zeros(len(tracker), bool)
    is_matched[pairs.tracker[matched]] = True
    kept = np.ones(len(tracker), bool)
    kept[pairs.tracker[matched & ~counts[pairs.gt]]] = False
    heights = tracker.corners[:, 3] - tracker.corners[:, 1]
    small = heights <= _KITTI_MIN_HEIGHT_PX + EPS
    kept &= is_matched | ~(small | _within(tracker, regions, num_frames))
    scored = sequence.keeping(counts, kept)
    unique = without_repeated_ids(scored.gt, gt_bad, 0)
    if len(unique) < len(scored.gt):
        return scored.keeping(np.isin(scored.gt.lines, unique.lines), np.ones(len(scored.tracker), bool))
    return scored


def _within(boxes: TrackBoxes, regions: TrackBoxes, num_frames: int) -> Mask:
    """bool [N], which boxes lie with more than half of their area in one region of their frame."""
    inside = np.zeros(len(boxes), bool)
    if not len(regions):
        return inside
    pairs = MotSequence.of(num_frames, boxes, regions).pairs
    covered: Floats = _intersections(boxes, regions, pairs.gt, pairs.tracker)
    area = (boxes.corners[:, 2] - boxes.corners[:, 0]) * (boxes.corners[:, 3] - boxes.corners[:, 1])
    inside[pairs.gt[covered / area[pairs.gt] > _KITTI_COVERED + EPS]] = True
    return inside


def _intersections(boxes: TrackBoxes, regions: TrackBoxes, one: Integers, other: Integers) -> Floats:
    low = np.maximum(boxes.corners[one, :2], regions.corners[other, :2])
    high = np.minimum(boxes.corners[one, 2:], regions.corners[other, 2:])
    size = np.maximum(high - low, 0.0)
    return size[:, 0] * size[:, 1]
