"""Training of a recipe's model, and its control, into run folders: from the start, or on from a checkpoint.

A field says how a task and the batches are built; everything else of a training is here.

    recipe = begin(recipe, read_recipe, resume=resume, overwrite=overwrite)
    dataset = ...                                        # the field's: records of each split
    plans = plans_of(recipe)
    if resume:
        require_same_cases(plans[0].folder, splits)
    fit(plans, build_task=..., build_data=..., about=..., score="F1/change", resume=resume)

The field's task extends `DensePredictionTask`; its data is a `LightningDataModule` with `steps_per_epoch`, whose
batches are a function of (seed, number), so that a run that was killed ends with the same bits once resumed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from lightning.pytorch import Callback, LightningDataModule

from statefield.datasets.sample import DatasetInfo
from statefield.errors import CheckpointError, ConfigError
from statefield.files import remove_partials
from statefield.tasks.common.checkpointing import read_checkpoint, save_weights
from statefield.tasks.common.config import TrainerConfig
from statefield.tasks.common.module import DensePredictionTask
from statefield.tasks.common.parallel import is_first, launch, wait_for_all
from statefield.tasks.common.recipes import difference, recipe_text
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.common.trainer import require_possible, run_training

log = logging.getLogger(__name__)
Announce = Callable[[str], None]


class Model(Protocol):
    """What fitting needs of a recipe's `model`."""

    @property
    def average_decay(self) -> float | None: ...
    @property
    def name(self) -> str:
        """What tells the model from its control."""

    @property
    def about(self) -> Mapping[str, str]:
        """What a file of its weights says of itself."""


class Recipe(Protocol):
    """What fitting needs of a recipe, which is a frozen dataclass."""

    @property
    def run(self) -> Path: ...
    @property
    def seed(self) -> int: ...
    @property
    def model(self) -> Model: ...
    @property
    def trainer(self) -> TrainerConfig: ...
    @property
    def control(self) -> Any: ...
    def of_control(self, run: Path) -> Any:
        """The recipe of the control's run, all else equal."""


class TrainingData(Protocol):
    """What fitting needs of a field's data, which is a `LightningDataModule`."""

    @property
    def steps_per_epoch(self) -> int: ...


class Case(Protocol):
    """What is known of a record here: its name."""

    @property
    def case(self) -> str: ...


R = TypeVar("R", bound=Recipe)
I = TypeVar("I", bound=DatasetInfo)  # noqa: E741
T = TypeVar("T")


@dataclass(frozen=True)
class Plan(Generic[R]):
    """One training: its recipe, and the folder that it goes to."""

    recipe: R
    folder: RunFolder


def begin(recipe: R, read: Callable[[Path], R], *, resume: bool, overwrite: bool) -> R:
    """The recipe as it is trained (`fast_dev_run` shortens it), once settings and run folder are found to fit.

    Starts the other processes, where there are several, and sets the number of threads.

    Args: read: reads a recipe of this field from a file.

    Raises: ConfigError: settings that cannot work, nothing to resume, or a run that was started with other settings.
    """
    if resume and overwrite:
        raise ConfigError("--resume continues a run and --overwrite replaces it: give one of them.")
    require_possible(recipe.trainer)
    launch(recipe.trainer)
    recipe = shortened(recipe)
    if resume:
        require_same(RunFolder(recipe.run), recipe, read)
    if recipe.trainer.threads is not None:
        torch.set_num_threads(recipe.trainer.threads)
    return recipe


def plans_of(recipe: R) -> list[Plan[R]]:
    """The model's training, and its control's if the recipe has one, which goes into the model's folder."""
    folder = RunFolder(recipe.run)
    control = [] if recipe.control is None else [Plan(recipe.of_control(folder.control.root), folder.control)]
    return [Plan(recipe, folder), *control]


def fit(
    plans: Sequence[Plan[R]],
    *,
    build_task: Callable[[R, int], DensePredictionTask],
    build_data: Callable[[], TrainingData],
    about: Callable[[], Mapping[str, Any]],
    score: str,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    announce: Announce = log.info,
    before_start: Callable[[], None] | None = None,
) -> None:
    """Train each plan, and write its best weights; those that have theirs already are left as they are.

    Args:
        plans: of `plans_of`; they share the data of the first.
        build_task: recipe, optimiser steps -> the task; its weights follow from the recipe's seed alone.
        build_data: the batches; reads the files, so everything else has been found to work when it is called.
        about: what the folder keeps of the dataset (`describe_dataset`), asked once the batches are built.
        score: the entry of the task's `epoch_scores` by which the best epoch is chosen.
        resume: go on from the folders' last checkpoints; the result equals that of an uninterrupted run.
        overwrite: replace a run that is there, once the recipe has been found to work.
        callbacks: further Lightning callbacks, such as a progress bar; of every process.
        announce: gets a line at each stage, from the first process.
        before_start: called once the recipe has been found to work, before anything is written.

    Raises:
        ConfigError: settings that cannot work, or a run folder in the way. TrainingDiverged: the loss is no number.
        Errors of the dataset's files, from its adapter.
    """
    announce = announce if is_first() else _nothing
    if resume and is_first():
        remove_partials(plans[0].folder.root)
    if resume and all(plan.folder.weights.exists() for plan in plans):
        for plan in plans:
            announce(f"{plan.recipe.model.name}: already trained, {plan.folder.weights}")
        return
    for plan in plans:  # a control that cannot be built is said now and not after the first training
        build_task(plan.recipe, 0)
    folder = plans[0].folder
    if not resume:
        folder.require_free(overwrite=overwrite)
    try:
        data = build_data()
        wait_for_all()  # nobody finds what the first process writes from here on
        if is_first():
            if before_start is not None:
                before_start()
            for plan in plans:
                if (plan is plans[0] and not resume) or not plan.folder.exists():
                    replaces = overwrite and plan is plans[0]
                    plan.folder.start(recipe_text(plan.recipe), overwrite=replaces, about=about())
        wait_for_all()
        trained = [plan.folder.weights.exists() for plan in plans]
        for plan, is_trained in zip(plans, trained, strict=True):
            if is_trained:
                announce(f"{plan.recipe.model.name}: already trained, {plan.folder.weights}")
                continue
            epochs = plan.recipe.trainer.max_epochs
            announce(f"training {plan.recipe.model.name}: {epochs} epochs of {data.steps_per_epoch} steps")
            _fit(plan, build_task, data, score=score, resume=resume, callbacks=callbacks)
    finally:
        if is_first():
            shutil.rmtree(folder.cache, ignore_errors=True)


def shortened(recipe: R) -> R:
    """The recipe as it is trained: with `fast_dev_run`, two steps of one epoch."""
    if not recipe.trainer.fast_dev_run:
        return recipe
    trainer = dataclasses.replace(recipe.trainer, max_epochs=1, steps_per_epoch=2, accumulate=1, val_every_epochs=1)
    return dataclasses.replace(recipe, trainer=trainer)  # type: ignore[type-var]


def require_same(folder: RunFolder, recipe: R, read: Callable[[Path], R]) -> None:
    """Raise `ConfigError` unless a run is in `folder` that was started with these settings."""
    folder.require()
    differing = difference(read(folder.config), recipe)
    if differing:
        raise ConfigError(
            f"{folder.root} was started with other settings ({', '.join(differing)}), so continuing it would be "
            f"neither run. Resume with `--config {folder.config} --resume`, or start anew with --run."
        )


def seeded(seed: int, build: Callable[[], T]) -> T:
    """What `build` makes (a task, a net), with weights that follow from `seed` alone, whatever was built before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def describe_dataset(layout: str, info: DatasetInfo, splits: Mapping[Any, Sequence[Case]]) -> dict[str, Any]:
    """What the dataset is when training begins: its layout, its classes and channels, the cases of each split."""
    cases = {split: [record.case for record in records] for split, records in splits.items()}
    return {"layout": layout, **dataclasses.asdict(info), "splits": cases}


def read_info(folder: RunFolder, kind: type[I]) -> I:
    """What the dataset said of itself when the run in `folder` began; `CheckpointError` where that cannot be read."""
    stored = read_about(folder, [field.name for field in dataclasses.fields(kind)])
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
    }
    return kind(**values)


def require_same_cases(folder: RunFolder, splits: Mapping[Any, Sequence[Case]]) -> None:
    """Raise `ConfigError` unless the splits hold the cases they held when the run in `folder` began."""
    stored = read_about(folder, ["splits"])["splits"]
    for split, records in splits.items():
        changed = {record.case for record in records} ^ set(stored[split])
        if changed:
            raise ConfigError(
                f"{folder.root} was started with other cases in the split {split!r} ({', '.join(sorted(changed)[:5])} "
                "came or went), so continuing it would be neither run. Restore the dataset, or start anew with --run."
            )


def read_about(folder: RunFolder, names: Sequence[str]) -> dict[str, Any]:
    """The named entries of the folder's dataset.json; `CheckpointError` where they cannot be read."""
    try:
        stored = json.loads(folder.dataset.read_text(encoding="utf-8"))
        return {name: stored[name] for name in names}
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder.dataset} cannot be read ({error}); it names the classes that the weights predict. "
            "Train again with --overwrite."
        ) from error


def _fit(
    plan: Plan[R],
    build_task: Callable[[R, int], DensePredictionTask],
    data: TrainingData,
    *,
    score: str,
    resume: bool,
    callbacks: Sequence[Callback],
) -> None:
    assert isinstance(data, LightningDataModule)
    recipe, folder, settings = plan.recipe, plan.folder, plan.recipe.trainer
    task = build_task(recipe, -(-data.steps_per_epoch // settings.accumulate) * settings.max_epochs)
    run_training(task, data, settings, folder, score=score, resume=resume, callbacks=callbacks)
    if is_first():
        state = read_checkpoint(folder.best)["state_dict"]
        prefix = "net." if recipe.model.average_decay is None else "averaged."
        weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        save_weights(weights, folder.weights, recipe.model.about)
    wait_for_all()


def _nothing(line: str) -> None:
    """What processes after the first announce."""
