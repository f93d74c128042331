"""Track mAP: average precision over whole tracks, which are hits where their boxes overlap in space and time.

Dave et al., TAO: A Large-Scale Benchmark for Tracking Any Object, ECCV 2020 (after COCO's AP and YouTube-VIS's track
IoU); computed as TrackEval 1.3.0's TrackMAP does, with TAO's ranges. TrackEval gives it for TAO, BDD100K and
YouTube-VIS alone; here it takes the boxes that a benchmark's rules leave of any ground truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.tracking.track_boxes import TrackBoxes
from statefield.tasks.tracking.mot_evaluation.overlaps import EPS, Floats, Integers, Mask
from statefield.tasks.tracking.mot_evaluation.sequence import MotSequence

THRESHOLDS: Floats = np.arange(0.5, 0.96, 0.05)  # of the track IoU
_RECALLS = np.linspace(0.0, 1.0, 101)
_AREAS_PX2 = {"area_s": (0.0, 32.0**2), "area_m": (32.0**2, 96.0**2), "area_l": (96.0**2, 1e5**2)}
_LENGTHS = {"time_s": (0.0, 3.0), "time_m": (3.0, 10.0), "time_l": (10.0, 1e5)}
RANGES = ("all", *_AREAS_PX2, *_LENGTHS)


@dataclass(frozen=True)
class _Tracks:
    """One sequence. R = 7 ranges, K = 10 thresholds, D tracks of the tracker by falling score, G ground-truth tracks.

    Args:
        score: float64 [D], the mean confidence of a track's boxes.
        matched: bool [R, K, D], hits.
        ignored: bool [R, K, D], neither hits nor errors: on ground truth out of range, or out of range themselves.
        gt_ignored: bool [R, G], ground truth out of range.
    """

    score: Floats
    matched: Mask
    ignored: Mask
    gt_ignored: Mask


@dataclass(frozen=True)
class TrackMapState:
    """The tracks of one or of many sequences; states add up."""

    sequences: tuple[_Tracks, ...] = ()

    @classmethod
    def empty(cls) -> TrackMapState:
        """The state of no sequence: 0 for sums."""
        return cls()

    def __add__(self, other: TrackMapState) -> TrackMapState:
        return TrackMapState(self.sequences + other.sequences)

    def summary(self) -> dict[str, Floats]:
        """AP_RANGE and AR_RANGE for each of `RANGES`, float64 [10] over `THRESHOLDS`, in [0, 1], higher is better.

        AP is the mean of the interpolated precision at 101 recalls, AR the largest recall; -1 where no ground-truth
        track is in the range. TrackEval reports both for all sequences together alone, and 0 for each.
        """
        score = np.concatenate([np.empty(0), *(each.score for each in self.sequences)])
        order = np.argsort(-score, kind="stable")
        ap: dict[str, Floats] = {}
        ar: dict[str, Floats] = {}
        for number, name in enumerate(RANGES):
            ap[f"AP_{name}"], ar[f"AR_{name}"] = np.full(len(THRESHOLDS), -1.0), np.full(len(THRESHOLDS), -1.0)
            num_gt = sum(int(np.count_nonzero(~each.gt_ignored[number])) for each in self.sequences)
            if not num_gt:
                continue
            matched = np.concatenate([each.matched[number] for each in self.sequences], axis=1)[:, order]
            ignored = np.concatenate([each.ignored[number] for each in self.sequences], axis=1)[:, order]
            for level in range(len(THRESHOLDS)):
                counted = ~ignored[level]
                hits = np.cumsum(matched[level] & counted).astype(np.float64)
                misses = np.cumsum(~matched[level] & counted).astype(np.float64)
                ap[f"AP_{name}"][level] = _average_precision(hits, misses, num_gt)
                ar[f"AR_{name}"][level] = hits[-1] / num_gt if len(hits) else 0.0
        return ap | ar


def observe_track_map(sequence: MotSequence) -> TrackMapState:
    """The state of one sequence."""
    if not len(sequence.gt) and not len(sequence.tracker):
        return TrackMapState()
    num_gt, num_tracker = sequence.num_gt_ids, sequence.num_tracker_ids
    gt_ignored = _out_of_range(sequence.gt, sequence.gt_ids, num_gt)
    out_of_range = _out_of_range(sequence.tracker, sequence.tracker_ids, num_tracker)
    score = _mean_confidence(sequence)
    order = np.argsort(-score, kind="stable")
    candidates = _overlapping_tracks(sequence, order)
    shape = (len(RANGES), len(THRESHOLDS), num_tracker)
    matched, on_ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    for number in range(len(RANGES)):
        for level, threshold in enumerate(THRESHOLDS.tolist()):
            _match(candidates, gt_ignored[number], threshold, matched[number, level], on_ignored[number, level])
    ignored = on_ignored | (~matched & out_of_range[:, None, order])
    return TrackMapState((_Tracks(score[order], matched, ignored, gt_ignored),))


def _match(
    candidates: list[tuple[int, list[tuple[int, float]]]],
    gt_ignored: Mask,
    threshold: float,
    matched: Mask,
    on_ignored: Mask,
) -> None:
    """Give each track, by falling score, the free ground-truth track that it overlaps most; those in range first."""
    taken: set[int] = set()
    for position, overlapping in candidates:
        best, best_iou = -1, min(threshold, 1 - 1e-10)
        for gt, iou in sorted(overlapping, key=lambda pair: (bool(gt_ignored[pair[0]]), pair[0])):
            if gt in taken:
                continue
            if best > -1 and not gt_ignored[best] and gt_ignored[gt]:
                break
            if iou < best_iou - EPS:
                continue
            best, best_iou = gt, iou
        if best > -1:
            taken.add(best)
            matched[position] = True
            on_ignored[position] = gt_ignored[best]


def _mean_confidence(sequence: MotSequence) -> Floats:
    """float64 [T]. By `numpy.mean` for each track, whose rounding decides among tracks of one mean."""
    by_track = sequence.tracker.confidence[np.argsort(sequence.tracker_ids, kind="stable")]
    parts = np.split(by_track, np.cumsum(sequence.tracker_lengths)[:-1]) if len(by_track) else []
    return np.array([part.mean() for part in parts])


def _overlapping_tracks(sequence: MotSequence, order: Integers) -> list[tuple[int, list[tuple[int, float]]]]:
    """For each of the tracker's tracks, by falling score: (position, [(ground-truth track, track IoU), ...]).

    A track IoU is the intersections of all frames over the unions of all frames; those that could be matched are named.
    """
    pairs, tracks = sequence.pairs, sequence.track_pairs
    low = np.maximum(sequence.gt.corners[pairs.gt, :2], sequence.tracker.corners[pairs.tracker, :2])
    high = np.minimum(sequence.gt.corners[pairs.gt, 2:], sequence.tracker.corners[pairs.tracker, 2:])
    extent = np.maximum(high - low, 0.0)
    intersection = tracks.sums(extent[:, 0] * extent[:, 1])
    area = _sums(sequence.gt, sequence.gt_ids, sequence.num_gt_ids)[tracks.gt]
    other_area = _sums(sequence.tracker, sequence.tracker_ids, sequence.num_tracker_ids)[tracks.tracker]
    union = area + other_area - intersection
    iou = np.divide(intersection, union, out=np.zeros(len(union)), where=union > 0)
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    found: dict[int, list[tuple[int, float]]] = {}
    for pair in np.flatnonzero(iou >= THRESHOLDS[0] - EPS):
        found.setdefault(int(position[tracks.tracker[pair]]), []).append((int(tracks.gt[pair]), float(iou[pair])))
    return sorted(found.items())


def _sums(boxes: TrackBoxes, ids: Integers, num_ids: int) -> Floats:
    """float64 [num_ids], the sum of the areas of each track's boxes, in square pixels."""
    return np.bincount(ids, boxes.size[:, 0] * boxes.size[:, 1], minlength=num_ids).astype(np.float64)


def _out_of_range(boxes: TrackBoxes, ids: Integers, num_ids: int) -> NDArray[np.bool_]:
    """bool [R, num_ids], by mean area and by number of boxes."""
    length = np.bincount(ids, minlength=num_ids).astype(np.float64)
    area = _sums(boxes, ids, num_ids) / np.maximum(length, 1)
    rows = [np.zeros(num_ids, bool)]
    for values, ranges in ((area, _AREAS_PX2), (length, _LENGTHS)):
        rows += [~((low - EPS <= values) & (values <= high + EPS)) for low, high in ranges.values()]
    return np.stack(rows)


def _average_precision(hits: Floats, misses: Floats, num_gt: int) -> float:
    """The mean over 101 recalls of the largest precision at that recall or beyond."""
    if not len(hits):
        return 0.0
    precision = hits / (misses + hits + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(hits / num_gt, _RECALLS, side="left")
    return float(np.where(at < len(precision), precision[np.minimum(at, len(precision) - 1)], 0.0).mean())
