"""VACE: how well tracks overlap in space and time, and detections in space.

Manohar et al., Performance Evaluation of Object Detection and Tracking in Video, ACCV 2006, the relaxed variant with an
overlap of 0.5 in each frame; computed as TrackEval 1.3.0 does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from statefield.tasks.tracking.mot_evaluation.assignment import best_assignment, matched_pairs
from statefield.tasks.tracking.mot_evaluation.overlaps import Floats
from statefield.tasks.tracking.mot_evaluation.protocols import MATCH_THRESHOLD
from statefield.tasks.tracking.mot_evaluation.sequence import MotSequence


@dataclass(frozen=True)
class VaceState:
    """Sums over one or many sequences; states add up.

    Args:
        stda: sequence track detection accuracy, the sum over matched tracks of frames with IoU 0.5 or more, divided by
            frames in which either is present.
        fda: frame detection accuracy, the sum over frames of matched IoU divided by the mean number of boxes.
        num_tracker_ids: the tracker's tracks.
        num_gt_ids: ground-truth tracks.
        num_non_empty_frames: frames with any box.
    """

    stda: float = 0.0
    fda: float = 0.0
    num_tracker_ids: int = 0
    num_gt_ids: int = 0
    num_non_empty_frames: int = 0

    @classmethod
    def empty(cls) -> VaceState:
        """The state of no sequence: 0 for sums."""
        return cls()

    def __add__(self, other: VaceState) -> VaceState:
        return VaceState(
            self.stda + other.stda,
            self.fda + other.fda,
            self.num_tracker_ids + other.num_tracker_ids,
            self.num_gt_ids + other.num_gt_ids,
            self.num_non_empty_frames + other.num_non_empty_frames,
        )

    def summary(self) -> dict[str, float | int]:
        """SFDA and ATA, in [0, 1], higher is better, NaN where there is no box at all; and what they are made of."""
        num_ids = self.num_tracker_ids + self.num_gt_ids
        return {
            "STDA": self.stda,
            "ATA": self.stda / (0.5 * num_ids) if num_ids else math.nan,
            "FDA": self.fda,
            "SFDA": self.fda / self.num_non_empty_frames if self.num_non_empty_frames else math.nan,
            "VACE_IDs": self.num_tracker_ids,
            "VACE_GT_IDs": self.num_gt_ids,
            "num_non_empty_timesteps": self.num_non_empty_frames,
        }


def observe_vace(sequence: MotSequence) -> VaceState:
    """The state of one sequence."""
    gt_counts, tracker_counts = sequence.gt_frames.counts, sequence.tracker_frames.counts
    pairs = sequence.pairs
    fda = 0.0
    if len(pairs):
        matched = matched_pairs(pairs, pairs.iou, sequence.gt_frames, sequence.tracker_frames)
        in_frame = np.bincount(pairs.frame[matched], pairs.iou[matched], minlength=sequence.num_frames)
        fda = float((in_frame / np.maximum(0.5 * (gt_counts + tracker_counts), 0.5)).sum())
    return VaceState(
        stda=_stda(sequence),
        fda=fda,
        num_tracker_ids=sequence.num_tracker_ids,
        num_gt_ids=sequence.num_gt_ids,
        num_non_empty_frames=int(np.count_nonzero(gt_counts + tracker_counts)),
    )


def _stda(sequence: MotSequence) -> float:
    pairs, tracks = sequence.pairs, sequence.track_pairs
    together = tracks.sums((pairs.iou >= MATCH_THRESHOLD).astype(np.float64))
    some = np.flatnonzero(together > 0)
    if not len(some):
        return 0.0
    gt, tracker = tracks.gt[some], tracks.tracker[some]
    either = sequence.gt_lengths[gt] + sequence.tracker_lengths[tracker] - _frames_with_both(sequence)[gt, tracker]
    ratio: Floats = np.zeros((sequence.num_gt_ids, sequence.num_tracker_ids))
    ratio[gt, tracker] = together[some] / either
    return float(ratio[best_assignment(ratio)].sum())


def _frames_with_both(sequence: MotSequence) -> Floats:
    """float64 [G, T], the frames in which both tracks have a box, overlapping or not."""
    from scipy.sparse import csr_array

    def presence(ids: np.ndarray, frame: np.ndarray, num_ids: int) -> csr_array:
        return csr_array((np.ones(len(ids)), (ids, frame)), shape=(num_ids, sequence.num_frames))

    gt = presence(sequence.gt_ids, sequence.gt.frame, sequence.num_gt_ids)
    tracker = presence(sequence.tracker_ids, sequence.tracker.frame, sequence.num_tracker_ids)
    return (gt @ tracker.T).toarray()
