"""CLEAR's matching: in each frame it keeps as many pairs of the frame before as can be kept, then weighs the IoU.

One frame follows from the other, but only where boxes compete: a pair that shares no box is matched whatever was
before. What competes falls into groups, few pairs each, of one frame. Most groups have no pair that a competition of
the frame before decided, or two rows and two columns at most; those are weighed all at once, or in a few additions.
Where the best matching of a group may not be the only one, its frame is handed whole to the solver that TrackEval
calls, so that ties are broken as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from statefield.datasets.tracking.track_boxes import sorted_order
from statefield.tasks.tracking.mot_evaluation.assignment import assigned
from statefield.tasks.tracking.mot_evaluation.overlaps import Floats, Integers, Mask, Overlaps
from statefield.tasks.tracking.mot_evaluation.sequence import MotSequence

_BONUS = 1000.0  # what continuing the last frame's match is worth, above any IoU
_MARGIN = 1e-9
_NOBODY = -2  # the match of a box without one; -1 is no box
_MOST_EDGES = 9  # of a group whose matchings are all weighed
_SIDE = 16


def turns_of(sequence: MotSequence) -> Integers:
    """int64 [F]: frames counted from 0, those without boxes on either side left out (they have the last one's)."""
    return np.cumsum(_has_turn(sequence)) - 1


def _has_turn(sequence: MotSequence) -> Mask:
    """bool [F], the frames with boxes on both sides."""
    return (sequence.gt_frames.counts > 0) & (sequence.tracker_frames.counts > 0)


def continued_matches(sequence: MotSequence, pairs: Overlaps) -> Mask:
    """bool [E], the matched pairs of every frame.

    Args:
        pairs: those of the sequence that may be matched.
    """
    gt_count = np.bincount(pairs.gt, minlength=sequence.num_gt)
    tracker_count = np.bincount(pairs.tracker, minlength=sequence.num_tracker)
    compete = (gt_count.take(pairs.gt) > 1) | (tracker_count.take(pairs.tracker) > 1)
    competing = np.flatnonzero(compete)
    if not len(competing):
        return ~compete
    match_of_gt = np.full(sequence.num_gt + 1, _NOBODY)  # and one more, for boxes whose track was not there before
    alone = np.flatnonzero(~compete)
    match_of_gt[pairs.gt.take(alone)] = pairs.tracker.take(alone)
    turns = np.where(_has_turn(sequence), turns_of(sequence), -1)
    gt_before = _box_before(sequence.gt_ids, turns.repeat(sequence.gt_frames.counts))
    tracker_before = _box_before(sequence.tracker_ids, turns.repeat(sequence.tracker_frames.counts))
    groups = _Groups.of(sequence, pairs, competing)
    gt, tracker = pairs.gt.take(groups.pairs), pairs.tracker.take(groups.pairs)
    before, its_before = gt_before.take(gt), tracker_before.take(tracker)

    # pairs whose bonus hangs on no other competition, and groups of them
    competes_for_gt = np.zeros(sequence.num_gt + 1, bool)
    competes_for_gt[gt] = True
    depends = competes_for_gt.take(before) & (its_before >= 0)
    weights = pairs.iou.take(groups.pairs) + _BONUS * (match_of_gt.take(before) == its_before)
    lead = np.add.reduceat(groups.side * weights, groups.starts)
    is_clear = groups.has_two_sides & ~np.logical_or.reduceat(depends, groups.starts) & (np.abs(lead) > _MARGIN)
    wins = np.flatnonzero((groups.side * lead.repeat(groups.sizes) > 0) & is_clear.repeat(groups.sizes))
    match_of_gt[gt.take(wins)] = tracker.take(wins)

    # the others in their order; single values are read and written from here on
    match, touched = match_of_gt.tolist(), []
    rows, columns, befores, its_befores = gt.tolist(), tracker.tolist(), before.tolist(), its_before.tolist()
    sides, given, dependent, leads = groups.side.tolist(), weights.tolist(), depends.tolist(), lead.tolist()
    starts, stops = groups.starts.tolist(), (groups.starts + groups.sizes).tolist()
    has_two_sides, frames = groups.has_two_sides.tolist(), pairs.frame.take(groups.pairs.take(groups.starts)).tolist()
    solved = -1  # the last frame that was solved as a whole
    for group in np.flatnonzero(~is_clear).tolist():
        if frames[group] == solved:
            continue
        edges = range(starts[group], stops[group])
        continued = [at for at in edges if dependent[at] and match[befores[at]] == its_befores[at]]
        chosen: list[int] | None = None
        if has_two_sides[group]:
            ahead = leads[group]
            for at in continued:
                ahead += sides[at] * _BONUS
            if abs(ahead) > _MARGIN:
                chosen = [at for at in edges if sides[at] * ahead > 0]
        else:
            at_last = [given[at] + _BONUS if at in continued else given[at] for at in edges]
            best = _best_of(_matchings(tuple(groups.forms[edges.start : edges.stop].tolist())), at_last)
            chosen = None if best is None else [edges.start + place for place in best]
        if chosen is None:
            solved = frames[group]
            first, last = np.searchsorted(pairs.frame, (solved, solved + 1)).tolist()
            its_gt, its_tracker = pairs.gt[first:last].tolist(), pairs.tracker[first:last].tolist()
            whole = np.zeros(len(pairs))
            whole[first:last] = pairs.iou[first:last] + [
                _BONUS if match[gt_before[row]] == tracker_before[column] else 0.0
                for row, column in zip(its_gt, its_tracker, strict=True)
            ]
            of_frame = slice(first, last)
            matched = assigned(pairs, whole, of_frame, solved, sequence.gt_frames, sequence.tracker_frames)
            for row in its_gt:
                match[row] = _NOBODY
            touched += its_gt
            for place in np.flatnonzero(matched).tolist():
                match[its_gt[place]] = its_tracker[place]
            continue
        for at in chosen:
            match[rows[at]] = columns[at]
            touched.append(rows[at])
    match_of_gt[touched] = [match[row] for row in touched]
    return match_of_gt.take(pairs.gt) == pairs.tracker


@dataclass(frozen=True, eq=False)
class _Groups:
    """The pairs that compete, frame by frame, and there by the boxes that they share.

    Args:
        pairs: int64 [C], which pairs they are.
        starts: int64 [G], the first of each group.
        sizes: int64 [G].
        forms: int64 [C], a pair's row and column in its group, both from 0: row * `_SIDE` + column.
        side: float64 [C], 1 where row and column are equal, else -1.
        has_two_sides: bool [G], groups of two rows and two columns at most: either all pairs of one side are matched,
            or all of the other.
    """

    pairs: Integers
    starts: Integers
    sizes: Integers
    forms: Integers
    side: Floats
    has_two_sides: Mask

    @classmethod
    def of(cls, sequence: MotSequence, pairs: Overlaps, competing: Integers) -> _Groups:
        group = _competitions(pairs.gt.take(competing), pairs.tracker.take(competing), sequence)
        order = np.lexsort((group, pairs.frame.take(competing)))
        competing, group = competing.take(order), group.take(order)
        gt, tracker = pairs.gt.take(competing), pairs.tracker.take(competing)
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        sizes = np.diff(starts, append=len(group))
        row = _counted(gt, starts, sizes)
        by_tracker = np.lexsort((tracker, np.arange(len(starts)).repeat(sizes)))
        column = np.empty_like(row)
        column[by_tracker] = _counted(tracker.take(by_tracker), starts, sizes)
        has_two_sides = np.maximum.reduceat(np.maximum(row, column), starts) < 2
        return cls(competing, starts, sizes, row * _SIDE + column, np.where(row == column, 1.0, -1.0), has_two_sides)


def _counted(box: Integers, starts: Integers, sizes: Integers) -> Integers:
    """int64 [C], the different boxes of each group counted from 0; `box` ascends within the groups."""
    count = np.cumsum(np.diff(box, prepend=-1) != 0)
    return count - count.take(starts).repeat(sizes)


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


@cache
def _matchings(form: tuple[int, ...]) -> tuple[tuple[int, ...], ...] | None:
    """Every matching of the pairs of a group to which no pair can be added; None where they may be too many."""
    if len(form) > _MOST_EDGES:
        return None
    found: list[tuple[int, ...]] = []
    every = (1 << len(form)) - 1
    # of each pair, as bits, those that share its row or its column, itself among them
    excluded = [
        sum(1 << at for at, other in enumerate(form) if other // _SIDE == one // _SIDE or other % _SIDE == one % _SIDE)
        for one in form
    ]

    def extend(chosen: tuple[int, ...], first: int, gone: int) -> None:
        if gone == every:
            found.append(chosen)
            return
        for edge in range(first, len(form)):
            if not gone >> edge & 1:
                extend((*chosen, edge), edge + 1, gone | excluded[edge])

    extend((), 0, 0)
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
