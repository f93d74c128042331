"""A backbone by name as a subject of export: its classifier, or its pyramid of maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch

import statefield
from statefield.backbones import create_model
from statefield.backbones.checkpoints import load_checkpoint
from statefield.errors import ConfigError
from statefield.tasks.common.export.subject import Subject

__all__ = ["backbone_subject"]


def backbone_subject(
    name: str,
    *,
    size: tuple[int, int] | None = None,
    features: bool = False,
    checkpoint: Path | None = None,
    **kwargs: Any,
) -> Subject:
    """A backbone of `statefield models`, or any of timm's, as its file is to hold it.

    Args:
        size: rows and columns of the image; None: those of the model's timm cfg.
        features: the maps, "map_0" the finest, in place of the classifier's logits.
        checkpoint: its weights; None: random ones, of which the file says so.
        **kwargs: of the model (`num_classes`, `in_chans`, ...).

    Raises:
        UnknownName: no such backbone. ConfigError: it has no size of its own, and none is given. CheckpointError: see
            `load_checkpoint`.
    """
    model = create_model(name, features_only=True, **kwargs) if features else create_model(name, **kwargs)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    cfg = timm.get_pretrained_cfg(name)
    if size is None:
        if cfg is None:
            raise ConfigError(f"{name} does not say for images of which size it is: give it with --size ROWS COLUMNS.")
        size = cfg.input_size[1], cfg.input_size[2]
    rows, columns = size
    channels = kwargs.get("in_chans", 3)
    about = {
        "model": name,
        "statefield": statefield.__version__,
        "weights": "random" if checkpoint is None else checkpoint.name,
        "mean": json.dumps(None if cfg is None else cfg.mean),
        "std": json.dumps(None if cfg is None else cfg.std),
    }
    outputs: tuple[str, ...] = ("logits",)
    if features:
        info: Any = model.feature_info
        outputs = tuple(f"map_{number}" for number in range(len(info)))
    return Subject(
        name,
        model.eval(),
        {"image": torch.zeros(2, channels, rows, columns)},
        outputs,
        spatial={"image": (2, 3)},
        about=about,
    )
