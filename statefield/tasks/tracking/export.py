"""Trained trackers as subjects of export: MTP's next steps, and MambaEVT in its two parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

import statefield
from statefield.errors import ConfigError
from statefield.tasks.common.export import Subject
from statefield.tasks.tracking.motion.training import load_motion
from statefield.tasks.tracking.nets import MambaEVT
from statefield.tasks.tracking.single_object.training import load_tracker

__all__ = ["Part", "motion_subject", "search_subject", "templates_subject", "tracker_subject"]

Part = Literal["search", "templates"]


def motion_subject(folder: Path, size: Sequence[int] | None = None) -> Subject:
    """The net of a run folder of `statefield mot train`: the last steps of tracks in, the next step of each out.

    Raises:
        ConfigError: no such run, or a size, which it has not. CheckpointError: without weights, or of another net.
    """
    _no_size(size)
    run = load_motion(folder)
    history = run.net.history
    about = {
        "model": run.recipe.model.name,
        "task": "multi-object tracking, motion",
        "statefield": statefield.__version__,
        "unit": run.recipe.model.unit,
        "steps": json.dumps(["dx", "dy", "dw", "dh"]),
    }
    return Subject(
        run.recipe.model.name,
        run.net,
        {"steps": torch.zeros(2, history, 4), "lengths": torch.tensor([history, 1])},
        ("next_step",),
        about=about,
    )


def tracker_subject(folder: Path, size: Sequence[int] | None = None, part: Part = "search") -> Subject:
    """One of the two nets of a run folder of `statefield sot train`, or of its file of weights.

    Args:
        part: "search", which finds the target in a frame, or "templates", which makes the dynamic template.

    Raises:
        ConfigError: no such run, or a size, which it has not. CheckpointError: without weights, or of another net.
    """
    _no_size(size)
    run = load_tracker(folder)
    about = {
        "task": "single-object tracking",
        "statefield": statefield.__version__,
        "template_factor": str(run.model.template_factor),
        "search_factor": str(run.model.search_factor),
    }
    if part == "search":
        return search_subject(run.net, run.name, about)
    return templates_subject(run.net, run.name, about, count=run.config.short_templates + run.config.long_templates)


class _Search(nn.Module):
    """The maps as a tuple, as files have them."""

    def __init__(self, net: MambaEVT) -> None:
        super().__init__()
        self.net = net

    def forward(self, static: Tensor, dynamic: Tensor, search: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.net(static, dynamic, search)
        return maps.score, maps.size, maps.offset


class _Templates(nn.Module):
    def __init__(self, net: MambaEVT) -> None:
        super().__init__()
        self.net = net

    def forward(self, templates: Tensor) -> Tensor:
        return self.net.encode_templates(templates)


def search_subject(net: MambaEVT, name: str, about: dict[str, str]) -> Subject:
    """MambaEVT's search: first template, dynamic template and search region in; score, size and offset out."""
    channels, dim = net.in_channels, net.pos_embed_search.shape[2]
    return Subject(
        f"{name}, search",
        _Search(net).eval(),
        {
            "static": torch.zeros(2, channels, net.template_size, net.template_size),
            "dynamic": torch.zeros(2, net.template_tokens, dim),
            "search": torch.zeros(2, channels, net.search_size, net.search_size),
        },
        ("score", "size", "offset"),
        about={"model": f"{name}, search", **about},
    )


def templates_subject(net: MambaEVT, name: str, about: dict[str, str], *, count: int) -> Subject:
    """MambaEVT's memory: `count` templates in order in, the dynamic template out."""
    shape = (2, count, net.in_channels, net.template_size, net.template_size)
    return Subject(
        f"{name}, templates",
        _Templates(net).eval(),
        {"templates": torch.zeros(shape)},
        ("dynamic",),
        about={"model": f"{name}, templates", "templates": str(count), **about},
    )


def _no_size(size: Sequence[int] | None) -> None:
    if size is not None:
        raise ConfigError("--size was given, and the net of a tracker has the sizes of its recipe: leave it out.")
