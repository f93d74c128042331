"""Tracking of whole sequences: detections in, MOTChallenge text out, frame by frame."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.tracking.detections import Detections
from statefield.errors import ConfigError
from statefield.files import write_text
from statefield.tasks.tracking.motion import MOTION_MODELS, MotionModel
from statefield.tasks.tracking.trackers.tracker import TRACKERS, Tracker

__all__ = ["TrackedSequence", "TrackerSettings", "mot_text", "track"]

LEARNED = "mtp"
MakeMotion = Callable[[tuple[int, int] | None], MotionModel]  # of a sequence's image size


@dataclass(frozen=True)
class TrackerSettings:
    """Which tracker, over which motion model.

    Args:
        tracker: a name of `TRACKERS`. motion: a name of `MOTION_MODELS`, None for the tracker's own.
        weights: the run folder of `statefield mot train`, for the motion model "mtp".
        values: arguments of the tracker in place of its own, by name; see its class.
        min_score: detections below it are not looked at.
        image_size: width and height in pixels, where the detections do not say them and the weights need them.
        device: where MTP computes.

    Raises:
        UnknownName, ConfigError: names and values that do not fit, said before anything is read.
    """

    tracker: str
    motion: str | None = None
    weights: Path | None = None
    values: Mapping[str, Any] | None = None
    min_score: float | None = None
    image_size: tuple[int, int] | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        kind = TRACKERS[self.tracker]
        if self.motion is not None:
            MOTION_MODELS[self.motion]
        accepted = [name for name in inspect.signature(kind).parameters if name != "motion"]
        for name in self.values or {}:
            if name not in accepted:
                raise ConfigError(
                    f"{self.tracker} has no setting --{name.replace('_', '-')}: it has "
                    f"{', '.join('--' + one.replace('_', '-') for one in accepted)}."
                )
        if (self.weights is not None) != (self.motion_name == LEARNED):
            if self.weights is None:
                MOTION_MODELS[LEARNED]()  # says what is missing
            raise ConfigError(
                f"--weights {self.weights} are for the motion model {LEARNED}, and this is {self.tracker} over "
                f"{self.motion_name}: add --motion {LEARNED}, or leave the weights out."
            )

    @property
    def motion_name(self) -> str:
        """Of the motion model that is used."""
        return self.motion or getattr(TRACKERS[self.tracker], "motion_name")  # noqa: B009  (a class of the registry)

    def maker(self) -> Callable[[Detections], Tracker]:
        """What makes the tracker of a sequence; MTP's weights are read once."""
        make = self._motion()
        values = dict(self.values or {})
        return lambda sequence: TRACKERS[self.tracker](make(sequence.image_size or self.image_size), **values)

    def _motion(self) -> MakeMotion:
        if self.weights is None:
            return lambda image_size: MOTION_MODELS[self.motion_name]()
        from statefield.tasks.tracking.motion.training import load_motion  # torch: Kalman filters do without

        trained = load_motion(self.weights)
        return lambda image_size: trained.model(image_size, self.device)


@dataclass(frozen=True)
class TrackedSequence:
    """What became of a sequence.

    Attributes:
        name: the sequence's. num_frames: its length.
        rows: float64 [K, 7]: frame (from 1), id, left, top, width, height, score; by frame.
        seconds: the time of prediction and association alone.
    """

    name: str
    num_frames: int
    rows: NDArray[np.float64]
    seconds: float

    @property
    def num_tracks(self) -> int:
        return len(np.unique(self.rows[:, 1]))


def track(
    sequences: Sequence[Detections],
    settings: TrackerSettings,
    *,
    on_frame: Callable[[str, int, int], None] | None = None,
) -> list[TrackedSequence]:
    """Track every sequence.

    Args: on_frame: called with the sequence's name, the frame that was done and their number, every some frames.
    """
    make = settings.maker()
    return [_track(each, make(each), settings.min_score, on_frame) for each in sequences]


def _track(
    sequence: Detections,
    tracker: Tracker,
    min_score: float | None,
    on_frame: Callable[[str, int, int], None] | None,
) -> TrackedSequence:
    found = []
    seconds = 0.0
    for number, boxes, scores in sequence.frames():
        if min_score is not None:
            enough = scores >= min_score
            boxes, scores = boxes[enough], scores[enough]
        begun = time.perf_counter()
        tracks = tracker.step(boxes, scores)
        seconds += time.perf_counter() - begun
        frame = np.full((len(tracks.ids), 1), float(number))
        size = tracks.boxes[:, 2:] - tracks.boxes[:, :2]
        found.append(np.hstack((frame, tracks.ids[:, None], tracks.boxes[:, :2], size, tracks.scores[:, None])))
        if on_frame is not None and (number % 50 == 0 or number == sequence.num_frames):
            on_frame(sequence.name, number, sequence.num_frames)
    rows = np.concatenate(found) if found else np.zeros((0, 7))
    return TrackedSequence(sequence.name, sequence.num_frames, rows, seconds)


def mot_text(rows: NDArray[np.float64]) -> str:
    """MOTChallenge's lines: frame,id,left,top,width,height,score,-1,-1,-1; hundredths of a pixel.

    >>> mot_text(np.array([[1, 2, 10, 20.5, 30, 40, 0.9]]))
    '1,2,10.00,20.50,30.00,40.00,0.9000,-1,-1,-1\\n'
    """
    return "".join(
        f"{frame:.0f},{id_:.0f},{left:.2f},{top:.2f},{width:.2f},{height:.2f},{score:.4f},-1,-1,-1\n"
        for frame, id_, left, top, width, height, score in rows.tolist()
    )


def write_tracks(tracked: Sequence[TrackedSequence], folder: Path) -> list[Path]:
    """SEQUENCE.txt of each sequence, each whole or not at all."""
    paths = [folder / f"{each.name}.txt" for each in tracked]
    for each, path in zip(tracked, paths, strict=True):
        write_text(path, mot_text(each.rows))
    return paths
