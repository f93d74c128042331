"""A recipe of video detection: every setting of a training run, as frozen dataclasses; read and written as YAML.

Imports no torch, so that `statefield video train --help` answers at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from statefield.errors import ConfigError
from statefield.tasks.common import recipes
from statefield.tasks.common.config import TrainerConfig


@dataclass(frozen=True)
class VideoDataConfig:
    """Which videos, and how they become batches.

    Args:
        train: a CocoVID or COCO file, or a folder in MOTChallenge's or ImageNet-VID's layout.
        val: the same, for choosing the best epoch; null: the videos of train that val_videos names.
        test: the same, for the final scores; null: the videos of train that test_videos names, else those of val.
        images: of COCO files: the folder that their file_names are in; null: that of each file.
        val_videos: names of videos of train that are held out.
        test_videos: names of videos of train that are held out.
        frames_per_video: validate and test on the first so many frames of each video; null: on all.
        batch_size: key frames of a batch.
        references: frames of the same video beside each key frame, whose features stand for the memory in training.
        reference_range: how many frames before and after the key frame they are drawn from, at most.
        with_empty: also learn from key frames without any object.
        flip: mirror left and right with probability 1/2, key frame and references alike.
        workers: processes that prepare frames; 0: none. The frames are the same either way.
    """

    train: Path | None = None
    val: Path | None = None
    test: Path | None = None
    images: Path | None = None
    val_videos: list[str] = field(default_factory=list)
    test_videos: list[str] = field(default_factory=list)
    frames_per_video: int | None = None
    batch_size: int = 1
    references: int = 2
    reference_range: int = 1000
    with_empty: bool = False
    flip: bool = True
    workers: int = 0


@dataclass(frozen=True)
class MemoryConfig:
    """What is remembered of a video's frames before, and how much of it is looked at.

    Args:
        pixels: enhance the feature map before boxes are proposed, by pixels of frames before. The paper has this level,
            its authors' code has not: its details are ours.
        instances: enhance the features of proposals, after each of the two layers of the box head.
        heads: of the attention, 16 in the paper.
        max_length: features that a bank holds before old ones are forgotten at random.
        key_length: features, drawn at random, that a frame looks at.
        kept_pixels: pixels of a frame that are remembered, those likeliest to be of an object.
        kept_proposals: proposals of a frame that are remembered.
        first_references: frames, spread over the whole video, that the memory is filled with before the first frame
            (14 in the paper's test); 0: none, so that a frame never depends on a later one.
        rate_share: the share of the learning rate that the enhancements have, above 0 and up to 1 (as in the paper).
            Where the encoder begins untrained, a tenth was better (docs/tracking_video.md).
    """

    pixels: bool = True
    instances: bool = True
    heads: int = 16
    max_length: int = 20000
    key_length: int = 2000
    kept_pixels: int = 256
    kept_proposals: int = 75
    first_references: int = 0
    rate_share: float = 1.0


@dataclass(frozen=True)
class DetectionConfig:
    """How many boxes are proposed and told.

    Args:
        proposals: boxes of a frame that are classified, in use.
        training_proposals: the same in training, before a share of them is drawn.
        sampled_proposals: proposals of a frame that the loss is computed on.
        least_score: detections below it are not told.
        nms_iou: of two detections of a class that overlap more, the one of lower score is dropped.
        max_detections: of a frame.
    """

    proposals: int = 300
    training_proposals: int = 600
    sampled_proposals: int = 256
    least_score: float = 1e-4
    nms_iou: float = 0.5
    max_detections: int = 100


@dataclass(frozen=True)
class VideoModelConfig:
    """The detector and the optimiser.

    Args:
        encoder: a timm model name that gives a pyramid of features; `statefield models` lists ours.
        encoder_args: its further arguments, e.g. {drop_path_rate: 0.1}.
        encoder_weights: weights of the encoder, as its authors publish them or as `statefield convert` wrote them.
        freeze_batch_norm: keep the statistics and scales of batch norms as they are: for encoders with weights, where
            a batch is one frame.
        weights: weights.safetensors of another run with the same detector, to start from.
        maps: "single": one map of this stride, to which coarser ones are added (Faster R-CNN); "pyramid": a map of each
            stride (FPN).
        stride: pixels between the points of the single map, or of the finest one of the pyramid.
        channels: of each map.
        head_width: of the two layers of the box head.
        anchor_sizes: sides of anchors in pixels; of a pyramid, in shares: each level has its part of them.
        anchor_ratios: height by width.
        short_side: what the shorter side of a frame is resized to; several numbers: one of them, drawn in training,
            the last in use.
        long_side: the longer side is not larger than this.
        mean: what becomes 0, red, green, blue as shares of 255.
        std: what becomes 1.
        memory: of frames before; null: each frame by itself.
        detection: how many boxes are proposed and told.
        optimizer: "sgd" (momentum 0.9) or "adamw".
        lr: the largest learning rate.
        weight_decay: of matrices and kernels; norms and biases have none.
        warmup_steps: optimiser steps of linear warm-up.
        schedule: what follows it; "late_step": a tenth of the rate after two thirds of the steps, as in the paper.
        average_decay: validate and test with a moving average of the weights of this decay, e.g. 0.99; null: do not.
    """

    encoder: str = "spatial_mamba_tiny"
    encoder_args: dict[str, Any] = field(default_factory=dict)
    encoder_weights: Path | None = None
    freeze_batch_norm: bool = False
    weights: Path | None = None
    maps: Literal["single", "pyramid"] = "single"
    stride: int = 16
    channels: int = 512
    head_width: int = 1024
    anchor_sizes: tuple[float, ...] = (64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    short_side: tuple[int, ...] = (600,)
    long_side: int = 1000
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    memory: MemoryConfig | None = field(default_factory=MemoryConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.05
    warmup_steps: int = 500
    schedule: Literal["cosine", "poly", "constant", "step", "late_step"] = "cosine"
    average_decay: float | None = None

    @property
    def name(self) -> str:
        """What tells the model from its control."""
        levels = self.levels
        return f"{self.encoder}, {'memory of ' + ' and '.join(levels) if levels else 'each frame alone'}"

    @property
    def levels(self) -> tuple[str, ...]:
        """What the memory holds: "pixels", "instances"; nothing where there is none."""
        return tuple(one for one in ("pixels", "instances") if self.memory and getattr(self.memory, one))

    @property
    def about(self) -> dict[str, str]:
        """What a file of its weights says of itself."""
        return {"net": "mamba_vod", "encoder": self.encoder, "memory": "+".join(self.levels) or "none"}


@dataclass(frozen=True)
class VideoControlConfig:
    """A second detector that is trained with the same data and schedule; what is not named here is the model's.

    Args:
        without_memory: each frame by itself.
        encoder: another encoder, e.g. convnext_atto.
        encoder_args: its further arguments.
    """

    without_memory: bool = True
    encoder: str | None = None
    encoder_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VideoRecipe:
    """Everything that decides a run.

    Args:
        run: the run folder.
        seed: of weights, the order of frames, references, mirroring, and what the memory forgets.
        data: which videos, and how they become batches.
        model: the detector and the optimiser.
        trainer: how long, on what, and how often to save.
        control: a second detector to train for comparison; null: none.
    """

    run: Path = Path("runs/video")
    seed: int = 0
    data: VideoDataConfig = field(default_factory=VideoDataConfig)
    model: VideoModelConfig = field(default_factory=VideoModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    control: VideoControlConfig | None = None

    def of_control(self, run: Path) -> VideoRecipe:
        """The recipe of the control's run, all else equal.

        Raises:
            ConfigError: the control would be the model.
        """
        assert self.control is not None
        model = dataclasses.replace(self.model, weights=None)
        if self.control.without_memory:
            model = dataclasses.replace(model, memory=None)
        if self.control.encoder is not None:
            model = dataclasses.replace(
                model,
                encoder=self.control.encoder,
                encoder_args=self.control.encoder_args,
                encoder_weights=None,
            )
        if model.name == self.model.name:
            raise ConfigError(
                f"the control would be the model ({model.name}): set control.without_memory to true for a model with a "
                "memory, or name another encoder, e.g. --control.encoder convnext_atto."
            )
        return dataclasses.replace(self, run=run, model=model, control=None)


def require_sound(recipe: VideoRecipe) -> None:
    """Raise `ConfigError` for settings that cannot work, whatever the data."""
    data, model = recipe.data, recipe.model
    if data.train is None:
        raise ConfigError(
            "data.train is not set: name a CocoVID file (.json), or a folder in MOTChallenge's or ImageNet-VID's "
            "layout, e.g. --data.train annotations.json."
        )
    if (data.val is None) == (not data.val_videos):
        raise ConfigError(
            f"data.val = {data.val} and data.val_videos = {data.val_videos}: set one of the two, a file or folder, or "
            "names of videos of data.train."
        )
    if data.test is not None and data.test_videos:
        raise ConfigError("data.test and data.test_videos are both set: one of them says what is tested.")
    for name, value, least in (
        ("data.references", data.references, 0 if model.memory is None else 1),
        ("data.reference_range", data.reference_range, 1),
        ("data.frames_per_video", data.frames_per_video, 1),
        ("model.stride", model.stride, 4),
        ("model.channels", model.channels, 1),
        ("model.head_width", model.head_width, 1),
    ):
        if value is not None and value < least:
            raise ConfigError(f"{name} = {value}: {least} or more is needed.")
    if not model.short_side or min(model.short_side) < 32 or model.long_side < max(model.short_side):
        raise ConfigError(
            f"model.short_side = {list(model.short_side)} and model.long_side = {model.long_side}: sides of 32 pixels "
            "or more are needed, and the longer one not below the shorter."
        )
    for name, numbers in (("anchor_sizes", model.anchor_sizes), ("anchor_ratios", model.anchor_ratios)):
        if not numbers or min(numbers) <= 0:
            raise ConfigError(f"model.{name} = {list(numbers)}: one or more numbers above 0 are needed.")
    detection = model.detection
    for name in ("proposals", "training_proposals", "sampled_proposals", "max_detections"):
        if getattr(detection, name) < 1:
            raise ConfigError(f"model.detection.{name} = {getattr(detection, name)}: 1 or more is needed.")
    if not (0 <= detection.least_score < 1 and 0 < detection.nms_iou <= 1):
        raise ConfigError(
            f"model.detection has least_score {detection.least_score} and nms_iou {detection.nms_iou}: shares, from 0 "
            "to below 1 and above 0 to 1, are needed."
        )
    if model.memory is not None:
        _require_memory(model.memory, model)


def _require_memory(memory: MemoryConfig, model: VideoModelConfig) -> None:
    if not (memory.pixels or memory.instances):
        raise ConfigError("model.memory holds neither pixels nor instances: set one to true, or model.memory to null.")
    for name in ("heads", "kept_pixels", "kept_proposals"):
        if getattr(memory, name) < 1:
            raise ConfigError(f"model.memory.{name} = {getattr(memory, name)}: 1 or more is needed.")
    if memory.first_references < 0:
        raise ConfigError(f"model.memory.first_references = {memory.first_references}: 0 or more is needed.")
    if not 0 < memory.rate_share <= 1:
        raise ConfigError(f"model.memory.rate_share = {memory.rate_share}: a share above 0 and up to 1 is needed.")
    if not 0 < memory.key_length <= memory.max_length:
        raise ConfigError(
            f"model.memory holds {memory.max_length} and looks at {memory.key_length}: from 1 to all of it can be."
        )
    for used, name, width in (
        (memory.pixels, "model.channels", model.channels),
        (memory.instances, "model.head_width", model.head_width),
    ):
        if used and width % memory.heads:
            raise ConfigError(f"{name} = {width} does not divide into model.memory.heads = {memory.heads}.")


def fresh(model: VideoModelConfig) -> VideoModelConfig:
    """The model without the weights that its training began with: for one whose weights are about to be filled in."""
    arguments = {name: value for name, value in model.encoder_args.items() if not name.startswith("pretrained")}
    return dataclasses.replace(model, weights=None, encoder_weights=None, encoder_args=arguments)


def read_recipe(path: Path) -> VideoRecipe:
    """A recipe file. Raises `ConfigError` for a file that is missing, is not YAML, or holds an unknown setting."""
    return recipes.read_recipe(VideoRecipe, path)
