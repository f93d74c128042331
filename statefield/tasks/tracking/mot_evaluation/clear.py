"""CLEAR MOT: misses, false positives and switches of identity, frame by frame, at IoU 0.5.

Bernardin and Stiefelhagen, Evaluating Multiple Object Tracking Performance: The CLEAR MOT Metrics, EURASIP JIVP 2008;
MT, PT and ML after Wu and Nevatia, CVPR 2006; computed as TrackEval 1.3.0 does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from statefield.datasets.tracking.track_boxes import sorted_order
from statefield.tasks.tracking.mot_evaluation.continued_matching import continued_matches, turns_of
from statefield.tasks.tracking.mot_evaluation.overlaps import EPS, Overlaps
from statefield.tasks.tracking.mot_evaluation.protocols import MATCH_THRESHOLD
from statefield.tasks.tracking.mot_evaluation.sequence import MotSequence

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
    when = turns_of(sequence).take(pairs.frame)
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
    return pairs.where(continued_matches(sequence, pairs))
