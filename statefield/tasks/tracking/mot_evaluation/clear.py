"""CLEAR MOT: misses, false positives and switches of identity, frame by frame, at IoU 0.5.

Bernardin and Stiefelhagen, Evaluating Multiple Object Tracking Performance: The CLEAR MOT Metrics, EURASIP JIVP 2008;
MT, PT and ML after Wu and Nevatia, CVPR 2006; computed as TrackEval 1.3.0 does.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields

import numpy as np

from statefield.tasks.tracking.mot_evaluation.assignment import assigned
from statefield.tasks.tracking.mot_evaluation.overlaps import EPS, Integers, Mask, Overlaps
from statefield.tasks.tracking.mot_evaluation.protocols import MATCH_THRESHOLD
from statefield.tasks.tracking.mot_evaluation.sequence import MotSequence

_BONUS = 1000.0  # what continuing the last frame's match is worth, above any IoU
_MARGIN = 1e-9
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
    num_gt, num_tracker = len(sequence.gt), len(sequence.tracker)
    if not num_tracker:
        return ClearState(fn=num_gt, mostly_lost=sequence.num_gt_ids, alone=True)
    if not num_gt:
        return ClearState(fp=num_tracker, alone=True)
    pairs = clear_matches(sequence)
    gt_id, tracker_id = sequence.gt_ids[pairs.gt], sequence.tracker_ids[pairs.tracker]
    when = _turns(sequence)[pairs.frame]
    order = np.argsort(gt_id, kind="stable")
    gt_id, tracker_id, when = gt_id[order], tracker_id[order], when[order]
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
    return np.cumsum((sequence.gt_frames.counts > 0) & (sequence.tracker_frames.counts > 0)) - 1


def _matched_in_turn(sequence: MotSequence, pairs: Overlaps) -> Mask:
    """bool [E], the matched pairs of every frame. Only pairs that compete for a box depend on the frame before."""
    gt_count = np.bincount(pairs.gt, minlength=len(sequence.gt))
    tracker_count = np.bincount(pairs.tracker, minlength=len(sequence.tracker))
    compete = (gt_count[pairs.gt] > 1) | (tracker_count[pairs.tracker] > 1)
    matched = ~compete
    competing = np.flatnonzero(compete)
    if not len(competing):
        return matched
    before = _same_pair_before(sequence, pairs)
    groups = _competitions(pairs.gt[competing], pairs.tracker[competing])
    order = np.lexsort((competing, groups, pairs.frame[competing]))  # frame by frame, and there group by group
    competing, groups = competing[order], groups[order]
    starts = np.flatnonzero(np.diff(groups, prepend=-1)).tolist()
    is_matched = matched.tolist()  # single values are read and written from here on
    pair, frame = competing.tolist(), pairs.frame[competing].tolist()
    gt, tracker = pairs.gt[competing].tolist(), pairs.tracker[competing].tolist()
    iou, last = pairs.iou[competing].tolist(), before[competing].tolist()
    weights = np.zeros(len(pairs))
    settled = -1  # the last frame that was solved as a whole
    for start, stop in itertools.pairwise([*starts, len(pair)]):
        if frame[start] == settled:
            continue
        edges = [
            (gt[at], tracker[at], iou[at] + (_BONUS if last[at] >= 0 and is_matched[last[at]] else 0.0))
            for at in range(start, stop)
        ]
        chosen = _certain_matches(edges)
        if chosen is not None:
            for position in chosen:
                is_matched[pair[start + position]] = True
            continue
        settled = frame[start]
        first, end = np.searchsorted(pairs.frame, (settled, settled + 1)).tolist()
        bonus = [_BONUS if place >= 0 and is_matched[place] else 0.0 for place in before[first:end].tolist()]
        weights[first:end] = np.array(bonus) + pairs.iou[first:end]
        of_frame = slice(first, end)
        solved = assigned(pairs, weights, of_frame, settled, sequence.gt_frames, sequence.tracker_frames)
        is_matched[of_frame] = solved.tolist()
    return np.array(is_matched)


def _same_pair_before(sequence: MotSequence, pairs: Overlaps) -> Integers:
    """int64 [E], for each pair the one of the same two tracks in the frame before, -1 where there is none."""
    key = sequence.gt_ids[pairs.gt] * sequence.num_tracker_ids + sequence.tracker_ids[pairs.tracker]
    order = np.argsort(key, kind="stable")
    turn = _turns(sequence)[pairs.frame[order]]
    follows = np.flatnonzero((key[order][1:] == key[order][:-1]) & (turn[1:] == turn[:-1] + 1)) + 1
    before = np.full(len(pairs), -1)
    before[order[follows]] = order[follows - 1]
    return before


def _competitions(gt: Integers, tracker: Integers) -> Integers:
    """int64 [E], a number for each set of pairs that are linked by shared boxes; pairs of one frame alone share any."""
    group = np.arange(len(gt))
    for _ in range(len(gt)):
        smaller = group
        for box in (gt, tracker):
            order = np.argsort(box, kind="stable")
            starts = np.flatnonzero(np.diff(box[order], prepend=-1))
            least = np.minimum.reduceat(smaller[order], starts)
            spread = np.empty_like(group)
            spread[order] = np.repeat(least, np.diff(starts, append=len(box)))
            smaller = spread
        if np.array_equal(smaller, group):
            break
        group = smaller
    return group


def _certain_matches(edges: list[tuple[int, int, float]]) -> list[int] | None:
    """The positions of the edges (row, column, weight) of the best matching; None where it may not be the only one.

    As `assignment.matched_pairs`, for the few edges that compete.
    """
    if len(edges) == 2:  # two that share a box: the usual case
        first, second = edges[0][2], edges[1][2]
        return None if abs(first - second) <= _MARGIN else [0 if first > second else 1]
    chosen: list[int] = []
    left = list(enumerate(edges))
    while left:
        taken = None
        for position, (row, column, weight) in left:
            in_row = in_column = 0.0
            for other, (its_row, its_column, its_weight) in left:
                if other != position:
                    if its_row == row and its_weight > in_row:
                        in_row = its_weight
                    if its_column == column and its_weight > in_column:
                        in_column = its_weight
            if weight > in_row + in_column + _MARGIN:
                taken = (position, row, column)
                break
        if taken is None:
            return None
        chosen.append(taken[0])
        left = [edge for edge in left if edge[1][0] != taken[1] and edge[1][1] != taken[2]]
    return chosen
