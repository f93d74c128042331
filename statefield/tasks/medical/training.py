"""Training of one run: a recipe's model, and its control, into the run folder; from the start or from a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from lightning.pytorch import Callback

from statefield.tasks.common import fitting
from statefield.tasks.common.data import PatchData
from statefield.tasks.common.fitting import Announce as Announce
from statefield.tasks.common.fitting import shortened as shortened
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.medical.experiment import (
    Dataset,
    Splits,
    TrainedRun,
    build_data,
    build_task,
    load_trained,
)
from statefield.tasks.medical.recipe import SegmentationRecipe, read_recipe
from statefield.tasks.medical.segmentation import VALIDATION_SCORE
from statefield.tasks.medical.testing import metrics_of

log = logging.getLogger(__name__)


def fit(
    recipe: SegmentationRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    announce: Announce = log.info,
    before_start: Callable[[], None] | None = None,
) -> list[TrainedRun]:
    """Train the recipe's model into its run folder, and then its control, if it names one.

    Args:
        recipe: of one training: with `folds`, its `fold` says which of them.
        resume: go on from the run folder's last checkpoint; the result equals that of an uninterrupted run.
        overwrite: replace a run that is there, once the recipe has been found to work.
        callbacks: further Lightning callbacks, such as a progress bar; of every process.
        announce: gets a line at each stage.
        before_start: called once the recipe has been found to work, before anything is written.

    Returns the model, and the control if there is one, with their best weights.

    Raises:
        ConfigError: settings that cannot work, a run folder in the way, or nothing to resume.
        TrainingDiverged: the loss is no longer a number.
        Errors of the dataset's files, from its adapter.
    """
    recipe = fitting.begin(recipe, read_recipe, resume=resume, overwrite=overwrite)
    dataset = Dataset.of(recipe)
    metrics_of(recipe.metrics, dataset.info.classes, unit="mm")  # settings that cannot score are said now
    splits: Splits = {"train": dataset.records("train"), "val": dataset.records("val"), "test": dataset.test_records()}
    plans = fitting.plans_of(recipe)
    if resume:
        fitting.require_same_cases(plans[0].folder, splits)

    def data() -> PatchData:
        patches = build_data(recipe, dataset, splits, plans[0].folder)
        for record in splits["test"]:  # a damaged test case is said now and not after the training
            patches.store.load(record, keep=False)
        return patches

    fitting.fit(
        plans,
        build_task=lambda plan, total_steps: build_task(plan, dataset.info, total_steps=total_steps),
        build_data=data,
        about=lambda: fitting.describe_dataset(dataset.adapter.name, dataset.info, splits),
        score=VALIDATION_SCORE,
        resume=resume,
        overwrite=overwrite,
        callbacks=callbacks,
        announce=announce,
        before_start=before_start,
    )
    return [load_trained(plan.folder.root) for plan in plans]


def require_same(folder: RunFolder, recipe: SegmentationRecipe) -> None:
    """Raise `ConfigError` unless a run is in `folder` that was started with these settings."""
    fitting.require_same(folder, recipe, read_recipe)
