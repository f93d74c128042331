"""What a tracker needs of a motion model: where every track is expected in the next frame.

All tracks of a frame are rows of arrays; a model keeps its rows in the order in which the tracker keeps its own.
Boxes are (x1, y1, x2, y2) in pixels, float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from statefield.registry import Registry

__all__ = ["MOTION_MODELS", "Boxes", "MotionModel", "Rows", "centred", "corners"]

Boxes = NDArray[np.float64]  # [N, 4]
Rows = NDArray[np.intp] | NDArray[np.bool_]  # indices [K], or a mask [N]


class MotionModel(Protocol):
    """The state of N tracks, one row each."""

    def __len__(self) -> int: ...

    def start(self, boxes: Boxes) -> None:
        """Append tracks that are seen for the first time, [K, 4]."""

    def predict(self, coasting: NDArray[np.bool_]) -> Boxes:
        """Go on by one frame; where each track is expected, [N, 4].

        Args: coasting: [N], tracks that were not seen in the last frame.
        """

    def update(self, rows: NDArray[np.intp], boxes: Boxes) -> None:
        """Correct the tracks that were seen: rows [K] at boxes [K, 4]. The others stay where they were expected."""

    def boxes(self) -> Boxes:
        """Where each track is thought to be now, [N, 4]."""

    def keep(self, rows: Rows) -> None:
        """Drop all tracks but these."""


MOTION_MODELS: Registry[Callable[[], MotionModel]] = Registry("motion model")


def centred(boxes: Boxes) -> Boxes:
    """(x1, y1, x2, y2) -> (centre x, centre y, width, height)."""
    size = boxes[..., 2:] - boxes[..., :2]
    return np.concatenate((boxes[..., :2] + size / 2, size), axis=-1)


def corners(boxes: Boxes) -> Boxes:
    """(centre x, centre y, width, height) -> (x1, y1, x2, y2)."""
    half = boxes[..., 2:] / 2
    return np.concatenate((boxes[..., :2] - half, boxes[..., :2] + half), axis=-1)
