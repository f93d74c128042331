"""How many boxes and tracks there are."""

from __future__ import annotations

from dataclasses import dataclass

from statefield.tasks.tracking.mot_evaluation.sequence import MotSequence


@dataclass(frozen=True)
class CountState:
    """Counts of one or of many sequences, after the benchmark's rules; states add up.

    Args:
        tracker_boxes: what the tracker found.
        gt_boxes: what there is.
        tracker_ids: the tracker's tracks.
        gt_ids: ground-truth tracks.
        frames: also those without a box.
    """

    tracker_boxes: int = 0
    gt_boxes: int = 0
    tracker_ids: int = 0
    gt_ids: int = 0
    frames: int = 0

    @classmethod
    def empty(cls) -> CountState:
        """The state of no sequence: 0 for sums."""
        return cls()

    def __add__(self, other: CountState) -> CountState:
        return CountState(
            self.tracker_boxes + other.tracker_boxes,
            self.gt_boxes + other.gt_boxes,
            self.tracker_ids + other.tracker_ids,
            self.gt_ids + other.gt_ids,
            self.frames + other.frames,
        )

    def summary(self) -> dict[str, int]:
        """Fields as TrackEval names them."""
        return {
            "Dets": self.tracker_boxes,
            "GT_Dets": self.gt_boxes,
            "IDs": self.tracker_ids,
            "GT_IDs": self.gt_ids,
            "Frames": self.frames,
        }


def observe_counts(sequence: MotSequence) -> CountState:
    """The state of one sequence."""
    return CountState(
        sequence.num_tracker, sequence.num_gt, sequence.num_tracker_ids, sequence.num_gt_ids, sequence.num_frames
    )
