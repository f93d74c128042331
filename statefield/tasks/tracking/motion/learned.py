"""MTP as a motion model: the net predicts each track's next step from its last ones, its own predictions among them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from statefield.tasks.tracking.motion.model import Boxes, Rows, centred, corners
from statefield.tasks.tracking.motion.steps import Unit, steps_of, unit_of
from statefield.tasks.tracking.nets import MotionPredictor

__all__ = ["LearnedMotion"]


class LearnedMotion:
    """The tracks of one sequence, each with the q + 1 boxes that it was at last.

    Args:
        net: with its weights. unit: what its steps are measured in. image_size: for the unit "image".
        device: where the net computes.

    A frame in which a track is not seen has its prediction in the track's history, and the next one is made from it:
    MambaTrack's tracklet patching. A track that was seen once stays where it is.
    """

    def __init__(
        self,
        net: MotionPredictor,
        *,
        unit: Unit = "box",
        image_size: tuple[int, int] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.net = net.to(device).eval()
        self.unit: Unit = unit
        self.image_size = image_size
        self.device = torch.device(device)
        self.history = np.zeros((0, net.history + 1, 4))  # centres and sides, newest last
        self.lengths = np.zeros(0, dtype=np.int64)  # steps that are known

    def __len__(self) -> int:
        return len(self.history)

    def start(self, boxes: Boxes) -> None:
        new = np.repeat(centred(boxes)[:, None], self.net.history + 1, axis=1)
        self.history = np.concatenate((self.history, new))
        self.lengths = np.concatenate((self.lengths, np.zeros(len(boxes), dtype=np.int64)))

    def predict(self, coasting: NDArray[np.bool_]) -> Boxes:
        last = self.history[:, -1]
        unit = unit_of(self.unit, last, self.image_size)
        expected = last.copy()
        moving = self.lengths > 0
        if moving.any():
            steps = steps_of(self.history[moving], self.lengths[moving], unit[moving])
            expected[moving] += self._next(steps, self.lengths[moving]) * unit[moving]
        expected[:, 2:] = np.maximum(expected[:, 2:], 1e-3)
        self.history = np.concatenate((self.history[:, 1:], expected[:, None]), axis=1)
        self.lengths = np.minimum(self.lengths + 1, self.net.history)
        return corners(expected)

    @torch.inference_mode()
    def _next(self, steps: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        given = torch.from_numpy(steps).float().to(self.device)
        found = self.net(given, torch.from_numpy(lengths).to(self.device))
        return found.double().cpu().numpy()

    def update(self, rows: NDArray[np.intp], boxes: Boxes) -> None:
        self.history[rows, -1] = centred(boxes)

    def boxes(self) -> Boxes:
        return corners(self.history[:, -1])

    def keep(self, rows: Rows) -> None:
        self.history, self.lengths = self.history[rows], self.lengths[rows]


MotionFactory = Callable[[tuple[int, int] | None], LearnedMotion]  # of a sequence's image size
