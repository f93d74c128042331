"""A trained segmentation as a subject of export: normalised windows in, logits out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import torch

import statefield
from statefield.errors import ConfigError
from statefield.tasks.common.export import Subject
from statefield.tasks.medical.ensemble import load_run

__all__ = ["subject"]


def subject(folder: Path, size: Sequence[int] | None = None) -> Subject:
    """The net of a run folder of `statefield medical train`; of a cross-validated one, the ensemble of its folds.

    Normalisation, resampling and windows are not in the file: it says in "normalisation", "spacing_mm" and
    "slice_context" what its inputs are.

    Args:
        size: of a window (rows, columns; of a volume, slices first); None: the run's own.

    Raises:
        ConfigError: no such run; a size that is missing, or of another number of axes.
    """
    run = load_run(folder)
    axes = 3 if run.roi is not None and len(run.roi) == 3 else 2
    if size is None and run.roi is None:
        raise ConfigError(
            f"{folder} predicts whole slices of any size, and a file needs one: give it with --size ROWS COLUMNS."
        )
    window = tuple(size or run.roi or ())
    if len(window) != axes:
        raise ConfigError(f"--size {' '.join(map(str, window))} has {len(window)} sides; {folder} needs {axes}.")
    channels = len(run.channels) * (2 * run.slice_context + 1)
    about = {
        "model": run.recipe.model.name,
        "task": "medical segmentation",
        "statefield": statefield.__version__,
        "classes": json.dumps(run.classes),
        "channels": json.dumps(run.channels),
        "slice_context": str(run.slice_context),
        "normalisation": json.dumps(dataclasses.asdict(run.normalisation)),
        "spacing_mm": json.dumps(run.spacing),
    }
    return Subject(
        run.recipe.model.name,
        run.net.eval(),
        {"image": torch.zeros(2, channels, *window)},
        ("logits",),
        spatial={"image": tuple(range(2, 2 + axes))},
        about=about,
    )
