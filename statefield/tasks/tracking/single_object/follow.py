"""A target followed through a sequence, from its first box on, and how well: overlaps after the first frame."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.tracking.frames import NumberedFrames
from statefield.datasets.tracking.object_videos import ObjectVideo
from statefield.errors import DataError
from statefield.tasks.tracking.single_object.tracker import Found, SingleObjectTracker
from statefield.tasks.tracking.sot.one_pass import FrameErrors, curves, frame_errors, pooled_errors, scores
from statefield.tasks.tracking.sot.protocols import protocol_named

__all__ = ["Followed", "follow", "frame_errors_of", "success_scores"]

OnFrame = Callable[[str, int, int], None]  # sequence, frames done, frames in all
_PROTOCOL = protocol_named("visible")
_NOTHING: OnFrame = lambda *_: None  # noqa: E731


@dataclass(frozen=True)
class Followed:
    """One sequence.

    Attributes:
        case: its name.
        boxes: [T, 4] float64, x, y, width, height; the first is the one that was given.
        scores: [T], 1 in the first frame.
        num_lost: frames in which the target counted as lost.
        seconds: [T], of each frame: reading it is not counted.
    """

    case: str
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    num_lost: int
    seconds: NDArray[np.float64]

    @property
    def frames_per_second(self) -> float:
        """Of the frames after the first; NaN where there is none."""
        return float(len(self.seconds) - 1) / float(self.seconds[1:].sum()) if len(self.seconds) > 1 else float("nan")


def follow(
    tracker: SingleObjectTracker,
    case: str,
    frames: NumberedFrames,
    box: NDArray[np.float64],
    *,
    first: int = 0,
    end: int | None = None,
    on_frame: OnFrame = _NOTHING,
    on_found: Callable[[int, Found], None] = lambda *_: None,
) -> Followed:
    """Follow a target from frame `first` to before `end`.

    Args: on_found: called with the number of each frame after the first and what was found in it.

    Raises: DataError: a frame that cannot be read, or a first box that lies beyond it; names file and frame.
    """
    end = len(frames) if end is None else end
    boxes, found_scores, seconds, num_lost = [np.asarray(box, dtype=np.float64)], [1.0], [], 0
    for number in range(first, end):
        frame = frames[number]
        started = time.perf_counter()
        if number == first:
            try:
                tracker.start(frame, boxes[0])
            except DataError as error:
                raise DataError(f"{frames.name_of(first)}: {error}") from error
        else:
            found = tracker.step(frame)
            boxes.append(found.box)
            found_scores.append(found.score)
            num_lost += found.is_lost
            on_found(number, found)
        seconds.append(time.perf_counter() - started)
        on_frame(case, number - first + 1, end - first)
    return Followed(case, np.stack(boxes), np.array(found_scores), num_lost, np.array(seconds))


def frame_errors_of(boxes: NDArray[np.float64], video: ObjectVideo, first: int = 0) -> FrameErrors | None:
    """Overlaps and centre errors of boxes from frame `first` on, where the target can be seen; the first is no merit.

    None where no frame after the first has a target.
    """
    truth, present = video.boxes[first : first + len(boxes)], video.visible[first : first + len(boxes)]
    if len(truth) < 2 or not present[1:].any():
        return None
    return frame_errors(_PROTOCOL, boxes[1:], truth[1:], present[1:], where=video.case)


def success_scores(errors: list[FrameErrors]) -> dict[str, float]:
    """AUC, precision (20 px), normalised precision (0.2), OP50 and OP75, from 0 to 1, over all frames together.

    Not for comparison with published tables, whose first frames and means over sequences differ: `statefield sot
    evaluate` gives those.
    """
    if not errors:
        return {name: float("nan") for name in ("AUC", "P", "P_norm", "OP50", "OP75")}
    pooled = pooled_errors(errors)
    values = scores(_PROTOCOL, curves(_PROTOCOL, pooled))
    names = {"SR": "AUC", "PR": "P", "NPR": "P_norm"}
    return {names.get(name, name): value / 100 for name, value in values.items()}
