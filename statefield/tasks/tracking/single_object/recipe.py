"""A recipe of MambaEVT: every setting of a training run and of the tracker it makes, as frozen dataclasses; YAML.

Imports no torch, so that `statefield sot train --help` answers at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from statefield.datasets.events.frames import EventFrameConfig
from statefield.datasets.tracking.object_videos import FrameKind
from statefield.errors import ConfigError
from statefield.tasks.common import recipes
from statefield.tasks.common.config import TrainerConfig

__all__ = ["SotDataConfig", "SotModelConfig", "SotRecipe", "TrackerConfig", "read_recipe"]


@dataclass(frozen=True)
class SotDataConfig:
    """Which sequences, and how they become batches.

    Args:
        root: a benchmark's folder, one sequence's folder, a video, a file of events, or PEDRo's samples.
        truth: the ground truth, where it does not lie with the frames: a folder, VOT's JSON file, or a text file.
        val_root: another folder to choose the best epoch by; null: of `root`.
        test_root: another folder to score at the end; null: of `root`.
        val: sequences of `val_root` (or `root`) to choose the best epoch by.
        test: sequences of `test_root` (or `root`) to score at the end; all others of `root` are trained on.
        time_split: in place of `val` and `test`, each sequence is cut in time: the share that is trained on and the
            share that follows it, to choose the best epoch by; the rest is for the test. E.g. [0.6, 0.15].
        kind: which frames, where a benchmark ships several: "pictures", "event_pictures", "events", or "any".
        events: how recordings of events become frames.
        templates: crops of the target from any of its frames, for the dynamic template; 7 in the authors' recipes.
        max_gap: they and the first template are at most so many frames from the one to be searched; null: any frame of
            the sequence, as in the authors' code.
        search_shift: the centre of the search region is up to half of this times the target's side off; 3 is OSTrack's.
        search_scale: deviation of the logarithm of its sides; 0.25 is OSTrack's. With a narrow one the net learns that
            the target fills 1 / search_factor of the region, and tracking keeps an error of its size.
        template_shift: the same of templates. template_scale: the same of templates.
        grey: the probability that a sample loses its colours.
        mirror: the probability that a sample is mirrored.
        brightness: brightness is multiplied by 1 plus or minus up to this.
        val_frames: validate on the first so many frames of a sequence; null: all.
        batch_size: samples of a batch.
        workers: processes that prepare samples; 0: none. The samples are the same either way.
    """

    root: Path | None = None
    truth: Path | None = None
    val_root: Path | None = None
    test_root: Path | None = None
    val: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    time_split: tuple[float, float] | None = None
    kind: FrameKind = "any"
    events: EventFrameConfig = field(default_factory=EventFrameConfig)
    templates: int = 7
    max_gap: int | None = None
    search_shift: float = 3.0
    search_scale: float = 0.25
    template_shift: float = 0.0
    template_scale: float = 0.0
    grey: float = 0.05
    mirror: float = 0.5
    brightness: float = 0.2
    val_frames: int | None = None
    batch_size: int = 32
    workers: int = 0


@dataclass(frozen=True)
class SotModelConfig:
    """The net, its loss and the optimiser. Defaults are the paper's.

    Args:
        template_size: side of a template in pixels.
        search_size: side of the search region in pixels.
        patch_size: side of a patch in pixels.
        template_factor: sides of the target (the root of its area) that a template covers.
        search_factor: the same of the search region.
        dim: width.
        num_layers: blocks.
        d_state: states a channel.
        expand: inner channels of a mixer over dim.
        head_channels: of the head's first convolution.
        drop_path_rate: the probability that a training sample leaves out the last block.
        without_scan: replace every scan by the identity.
        convolution: replace every block's scans by a gated convolution over the tokens, of as many weights.
        weights: begin with these: of the whole net (`statefield convert --model mamba_evt`, or another run's
            weights.safetensors), or of a backbone such as vim_small, whose blocks are taken; null: random ones.
        giou_weight: of the loss of generalised IoU.
        l1_weight: of the loss of corners.
        focal_weight: of the loss of centres.
        lr: the largest learning rate (AdamW), of the head.
        backbone_lr: the share of it for everything else.
        weight_decay: of matrices; norms, biases and positions have none.
        warmup_steps: optimiser steps of linear warm-up.
        schedule: what follows it; "step" is a tenth from half of the training on.
        average_decay: validate and test with a moving average of the weights of this decay, e.g. 0.99; null: do not.
    """

    template_size: int = 128
    search_size: int = 256
    patch_size: int = 16
    template_factor: float = 2.0
    search_factor: float = 4.0
    dim: int = 384
    num_layers: int = 24
    d_state: int = 16
    expand: float = 2.0
    head_channels: int = 256
    drop_path_rate: float = 0.1
    without_scan: bool = False
    convolution: bool = False
    weights: Path | None = None
    giou_weight: float = 2.0
    l1_weight: float = 5.0
    focal_weight: float = 1.0
    lr: float = 4e-4
    backbone_lr: float = 0.1
    weight_decay: float = 1e-4
    warmup_steps: int = 0
    schedule: Literal["cosine", "poly", "constant", "step"] = "step"
    average_decay: float | None = None

    def __post_init__(self) -> None:
        if self.without_scan and self.convolution:
            raise ConfigError(
                "model.without_scan and model.convolution are both true, and a net of convolutions has no scan to "
                "leave out: set one of them."
            )

    @property
    def name(self) -> str:
        """What tells the model from its control."""
        without_scan = " without scan" if self.without_scan else ""
        return "mamba_evt" + without_scan + (" of convolutions" if self.convolution else "")

    @property
    def about(self) -> dict[str, str]:
        """What a file of its weights says of itself."""
        about = {"net": "mamba_evt"} | ({"scans": "without scan"} if self.without_scan else {})
        return about | ({"mixers": "convolutions"} if self.convolution else {})


@dataclass(frozen=True)
class TrackerConfig:
    """What the tracker does with what the net finds, frame by frame. Defaults are what the authors' code does.

    Args:
        short_templates: crops of the target that the short library holds, the last ones.
        long_templates: crops that the long library holds, those that differ most.
        interval: frames between updates of the libraries. The paper says 5; in the authors' code every frame updates,
            and its figures were measured so.
        least_likeness: how like the first template a crop must be for the long library, as a share.
        window: the share of the penalty (a Hann window) in the map that the best cell is chosen by: 1 multiplies by it,
            0 leaves it out.
        learn_above: a result whose score is not above this does not become a template. 0: every one does.
        lost_below: with a score below this the target counts as lost: its box stays where it was, nothing is learned,
            and the next search is without penalty in a wider region. 0: never.
        lost_widening: how many times wider.
        margin_px: a box reaches at least so far into the frame.
    """

    short_templates: int = 6
    long_templates: int = 16
    interval: int = 1
    least_likeness: float = 0.35
    window: float = 1.0
    learn_above: float = 0.0
    lost_below: float = 0.0
    lost_widening: float = 1.5
    margin_px: float = 10.0

    def __post_init__(self) -> None:
        for name in ("window", "learn_above", "lost_below"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"tracker.{name} = {getattr(self, name)}: a number from 0 to 1 is needed.")
        if self.lost_widening < 1 or self.margin_px < 1:
            raise ConfigError(
                f"tracker.lost_widening = {self.lost_widening} and tracker.margin_px = {self.margin_px}: 1 or more is "
                "needed of both."
            )


@dataclass(frozen=True)
class SotControlConfig:
    """A second net that is trained with the same data and schedule.

    Args:
        without_scan: the net itself with every scan replaced by the identity.
        convolution: the net with gated convolutions of as many weights in place of its scans; without_scan is false
            then.
    """

    without_scan: bool = True
    convolution: bool = False


@dataclass(frozen=True)
class SotRecipe:
    """Everything that decides a run.

    Args:
        run: the run folder.
        seed: of weights and samples.
        data: which sequences, and how they become batches.
        model: the net, its loss and the optimiser.
        tracker: what the tracker does with what the net finds.
        trainer: how long, on what, and how often to save.
        control: a second net to train for comparison; null: none.
    """

    run: Path = Path("runs/mamba_evt")
    seed: int = 0
    data: SotDataConfig = field(default_factory=SotDataConfig)
    model: SotModelConfig = field(default_factory=SotModelConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    control: SotControlConfig | None = None

    def of_control(self, run: Path) -> SotRecipe:
        """The recipe of the control's run, all else equal; it begins with random weights, as none are of its form.

        Raises:
            ConfigError: the control would be the model, or no net.
        """
        assert self.control is not None
        if self.control.without_scan == self.control.convolution or self.model.without_scan or self.model.convolution:
            raise ConfigError(
                "a control of mamba_evt has either control.without_scan or control.convolution, and the model itself "
                "has its scans: set one of the two to true and model.without_scan and model.convolution to false, or "
                "leave the control out."
            )
        model = dataclasses.replace(
            self.model, weights=None, without_scan=self.control.without_scan, convolution=self.control.convolution
        )
        return dataclasses.replace(self, run=run, model=model, control=None)


def read_recipe(path: Path) -> SotRecipe:
    """A recipe file. Raises `ConfigError` for a file that is missing, is not YAML, or holds an unknown setting."""
    return recipes.read_recipe(SotRecipe, path)
