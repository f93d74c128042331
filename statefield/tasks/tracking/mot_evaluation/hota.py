"""HOTA: how well objects are detected, associated and located, at nineteen thresholds.

Luiten et al., HOTA: A Higher Order Metric for Evaluating Multi-Object Tracking, IJCV 2020; computed as TrackEval 1.3.0
does. Every score is in [0, 1], higher is better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from statefield.tasks.tracking.mot_evaluation.assignment import matched_pairs
from statefield.tasks.tracking.mot_evaluation.overlaps import EPS, Floats, Integers
from statefield.tasks.tracking.mot_evaluation.sequence import MotSequence

ALPHAS: Floats = np.arange(0.05, 0.99, 0.05)  # as computed there: 0.15 is 0.15000000000000002
_LIMITS = ALPHAS - EPS
_SUMS = ("tp", "fn", "fp", "association", "association_recall", "association_precision", "location")


@dataclass(frozen=True)
class HotaState:
    """What HOTA needs of one or of many sequences; states add up. Each float64 [19], an entry for each threshold.

    Args:
        tp: matched pairs.
        fn: ground-truth boxes without a match.
        fp: tracker boxes without a match.
        association: over the matched pairs, the sum of A(c) = TPA / (TPA + FNA + FPA) of equation 4.
        association_recall: over the matched pairs, the sum of TPA / (TPA + FNA).
        association_precision: over the matched pairs, the sum of TPA / (TPA + FPA).
        location: over the matched pairs, the sum of their IoU.
    """

    tp: Floats
    fn: Floats
    fp: Floats
    association: Floats
    association_recall: Floats
    association_precision: Floats
    location: Floats

    @classmethod
    def empty(cls) -> HotaState:
        """The state of no sequence: 0 for sums."""
        return cls(*(np.zeros(len(ALPHAS)) for _ in _SUMS))

    def __add__(self, other: HotaState) -> HotaState:
        return HotaState(*(getattr(self, name) + getattr(other, name) for name in _SUMS))

    def summary(self) -> dict[str, Floats | float]:
        """Fields as TrackEval names them: arrays [19] over `ALPHAS`, of which its tables show the means, and scalars.

        HOTA(0), LocA(0): at the lowest threshold, 0.05; HOTALocA(0): their product. LocA is 1 where nothing matches.
        """
        some = np.maximum(1, self.tp)
        fields: dict[str, Floats | float] = {}
        det_a = self.tp / np.maximum(1, self.tp + self.fn + self.fp)
        det_re = self.tp / np.maximum(1, self.tp + self.fn)
        ass_a = self.association / some
        fields["HOTA"] = np.sqrt(det_a * ass_a)
        fields["DetA"] = det_a
        fields["AssA"] = ass_a
        fields["DetRe"] = det_re
        fields["DetPr"] = self.tp / np.maximum(1, self.tp + self.fp)
        fields["AssRe"] = self.association_recall / some
        fields["AssPr"] = self.association_precision / some
        fields["LocA"] = np.maximum(1e-10, self.location) / np.maximum(1e-10, self.tp)
        fields["OWTA"] = np.sqrt(det_re * ass_a)
        fields["HOTA_TP"], fields["HOTA_FN"], fields["HOTA_FP"] = self.tp, self.fn, self.fp
        fields["HOTA(0)"] = float(np.asarray(fields["HOTA"])[0])
        fields["LocA(0)"] = float(np.asarray(fields["LocA"])[0])
        fields["HOTALocA(0)"] = fields["HOTA(0)"] * fields["LocA(0)"]
        return fields


def observe_hota(sequence: MotSequence) -> HotaState:
    """The state of one sequence.

    Pairs of tracks are aligned by the Jaccard index of their overlaps over the whole sequence. In each frame the
    matching has the largest sum of alignment times IoU, one for all thresholds; at a threshold, its pairs with at least
    that IoU count.
    """
    num_gt, num_tracker = sequence.num_gt, sequence.num_tracker
    pairs = sequence.pairs
    if not len(pairs):
        nothing = np.zeros(len(ALPHAS))
        return HotaState(nothing, nothing + num_gt, nothing + num_tracker, nothing, nothing, nothing, nothing)
    tracks = sequence.track_pairs
    totals = _sums_of_row(sequence, by="tracker").take(pairs.tracker)
    totals += _sums_of_row(sequence, by="gt").take(pairs.gt)
    totals -= pairs.iou
    shares = np.divide(pairs.iou, totals, out=np.zeros(len(pairs)), where=totals > EPS)
    overlap = tracks.sums(shares)
    gt_length = sequence.gt_lengths.take(tracks.gt).astype(np.float64)
    tracker_length = sequence.tracker_lengths.take(tracks.tracker).astype(np.float64)
    alignment = overlap / (gt_length + tracker_length - overlap)
    weights = alignment.take(tracks.number) * pairs.iou
    matched = np.flatnonzero(matched_pairs(pairs, weights, sequence.gt_frames, sequence.tracker_frames))

    iou, track_pair = pairs.iou.take(matched), tracks.number.take(matched)
    reached = np.searchsorted(_LIMITS, iou, side="right")  # the number of thresholds that a pair meets
    num_levels = len(ALPHAS) + 1
    by_level = np.bincount(reached, minlength=num_levels)
    tp = _from_level(by_level)
    location = _from_level(np.bincount(reached, iou, minlength=num_levels))
    together = np.bincount(track_pair * num_levels + reached, minlength=len(overlap) * num_levels)
    # [P, 19]: in how many frames two tracks match at each threshold
    count = _from_level(together.reshape(-1, num_levels))
    count, gt_length, tracker_length = (
        count[count[:, 0] > 0],
        *(length[count[:, 0] > 0, None] for length in (gt_length, tracker_length)),
    )
    return HotaState(
        tp=tp,
        fn=num_gt - tp,
        fp=num_tracker - tp,
        association=np.sum(count * (count / np.maximum(1, gt_length + tracker_length - count)), axis=0),
        association_recall=np.sum(count * (count / np.maximum(1, gt_length)), axis=0),
        association_precision=np.sum(count * (count / np.maximum(1, tracker_length)), axis=0),
        location=location,
    )


def _from_level(by_level: Floats | Integers) -> Floats:
    """Sums over pairs that meet each threshold [..., 19], from sums over pairs that meet k of them [..., 20]."""
    return np.cumsum(by_level[..., :0:-1], axis=-1)[..., ::-1].astype(np.float64)


def _sums_of_row(sequence: MotSequence, *, by: str) -> Floats:
    """The sum of each box's overlaps with the other side's boxes of its frame, float64 [N] or [M].

    Rounded as TrackEval's `matrix.sum(axis)` is, since ties in what follows hang on the last bit: NumPy adds rows to
    rows, but within a row (here: of a ground-truth box, or a tracker's box in a frame that has one alone) eight
    partial sums, by position modulo eight, and what is left over at the end.
    """
    pairs = sequence.pairs
    if by == "gt":
        own, other, other_frames = pairs.gt, pairs.tracker, sequence.tracker_frames
        num_own = sequence.num_gt
        length = other_frames.counts
    else:
        own, other, other_frames = pairs.tracker, pairs.gt, sequence.gt_frames
        num_own = sequence.num_tracker
        length = np.where(sequence.tracker_frames.counts == 1, other_frames.counts, 0)
    first = other_frames.first[:-1]
    is_in_eights = other < (first + length - length % 8).take(pairs.frame)
    eights, rest = np.flatnonzero(is_in_eights), np.flatnonzero(~is_in_eights)
    sums = np.zeros(num_own)
    if len(eights):
        place = (other.take(eights) - first.take(pairs.frame.take(eights))) % 8
        partial = np.bincount(own.take(eights) * 8 + place, pairs.iou.take(eights), minlength=num_own * 8)
        r = partial.reshape(num_own, 8).T
        sums = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]))
    np.add.at(sums, own.take(rest), pairs.iou.take(rest))
    for frame in np.flatnonzero(length > 128):  # such rows are halved first
        start, stop = np.searchsorted(pairs.frame, (frame, frame + 1))
        gt_first, tracker_first = sequence.gt_frames.first[frame], sequence.tracker_frames.first[frame]
        matrix = np.zeros((sequence.gt_frames.counts[frame], sequence.tracker_frames.counts[frame]))
        matrix[pairs.gt[start:stop] - gt_first, pairs.tracker[start:stop] - tracker_first] = pairs.iou[start:stop]
        if by == "gt":
            sums[gt_first : gt_first + len(matrix)] = matrix.sum(1)
        else:
            sums[tracker_first] = matrix.sum(0)[0]
    return sums
