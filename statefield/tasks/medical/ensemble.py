"""Several trained nets as one: the mean of their class probabilities.

run = load_run("runs/crossed")                     # a cross-validated run: the ensemble of its folds
run = load_ensemble(["runs/a", "runs/b"])          # runs that were trained apart
run.net(windows)                                   # logits, as of any net
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from statefield.errors import ConfigError
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.medical.experiment import TrainedRun, load_trained
from statefield.tasks.medical.recipe import SegmentationRecipe, read_recipe


class Ensemble(nn.Module):
    """Windows [n, C, *S] -> logits [n, K, *S] float32: the logarithm of the members' mean softmax.

    Their softmax is that mean again, so whatever takes the logits of one net takes these. The members see a window one
    after the other, and two maps of logits are held at a time, however many members there are.

    Source: probabilities of folds are averaged as in nnU-Net, Isensee et al. 2021, doi 10.1038/s41592-020-01008-z.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise ConfigError("an ensemble of no nets: give one trained run or more.")
        self.members = nn.ModuleList(members)

    def forward(self, image: Tensor) -> Tensor:
        total: Tensor | None = None
        for net in self.members:
            logs = net(image).float().log_softmax(dim=1)
            total = logs if total is None else torch.logaddexp(total, logs)
        assert total is not None
        return total - math.log(len(self.members))


def load_run(folder: str | Path) -> TrainedRun:
    """The trained model of a run folder; of a cross-validated run, the ensemble of its folds.

    Raises:
        ConfigError: not a run folder, or a cross-validated run with folds that are not trained.
        CheckpointError: its weights are missing, damaged, or of another net.
    """
    place = RunFolder(Path(folder))
    place.require()
    recipe = read_recipe(place.config)
    if recipe.folds is None or recipe.fold is not None:
        return load_trained(place.root)
    return load_folds(recipe, place)


def load_folds(recipe: SegmentationRecipe, folder: RunFolder, *, control: bool = False) -> TrainedRun:
    """The ensemble of the folds in `folder`, or of their controls; errors are those of `load_run`."""
    assert recipe.folds is not None
    places = [folder.fold(index) for index in range(recipe.folds)]
    places = [place.control for place in places] if control else places
    untrained = [place.root.name for place in places if not place.weights.exists()]
    if untrained:
        raise ConfigError(
            f"{folder.root} is cross-validated in {recipe.folds} folds, and {', '.join(untrained)} not trained yet. "
            f"Finish it with `statefield medical train --config {folder.config} --resume`, or use one fold alone, such "
            f"as {folder.fold(0).root}."
        )
    return _joined([load_trained(place.root) for place in places], folder, recipe)


def load_ensemble(folders: Sequence[str | Path]) -> TrainedRun:
    """Runs as one; a single one is that run itself. Its recipe, window and post-processing are those of the first.

    Raises:
        ConfigError: the runs differ in what they predict or in how they see an image. The others are those of
            `load_run`.
    """
    if not folders:
        raise ConfigError("no run given: name one trained run or more.")
    runs = [load_run(folder) for folder in folders]
    if len(runs) == 1:
        return runs[0]
    first = runs[0]
    for run in runs[1:]:
        for what, ours, theirs in zip(_SHARED, _shared(first), _shared(run), strict=True):
            if ours != theirs:
                raise ConfigError(
                    f"{run.folder.root} cannot join {first.folder.root} in an ensemble: its {what} is {theirs}, and "
                    f"the other's is {ours}. Give runs that share classes, channels, normalisation, spacing and "
                    "window, or predict with each alone."
                )
    return _joined(runs, first.folder, first.recipe)


_SHARED = ("classes", "channels", "normalisation", "spacing", "slice_context", "inference window")


def _shared(run: TrainedRun) -> tuple[Any, ...]:
    return (run.classes, run.channels, run.normalisation, run.spacing, run.slice_context, run.roi)


def _joined(runs: Sequence[TrainedRun], folder: RunFolder, recipe: SegmentationRecipe) -> TrainedRun:
    task = runs[0].task
    task.net = Ensemble([run.net for run in runs])
    return TrainedRun(folder, recipe, task.eval(), runs[0].info)
