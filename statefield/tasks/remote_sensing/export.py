"""Trained change detection and scene classification as subjects of export: scaled images in, logits out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import statefield
from statefield.errors import ConfigError
from statefield.tasks.common.export import Subject
from statefield.tasks.remote_sensing.change_run import load_change_run
from statefield.tasks.remote_sensing.scene_run import load_run

__all__ = ["OfTwoDates", "change_subject", "scene_subject"]


def change_subject(folder: Path, size: Sequence[int] | None = None) -> Subject:
    """The net of a run folder of `statefield change train`: two dates in, logits of each map out.

    The threshold is in the logits: the largest is the decision. The scaling of bands is not in the file, which tells it
    in "scaling"; null there means that each image is scaled by its own mean and standard deviation.

    Args:
        size: rows and columns; None: the window of prediction.

    Raises:
        ConfigError: no such run. CheckpointError: without weights, or of another net.
    """
    run = load_change_run(folder)
    rows, columns = _two(size, run.roi)
    scaling = run.scaler.fixed
    about = {
        "model": run.recipe.model.name,
        "task": f"{run.kind.name} change detection",
        "statefield": statefield.__version__,
        "channels": json.dumps(run.channels),
        "classes": json.dumps({layer.name: layer.classes for layer in run.layers}),
        "threshold": str(run.threshold),
        "scaling": json.dumps(None if scaling is None else dataclasses.asdict(scaling)),
    }
    example = torch.zeros(2, len(run.bands), rows, columns)
    return Subject(
        run.recipe.model.name,
        OfTwoDates(run.net).eval(),
        {"before": example, "after": example.clone()},
        tuple(f"logits_{layer.name}" if len(run.layers) > 1 else "logits" for layer in run.layers),
        spatial={"before": (2, 3), "after": (2, 3)},
        about=about,
    )


def scene_subject(folder: Path, size: Sequence[int] | None = None) -> Subject:
    """The net of a run folder of `statefield scene train`: images less "mean", over "std", in; logits of classes out.

    Args:
        size: rows and columns; None: those of training.

    Raises:
        ConfigError: no such run. CheckpointError: without weights, or of another net.
    """
    run = load_run(folder)
    side = run.recipe.data.image_size
    rows, columns = _two(size, (side, side))
    about = {
        "model": run.recipe.model.name,
        "task": "scene classification",
        "statefield": statefield.__version__,
        "channels": json.dumps(run.info.channels),
        "classes": json.dumps(run.info.classes),
        "mean": json.dumps(run.info.mean),
        "std": json.dumps(run.info.std),
    }
    return Subject(
        run.recipe.model.name,
        run.task.net.eval(),
        {"image": torch.zeros(2, len(run.info.channels), rows, columns)},
        ("logits",),
        spatial={"image": (2, 3)},
        about=about,
    )


class OfTwoDates(nn.Module):
    """A net's maps as a tuple: a file that needs no statefield cannot hold its named tuples."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, before: Tensor, after: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = self.net(before, after)
        return maps if isinstance(maps, Tensor) else tuple(maps)


def _two(size: Sequence[int] | None, own: tuple[int, int]) -> tuple[int, int]:
    if size is None:
        return own
    if len(size) != 2:
        raise ConfigError(f"--size {' '.join(map(str, size))}: rows and columns are needed, two numbers.")
    return size[0], size[1]
