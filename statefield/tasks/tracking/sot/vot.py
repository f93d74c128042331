"""VOT: accuracy, robustness and expected average overlap (EAO) of trackers that are started again.

Two protocols. Up to VOT2019 a tracker that fails (overlap 0) is started again five frames later ("reset"); since
VOT2020 it is started at anchors and runs to an end of the sequence, forward or backward ("anchors").
Source: votchallenge/toolkit 56f0053, vot/analysis/supervised.py and multistart.py; intervals from vot/stack/*.yaml.

Corner cases, as the toolkit has them:
 - reset, accuracy: the 10 frames from each start on do not count, nor failures, nor unknown frames; a sequence's mean
   over repetitions counts as often as it has frames. Robustness is given as failures in 100 frames.
 - reset, EAO: a run from its start up to, not including, the failure is followed by zeros; the last run, if it does not
   fail, ends with the sequence. The starting frame has no overlap and does not count.
 - anchors: a run fails where the overlap stays at or below 0.1 for 10 frames in which there is a target, from the first
   of them on; the starting frame counts as one of these. Accuracy is over frames before a failure, robustness is their
   share. The toolkit divides the sum of a failed run by one frame less than its length beyond its end; so do we.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.tracking.regions import FAILED, INITIALISED, UNKNOWN, Region, Special
from statefield.datasets.tracking.vot import VotSequence
from statefield.errors import DataError
from statefield.tasks.tracking.sot.region_overlap import is_empty, region_overlaps

Array = NDArray[np.float64]
# first and last length, in frames, of the interval that EAO is the mean of; the toolkit's `low` and `high`
EAO_INTERVALS = {
    "vot2016": (108, 371),
    "vot2017": (100, 356),
    "vot2018": (100, 356),
    "vot2019": (46, 291),
    "vot2020": (115, 755),
    "vot2021": (115, 755),
    "vot2022": (115, 755),
}
RESET_YEARS = ("vot2016", "vot2017", "vot2018", "vot2019")
BURN_IN = 10
GRACE = 10
FAILURE_OVERLAP = 0.1


@dataclass(frozen=True)
class ResetRun:
    """One repetition on one sequence.

    Args:
        fragments: overlaps [L] of each run from a start on, with whether it ended in a failure.
        accuracy: mean overlap over counted frames; 0 where none counts, as in the toolkit.
        counted: [T] bool, the frames that accuracy is the mean of.
        overlaps: [T], of all frames.
        failures: the frames at which it failed.
    """

    fragments: list[tuple[Array, bool]]
    accuracy: float
    counted: NDArray[np.bool_]
    overlaps: Array
    failures: NDArray[np.int64]


def reset_run(sequence: VotSequence, regions: Sequence[Region], where: str, burn_in: int = BURN_IN) -> ResetRun:
    """Score one repetition of the reset protocol; `regions` is the tracker's file, `where` names it in errors.

    Raises:
        DataError: another number of regions than frames, or a file that does not begin with a start (1).
    """
    if len(regions) != len(sequence.regions):
        raise DataError(f"{where}: {len(regions)} regions for {len(sequence.regions)} frames; one for each is needed.")
    codes = np.array([region.code if isinstance(region, Special) else -1 for region in regions])
    if codes[0] != INITIALISED:
        raise DataError(
            f"{where}, line 1: the reset protocol's results begin with 1, the mark of a start, and have 2 where the "
            "tracker failed. This file has a region there: it may come from a run without resets."
        )
    starts, failures = np.flatnonzero(codes == INITIALISED), np.flatnonzero(codes == FAILED)
    if len(failures) and (len(starts) < len(failures) or (failures < starts[: len(failures)]).any()):
        raise DataError(f"{where}, line {failures[-1] + 1}: a failure (2) without a start (1) before it.")
    overlaps = region_overlaps(regions, sequence.regions, sequence.image_size)
    fragments = [(overlaps[a:b], True) for a, b in zip(starts, failures, strict=False)]
    if len(starts) > len(failures):
        # without a failure the toolkit takes all frames, with one the last start
        fragments.append((overlaps[starts[-1] if len(failures) else 0 :], False))
    counted = (codes != UNKNOWN) & (codes != FAILED)
    for start in starts:
        counted[start : start + burn_in] = False
    accuracy = float(overlaps[counted].mean()) if counted.any() else 0.0
    return ResetRun(fragments, accuracy, counted, overlaps, failures)


def eao_curve(fragments: Sequence[tuple[Array, bool]]) -> Array:
    """[L] expected average overlap of runs of 0, 1, 2, ... frames, L the length of the longest fragment."""
    longest = max(len(overlaps) for overlaps, _ in fragments)
    values = np.zeros((len(fragments), longest))
    counts = np.zeros((len(fragments), longest), dtype=bool)
    for row, (overlaps, has_failed) in enumerate(fragments):
        values[row, : len(overlaps)] = overlaps
        counts[row, : longest if has_failed else len(overlaps)] = True
    averages = values.copy()
    averages[:, 1:] = np.cumsum(values[:, 1:], axis=1) / np.arange(1, longest)
    total = counts.sum(axis=0)
    return np.divide((averages * counts).sum(axis=0), total, out=np.full(longest, np.nan), where=total > 0)


def eao(curve: Array, interval: tuple[int, int]) -> float:
    """The mean of the curve over the interval, both ends included; NaN where the curve ends before it."""
    part = curve[interval[0] : interval[1] + 1]
    return float(part.mean()) if len(part) else float("nan")


@dataclass(frozen=True)
class AnchorRun:
    """One run from an anchor: overlaps [L] up to the failure and zeros after it, and how many frames it lasted."""

    overlaps: Array
    progress: int

    @property
    def has_failed(self) -> bool:
        return self.progress < len(self.overlaps)


def anchor_run(
    sequence: VotSequence, frame: int, backward: bool, regions: Sequence[Region], where: str, grace: int = GRACE
) -> AnchorRun:
    """Score the run from the anchor at `frame` (counted from 0) on.

    Raises:
        DataError: another number of regions than frames from the anchor to the end.
    """
    truth = sequence.regions[frame::-1] if backward else sequence.regions[frame:]
    if len(regions) != len(truth):
        raise DataError(
            f"{where}: {len(regions)} regions for the {len(truth)} frames from the anchor {frame} "
            f"{'backward' if backward else 'forward'}."
        )
    overlaps = region_overlaps(regions, truth, sequence.image_size)
    lost = (overlaps <= FAILURE_OVERLAP) & ~np.array([is_empty(region) for region in truth])
    steps = np.arange(len(lost))
    last_kept = np.maximum.accumulate(np.where(lost, -1, steps))
    failed_at = np.flatnonzero(lost & (steps - last_kept >= grace))
    progress = int(failed_at[0]) + 1 - grace if len(failed_at) else len(truth)
    overlaps[progress:] = 0.0
    return AnchorRun(overlaps, progress)


def anchor_eao_curve(runs_of_sequences: Sequence[Sequence[AnchorRun]], length: int) -> Array:
    """[length] expected average overlap; each run that is long enough, or has failed, counts once at each length."""
    total, active = np.zeros(length), np.zeros(length)
    for runs in runs_of_sequences:
        for run in runs:
            reached = min(len(run.overlaps), length)
            sums = np.cumsum(run.overlaps[1:])
            if reached > 1:
                total[1:reached] += sums[: reached - 1] / np.arange(1, reached)
                active[1:reached] += 1
            if run.has_failed and length > reached:
                beyond = np.arange(max(reached, 2), length)
                total[beyond] += (sums[-1] if len(sums) else 0.0) / (beyond - 1)
                active[beyond] += 1
    return np.divide(total, active, out=np.zeros(length), where=active > 0)
