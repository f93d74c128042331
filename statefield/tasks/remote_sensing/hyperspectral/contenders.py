"""Ways to name a pixel's class, by name: what each sees, how it is prepared and how it learns.

morpmamba               the graph as released, 4 x 4 windows of 15 whitened components, its notebook's schedule
spectral_spatial_mamba  ours, on the shared kernels
cnn3d                   after Ben Hamida et al. 2018: the convolutional control
svm                     radial basis functions on the pixel's own spectrum, cost and gamma by validation: no window
svm_window              the same on the pixel's spectrum and the mean spectrum of the window that ours sees

Two things of MorpMamba's notebook differ: its rate falls by 1e-6 a step (0.05 % in all), here it is constant; and here,
as for every net, the epoch that is best on validation pixels is kept, of every fifth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from scipy import ndimage
from sklearn.svm import SVC
from torch import Tensor, nn

from statefield.datasets.hyperspectral import Scene
from statefield.errors import CheckpointError, ConfigError
from statefield.registry import Registry
from statefield.tasks.remote_sensing.hyperspectral.preparation import Preparation, PreparedSpectra
from statefield.tasks.remote_sensing.hyperspectral.splits import PixelSplit
from statefield.tasks.remote_sensing.hyperspectral.support_vectors import SupportVectors
from statefield.tasks.remote_sensing.hyperspectral.training import (
    Examples,
    Progress,
    Schedule,
    predict_pixels,
    train_net,
)
from statefield.tasks.remote_sensing.hyperspectral.windows import Windows
from statefield.tasks.remote_sensing.nets.morpmamba import MorpMamba
from statefield.tasks.remote_sensing.nets.spectral_spatial import SpectralSpatialCNN, SpectralSpatialMamba

__all__ = [
    "CONTENDERS",
    "Classifier",
    "Contender",
    "NetContender",
    "PixelModel",
    "SupportVectorMachine",
    "examples",
]

Predict = Callable[[np.ndarray], np.ndarray]  # pixels int [N, 2], rows and columns -> classes int64 [N]
Role = Literal["model", "published", "control"]


class PixelModel(Protocol):
    """What was learnt, apart from any scene."""

    def on(self, prepared: np.ndarray) -> Predict:
        """For the pixels of a prepared cube, float32 [D, H, W]."""

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a file; `Contender.restored` takes it back."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """spectra: how a cube is prepared. model: what was learnt of prepared windows. num_parameters: learnt numbers.

    predict: classes of the scene that was learnt from. chosen: settings that were chosen on validation pixels.
    """

    spectra: PreparedSpectra
    model: PixelModel
    predict: Predict
    num_parameters: int
    chosen: dict[str, float] = field(default_factory=dict)

    def on(self, cube: np.ndarray) -> Predict:
        """For the pixels of another scene of the same bands, float [C, H, W]; `ShapeError` of other bands."""
        return self.model.on(self.spectra(cube))


class Contender(Protocol):
    """window: side of what it sees of a scene (1: the pixel alone). preparation: of the spectra. role: in a table."""

    @property
    def window(self) -> int: ...
    @property
    def preparation(self) -> Preparation: ...
    @property
    def role(self) -> Role: ...

    def fit(
        self,
        scene: Scene,
        split: PixelSplit,
        *,
        seed: int,
        epochs: int | None = None,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Classifier:
        """Learn from the split's train pixels, choose by its val pixels; the test pixels' labels are not looked at.

        epochs: in place of its own number. progress: called with what is done and what there is to do.
        """

    def restored(self, tensors: Mapping[str, Tensor], channels: int, num_classes: int) -> PixelModel:
        """From `PixelModel.tensors`; `CheckpointError` when they are not this contender's."""


CONTENDERS: Registry[Contender] = Registry("classifier of pixels")


def examples(scene: Scene, split: PixelSplit, part: str) -> Examples:
    """The pixels of one part of the split, with their classes."""
    pixels = split.pixels(part)
    return Examples(pixels, scene.labels[pixels[:, 0], pixels[:, 1]])


def _spectra(contender: Contender, scene: Scene, split: PixelSplit) -> PreparedSpectra:
    if contender.window > split.window:
        raise ConfigError(
            f"windows of side {contender.window} on a split made for side {split.window}: parts would overlap. Make "
            "the split for the largest window."
        )
    pixels = split.pixels("train")
    return contender.preparation.fit(scene.cube[:, pixels[:, 0], pixels[:, 1]].T)


@dataclass(frozen=True, eq=False)
class _Net:
    net: nn.Module
    window: int

    def on(self, prepared: np.ndarray) -> Predict:
        windows = Windows(prepared, self.window)
        return lambda pixels: predict_pixels(self.net, windows, pixels)

    def tensors(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().contiguous() for name, value in self.net.state_dict().items()}


@dataclass(frozen=True)
class NetContender:
    """build: (channels, classes) -> a net of windows [B, channels, window, window] -> logits [B, classes]."""

    build: Callable[[int, int], nn.Module]
    window: int
    preparation: Preparation
    schedule: Schedule
    role: Role = "control"

    def fit(
        self,
        scene: Scene,
        split: PixelSplit,
        *,
        seed: int,
        epochs: int | None = None,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Classifier:
        """As `Contender`; `epochs` replaces the schedule's."""
        spectra = _spectra(self, scene, split)
        prepared = spectra(scene.cube)
        net = train_net(
            lambda: self.build(len(prepared), len(scene.info.classes)),
            Windows(prepared, self.window),
            examples(scene, split, "train"),
            examples(scene, split, "val"),
            self.schedule if epochs is None else dataclasses.replace(self.schedule, epochs=epochs),
            seed=seed,
            device=device,
            progress=progress,
        )
        model = _Net(net, self.window)
        return Classifier(spectra, model, model.on(prepared), sum(weight.numel() for weight in net.parameters()))

    def restored(self, tensors: Mapping[str, Tensor], channels: int, num_classes: int) -> PixelModel:
        """The net with these weights, in eval mode; every name and shape must fit."""
        net = self.build(channels, num_classes)
        try:
            net.load_state_dict(dict(tensors), strict=True)
        except RuntimeError as error:
            raise CheckpointError(f"weights that are not this classifier's: {error}") from error
        return _Net(net.eval(), self.window)


@dataclass(frozen=True, eq=False)
class _Machine:
    machine: SupportVectors
    window: int

    def on(self, prepared: np.ndarray) -> Predict:
        seen = _seen(prepared, self.window)
        return lambda pixels: self.machine.predict(seen[pixels[:, 0], pixels[:, 1]])

    def tensors(self) -> dict[str, Tensor]:
        return self.machine.tensors()


@dataclass(frozen=True)
class SupportVectorMachine:
    """Radial basis functions; of the pairs of cost and gamma the one best on validation pixels (the first of equals).

    gammas: times 1 / features. window: above 1 the mean of the window's spectra stands beside the pixel's own; beyond
    the scene are zeros, as nets have it.
    """

    costs: tuple[float, ...] = (1.0, 10.0, 100.0, 1000.0)
    gammas: tuple[float, ...] = (0.0625, 0.25, 1.0, 4.0)
    preparation: Preparation = field(default_factory=lambda: Preparation("none"))
    window: int = 1
    role: Role = "control"

    def fit(
        self,
        scene: Scene,
        split: PixelSplit,
        *,
        seed: int,
        epochs: int | None = None,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Classifier:
        """As `Contender`; nothing in it is random, it has no epochs and runs on the processor."""
        spectra = _spectra(self, scene, split)
        prepared = spectra(scene.cube)
        seen = _seen(prepared, self.window)
        train, val = examples(scene, split, "train"), examples(scene, split, "val")
        if len(np.unique(train.labels)) < 2:
            raise ConfigError("a support vector machine needs training pixels of two classes or more.")
        known, held_out = (seen[each.pixels[:, 0], each.pixels[:, 1]] for each in (train, val))
        best: tuple[float, SupportVectors, dict[str, float]] | None = None
        pairs = [(cost, gamma) for cost in self.costs for gamma in self.gammas]
        for done, (cost, gamma) in enumerate(pairs):
            if progress is not None:
                progress(done, len(pairs))
            machine = SupportVectors.of(SVC(C=cost, gamma=gamma / seen.shape[-1]).fit(known, train.labels))
            right = float((machine.predict(held_out) == val.labels).mean()) if len(held_out) else 0.0
            if best is None or right > best[0]:
                best = right, machine, {"C": cost, "gamma times features": gamma, "validation accuracy": right}
        assert best is not None
        _, machine, chosen = best
        model = _Machine(machine, self.window)
        learnt = int(machine.vectors.size + np.count_nonzero(machine.weights) + machine.offsets.size)
        return Classifier(spectra, model, model.on(prepared), learnt, chosen)

    def restored(self, tensors: Mapping[str, Tensor], channels: int, num_classes: int) -> PixelModel:
        """The machine with these vectors."""
        features = channels * (2 if self.window > 1 else 1)
        return _Machine(SupportVectors.restored(tensors, features, num_classes), self.window)


def _seen(prepared: np.ndarray, window: int) -> np.ndarray:
    """float32 [H, W, features]: what a machine sees of each pixel of a cube [D, H, W]."""
    if window > 1:
        # scipy's windows of an even side lie as ours do
        mean = ndimage.uniform_filter(prepared, size=(1, window, window), mode="constant", cval=0)
        prepared = np.concatenate([prepared, mean])
    return np.moveaxis(prepared, 0, -1)


CONTENDERS.register("morpmamba")(
    NetContender(
        lambda channels, classes: MorpMamba(channels, classes, window=4),
        window=4,
        preparation=Preparation("pca", 15),
        schedule=Schedule(epochs=50, batch_size=256, lr=1e-3, validate_every=5),
        role="published",
    )
)
CONTENDERS.register("spectral_spatial_mamba")(
    NetContender(
        lambda channels, classes: SpectralSpatialMamba(channels, classes, window=5),
        window=5,
        preparation=Preparation("none"),
        schedule=Schedule(
            epochs=25,
            batch_size=64,
            lr=3e-3,
            weight_decay=0.05,
            cosine=True,
            flips=True,
            jitter=0.1,
            smoothing=0.05,
            averaging=0.98,
            validate_every=5,
        ),
        role="model",
    )
)
CONTENDERS.register("cnn3d")(
    NetContender(
        SpectralSpatialCNN,
        window=5,
        preparation=Preparation("none"),
        schedule=Schedule(
            epochs=25, batch_size=32, lr=1e-3, weight_decay=5e-4, cosine=True, flips=True, validate_every=5
        ),
    )
)
CONTENDERS.register("svm")(SupportVectorMachine())
CONTENDERS.register("svm_window")(SupportVectorMachine(window=5))
