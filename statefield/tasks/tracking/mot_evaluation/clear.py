"""CLEAR MOT: misses, false positives and switches of identity, frame by frame, at IoU 0.5.

Bernardin and Stiefelhagen, Evaluating Multiple Object Tracking Performance: The CLEAR MOT Metrics, EURASIP JIVP 2008;
MT, PT and ML after Wu and Nevatia, CVPR 2006; computed as TrackEval 1.3.0 does.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields
from functools import cache

import numpy as np

from statefield.datasets.tracking.track_boxes import sorted_order
from statefield.tasks.tracking.mot_evaluation.assignment import assigned
from statefield.tasks.tracking.mot_evaluation.overlaps import EPS, Integers, Mask, Overlaps
from statefield.tasks.tracking.mot_evaluation.protocols import MATCH_THRESHOLD
from statefield.tasks.tracking.mot_evaluation.sequence import MotSequence

_BONUS = 1000.0  # what continuing the last frame's match is worth, above any IoU
_MARGIN = 1e-9
_NOBODY = -2  # the match of a box without one; -1 is no box
_MOST_EDGES = 9  # of a group whose matchings are all weighed
_SIDE = 16
_MOSTLY_TRACKED, _PARTLY_TRACKED = 0.8, 0.2


@dataclass(frozen=True)
class ClearState:
    """Counts of one or of many sequences; states add up.

    Args:
        tp: matched pairs.
        fn: ground-truth boxes without a match.
        fp: tracker boxes without a match.
        id_switches: matches of a ground-truth track with another track than its last match, however long ago.
        mostly_tracked: ground-truth tracks matched in more than 80 % of their frames.
        partly_tracked: in 20 % or more of them, and not mostly.
        mostly_lost: the others.
        fragmentations: times that a ground-truth track is matched again after frames in which it was not.
        num_frames: frames of the sequences that have both ground truth and results.
        iou_sum: over the matched pairs.
        alone: whether this is a single sequence that has no ground truth or no results; TrackEval reports those as
            all 0 but for MLR (alone: a combination of sequences is computed from the counts).
    """

    tp: int = 0
    fn: int = 0
    fp: int = 0
    id_switches: int = 0
    mostly_tracked: int = 0
    partly_tracked: int = 0
    mostly_lost: int = 0
    fragmentations: int = 0
    num_frames: int = 0
    iou_sum: float = 0.0
    alone: bool = False

    @classmethod
    def empty(cls) -> ClearState:
        """The state of no sequence: 0 for sums."""
        return cls()

    def __add__(self, other: ClearState) -> ClearState:
        names = [each.name for each in fields(self) if each.name != "alone"]
        return ClearState(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def summary(self) -> dict[str, float | int]:
        """Fields as TrackEval names them. MOTA, MODA, MOTAL and sMOTA are at most 1 and have no lower bound; MOTP, the
        mean IoU of matched pairs (higher is better), and the other ratios are in [0, 1].
        """
        num_gt = max(1.0, self.tp + self.fn)
        num_tracks = max(1.0, self.mostly_tracked + self.partly_tracked + self.mostly_lost)
        log_switches = math.log10(self.id_switches) if self.id_switches > 0 else 0
        values: dict[str, float | int] = {
            "MOTA": (self.tp - self.fp - self.id_switches) / num_gt,
            "MOTP": self.iou_sum / max(1.0, self.tp),
            "MODA": (self.tp - self.fp) / num_gt,
            "CLR_Re": self.tp / num_gt,
            "CLR_Pr": self.tp / max(1.0, self.tp + self.fp),
            "MTR": self.mostly_tracked / num_tracks,
            "PTR": self.partly_tracked / num_tracks,
            "MLR": self.mostly_lost / num_tracks,
            "sMOTA": (self.iou_sum - self.fp - self.id_switches) / num_gt,
            "CLR_F1": self.tp / max(1.0, self.tp + 0.5 * self.fn + 0.5 * self.fp),
            "FP_per_frame": self.fp / max(1.0, self.num_frames),
            "MOTAL": (self.tp - self.fp - log_switches) / num_gt,
        }
        if self.alone:
            values = dict.fromkeys(values, 0.0) | {"MLR": 1.0}
        return values | {
            "MOTP_sum": self.iou_sum,
            "CLR_TP": self.tp,
            "CLR_FN": self.fn,
            "CLR_FP": self.fp,
            "IDSW": self.id_switches,
            "MT": self.mostly_tracked,
            "PT": self.partly_tracked,
            "ML": self.mostly_lost,
            "Frag": self.fragmentations,
            "CLR_Frames": self.num_frames,
        }


def observe_clear(sequence: MotSequence) -> ClearState:
    """The state of one sequence.

    In each frame the matching keeps as many as possible of the pairs matched in the frame before, then has the largest
    sum of IoU. The frame before is the last one that had boxes on both sides.
    """
    num_gt, num_tracker = sequence.num_gt, sequence.num_tracker
    if not num_tracker:
        return ClearState(fn=num_gt, mostly_lost=sequence.num_gt_ids, alone=True)
    if not num_gt:
        return ClearState(fp=num_tracker, alone=True)
    pairs = clear_matches(sequence)
    gt_id, tracker_id = sequence.gt_ids.take(pairs.gt), sequence.tracker_ids.take(pairs.tracker)
    when = _turns(sequence).take(pairs.frame)
    order = sorted_order(gt_id)
    gt_id, tracker_id, when = gt_id.take(order), tracker_id.take(order), when.take(order)
    same_track = gt_id[1:] == gt_id[:-1]
    tp = len(gt_id)
    matched_frames = np.bincount(gt_id, minlength=sequence.num_gt_ids)
    ratio = matched_frames / sequence.gt_lengths
    mostly_tracked = int(np.count_nonzero(ratio > _MOSTLY_TRACKED))
    partly_tracked = int(np.count_nonzero(ratio >= _PARTLY_TRACKED)) - mostly_tracked
    return ClearState(
        tp=tp,
        fn=num_gt - tp,
        fp=num_tracker - tp,
        id_switches=int(np.count_nonzero(same_track & (tracker_id[1:] != tracker_id[:-1]))),
        mostly_tracked=mostly_tracked,
        partly_tracked=partly_tracked,
        mostly_lost=sequence.num_gt_ids - mostly_tracked - partly_tracked,
        fragmentations=int(np.count_nonzero(same_track & (when[1:] > when[:-1] + 1))),
        num_frames=sequence.num_frames,
        iou_sum=float(pairs.iou.sum()),
    )


def clear_matches(sequence: MotSequence) -> Overlaps:
    """The pairs that CLEAR matches, for those who want to see them."""
    pairs = sequence.pairs.where(sequence.pairs.iou >= MATCH_THRESHOLD - EPS)
    return pairs.where(_matched_in_turn(sequence, pairs))


def _turns(sequence: MotSequence) -> Integers:
    """int64 [F]: frames counted from 0, those without boxes on either side left out (they have the last one's)."""
    return np.cumsum(_has_turn(sequence)) - 1


def _has_turn(sequence: MotSequence) -> Mask:
    """bool [F], the frames with boxes on both sides."""
    return (sequence.gt_frames.counts > 0) & (sequence.tracker_frames.counts > 0)


def _matched_in_turn(sequence: MotSequence, pairs: Overlaps) -> Mask:
    """bool [E], the matched pairs of every frame. Only pairs that compete for a box depend on the frame before."""
    gt_count = np.bincount(pairs.gt, minlength=sequence.num_gt)
    tracker_count = np.bincount(pairs.tracker, minlength=sequence.num_tracker)
    compete = (gt_count.take(pairs.gt) > 1) | (tracker_count.take(pairs.tracker) > 1)
    competing = np.flatnonzero(compete)
    if not len(competing):
        return ~compete
    match_of_gt = np.full(sequence.num_gt + 1, _NOBODY)  # and one more, for boxes whose track was not there before
    alone = np.flatnonzero(~compete)
    match_of_gt[pairs.gt.take(alone)] = pairs.tracker.take(alone)
    turns = np.where(_has_turn(sequence), _turns(sequence), -1)
    gt_before = _box_before(sequence.gt_ids, turns.repeat(sequence.gt_frames.counts))
    tracker_before = _box_before(sequence.tracker_ids, turns.repeat(sequence.tracker_frames.counts))

    groups = _competitions(pairs.gt.take(competing), pairs.tracker.take(competing), sequence)
    competing = competing.take(order := np.lexsort((groups, pairs.frame.take(competing))))  # by frame, then by group
    groups = groups.take(order)
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    gt, tracker = pairs.gt.take(competing), pairs.tracker.take(competing)
    forms = _forms(gt, tracker, starts)
    # single values are read and written from here on
    match = match_of_gt.tolist()
    gts, trackers, ious = gt.tolist(), tracker.tolist(), pairs.iou.take(competing).tolist()
    befores, its_befores = gt_before.take(gt).tolist(), tracker_before.take(tracker).tolist()
    frames = pairs.frame.take(competing.take(starts)).tolist()
    solved = -1  # the last frame that was solved as a whole
    bounds = itertools.pairwise([*starts.tolist(), len(gts)])
    for frame, (start, stop) in zip(frames, bounds, strict=True):
        if frame == solved:
            continue
        edges = range(start, stop)
        weights = [ious[at] + _BONUS if match[befores[at]] == its_befores[at] else ious[at] for at in edges]
        chosen = _best_of(_matchings(tuple(forms[start:stop])), weights)
        if chosen is not None:
            for at in chosen:
                match[gts[start + at]] = trackers[start + at]
            continue
        solved = frame
        first, last = np.searchsorted(pairs.frame, (frame, frame + 1)).tolist()
        its_gt, its_tracker = pairs.gt[first:last].tolist(), pairs.tracker[first:last].tolist()
        whole = np.zeros(len(pairs))
        whole[first:last] = pairs.iou[first:last] + [
            _BONUS if match[gt_before[row]] == tracker_before[column] else 0.0
            for row, column in zip(its_gt, its_tracker, strict=True)
        ]
        matched = assigned(
            pairs, whole, slice(first, last), frame, sequence.gt_frames, sequence.tracker_frames
        ).tolist()
        for row in its_gt:
            match[row] = _NOBODY
        for row, column, is_matched in zip(its_gt, its_tracker, matched, strict=True):
            if is_matched:
                match[row] = column
    return np.array(match).take(pairs.gt) == pairs.tracker


def _box_before(ids: Integers, turns: Integers) -> Integers:
    """int64 [N], for each box the one of its track in the turn before, -1 where there is none.

    Args:
        ids: int64 [N], the tracks.
        turns: int64 [N], -1 for boxes of frames that have no turn.
    """
    order = sorted_order(ids)
    order = order.compress((turns >= 0).take(order))
    track, turn = ids.take(order), turns.take(order)
    follows = np.flatnonzero((track[1:] == track[:-1]) & (turn[1:] == turn[:-1] + 1)) + 1
    before = np.full(len(ids), -1)
    before[order.take(follows)] = order.take(follows - 1)
    return before


def _competitions(gt: Integers, tracker: Integers, sequence: MotSequence) -> Integers:
    """int64 [E], a number for each set of pairs that are linked by shared boxes; pairs of one frame alone share any."""
    group = np.arange(len(gt))
    while True:
        smaller = group
        for box, num_boxes in ((gt, sequence.num_gt), (tracker, sequence.num_tracker)):
            least = np.full(num_boxes, len(gt))
            np.minimum.at(least, box, smaller)
            smaller = least.take(box)
        if np.array_equal(smaller, group):
            return group
        group = smaller


def _forms(gt: Integers, tracker: Integers, starts: Integers) -> list[int]:
    """For each pair its row and column in its group, as one number: 0, 1, ... rows and columns, `_SIDE` apart.

    Args:
        gt: int64 [E], group by group, and within a group ascending, as `tracker` is for each of `gt`.
        tracker: int64 [E].
        starts: where the groups begin.
    """
    sizes = np.diff(starts, append=len(gt))
    new_row = np.diff(gt, prepend=-1) != 0
    row = np.cumsum(new_row)
    row -= row.take(starts).repeat(sizes)
    group = np.arange(len(starts)).repeat(sizes)
    order = np.lexsort((tracker, group))
    column_in_order = np.cumsum(np.diff(tracker.take(order), prepend=-1) != 0)
    column_in_order -= column_in_order.take(starts).repeat(sizes)
    column = np.empty_like(row)
    column[order] = column_in_order
    return (row * _SIDE + column).tolist()


@cache
def _matchings(form: tuple[int, ...]) -> tuple[tuple[int, ...], ...] | None:
    """Every matching of the pairs of a group to which no pair can be added; None where they may be too many."""
    if len(form) > _MOST_EDGES:
        return None
    found: list[tuple[int, ...]] = []

    def extend(chosen: tuple[int, ...], left: tuple[int, ...]) -> None:
        for place, edge in enumerate(left):
            row, column = divmod(form[edge], _SIDE)
            fits = [at for at in left[place + 1 :] if form[at] // _SIDE != row and form[at] % _SIDE != column]
            extend((*chosen, edge), tuple(fits))
        taken = [divmod(form[edge], _SIDE) for edge in chosen]
        rows, columns = {row for row, _ in taken}, {column for _, column in taken}
        if all(each // _SIDE in rows or each % _SIDE in columns for each in form):
            found.append(chosen)

    extend((), tuple(range(len(form))))
    return tuple(found)


def _best_of(matchings: tuple[tuple[int, ...], ...] | None, weights: list[float]) -> tuple[int, ...] | None:
    """The heaviest matching, None where it may not be the only one."""
    if matchings is None:
        return None
    best = second = -1.0
    heaviest: tuple[int, ...] = ()
    for matching in matchings:
        total = 0.0
        for edge in matching:
            total += weights[edge]
        if total > best:
            second, best, heaviest = best, total, matching
        elif total > second:
            second = total
    return heaviest if best - second > _MARGIN else None
