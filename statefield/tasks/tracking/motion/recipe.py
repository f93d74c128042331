"""A recipe of MTP: every setting of a training run, as frozen dataclasses; read and written as YAML.

Imports no torch, so that `statefield mot train --help` answers at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from statefield.errors import ConfigError
from statefield.tasks.common import recipes
from statefield.tasks.common.config import TrainerConfig
from statefield.tasks.tracking.motion.steps import Unit


@dataclass(frozen=True)
class MotionDataConfig:
    """Which tracks, and how they become batches.

    Args:
        root: the folder of a ground truth in MOTChallenge's layout (SEQUENCE/gt/gt.txt).
        split: where root has several folders of sequences, which of them.
        val: sequences to choose the best epoch by.
        test: sequences to score at the end; all others of the folder are trained on.
        batch_size: windows per batch.
        jitter: noise of the history, at most this share of a box's sides; 0: none.
        clean: the probability that a window has no noise all the same.
        shorten: the probability that only the last steps of a window are given, as of a young track.
        mirror: exchange left and right with probability 1/2.
        workers: processes that prepare windows; 0: none. The windows are the same either way.
    """

    root: Path | None = None
    split: str | None = None
    val: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    batch_size: int = 64
    jitter: float = 0.0
    clean: float = 0.0
    shorten: float = 0.1
    mirror: bool = True
    workers: int = 0


@dataclass(frozen=True)
class MotionModelConfig:
    """The net and the optimiser.

    Args:
        history: steps that are read, 10 in the paper.
        dim: width, 512 in the paper.
        num_layers: blocks, 3 in the paper.
        d_state: states a channel.
        unit: what steps are measured in, "box" (the sides of the box as it was last seen) or "image" (the image's).
        from_last_step: the net gives what the next step has beyond the last one, beginning with constant velocity, in
            place of the step itself (the paper's form).
        residual: add a block's input to what its Mambas make of it, which the paper's form does not.
        scale: what a step of 1 is to the layers, in the unit; null: the standard deviation of the training's steps.
        without_scan: replace every scan by the identity.
        convolution: replace every pair of Mambas by convolutions over the steps, of about as many weights.
        loss: "smooth_l1" (the paper's) of steps in standard deviations, or "overlap": 1 - GIoU of the predicted and the
            next box, for the unit "box".
        beta: the error, in standard deviations of a step, at which the smooth L1 loss goes from square to linear.
        lr: the largest learning rate (AdamW).
        weight_decay: of matrices; norms and biases have none.
        warmup_steps: optimiser steps of linear warm-up.
        schedule: what follows it.
        average_decay: validate and test with a moving average of the weights of this decay, e.g. 0.99; null: do not.
    """

    history: int = 10
    dim: int = 512
    num_layers: int = 3
    d_state: int = 16
    unit: Unit = "box"
    from_last_step: bool = False
    residual: bool = False
    scale: float | None = None
    without_scan: bool = False
    convolution: bool = False
    loss: Literal["smooth_l1", "overlap"] = "smooth_l1"
    beta: float = 1.0
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 200
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    average_decay: float | None = None

    @property
    def name(self) -> str:
        """What tells the model from its control."""
        return "mtp" + (" without scan" if self.without_scan else "") + (" of convolutions" if self.convolution else "")

    @property
    def about(self) -> dict[str, str]:
        """What a file of its weights says of itself."""
        about = {"net": "mtp", "unit": self.unit} | ({"scans": "without scan"} if self.without_scan else {})
        return about | ({"mixers": "convolutions"} if self.convolution else {})


@dataclass(frozen=True)
class MotionControlConfig:
    """A second net that is trained with the same data and schedule.

    Args:
        without_scan: the net itself with every scan replaced by the identity.
        convolution: the net with convolutions of about as many weights in place of its Mambas; without_scan is false
            then.
    """

    without_scan: bool = True
    convolution: bool = False


@dataclass(frozen=True)
class MotionRecipe:
    """Everything that decides a run.

    Args:
        run: the run folder.
        seed: of weights, windows and noise.
        data: which tracks, and how they become batches.
        model: the net and the optimiser.
        trainer: how long, on what, and how often to save.
        control: a second net to train for comparison; null: none.
    """

    run: Path = Path("runs/mtp")
    seed: int = 0
    data: MotionDataConfig = field(default_factory=MotionDataConfig)
    model: MotionModelConfig = field(default_factory=MotionModelConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    control: MotionControlConfig | None = None

    def of_control(self, run: Path) -> MotionRecipe:
        """The recipe of the control's run, all else equal.

        Raises:
            ConfigError: the control would be the model, or no net.
        """
        assert self.control is not None
        if self.control.without_scan == self.control.convolution or self.model.without_scan or self.model.convolution:
            raise ConfigError(
                "a control of mtp has either control.without_scan or control.convolution, and the model itself has its "
                "scans: set one of the two to true and model.without_scan and model.convolution to false, or leave the "
                "control out."
            )
        model = dataclasses.replace(
            self.model, without_scan=self.control.without_scan, convolution=self.control.convolution
        )
        return dataclasses.replace(self, run=run, model=model, control=None)


def read_recipe(path: Path) -> MotionRecipe:
    """A recipe file. Raises `ConfigError` for a file that is missing, is not YAML, or holds an unknown setting."""
    return recipes.read_recipe(MotionRecipe, path)
