"""Identity: which of the tracker's tracks is which object, once for the whole sequence, at IoU 0.5.

Ristani et al., Performance Measures and a Data Set for Multi-Target, Multi-Camera Tracking, ECCVW 2016; computed as
TrackEval 1.3.0 does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from statefield.tasks.tracking.mot_evaluation.assignment import best_assignment
from statefield.tasks.tracking.mot_evaluation.protocols import MATCH_THRESHOLD
from statefield.tasks.tracking.mot_evaluation.sequence import MotSequence


@dataclass(frozen=True)
class IdentityState:
    """Counts of one or of many sequences; states add up.

    Args:
        tp: boxes of the tracker on the object that their track is matched with (IDTP).
        fn: ground-truth boxes without one (IDFN).
        fp: the tracker's other boxes (IDFP).
    """

    tp: int = 0
    fn: int = 0
    fp: int = 0

    @classmethod
    def empty(cls) -> IdentityState:
        """The state of no sequence: 0 for sums."""
        return cls()

    def __add__(self, other: IdentityState) -> IdentityState:
        return IdentityState(self.tp + other.tp, self.fn + other.fn, self.fp + other.fp)

    def summary(self) -> dict[str, float | int]:
        """IDF1, IDR and IDP, in [0, 1], higher is better; and the counts."""
        return {
            "IDF1": self.tp / max(1.0, self.tp + 0.5 * self.fp + 0.5 * self.fn),
            "IDR": self.tp / max(1.0, self.tp + self.fn),
            "IDP": self.tp / max(1.0, self.tp + self.fp),
            "IDTP": self.tp,
            "IDFN": self.fn,
            "IDFP": self.fp,
        }


def observe_identity(sequence: MotSequence) -> IdentityState:
    """The state of one sequence.

    TrackEval minimises IDFN + IDFP over matchings that may leave tracks alone. That is the number of all boxes less
    twice the frames in which matched tracks overlap by 0.5 or more: the matching with most of those is the same, on a
    matrix of tracks by tracks. Of several such matchings any has the same counts.
    """
    num_gt, num_tracker = sequence.num_gt, sequence.num_tracker
    pairs, tracks = sequence.pairs, sequence.track_pairs
    together = tracks.sums((pairs.iou >= MATCH_THRESHOLD).astype(np.float64))
    some = together > 0
    tp = 0
    if some.any():
        gt, row = np.unique(tracks.gt[some], return_inverse=True)
        tracker, column = np.unique(tracks.tracker[some], return_inverse=True)
        matrix = np.zeros((len(gt), len(tracker)))
        matrix[row, column] = together[some]
        tp = int(matrix[best_assignment(matrix)].sum())
    return IdentityState(tp, num_gt - tp, num_tracker - tp)
