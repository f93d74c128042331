"""A recipe of scene classification: every setting of a training run, as frozen dataclasses; `common.recipes` reads and
writes it as YAML. Imports no torch, so that `statefield scene train --help` answers at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from statefield.errors import ConfigError
from statefield.tasks.common import recipes
from statefield.tasks.common.config import TrainerConfig

SceneNet = Literal["rsmamba"]


@dataclass(frozen=True)
class SceneAugmentConfig:
    """What is done to training scenes at random.

    Args:
        crop_scale: share of the scene's area that is cut out and brought to the net's size, drawn between the two;
            [1, 1]: the whole scene.
        flips: mirror rows and columns, each with probability 1/2.
        turns: turn by 0, 90, 180 or 270 degrees.
        auto_augment: the ImageNet policy of AutoAugment (Cubuk et al. 2019); for 8-bit colour pictures alone.
        gain: values times a factor drawn evenly from 1 - gain to 1 + gain, with probability 1/2 ...
        shift: ... and plus a number drawn evenly from -shift to shift standard deviations.
    """

    crop_scale: tuple[float, float] = (0.4, 1.0)
    flips: bool = True
    turns: bool = False
    auto_augment: bool = False
    gain: float = 0.0
    shift: float = 0.0


@dataclass(frozen=True)
class SceneDataConfig:
    """Which scenes, and how they become batches.

    Args:
        root: the dataset's folder.
        layout: the dataset's layout, or "auto" to recognise it (`statefield datasets --field scene` lists them).
        options: settings of the layout, e.g. {seed: 1} for another split.
        image_size: side of the net's input in pixels.
        short_edge: outside training, the shorter side that a scene is resized to before its centre is cut out; null:
            8/7 of image_size, as 256 is for 224.
        mean: what becomes 0, one number for each channel in the files' units; null: the mean of the training scenes.
        std: what one unit of the input is; null: the standard deviation of the training scenes.
        batch_size: scenes per batch.
        augment: what is done to training scenes at random.
        workers: processes that prepare scenes; 0: none. The scenes are the same either way.
        cache: read each file anew, or keep the pictures in memory once they were read.
    """

    root: Path | None = None
    layout: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)
    image_size: int = 224
    short_edge: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    batch_size: int = 16
    augment: SceneAugmentConfig = field(default_factory=SceneAugmentConfig)
    workers: int = 0
    cache: Literal["none", "memory"] = "none"

    @property
    def resized_edge(self) -> int:
        """`short_edge`, or what stands for null."""
        return self.short_edge if self.short_edge is not None else round(self.image_size * 8 / 7)


@dataclass(frozen=True)
class SceneLossConfig:
    """What is minimised: cross-entropy.

    Args:
        label_smoothing: share of the target that is spread evenly over all classes.
        mixup: parameter of the beta distribution of MixUp (Zhang et al. 2018); 0: none.
        cutmix: the same of CutMix (Yun et al. 2019); 0: none. With both, each batch has one of them, each as often.
    """

    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclass(frozen=True)
class SceneModelConfig:
    """The net, the loss and the optimiser.

    Args:
        net: rsmamba; null: an encoder with a pooled linear classifier.
        net_args: further arguments of the net, e.g. {size: large} (small, base, large, huge), {paths: [forward,
            reverse]}.
        encoder: where net is null, a timm model name; `statefield models` lists ours.
        encoder_args: further arguments of the encoder, e.g. {drop_path_rate: 0.1}.
        without_scan: replace every scan of the net by the identity.
        weights: a safetensors file to start from: `weights.safetensors` of another run with the same net, or what
            `statefield convert` made of an official checkpoint.
        new_classifier: with weights, begin the classifier anew: for weights of other classes.
        loss: what is minimised.
        lr: the largest learning rate (AdamW).
        weight_decay: of matrices and kernels; norms and biases have none.
        warmup_steps: optimiser steps of linear warm-up.
        schedule: what follows it.
        average_decay: validate and test with a moving average of the weights of this decay, e.g. 0.99; null: do not.
    """

    net: SceneNet | None = "rsmamba"
    net_args: dict[str, Any] = field(default_factory=dict)
    encoder: str = "spatial_mamba_tiny"
    encoder_args: dict[str, Any] = field(default_factory=dict)
    without_scan: bool = False
    weights: Path | None = None
    new_classifier: bool = False
    loss: SceneLossConfig = field(default_factory=SceneLossConfig)
    lr: float = 5e-4
    weight_decay: float = 0.05
    warmup_steps: int = 100
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    average_decay: float | None = None

    @property
    def name(self) -> str:
        """What tells the model from its control."""
        return " ".join(self.about.values())

    @property
    def about(self) -> dict[str, str]:
        """What a file of its weights says of itself."""
        if self.net is None:
            about = {"encoder": self.encoder}
        else:
            size = self.net_args.get("size", "base")
            about = {"net": self.net, "size": size if isinstance(size, str) else "x".join(map(str, size))}
        return about | ({"scans": "without scan"} if self.without_scan else {})


@dataclass(frozen=True)
class SceneControlConfig:
    """A second model, trained with the same data and schedule: an encoder with a pooled linear classifier, or the model
    itself without its scans.

    Args:
        encoder: its timm model name.
        encoder_args: its further arguments.
        without_scan: the model itself with every scan replaced by the identity; encoder is not set then.
    """

    encoder: str | None = None
    encoder_args: dict[str, Any] = field(default_factory=dict)
    without_scan: bool = False


@dataclass(frozen=True)
class SceneRecipe:
    """Everything that decides a run.

    Args:
        run: the run folder.
        seed: of weights, order, augmentation and dropout.
        data: which scenes, and how they become batches.
        model: the net, the loss and the optimiser.
        trainer: how long, on what, and how often to save.
        control: a second model to train for comparison; null: none.
    """

    run: Path = Path("runs/scene")
    seed: int = 0
    data: SceneDataConfig = field(default_factory=SceneDataConfig)
    model: SceneModelConfig = field(default_factory=SceneModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    control: SceneControlConfig | None = None

    def of_control(self, run: Path) -> SceneRecipe:
        """The recipe of the control's run, all else equal.

        Raises:
            ConfigError: the control is neither an encoder nor the model without its scans, or both, or the model.
        """
        assert self.control is not None
        control = self.control
        if (control.encoder is not None) == control.without_scan:
            raise ConfigError(
                f"control has encoder {control.encoder!r} and without_scan {control.without_scan}: set one of the two, "
                "e.g. --control.encoder convnextv2_pico."
            )
        model = dataclasses.replace(self.model, weights=None, new_classifier=False, without_scan=control.without_scan)
        if control.encoder is not None:
            model = dataclasses.replace(model, net=None, encoder=control.encoder, encoder_args=control.encoder_args)
        if model.name == self.model.name:
            raise ConfigError(
                f"the control would be the model ({model.name}): give it another encoder, e.g. --control.encoder "
                "convnextv2_pico."
            )
        return dataclasses.replace(self, run=run, model=model, control=None)


def require_sound(recipe: SceneRecipe) -> None:
    """Raise `ConfigError` for settings that cannot work, whatever the data."""
    data, loss, augment = recipe.data, recipe.model.loss, recipe.data.augment
    if data.image_size < 8:
        raise ConfigError(f"data.image_size = {data.image_size}: a side of 8 pixels or more is needed.")
    if data.resized_edge < data.image_size:
        raise ConfigError(
            f"data.short_edge = {data.short_edge} is below data.image_size = {data.image_size}, so no centre can be "
            "cut out: raise it, or set it to null."
        )
    low, high = augment.crop_scale
    if not 0 < low <= high <= 1:
        raise ConfigError(f"data.augment.crop_scale = [{low}, {high}]: shares, 0 < first <= second <= 1, are needed.")
    if not 0 <= augment.gain < 1 or augment.shift < 0:
        raise ConfigError(
            f"data.augment has gain {augment.gain} and shift {augment.shift}: 0 <= gain < 1 and shift >= 0 are needed."
        )
    if not 0 <= loss.label_smoothing < 1 or loss.mixup < 0 or loss.cutmix < 0:
        raise ConfigError(
            f"model.loss has label_smoothing {loss.label_smoothing}, mixup {loss.mixup} and cutmix {loss.cutmix}: a "
            "share from 0 to below 1, and numbers of 0 or more, are needed."
        )
    if data.std is not None and min(data.std, default=0) <= 0:
        raise ConfigError(f"data.std = {list(data.std)}: numbers above 0 are needed.")
    if (data.mean is None) != (data.std is None):
        raise ConfigError("one of data.mean and data.std is set: give both, or neither (those of the training scenes).")
    if recipe.model.new_classifier and recipe.model.weights is None:
        raise ConfigError("model.new_classifier is true without model.weights: every classifier begins anew then.")


def read_recipe(path: Path) -> SceneRecipe:
    """A recipe file. Raises `ConfigError` for a file that is missing, is not YAML, or holds an unknown setting."""
    return recipes.read_recipe(SceneRecipe, path)
