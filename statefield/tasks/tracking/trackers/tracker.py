"""What every tracker is: detections of one frame in, the tracks that are seen in it out; online, frame by frame."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from statefield.errors import ConfigError, ShapeError
from statefield.registry import Registry
from statefield.tasks.tracking.motion import MOTION_MODELS, MotionModel
from statefield.tasks.tracking.motion.model import Boxes, Rows
from statefield.tasks.tracking.trackers.boxes import Index

__all__ = ["TRACKERS", "FrameTracks", "Tracker"]


@dataclass(frozen=True)
class FrameTracks:
    """The tracks of one frame.

    Attributes:
        ids: [K] int64, 1 and above, each at most once.
        boxes: [K, 4] float64, (x1, y1, x2, y2) in pixels.
        scores: [K] float64, of the detections that they were matched with.
    """

    ids: NDArray[np.int64]
    boxes: Boxes
    scores: NDArray[np.float64]


class Tracker(ABC):
    """Tracks over the frames of one sequence.

    Args: motion: where tracks are expected next; by default the one that the tracker was published with.

    Rows of the tracker's own arrays (`self.columns`) and of the motion model are the tracks, in one order.
    """

    motion_name: ClassVar[str]  # of `MOTION_MODELS`

    def __init__(self, motion: MotionModel | None = None) -> None:
        self.motion = MOTION_MODELS[self.motion_name]() if motion is None else motion
        if len(self.motion):
            raise ConfigError("the motion model has tracks of another sequence: give every tracker one of its own.")
        self.frame = 0
        self.next_id = 1
        # missed: frames since a track was seen. age: frames since it began. hits: of the frames in a row, up to now.
        begin = {"id": np.int64(0), "missed": 0, "age": 0, "hits": 0, "score": 0.0} | self.own_columns()
        self._begin = {name: np.asarray(value) for name, value in begin.items()}
        self.columns = {name: np.zeros((0, *one.shape), dtype=one.dtype) for name, one in self._begin.items()}

    def step(self, boxes: Boxes, scores: NDArray[np.float64]) -> FrameTracks:
        """Go on by one frame.

        Args:
            boxes: detections [M, 4], (x1, y1, x2, y2) in pixels. scores: [M], within 0 and 1.

        Raises:
            ShapeError: arrays of other shapes.
        """
        boxes, scores = np.asarray(boxes, dtype=np.float64), np.asarray(scores, dtype=np.float64)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
            raise ShapeError(f"boxes of shape {boxes.shape} and scores of {scores.shape}: [M, 4] and [M] are needed.")
        self.frame += 1
        return self.associate(boxes, scores)

    def own_columns(self) -> dict[str, Any]:
        """Columns beside those of every tracker: what a new track begins with."""
        return {}

    @abstractmethod
    def associate(self, boxes: Boxes, scores: NDArray[np.float64]) -> FrameTracks:
        """`step`, once what was given is found to fit."""

    def __len__(self) -> int:
        return len(self.columns["id"])

    def predict(self) -> Boxes:
        """Where every track is expected in this frame; all are unseen until they are matched."""
        predicted = self.motion.predict(self.columns["missed"] > 0)
        finite = np.flatnonzero(np.isfinite(predicted).all(axis=1))
        if len(finite) < len(self):
            self.keep(finite)
            predicted = predicted[finite]
        self.columns["hits"][self.columns["missed"] > 0] = 0
        self.columns["missed"] += 1
        self.columns["age"] += 1
        return predicted

    def see(self, rows: Index, boxes: Boxes, scores: NDArray[np.float64]) -> None:
        """Tracks [K] were seen at boxes [K, 4]."""
        if not len(rows):
            return
        self.motion.update(rows, boxes)
        self.columns["missed"][rows] = 0
        self.columns["hits"][rows] += 1
        self.columns["score"][rows] = scores

    def begin(self, boxes: Boxes, scores: NDArray[np.float64], **columns: Any) -> None:
        """New tracks at boxes [K, 4]."""
        count = len(boxes)
        if not count:
            return
        self.motion.start(boxes)
        ids = np.arange(self.next_id, self.next_id + count)
        self.next_id += count
        given = {"id": ids, "score": scores} | columns
        for name, held in self.columns.items():
            one = self._begin[name]
            new = np.broadcast_to(np.asarray(given.get(name, one), dtype=one.dtype), (count, *one.shape))
            self.columns[name] = np.concatenate((held, new))

    def keep(self, rows: Rows) -> None:
        """Drop all tracks but these."""
        self.motion.keep(rows)
        self.columns = {name: column[rows] for name, column in self.columns.items()}

    def report(self, rows: Rows, boxes: Boxes | None = None) -> FrameTracks:
        """These tracks, at `boxes` [N, 4] of all tracks, or where the motion model has them."""
        places = self.motion.boxes() if boxes is None else boxes
        return FrameTracks(self.columns["id"][rows], places[rows], self.columns["score"][rows])


TRACKERS: Registry[Callable[..., Tracker]] = Registry("tracker")
