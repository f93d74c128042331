"""Matching the boxes of every frame, each with one of the other side at most, for the largest total weight.

TrackEval solves one dense assignment a frame. Most of a frame needs none: a pair that weighs more than the best other
pair of its ground-truth box and the best other pair of its tracker's box together is in every best matching (leave it
out, and exchanging those two for it gains). Such pairs are taken, with them their boxes leave, and so on. Where none is
left, pairs go that are in no best matching: those that weigh less than what another pair of their row and another of
their column bring together, even when each displaces the best pair of its other box. Two boxes that compete for two
others, and for nothing else, have two matchings, of which the heavier is taken. A frame in which pairs remain is handed
whole to the same solver that TrackEval calls, `scipy.optimize.linear_sum_assignment`, on the same matrix, so that ties
are broken as there.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from statefield.tasks.tracking.mot_evaluation.overlaps import Floats, Frames, Integers, Mask, Overlaps

_MARGIN = 1e-9  # far above what rounding does to a sum of weights, far below what tells pairs apart


@cache
def _solver() -> Any:
    """SciPy's `linear_sum_assignment`.

    It is a file of its own (`_lsap`), loaded without the rest of `scipy.optimize`, whose import takes longer than a
    benchmark's evaluation. Where SciPy keeps it elsewhere the public name is imported: the same function.
    """
    found = importlib.util.find_spec("scipy")
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        for path in sorted(Path(folder, "optimize").glob("_lsap.*")):
            spec = importlib.util.spec_from_file_location("_lsap", path)
            if path.suffix in (".so", ".pyd") and spec is not None and spec.loader is not None:
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                return module.linear_sum_assignment
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment


def best_assignment(weights: Floats) -> tuple[Integers, Integers]:
    """Rows and columns [min(shape)] of the assignment with the largest total of `weights` [rows, columns]."""
    return _solver()(-weights)


def matched_pairs(
    pairs: Overlaps, weights: Floats, gt_frames: Frames, tracker_frames: Frames, *, asked: Mask | None = None
) -> Mask:
    """bool [E], the pairs of the matching with the largest total weight in every frame.

    Args:
        pairs: the candidates; all other pairs weigh 0 and are never matched.
        weights: float64 [E], above 0.
        gt_frames: where each frame's ground-truth boxes are.
        tracker_frames: where each frame's tracker boxes are.
        asked: bool [E], which pairs somebody wants to know of, with them all that share a box with one of them; of the
            others anything may be said. Default: all.
    """
    num_gt, num_tracker = int(gt_frames.first[-1]), int(tracker_frames.first[-1])
    matched = np.zeros(len(pairs), bool)
    left = np.arange(len(pairs)) if asked is None else np.flatnonzero(asked)
    while len(left):
        gt, tracker, weight = pairs.gt.take(left), pairs.tracker.take(left), weights.take(left)
        other_of_gt = _best_other(gt, weight, num_gt)
        other_of_tracker = _best_other(tracker, weight, num_tracker)
        certain = weight > other_of_gt + other_of_tracker + _MARGIN
        if not certain.any():
            # what exchanging a pair for another of its row, and for another of its column, gains at the least
            gain_in_row = _best_other(gt, np.maximum(weight - other_of_tracker, 0.0), num_gt)
            gain_in_column = _best_other(tracker, np.maximum(weight - other_of_gt, 0.0), num_tracker)
            kept = weight + _MARGIN >= gain_in_row + gain_in_column
            if kept.all():
                break
            left = left.compress(kept)
            continue
        matched[left.compress(certain)] = True
        gone_gt, gone_tracker = np.zeros(num_gt, bool), np.zeros(num_tracker, bool)
        gone_gt[gt.compress(certain)] = True
        gone_tracker[tracker.compress(certain)] = True
        left = left.compress(~(gone_gt.take(gt) | gone_tracker.take(tracker)))
    left = _settle_two_by_two(pairs, weights, left, matched)
    frames_left = pairs.frame.take(left)  # sorted
    unsettled = frames_left[np.diff(frames_left, prepend=-1) > 0]
    first = np.searchsorted(pairs.frame, unsettled)
    last = np.searchsorted(pairs.frame, unsettled, side="right")
    for frame, start, stop in zip(unsettled.tolist(), first.tolist(), last.tolist(), strict=True):
        matched[start:stop] = assigned(pairs, weights, slice(start, stop), frame, gt_frames, tracker_frames)
    return matched


def _settle_two_by_two(pairs: Overlaps, weights: Floats, left: Integers, matched: Mask) -> Integers:
    """Match two boxes with two others where each overlaps both and nothing else; returns the pairs that remain."""
    starts = np.flatnonzero(np.diff(pairs.gt[left], prepend=-1))
    starts = starts[np.diff(starts, append=len(left)) == 2]  # of boxes with two pairs
    if len(starts) < 2:
        return left
    tracker = pairs.tracker[left]
    in_column = np.bincount(tracker)
    starts = starts[(in_column[tracker[starts]] == 2) & (in_column[tracker[starts + 1]] == 2)]
    order = np.lexsort((tracker[starts + 1], tracker[starts]))
    starts = starts[order]
    same = (tracker[starts[1:]] == tracker[starts[:-1]]) & (tracker[starts[1:] + 1] == tracker[starts[:-1] + 1])
    one, other = starts[:-1][same], starts[1:][same]
    weight = weights[left]
    straight, crossed = weight[one] + weight[other + 1], weight[one + 1] + weight[other]
    clear = np.abs(straight - crossed) > _MARGIN
    one, other, is_straight = one[clear], other[clear], (straight > crossed)[clear]
    matched[left[np.where(is_straight, one, one + 1)]] = True
    matched[left[np.where(is_straight, other + 1, other)]] = True
    rest = np.ones(len(left), bool)
    for block in (one, one + 1, other, other + 1):
        rest[block] = False
    return left[rest]


def assigned(
    pairs: Overlaps, weights: Floats, of_frame: slice, frame: int, gt_frames: Frames, tracker_frames: Frames
) -> Mask:
    """bool, the pairs `of_frame` that the solver chooses on the whole matrix of their frame."""
    gt_first, tracker_first = int(gt_frames.first[frame]), int(tracker_frames.first[frame])
    shape = (int(gt_frames.first[frame + 1]) - gt_first, int(tracker_frames.first[frame + 1]) - tracker_first)
    matrix = np.zeros(shape)
    row, column = pairs.gt[of_frame] - gt_first, pairs.tracker[of_frame] - tracker_first
    matrix[row, column] = weights[of_frame]
    chosen = np.full(shape[0], -1)
    rows, columns = best_assignment(matrix)
    chosen[rows] = columns
    return chosen[row] == column


def _best_other(group: Integers, weight: Floats, num_groups: int) -> Floats:
    """For each entry, the largest weight of another entry of its group, 0 where there is none."""
    best = np.zeros(num_groups)
    np.maximum.at(best, group, weight)
    best_of_group = best.take(group)
    is_best = weight == best_of_group
    best_at, rest = np.flatnonzero(is_best), np.flatnonzero(~is_best)
    group_of_best = group.take(best_at)
    second = np.zeros(num_groups)
    np.maximum.at(second, group.take(rest), weight.take(rest))
    if len(best_at) > 1:
        is_tied = np.bincount(group_of_best, minlength=num_groups) > 1
        np.copyto(second, best, where=is_tied)
    best_of_group[best_at] = second.take(group_of_best)
    return best_of_group
