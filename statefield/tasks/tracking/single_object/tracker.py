"""The tracker of one object, frame by frame: MambaEVT with its memory of templates.

    tracker = SingleObjectTracker(net, template_factor=2.0, search_factor=4.0)
    tracker.start(frame, box)
    for frame in camera:
        found = tracker.step(frame)

Frames are uint8 [H, W, 3] and may come from any camera, events drawn as pictures included; boxes are (x, y, width,
height) in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statefield.errors import DataError
from statefield.tasks.tracking.nets import CenterMaps, MambaEVT, TemplateMemory
from statefield.tasks.tracking.single_object.crops import Box, as_input, clipped, crop_around, cut
from statefield.tasks.tracking.single_object.recipe import TrackerConfig

__all__ = ["Found", "SingleObjectTracker", "hann_window"]


@dataclass(frozen=True)
class Found:
    """What the tracker says of a frame.

    Attributes:
        box: float64 [4], x, y, width, height in pixels, within the frame but for its margin.
        score: how sure the net is that the target's centre is there, within (0, 1).
        is_lost: the score is below `lost_below`; the box is then the last one that was sure.
    """

    box: NDArray[np.float64]
    score: float
    is_lost: bool


def hann_window(side: int) -> Tensor:
    """The penalty on motion, [1, 1, side, side]: a Hann window without its zeros, largest in the middle, in (0, 1].

    >>> hann_window(3)[0, 0, 1].tolist()
    [0.5, 1.0, 0.5]
    """
    line = torch.hann_window(side + 2, periodic=False)[1:-1]
    return (line[:, None] * line)[None, None]


class SingleObjectTracker:
    """One target. The state is on `device`; a tracker that is started again forgets the target before.

    Args:
        net: with its weights; it is put in evaluation on `device`.
        template_factor, search_factor: sides of the target that a template and the search region cover.
        config: what is done with what the net finds.

    Order of a frame, as in the authors' code: the result of the frame before becomes a template, then the dynamic
    template is made, then the target is searched around where it was.
    """

    def __init__(
        self,
        net: MambaEVT,
        *,
        template_factor: float = 2.0,
        search_factor: float = 4.0,
        config: TrackerConfig | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.net = net.to(self.device).eval()
        self.template_factor, self.search_factor = template_factor, search_factor
        self.config = config or TrackerConfig()
        self.memory = TemplateMemory(
            self.net.encode_templates,
            short_capacity=self.config.short_templates,
            long_capacity=self.config.long_templates,
            interval=self.config.interval,
            lower_bound=self.config.least_likeness,
        )
        self.window = hann_window(net.search_grid).to(self.device)
        self._box: Box | None = None

    @torch.inference_mode()
    def start(self, frame: NDArray[np.uint8], box: NDArray[np.floating] | tuple[float, float, float, float]) -> None:
        """Begin with a frame [H, W, 3] and the target's box in it.

        Raises: DataError: a box without area, or one that lies beyond the frame. ShapeError: no such frame.
        """
        start = np.asarray(box, dtype=np.float64).reshape(4)
        height, width = frame.shape[:2]
        place = crop_around(start, self.template_factor)
        if start[0] >= width or start[1] >= height or start[0] + start[2] <= 0 or start[1] + start[3] <= 0:
            raise DataError(
                f"the first box, {_told(start)}, lies beyond the frame of {width} x {height} pixels: x and y of its "
                "top left corner, its width and its height, in pixels, are needed."
            )
        self.static = self._input(cut(frame, place, self.net.template_size))
        self.dynamic = self.memory.start(self.static)
        self._box, self._number = start, 0
        self._learned: Tensor | None = self.static
        self._is_lost = False

    @torch.inference_mode()
    def step(self, frame: NDArray[np.uint8]) -> Found:
        """Find the target in the next frame, [H, W, 3].

        Raises: DataError: the tracker was not started. ShapeError: no such frame.
        """
        if self._box is None:
            raise DataError("this tracker follows nothing yet: call start(frame, box) with the first frame.")
        self._number += 1
        if self._learned is not None:
            self.dynamic = self.memory.observe(self._learned, self._number)
        factor = self.search_factor * (self.config.lost_widening if self._is_lost else 1.0)
        place = crop_around(self._box, factor)
        search = self._input(cut(frame, place, self.net.search_size))
        maps: CenterMaps = self.net(self.static[None], self.dynamic, search[None])
        share = 0.0 if self._is_lost else self.config.window
        response = maps.score * (1 - share + share * self.window)
        score = float(maps.score.flatten()[response.argmax()])
        shares = maps.boxes(response)[0].double().cpu().numpy()
        height, width = frame.shape[:2]
        self._is_lost = score < self.config.lost_below
        if not self._is_lost:
            self._box = clipped(place.box_of(shares), width, height, self.config.margin_px)
        learns = not self._is_lost and score > self.config.learn_above
        template = crop_around(self._box, self.template_factor)
        self._learned = self._input(cut(frame, template, self.net.template_size)) if learns else None
        return Found(self._box.copy(), score, self._is_lost)

    def _input(self, crop: Tensor) -> Tensor:
        return as_input(crop.to(self.device))


def _told(box: Box) -> str:
    return ", ".join(f"{value:g}" for value in box)
