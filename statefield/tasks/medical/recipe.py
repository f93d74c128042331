"""A recipe: every setting of a training run, as frozen dataclasses; `common.recipes` reads and writes it as YAML.

Imports no torch, so that `statefield medical train --help` answers at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from statefield.errors import ConfigError
from statefield.tasks.common import recipes
from statefield.tasks.common.config import (
    AugmentPreset,
    InferenceConfig,
    LossConfig,
    NormalisationConfig,
    TrainerConfig,
    TransformConfig,
)
from statefield.tasks.common.recipes import difference as difference
from statefield.tasks.common.recipes import parse as parse
from statefield.tasks.common.recipes import recipe_text as recipe_text


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they become batches.

    Args:
        root: the dataset's folder; null for an embedded dataset (mni152).
        layout: the dataset's layout, or "auto" to recognise it (`statefield datasets` lists them).
        options: settings of the layout, e.g. {seed: 1} for another split.
        num_classes: if set, the number of classes the dataset must have, background included.
        normalisation: how intensities become net inputs.
        spacing: distance between voxels (slices, rows, columns) in mm to which every volume is resampled, and from
            which predictions return to their file's own; null: as stored. A null in it leaves that axis as stored.
        slice_context: neighbouring slices on each side that the net sees as further channels; 0: the slice alone. For
            nets of slices only.
        patch_size: of a training patch, pixels: rows and columns for a net of slices; slices, rows and columns for a
            net of volumes; null: whole slices.
        batch_size: patches per batch.
        foreground: share of patches centred on a pixel of a foreground class, 0 to 1.
        augment: a preset (none, flips, medical, natural), or for slices a list of transforms.
        workers: processes that prepare patches; 0: none. The patches are the same either way.
        cache: keep the cases in memory, or on disk in the run folder (for data larger than memory).
    """

    root: Path | None = None
    layout: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)
    num_classes: int | None = None
    normalisation: NormalisationConfig = field(default_factory=NormalisationConfig)
    spacing: tuple[float | None, float | None, float | None] | None = None
    slice_context: int = 0
    patch_size: tuple[int, int] | tuple[int, int, int] | None = (256, 256)
    batch_size: int = 8
    foreground: float = 0.33
    augment: AugmentPreset | list[TransformConfig] = "medical"
    workers: int = 0
    cache: Literal["memory", "disk"] = "memory"

    @property
    def spatial_dims(self) -> Literal[2, 3]:
        """What the net sees: 3 where a patch has three sides, else slices."""
        return 3 if self.patch_size is not None and len(self.patch_size) == 3 else 2


@dataclass(frozen=True)
class ModelConfig:
    """The net, the loss and the optimiser.

    Args:
        net: a whole net of the field: lightm_unet, mhs_vm, segmamba, spatial_mamba_unet, u_mamba, vm_unet, xlstm_unet,
            or one without scans: dynunet, residual_unet, segresnet; null: an encoder and a decoder. Where it is set,
            settings of encoder and decoder are not read.
        net_args: further arguments of the net, e.g. {filters: 16}.
        encoder: a timm model name; `statefield models` lists ours.
        decoder: unet, unetplusplus, manet, linknet, fpn, pspnet, deeplabv3, deeplabv3plus, pan, upernet, segformer or
            dpt.
        detail_channels: width of a full-resolution path beside encoder and decoder, for thin structures; 0: none.
        decoder_args: further arguments of the decoder, e.g. {decoder_channels: [128, 64, 32, 16, 16]}.
        encoder_args: further arguments of the encoder, e.g. {drop_path_rate: 0.1}.
        shuffle_rate: in training, the probability that the encoder's last block sees its tokens in random order, rising
            from 0 at the first (stochastic layer-wise shuffle); for encoders of sequences (vim_*, vil_*, ...); null:
            the encoder's own.
        deep_supervision: train the net's coarser outputs too, with weights 1, 1/2, 1/4, ...; for nets that have them
            (residual_unet, u_mamba, xlstm_unet, ...).
        without_scan: replace every scan of the net by the identity; what remains is its control (`control` has a
            setting of that name for it).
        weights: a safetensors file to start from: `weights.safetensors` of another run with the same net.
        loss: what is minimised.
        lr: the largest learning rate (AdamW).
        weight_decay: of matrices and kernels; norms and biases have none.
        warmup_steps: optimiser steps of linear warm-up.
        schedule: what follows it.
        average_decay: validate and test with a moving average of the weights of this decay, e.g. 0.99; null: do not.
    """

    net: str | None = None
    net_args: dict[str, Any] = field(default_factory=dict)
    encoder: str = "spatial_mamba_tiny"
    decoder: str = "unet"
    detail_channels: int = 16
    decoder_args: dict[str, Any] = field(default_factory=dict)
    encoder_args: dict[str, Any] = field(default_factory=dict)
    shuffle_rate: float | None = None
    deep_supervision: bool = False
    without_scan: bool = False
    weights: Path | None = None
    loss: LossConfig = field(default_factory=LossConfig)
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    average_decay: float | None = None

    @property
    def name(self) -> str:
        """What tells the model from its control: the net's name, or the encoder's."""
        return (self.net or self.encoder) + (" without scan" if self.without_scan else "")

    @property
    def about(self) -> dict[str, str]:
        """What a file of its weights says of itself."""
        about = {"net": self.net} if self.net else {"encoder": self.encoder, "decoder": self.decoder}
        return about | ({"scans": "without scan"} if self.without_scan else {})


@dataclass(frozen=True)
class ControlConfig:
    """A second model that is trained with the same data and schedule, for comparison: an encoder, a whole net, or the
    model itself without its scans.

    Args:
        encoder: its timm model name; the decoder is that of `model`.
        encoder_args: its further arguments.
        net: a whole net instead, as in `model`, e.g. residual_unet.
        net_args: its further arguments.
        without_scan: the model itself with every scan replaced by the identity; encoder and net are not set then.
    """

    encoder: str | None = None
    encoder_args: dict[str, Any] = field(default_factory=dict)
    net: str | None = None
    net_args: dict[str, Any] = field(default_factory=dict)
    without_scan: bool = False


@dataclass(frozen=True)
class MetricsConfig:
    """How the test is scored.

    Args:
        nsd_tolerance_mm: distance up to which surfaces count as equal, mm.
        lesions: classes whose connected components are counted as lesions (found, missed, invented); true: all but the
            background.
        lesion_iou: the least IoU of a detected lesion with a predicted one; null: any overlap.
    """

    nsd_tolerance_mm: float = 1.0
    lesions: bool | list[str] = False
    lesion_iou: float | None = None


@dataclass(frozen=True)
class SegmentationRecipe:
    """Everything that decides a run.

    Args:
        run: the run folder.
        seed: of weights, patches, augmentation and dropout.
        data: which images, and how they become batches.
        model: the net, the loss and the optimiser.
        trainer: how long, on what, and how often to save.
        inference: how whole slices are predicted.
        metrics: how the test is scored.
        control: a second model to train for comparison; null: none.
        folds: cross-validation: divide the training and validation cases into so many parts, train as many times, each
            time with another part held out, and test the ensemble; null: one training.
        fold: with folds, train this one alone (0 to folds - 1), into RUN/fold_N: for several machines.
        threshold_baseline: also score intensity thresholds fitted on the training cases; null: on mni152 only.
    """

    run: Path = Path("runs/medical")
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    control: ControlConfig | None = None
    folds: int | None = None
    fold: int | None = None
    threshold_baseline: bool | None = None

    def of_fold(self, fold: int) -> SegmentationRecipe:
        """The recipe of one fold's run, in RUN/fold_N; of a recipe that is that already, itself.

        Raises:
            ConfigError: there is no such fold.
        """
        if self.folds is None or not 0 <= fold < self.folds:
            raise ConfigError(
                f"fold = {fold} with folds = {self.folds}: give --folds a number of 2 or more, and --fold one from 0 "
                "to below it."
            )
        name = f"fold_{fold}"
        run = self.run if self.fold == fold and self.run.name == name else self.run / name
        return dataclasses.replace(self, run=run, fold=fold)

    def of_control(self, run: Path) -> SegmentationRecipe:
        """The recipe of the control's run: the other encoder or net, or the model without its scans, all else equal.

        Raises:
            ConfigError: the control has none of the three, or more than one.
        """
        assert self.control is not None
        control = self.control
        if [control.encoder is not None, control.net is not None, control.without_scan].count(True) != 1:
            raise ConfigError(
                f"control has encoder {control.encoder!r}, net {control.net!r} and without_scan "
                f"{control.without_scan}: set one of them, e.g. --control.encoder convnextv2_atto."
            )
        if control.without_scan:
            if self.model.without_scan:
                raise ConfigError(
                    "control.without_scan and model.without_scan are both true: the control would be the model. Set "
                    "one of them to false."
                )
            model = dataclasses.replace(self.model, without_scan=True, weights=None)
            return dataclasses.replace(self, run=run, model=model, control=None, threshold_baseline=False)
        model = dataclasses.replace(
            self.model,
            net=control.net,
            net_args=control.net_args,
            without_scan=False,
            encoder=control.encoder or self.model.encoder,
            encoder_args=control.encoder_args,
            shuffle_rate=None,  # a setting of the encoder: a control that has it too gets it in its encoder_args
            weights=None,
        )
        return dataclasses.replace(self, run=run, model=model, control=None, threshold_baseline=False)


def recipe_parser(**kwargs: Any) -> ArgumentParser:
    """A parser whose options are the fields of `SegmentationRecipe` (`--model.lr`), with `-c/--config recipe.yaml`."""
    return recipes.recipe_parser(SegmentationRecipe, **kwargs)


def recipe_from(parser: ArgumentParser, settings: Namespace) -> SegmentationRecipe:
    """The recipe among parsed settings; what belongs to the command line alone is left aside."""
    return recipes.recipe_from(SegmentationRecipe, parser, settings)


def given_settings(parser: ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    """The recipe's settings that `argv` says, by dotted names; a recipe file that it names is left aside.

    >>> given_settings(recipe_parser(), ["--model.lr", "0.1", "--data.patch_size", "[64, 32]"])
    {'model.lr': 0.1, 'data.patch_size': (64, 32)}
    """
    return recipes.given_settings(SegmentationRecipe, parser, argv)


def read_recipe(path: Path) -> SegmentationRecipe:
    """A recipe file. Raises `ConfigError` for a file that is missing, is not YAML, or holds an unknown setting."""
    return recipes.read_recipe(SegmentationRecipe, path)
