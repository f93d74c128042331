"""A recipe of change detection: every setting of a training run, as frozen dataclasses; `common.recipes` reads and
writes it as YAML. Imports no torch, so that `statefield change train --help` answers at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from statefield.errors import ConfigError
from statefield.tasks.common import recipes
from statefield.tasks.common.config import TrainerConfig

ChangeNet = Literal["mamba_bcd", "mamba_scd", "mamba_bda", "fc_siam_diff"]
ChangeTaskName = Literal["binary", "semantic", "damage"]
TASK_OF_NET: dict[ChangeNet, ChangeTaskName] = {
    "mamba_bcd": "binary",
    "mamba_scd": "semantic",
    "mamba_bda": "damage",
    "fc_siam_diff": "binary",
}


@dataclass(frozen=True)
class BandScalingConfig:
    """How the values of each band become net inputs, (value - offset) / scale.

    Args:
        method: "training" (mean 0 and standard deviation 1 over the training images, both dates together: for
            images of one sensor, and for small tiles), "image" (each image by its own mean and deviation: what season
            and haze do to a whole scene goes; for large images), "range" (`low` becomes 0, `high` becomes 1; values
            beyond are clipped) or "none".
        low: with "range", the value that becomes 0, in the file's units.
        high: with "range", the value that becomes 1.
    """

    method: Literal["training", "image", "range", "none"] = "training"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class PairAugmentConfig:
    """What is done to training pairs at random; geometry is one for both dates, colours are each date's own.

    Args:
        flips: mirror rows and columns, each with probability 1/2.
        turns: turn by 0, 90, 180 or 270 degrees; for square patches.
        swap_dates: exchange the dates with probability 1/2: what came has gone then. Not for damage, and for semantic
            change only where both dates have the same classes.
        gain: each band of each date times a factor drawn evenly from 1 - gain to 1 + gain.
        shift: and plus a number drawn evenly from -shift to shift, in units of the net's input.
        noise: and plus normal noise of a deviation drawn evenly from 0 to this.
    """

    flips: bool = True
    turns: bool = True
    swap_dates: bool = False
    gain: float = 0.1
    shift: float = 0.1
    noise: float = 0.0


@dataclass(frozen=True)
class ChangeDataConfig:
    """Which pairs of images, and how they become batches.

    Args:
        root: the dataset's folder.
        layout: the dataset's layout, or "auto" to recognise it (`statefield datasets` lists them).
        options: settings of the layout, e.g. {seed: 1} for another split.
        bands: names of the image channels to use, in this order, e.g. [B04, B03, B02]; null: all.
        scaling: how values become net inputs.
        patch_size: rows and columns of a training patch, pixels.
        batch_size: patches per batch.
        foreground: share of patches centred on a changed pixel (of damage: on a building, each damage as often), 0 to
            1. Change is rare, so an even draw would show little of it.
        augment: what is done to patches at random.
        workers: processes that prepare patches; 0: none. The patches are the same either way.
        cache: keep the pairs in memory, or on disk in the run folder (for data larger than memory).
    """

    root: Path | None = None
    layout: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)
    bands: list[str] | None = None
    scaling: BandScalingConfig = field(default_factory=BandScalingConfig)
    patch_size: tuple[int, int] = (256, 256)
    batch_size: int = 8
    foreground: float = 0.5
    augment: PairAugmentConfig = field(default_factory=PairAugmentConfig)
    workers: int = 0
    cache: Literal["memory", "disk"] = "memory"


@dataclass(frozen=True)
class ChangeModelConfig:
    """The net, the loss and the optimiser.

    Args:
        net: mamba_bcd (what changed), mamba_scd (from which class to which), mamba_bda (buildings and their damage), or
            the small convolutional fc_siam_diff (what changed), which has no encoder.
        encoder: of the Mamba nets: tiny, small or base (ChangeMamba's own), or a timm model; `statefield models` lists
            ours. The weights are one for both dates.
        encoder_args: further arguments of the encoder, e.g. {drop_path_rate: 0.1}.
        net_args: further arguments of the net, e.g. {width: 64} of the decoder.
        without_scan: replace every scan of encoder and decoder by the identity.
        encoder_weights: a checkpoint of a classifier for the encoder, e.g. one that `statefield convert` wrote; null:
            the encoder starts from chance.
        weights: a safetensors file to start from: `weights.safetensors` of another run with the same net.
        loss: weights of the terms of the loss that are not ChangeMamba's: cross_entropy and lovasz of mamba_bcd and
            fc_siam_diff, change_cross_entropy, semantic_cross_entropy, consistency, change_lovasz and semantic_lovasz
            of mamba_scd, building_* and damage_* of mamba_bda; e.g. {lovasz: 0.5}.
        lr: the largest learning rate (AdamW).
        weight_decay: of matrices and kernels; norms and biases have none.
        warmup_steps: optimiser steps of linear warm-up.
        schedule: what follows it.
        average_decay: validate and test with a moving average of the weights of this decay, e.g. 0.99; null: do not.
    """

    net: ChangeNet = "mamba_bcd"
    encoder: str = "spatial_mamba_tiny"
    encoder_args: dict[str, Any] = field(default_factory=dict)
    net_args: dict[str, Any] = field(default_factory=dict)
    without_scan: bool = False
    encoder_weights: Path | None = None
    weights: Path | None = None
    loss: dict[str, float] = field(default_factory=dict)
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    average_decay: float | None = None

    @property
    def task(self) -> ChangeTaskName:
        """What the net answers."""
        return TASK_OF_NET[self.net]

    @property
    def name(self) -> str:
        """What tells the model from its control."""
        return " ".join(self.about.values())

    @property
    def about(self) -> dict[str, str]:
        """What a file of its weights says of itself."""
        about = {"net": self.net} | ({} if self.net == "fc_siam_diff" else {"encoder": self.encoder})
        return about | ({"scans": "without scan"} if self.without_scan else {})


@dataclass(frozen=True)
class ChangeControlConfig:
    """A second model that is trained with the same data and schedule: another encoder before the same decoder, another
    net, or the model itself without its scans.

    Args:
        encoder: its timm model name; the decoder is that of `model`.
        encoder_args: its further arguments.
        encoder_weights: a checkpoint of a classifier for it, as in `model`.
        net: another net instead: fc_siam_diff.
        net_args: its further arguments.
        without_scan: the model itself with every scan replaced by the identity; encoder and net are not set then.
    """

    encoder: str | None = None
    encoder_args: dict[str, Any] = field(default_factory=dict)
    encoder_weights: Path | None = None
    net: ChangeNet | None = None
    net_args: dict[str, Any] = field(default_factory=dict)
    without_scan: bool = False


@dataclass(frozen=True)
class ChangeInferenceConfig:
    """How a whole pair is predicted from windows.

    Args:
        roi: window size in pixels; null: the training patch.
        overlap: share of a window that its neighbour covers too, 0 to below 1.
        weighting: how overlapping windows blend.
        batch_size: windows per forward pass.
        mirror: average predictions over mirrored copies in test and prediction (4 x slower); validation does without.
        threshold: the probability above which a pixel is called changed; "val": the one with the best F1 of change on
            the validation pairs, found after training and kept in RUN/threshold.json. Of a net that tells damage:
            that of buildings. Oversampling of change (`data.foreground`) makes probabilities too high for 0.5.
    """

    roi: tuple[int, int] | None = None
    overlap: float = 0.5
    weighting: Literal["gaussian", "constant"] = "gaussian"
    batch_size: int = 8
    mirror: bool = False
    threshold: float | Literal["val"] = 0.5


@dataclass(frozen=True)
class ChangeRecipe:
    """Everything that decides a run.

    Args:
        run: the run folder.
        seed: of weights, patches, augmentation and dropout.
        data: which pairs, and how they become batches.
        model: the net, the loss and the optimiser.
        trainer: how long, on what, and how often to save.
        inference: how whole pairs are predicted.
        control: a second model to train for comparison; null: none.
    """

    run: Path = Path("runs/change")
    seed: int = 0
    data: ChangeDataConfig = field(default_factory=ChangeDataConfig)
    model: ChangeModelConfig = field(default_factory=ChangeModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    inference: ChangeInferenceConfig = field(default_factory=ChangeInferenceConfig)
    control: ChangeControlConfig | None = None

    @property
    def roi(self) -> tuple[int, int]:
        """The inference window, pixels."""
        return self.inference.roi or self.data.patch_size

    def of_control(self, run: Path) -> ChangeRecipe:
        """The recipe of the control's run: another encoder or net, or the model without its scans, all else equal.

        Raises:
            ConfigError: the control has none of the three, or more than one, or answers another question.
        """
        assert self.control is not None
        control = self.control
        if [control.encoder is not None, control.net is not None, control.without_scan].count(True) != 1:
            raise ConfigError(
                f"control has encoder {control.encoder!r}, net {control.net!r} and without_scan "
                f"{control.without_scan}: set one of them, e.g. --control.encoder convnextv2_atto."
            )
        if control.without_scan and self.model.without_scan:
            raise ConfigError(
                "control.without_scan and model.without_scan are both true: the control would be the model. Set one of "
                "them to false."
            )
        if control.net is not None and TASK_OF_NET[control.net] != self.model.task:
            raise ConfigError(
                f"control.net = {control.net!r} answers another question ({TASK_OF_NET[control.net]}) than model.net = "
                f"{self.model.net!r} ({self.model.task}): compare it with another encoder, --control.encoder NAME."
            )
        model = dataclasses.replace(self.model, weights=None, without_scan=control.without_scan)
        if control.encoder is not None:
            model = dataclasses.replace(
                model,
                encoder=control.encoder,
                encoder_args=control.encoder_args,
                encoder_weights=control.encoder_weights,
            )
        elif control.net is not None:
            model = dataclasses.replace(
                model, net=control.net, net_args=control.net_args, encoder_weights=control.encoder_weights
            )
        return dataclasses.replace(self, run=run, model=model, control=None)


def read_recipe(path: Path) -> ChangeRecipe:
    """A recipe file. Raises `ConfigError` for a file that is missing, is not YAML, or holds an unknown setting."""
    return recipes.read_recipe(ChangeRecipe, path)
