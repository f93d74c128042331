"""Ways to name a pixel's class, by name: what each sees, how it is prepared and how it learns.

morpmamba               the graph as released, 4 x 4 windows of 15 whitened components, its notebook's schedule
spectral_spatial_mamba  ours, on the shared kernels
cnn3d                   after Ben Hamida et al. 2018: the convolutional control
svm                     radial basis functions on the pixel's own spectrum, C and gamma by validation: no window

Two things of MorpMamba's notebook differ: its rate falls by 1e-6 a step (0.05 % in all), here it is constant; and here,
as for every net, the epoch that is best on validation pixels is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from sklearn.svm import SVC
from torch import nn

from statefield.datasets.hyperspectral import Scene
from statefield.errors import ConfigError
from statefield.registry import Registry
from statefield.tasks.remote_sensing.hyperspectral.preparation import Preparation
from statefield.tasks.remote_sensing.hyperspectral.splits import PixelSplit
from statefield.tasks.remote_sensing.hyperspectral.training import Examples, Schedule, predict_pixels, train_net
from statefield.tasks.remote_sensing.hyperspectral.windows import Windows
from statefield.tasks.remote_sensing.nets.morpmamba import MorpMamba
from statefield.tasks.remote_sensing.nets.spectral_spatial import SpectralSpatialCNN, SpectralSpatialMamba

__all__ = ["CONTENDERS", "Classifier", "Contender", "NetContender", "SupportVectorMachine", "examples"]


@dataclass(frozen=True, eq=False)
class Classifier:
    """predict: pixels int [N, 2] of the scene -> classes int64 [N]. num_parameters: learnt numbers. chosen: settings
    that were chosen on validation pixels."""

    predict: Callable[[np.ndarray], np.ndarray]
    num_parameters: int
    chosen: dict[str, float] = field(default_factory=dict)


class Contender(Protocol):
    """window: side of what it sees of a scene (1: the pixel alone). preparation: of the spectra."""

    @property
    def window(self) -> int: ...
    @property
    def preparation(self) -> Preparation: ...

    def fit(self, scene: Scene, split: PixelSplit, *, seed: int, epochs: int | None = None) -> Classifier:
        """Learn from the split's train pixels, choose by its val pixels; the test pixels' labels are not looked at."""


CONTENDERS: Registry[Contender] = Registry("classifier of pixels")


def examples(scene: Scene, split: PixelSplit, part: str) -> Examples:
    """The pixels of one part of the split, with their classes."""
    pixels = split.pixels(part)
    return Examples(pixels, scene.labels[pixels[:, 0], pixels[:, 1]])


def _prepared(contender: Contender, scene: Scene, split: PixelSplit) -> np.ndarray:
    if contender.window > split.window:
        raise ConfigError(
            f"windows of side {contender.window} on a split made for side {split.window}: parts would overlap. Make "
            "the split for the largest window."
        )
    pixels = split.pixels("train")
    return contender.preparation.fit(scene.cube[:, pixels[:, 0], pixels[:, 1]].T)(scene.cube)


@dataclass(frozen=True)
class NetContender:
    """build: (channels, classes) -> a net of windows [B, channels, window, window] -> logits [B, classes]."""

    build: Callable[[int, int], nn.Module]
    window: int
    preparation: Preparation
    schedule: Schedule
    device: str = "cpu"

    def fit(self, scene: Scene, split: PixelSplit, *, seed: int, epochs: int | None = None) -> Classifier:
        """As `Contender`; `epochs` replaces the schedule's."""
        prepared = _prepared(self, scene, split)
        windows = Windows(prepared, self.window)
        net = train_net(
            lambda: self.build(len(prepared), len(scene.info.classes)),
            windows,
            examples(scene, split, "train"),
            examples(scene, split, "val"),
            self.schedule if epochs is None else dataclasses.replace(self.schedule, epochs=epochs),
            seed=seed,
            device=self.device,
        )
        return Classifier(
            lambda pixels: predict_pixels(net, windows, pixels), sum(weight.numel() for weight in net.parameters())
        )


@dataclass(frozen=True)
class SupportVectorMachine:
    """Radial basis functions; of the pairs of cost and gamma the one best on validation pixels (the first of equals).

    gammas: times 1 / channels.
    """

    costs: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0)
    gammas: tuple[float, ...] = (0.25, 1.0, 4.0)
    preparation: Preparation = field(default_factory=lambda: Preparation("none"))
    window: int = 1

    def fit(self, scene: Scene, split: PixelSplit, *, seed: int, epochs: int | None = None) -> Classifier:
        """As `Contender`; nothing in it is random, and it has no epochs."""
        prepared = np.moveaxis(_prepared(self, scene, split), 0, -1)  # [H, W, D]
        train, val = examples(scene, split, "train"), examples(scene, split, "val")
        if len(np.unique(train.labels)) < 2:
            raise ConfigError("a support vector machine needs training pixels of two classes or more.")
        spectra, held_out = (prepared[each.pixels[:, 0], each.pixels[:, 1]] for each in (train, val))
        best: tuple[float, SVC, dict[str, float]] | None = None
        for cost in self.costs:
            for gamma in self.gammas:
                machine = SVC(C=cost, gamma=gamma / prepared.shape[-1]).fit(spectra, train.labels)
                right = float((machine.predict(held_out) == val.labels).mean()) if len(held_out) else 0.0
                if best is None or right > best[0]:
                    best = right, machine, {"C": cost, "gamma times channels": gamma}
        assert best is not None
        _, machine, chosen = best
        return Classifier(
            lambda pixels: machine.predict(prepared[pixels[:, 0], pixels[:, 1]]),
            int(machine.support_vectors_.size + machine.dual_coef_.size + machine.intercept_.size),
            chosen,
        )


CONTENDERS.register("morpmamba")(
    NetContender(
        lambda channels, classes: MorpMamba(channels, classes, window=4),
        window=4,
        preparation=Preparation("pca", 15),
        schedule=Schedule(epochs=50, batch_size=256, lr=1e-3),
    )
)
CONTENDERS.register("spectral_spatial_mamba")(
    NetContender(
        lambda channels, classes: SpectralSpatialMamba(channels, classes, window=7),
        window=7,
        preparation=Preparation("none"),
        schedule=Schedule(epochs=40, batch_size=128, lr=2e-3, weight_decay=0.05, cosine=True, flips=True),
    )
)
CONTENDERS.register("cnn3d")(
    NetContender(
        SpectralSpatialCNN,
        window=5,
        preparation=Preparation("none"),
        schedule=Schedule(epochs=30, batch_size=128, lr=1e-3, weight_decay=5e-4, cosine=True, flips=True),
    )
)
CONTENDERS.register("svm")(SupportVectorMachine())
