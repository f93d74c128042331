"""A trained run of change detection, as its folder holds it, and the dataset of a recipe.

run = load_change_run("runs/oscd")              # all that prediction needs
logits = run.net(before, after)                 # scaled [B, C, H, W] each; the largest logit is the decision
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.change import ChangeAdapter, ChangeInfo, open_change_dataset
from statefield.datasets.sample import Record
from statefield.datasets.splits import Split
from statefield.errors import CheckpointError
from statefield.tasks.common import fitting
from statefield.tasks.common.checkpointing import load_weights
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.remote_sensing.change_kinds import ChangeKind, Layer, ShiftedLogits
from statefield.tasks.remote_sensing.change_pairs import Scaler, band_numbers
from statefield.tasks.remote_sensing.change_recipe import ChangeRecipe, read_recipe
from statefield.tasks.remote_sensing.change_task import build_task, threshold_of
from statefield.tasks.remote_sensing.raster_sources import BandScaling

THRESHOLD_FILE = "threshold.json"  # in the run folder, where the recipe has it chosen on validation pairs


@dataclass(frozen=True, eq=False)
class ChangeDataset:
    """An opened dataset of pairs."""

    adapter: ChangeAdapter
    info: ChangeInfo
    root: Path | None

    @classmethod
    def of(cls, recipe: ChangeRecipe) -> ChangeDataset:
        data = recipe.data
        adapter, info = open_change_dataset(data.root, data.layout, data.options)
        return cls(adapter, info, data.root)

    def records(self, split: Split) -> list[Record]:
        """The pairs of a split; `EmptySplit` when there is none."""
        return self.adapter.records(self.root, split)


@dataclass(frozen=True, eq=False)
class ChangeRun:
    """What a run folder holds for prediction.

    Attributes:
        net: with its best weights, in eval mode: net(before, after), each scaled float32 [B, C, H, W], gives logits
            [B, K, H, W], or a NamedTuple of them, in the order of `layers`; the threshold is in them, so that the
            largest logit is the decision.
        kind: the question: its `layers` name the maps and their classes, its `maps` make them what is written.
        info: of the dataset it was trained on. bands: numbers, from 0, of the channels that the net sees, of those of
            an image; channels: their names.
        scaler: `scaler.fixed` is the `BandScaling` of every image, or None where each image of a date is measured by
            itself (`change_pairs.measured`, mean and standard deviation of its valid pixels).
        threshold: the probability above which class 1 of the first map is said.
    """

    folder: RunFolder
    recipe: ChangeRecipe
    net: ShiftedLogits
    kind: ChangeKind
    info: ChangeInfo
    bands: tuple[int, ...]
    scaler: Scaler
    threshold: float

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The maps: their names and classes."""
        return self.kind.layers

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the bands that the net sees."""
        return tuple(self.info.channels[band] for band in self.bands)

    @property
    def roi(self) -> tuple[int, int]:
        """Rows and columns of an inference window."""
        return self.recipe.roi

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.net.parameters())

    def scaling_of(self, image: NDArray[np.float32], valid: NDArray[np.bool_]) -> BandScaling:
        """The scaling of one image of a date; [C, H, W] of the run's bands, and which pixels count."""
        return self.scaler.of_image(image, valid)


def load_change_run(folder: str | Path) -> ChangeRun:
    """The trained model of a run folder.

    Raises:
        ConfigError: not a run folder. CheckpointError: its weights are missing, damaged, or of another net.
    """
    place = RunFolder(Path(folder))
    place.require()
    recipe = read_recipe(place.config)
    info = fitting.read_info(place, ChangeInfo)
    bands = band_numbers(recipe.data.bands, info)
    fresh = dataclasses.replace(recipe.model, weights=None, encoder_weights=None)
    task = build_task(dataclasses.replace(recipe, model=fresh), info, num_bands=len(bands), total_steps=0)
    load_weights(task.net, place.weights)
    threshold = threshold_of(recipe.inference)
    if recipe.inference.threshold == "val" and (place.root / THRESHOLD_FILE).exists():
        threshold = _read_number(place.root / THRESHOLD_FILE, "threshold")
    net = ShiftedLogits(task.net, task.kind.shifts(threshold)).eval()
    return ChangeRun(place, recipe, net, task.kind, info, tuple(bands), _read_scaler(place), threshold)


def _read_scaler(folder: RunFolder) -> Scaler:
    stored = fitting.read_about(folder, ["scaling"])["scaling"]
    if stored is None:
        return Scaler(None)
    try:
        clip = None if stored["clip"] is None else tuple((low, high) for low, high in stored["clip"])
        return Scaler(BandScaling(tuple(stored["offset"]), tuple(stored["scale"]), clip))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder.dataset} has no usable scaling of the bands ({error}). Train again with --overwrite."
        ) from error


def _read_number(path: Path, name: str) -> float:
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))[name])
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Remove it: `train --resume` makes it anew.") from error
