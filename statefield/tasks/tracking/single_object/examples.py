"""Training samples: templates of a target and a region to find it in, from random frames of one sequence.

Sample n, and everything random in it, follows from (seed, n), so that a run which stopped goes on exactly.
Symbols   M templates of the dynamic branch · size of a template or of the search region, pixels
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from statefield.datasets.readers.limits import memory_limit_bytes
from statefield.datasets.tracking.frames import HeldFrames, NumberedFrames, VideoFrames
from statefield.datasets.tracking.object_videos import ObjectVideo
from statefield.errors import ConfigError, DataError
from statefield.tasks.tracking.single_object.crops import Box, CropPlace, as_input, crop_around, cut
from statefield.tasks.tracking.single_object.recipe import SotDataConfig, SotModelConfig

__all__ = ["OpenedVideos", "Part", "SearchSamples", "SotItem", "jittered"]

_GREY = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # ITU-R BT.601, as OpenCV's


@dataclass(frozen=True)
class Part:
    """Frames `first` to before `end` of a sequence, which is called `case`."""

    video: ObjectVideo
    first: int
    end: int

    @property
    def case(self) -> str:
        is_whole = self.first == 0 and self.end == max(len(self.video.boxes), self.end)
        return self.video.case if is_whole else f"{self.video.case}, frames {self.first + 1} to {self.end}"

    @property
    def visible(self) -> NDArray[np.intp]:
        """The frames whose target can be seen."""
        return self.first + np.flatnonzero(self.video.visible[self.first : self.end])


class OpenedVideos:
    """The frames of sequences that were asked for lately; those longest unused are closed when memory runs out."""

    def __init__(self) -> None:
        self._opened: OrderedDict[str, NumberedFrames] = OrderedDict()

    def of(self, video: ObjectVideo) -> NumberedFrames:
        key = f"{video.place}:{video.split}:{video.sample}:{video.case}"
        if key not in self._opened:
            frames = video.open()
            self._opened[key] = HeldFrames(frames) if isinstance(frames, VideoFrames) else frames
            while len(self._opened) > 1 and self._held() > memory_limit_bytes():
                self._opened.popitem(last=False)
        self._opened.move_to_end(key)
        return self._opened[key]

    def _held(self) -> int:
        return sum(frames.num_held_bytes for frames in self._opened.values())


class SotItem(TypedDict):
    """A training sample: net inputs, and the true box as shares of the search region (centre, width, height)."""

    static: Tensor  # [3, size, size]
    templates: Tensor  # [M, 3, size, size]
    search: Tensor  # [3, size, size]
    box: Tensor  # [4]
    origin: str


def jittered(box: Box, rng: np.random.Generator, *, shift: float, scale: float) -> Box:
    """The box around which a crop is cut: sides times exp(normal * scale), the centre evenly within shift / 2 sides.

    "Sides" is the root of the area of the box as it was scaled. Source: pytracking's training, as OSTrack has it.
    """
    sides = box[2:] * np.exp(rng.normal(size=2) * scale)
    centre = box[:2] + box[2:] / 2 + (rng.random(2) - 0.5) * shift * np.sqrt(sides.prod())
    return np.concatenate((centre - sides / 2, sides))


class SearchSamples(Dataset[SotItem]):
    """The endless numbered list of samples; its length is that of one pass: the frames that can be searched.

    Args:
        parts: what is learned from. data: jitter and colours. model: sizes of crops and how far they reach.

    Every part is drawn equally often, however long. A search region that misses the target's centre is drawn again.

    Raises: DataError: no part has a frame with a target. ConfigError: settings that cannot work.
    """

    def __init__(self, parts: Sequence[Part], data: SotDataConfig, model: SotModelConfig, *, seed: int) -> None:
        _require_possible(data)
        self.data, self.model, self.seed = data, model, seed
        self.parts = [part for part in parts if len(part.visible)]
        if not self.parts:
            raise DataError("the sequences to train on have no frame with a target: boxes of positive size are needed.")
        self.visible = [part.visible for part in self.parts]
        self.opened = OpenedVideos()

    def __len__(self) -> int:
        return sum(map(len, self.visible))

    def __getitem__(self, number: int) -> SotItem:
        rng = np.random.default_rng((self.seed, number))
        which = int(rng.integers(len(self.parts)))
        video, visible = self.parts[which].video, self.visible[which]
        searched = int(rng.choice(visible))
        near = visible
        if self.data.max_gap is not None:
            near = visible[np.abs(visible - searched) <= self.data.max_gap]
        shown = [int(rng.choice(near)) for _ in range(self.data.templates + 1)]
        frames = self.opened.of(video)
        mirrored = rng.random() < self.data.mirror
        grey = rng.random() < self.data.grey
        bright = 1 + float(rng.uniform(-1, 1)) * self.data.brightness

        def coloured(crop: Tensor) -> Tensor:
            crop = (crop * _GREY).sum(0, keepdim=True).expand_as(crop) if grey else crop
            return as_input((crop * bright).clamp(0, 255))

        templates = []
        for frame in shown:
            around = jittered(video.boxes[frame], rng, shift=self.data.template_shift, scale=self.data.template_scale)
            place = crop_around(around, self.model.template_factor)
            templates.append(coloured(cut(frames[frame], place, self.model.template_size)))
        place, shares = self._search(video.boxes[searched], rng)
        search = coloured(cut(frames[searched], place, self.model.search_size))
        if mirrored:
            templates, search = [crop.flip(-1) for crop in templates], search.flip(-1)
            shares = np.array([1 - shares[0], *shares[1:]])
        return {
            "static": templates[0],
            "templates": torch.stack(templates[1:]),
            "search": search,
            "box": torch.from_numpy(shares).float(),
            "origin": frames.name_of(searched),
        }

    def _search(self, box: Box, rng: np.random.Generator) -> tuple[CropPlace, Box]:
        """A search region, and the box's shares of it."""
        for _ in range(100):
            around = jittered(box, rng, shift=self.data.search_shift, scale=self.data.search_scale)
            place = crop_around(around, self.model.search_factor)
            shares = place.shares_of(box)
            if (shares[:2] >= 0).all() and (shares[:2] < 1).all():
                return place, shares
        place = crop_around(box, self.model.search_factor)
        return place, place.shares_of(box)


def _require_possible(data: SotDataConfig) -> None:
    counts: dict[str, tuple[Any, float]] = {
        "templates": (data.templates, 1),
        "search_shift": (data.search_shift, 0),
        "search_scale": (data.search_scale, 0),
        "template_shift": (data.template_shift, 0),
        "template_scale": (data.template_scale, 0),
        "max_gap": (data.max_gap, 0),
        "val_frames": (data.val_frames, 2),
    }
    for name, (value, least) in counts.items():
        if value is not None and not value >= least:
            raise ConfigError(f"data.{name} = {value}: {least} or more is needed.")
    for name in ("grey", "mirror", "brightness"):
        if not 0 <= getattr(data, name) <= 1:
            raise ConfigError(f"data.{name} = {getattr(data, name)}: a number from 0 to 1 is needed.")
