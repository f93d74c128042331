"""Training of one run: a recipe's model, and its control, into the run folder; from the start or from a checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable, Sequence

import torch
from lightning.pytorch import Callback

from statefield.datasets.sample import DatasetInfo
from statefield.errors import ConfigError
from statefield.tasks.common.checkpointing import read_checkpoint, save_weights
from statefield.tasks.common.data import PatchData
from statefield.tasks.common.parallel import is_first, launch, wait_for_all
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.common.trainer import require_possible, run_training
from statefield.tasks.medical.experiment import (
    Dataset,
    Splits,
    TrainedRun,
    build_data,
    build_task,
    load_trained,
    require_same_cases,
    write_info,
)
from statefield.tasks.medical.recipe import SegmentationRecipe, difference, read_recipe, recipe_text
from statefield.tasks.medical.segmentation import VALIDATION_SCORE
from statefield.tasks.medical.testing import metrics_of

log = logging.getLogger(__name__)
Announce = Callable[[str], None]


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
    if resume and overwrite:
        raise ConfigError("--resume continues a run and --overwrite replaces it: give one of them.")
    require_possible(recipe.trainer)
    launch(recipe.trainer)
    if not is_first():
        announce = _nothing
    recipe = shortened(recipe)
    folder = RunFolder(recipe.run)
    if resume:
        require_same(folder, recipe)
    if recipe.trainer.threads is not None:
        torch.set_num_threads(recipe.trainer.threads)
    dataset = Dataset.of(recipe)
    metrics_of(recipe.metrics, dataset.info.classes, unit="mm")  # settings that cannot score are said now
    splits: Splits = {"train": dataset.records("train"), "val": dataset.records("val"), "test": dataset.test_records()}
    if resume:
        require_same_cases(folder, splits)
    plans = [(recipe, folder)]
    if recipe.control is not None:
        plans.append((recipe.of_control(folder.control.root), folder.control))
    if resume and all(place.weights.exists() for _, place in plans):
        for plan, place in plans:
            announce(f"{plan.model.name}: already trained, {place.weights}")
        return [load_trained(place.root) for _, place in plans]
    for plan, _ in plans:  # a control that cannot be built is said now and not after the first training
        build_task(plan, dataset.info, total_steps=0)
    if not resume:
        folder.require_free(overwrite=overwrite)
    try:
        data = build_data(recipe, dataset, splits, folder)
        for record in splits["test"]:  # a damaged test case is said now and not after the training
            data.store.load(record, keep=False)
        wait_for_all()  # nobody finds what the first process writes from here on
        if is_first():
            if before_start is not None:
                before_start()
            if not resume:
                folder.start(recipe_text(recipe), overwrite=overwrite)
                write_info(folder, dataset, splits)
            for plan, place in plans[1:]:
                if not place.exists():
                    place.start(recipe_text(plan), overwrite=False)
                    write_info(place, dataset, splits)
        wait_for_all()
        trained = [place.weights.exists() for _, place in plans]
        for (plan, place), is_trained in zip(plans, trained, strict=True):
            if is_trained:
                announce(f"{plan.model.name}: already trained, {place.weights}")
                continue
            steps = data.steps_per_epoch
            announce(f"training {plan.model.name}: {plan.trainer.max_epochs} epochs of {steps} steps")
            _fit(plan, place, dataset.info, data, resume=resume, callbacks=callbacks)
    finally:
        if is_first():
            shutil.rmtree(folder.cache, ignore_errors=True)
    return [load_trained(place.root) for _, place in plans]


def shortened(recipe: SegmentationRecipe) -> SegmentationRecipe:
    """The recipe as it is trained: with `fast_dev_run`, two steps of one epoch."""
    if not recipe.trainer.fast_dev_run:
        return recipe
    trainer = dataclasses.replace(recipe.trainer, max_epochs=1, steps_per_epoch=2, accumulate=1, val_every_epochs=1)
    return dataclasses.replace(recipe, trainer=trainer)


def require_same(folder: RunFolder, recipe: SegmentationRecipe) -> None:
    """Raise `ConfigError` unless a run is in `folder` that was started with these settings."""
    folder.require()
    differing = difference(read_recipe(folder.config), recipe)
    if differing:
        raise ConfigError(
            f"{folder.root} was started with other settings ({', '.join(differing)}), so continuing it would be "
            f"neither run. Resume with `--config {folder.config} --resume`, or start anew with --run."
        )


def _fit(
    recipe: SegmentationRecipe,
    folder: RunFolder,
    info: DatasetInfo,
    data: PatchData,
    *,
    resume: bool,
    callbacks: Sequence[Callback],
) -> None:
    settings = recipe.trainer
    steps = -(-data.steps_per_epoch // settings.accumulate) * settings.max_epochs
    task = build_task(recipe, info, total_steps=steps)
    run_training(task, data, settings, folder, score=VALIDATION_SCORE, resume=resume, callbacks=callbacks)
    if is_first():
        state = read_checkpoint(folder.best)["state_dict"]
        prefix = "net." if recipe.model.average_decay is None else "averaged."
        weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        save_weights(weights, folder.weights, recipe.model.about)
    wait_for_all()


def _nothing(line: str) -> None:
    """What processes after the first announce."""
