"""A whole run: recipe -> run folder with weights, history, test scores, predictions and report; and back again.

result = train(read_recipe(Path("recipes/medical/demo.yaml")), overwrite=True)
run = load_run(result.folder.root)      # net in eval mode, classes, normalisation, ...
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from statefield.datasets.sample import DatasetInfo, Record
from statefield.datasets.splits import Split
from statefield.errors import ConfigError
from statefield.tasks.common.checkpointing import (
    AtomicCheckpointIO,
    RunCheckpoints,
    read_checkpoint,
    save_weights,
    verify_checkpoint,
)
from statefield.tasks.common.config import TrainerConfig
from statefield.tasks.common.data import PatchData
from statefield.tasks.common.run_folder import RunFolder, read_history
from statefield.tasks.medical.experiment import (
    Dataset,
    Splits,
    TrainedRun,
    build_data,
    build_task,
    load_run,
    require_same_cases,
    write_info,
)
from statefield.tasks.medical.recipe import SegmentationRecipe, difference, read_recipe, recipe_text
from statefield.tasks.medical.segmentation import VALIDATION_SCORE
from statefield.tasks.medical.testing import CaseProgress, Contender, TestResult, evaluate, finish, metrics_of

log = logging.getLogger(__name__)
Announce = Callable[[str], None]


def fit(
    recipe: SegmentationRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    announce: Announce = log.info,
) -> list[TrainedRun]:
    """Train the recipe's model into its run folder, and then its control, if it names one.

    Args:
        resume: go on from the run folder's last checkpoint; the result equals that of an uninterrupted run.
        overwrite: replace a run that is there, once the recipe has been found to work.
        callbacks: further Lightning callbacks, such as a progress bar.
        announce: gets a line at each stage.

    Returns the model, and the control if there is one, with their best weights.

    Raises:
        ConfigError: settings that cannot work, a run folder in the way, or nothing to resume.
        TrainingDiverged: the loss is no longer a number.
        Errors of the dataset's files, from its adapter.
    """
    if resume and overwrite:
        raise ConfigError("--resume continues a run and --overwrite replaces it: give one of them.")
    _require_possible(recipe.trainer)
    recipe = _shortened(recipe) if recipe.trainer.fast_dev_run else recipe
    folder = RunFolder(recipe.run)
    if resume:
        _require_same(folder, recipe)
    if recipe.trainer.threads is not None:
        torch.set_num_threads(recipe.trainer.threads)
    dataset = Dataset.of(recipe)
    metrics_of(recipe.metrics, dataset.info.classes, unit="mm")  # settings that cannot score are said now
    splits: Splits = {"train": dataset.records("train"), "val": dataset.records("val"), "test": dataset.records("test")}
    if resume:
        require_same_cases(folder, splits)
    plans = [(recipe, folder)]
    if recipe.control is not None:
        plans.append((recipe.of_control(folder.control.root), folder.control))
    for plan, _ in plans:  # a control that cannot be built is said now and not after the first training
        build_task(plan, dataset.info, total_steps=0)
    if not resume:
        folder.require_free(overwrite=overwrite)
    try:
        data = build_data(recipe, dataset, splits, folder)
        for record in splits["test"]:  # a damaged test case is said now and not after the training
            data.store.load(record, keep=False)
        if not resume:
            folder.start(recipe_text(recipe), overwrite=overwrite)
            write_info(folder, dataset, splits)
        for plan, place in plans:
            if not place.exists():
                place.start(recipe_text(plan), overwrite=False)
                write_info(place, dataset, splits)
            if place.weights.exists():
                announce(f"{plan.model.name}: already trained, {place.weights}")
                continue
            steps = data.steps_per_epoch
            announce(f"training {plan.model.name}: {plan.trainer.max_epochs} epochs of {steps} steps")
            _fit(plan, place, dataset.info, data, resume=resume, callbacks=callbacks)
    finally:
        shutil.rmtree(folder.cache, ignore_errors=True)
    return [load_run(place.root) for _, place in plans]


def train(
    recipe: SegmentationRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    announce: Announce = log.info,
    progress: CaseProgress | None = None,
) -> TestResult:
    """`fit`, then test what was trained on the held-out cases, and write predictions, scores and the report.

    Arguments and errors are those of `fit`; `progress(case, slices_done, slices)` is called while testing.
    """
    trained = fit(recipe, resume=resume, overwrite=overwrite, callbacks=callbacks, announce=announce)
    dataset = Dataset.of(recipe)
    records = dataset.records("test")[: 1 if recipe.trainer.fast_dev_run else None]
    announce(f"testing on {len(records)} cases")
    main, *controls = [
        _contender(run, dataset, records, role="model" if run is trained[0] else "control", progress=progress)
        for run in trained
    ]
    return finish(
        trained[0].folder,
        recipe,
        dataset.info,
        main,
        controls,
        baseline=_baseline_records(recipe, dataset),
        adapter=dataset.adapter,
        records=records,
        history=read_history(trained[0].folder.history),
    )


def test(
    folder: str | Path,
    *,
    split: Split = "test",
    root: Path | None = None,
    output: Path | None = None,
    announce: Announce = log.info,
    progress: CaseProgress | None = None,
) -> TestResult:
    """Score a trained run on a split of its dataset, or of another one with the same classes and channels.

    Results go to `output`, by default RUN/test_SPLIT: metrics.json, predictions/ and report.html.
    """
    run = load_run(folder)
    recipe = run.recipe
    if root is not None:
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, root=root, layout="auto"))
    dataset = Dataset.of(recipe)
    if (dataset.info.classes, dataset.info.channels) != (run.info.classes, run.info.channels):
        raise ConfigError(
            f"{dataset.root or dataset.adapter.name} has classes {dataset.info.classes} and channels "
            f"{dataset.info.channels}, but {folder} was trained on {run.info.classes} and {run.info.channels}: "
            "the two must be equal."
        )
    records = dataset.records(split)
    place = RunFolder(output or run.folder.root / f"test_{split}")
    announce(f"testing on {len(records)} cases of the split {split}")
    contender = _contender(run, dataset, records, role="model", progress=progress, predictions=place.predictions)
    return finish(
        place, recipe, dataset.info, contender, [], baseline=[], adapter=dataset.adapter, records=records, history=[]
    )


def _contender(
    run: TrainedRun,
    dataset: Dataset,
    records: Sequence[Record],
    *,
    role: Any,
    progress: CaseProgress | None,
    predictions: Path | None = None,
) -> Contender:
    history = read_history(run.folder.history)
    device = torch.device("cuda" if _uses_gpu(run.recipe) else "cpu")
    scored = evaluate(
        run.net.to(device),
        dataset.adapter,
        records,
        classes=run.classes,
        normalisation=run.normalisation,
        slice_context=run.slice_context,
        roi=run.roi,
        inference=run.inference,
        scoring=run.recipe.metrics,
        predictions=predictions or run.folder.predictions,
        progress=progress,
    )
    return Contender(
        name=run.recipe.model.name,
        role=role,
        scored=scored,
        num_parameters=run.task.num_parameters,
        train_seconds=history[-1]["seconds"],
        best_epoch=_best_epoch(history),
    )


def _uses_gpu(recipe: SegmentationRecipe) -> bool:
    return recipe.trainer.accelerator != "cpu" and torch.cuda.is_available()


def _best_epoch(history: Sequence[dict[str, float | None]]) -> int | None:
    scored = [(score, -(row["epoch"] or 0)) for row in history if (score := row.get(VALIDATION_SCORE)) is not None]
    return int(-max(scored)[1]) if scored else None


def _baseline_records(recipe: SegmentationRecipe, dataset: Dataset) -> list[Record]:
    wanted = recipe.threshold_baseline
    if wanted is None:
        wanted = dataset.adapter.name == "mni152"
    return dataset.records("train") if wanted else []


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
    checkpoint = folder.last if resume and (folder.last.exists() or folder.previous.exists()) else None
    if checkpoint is not None:
        verify_checkpoint(checkpoint)
    with _quiet_lightning():
        trainer = Trainer(
            default_root_dir=folder.root,
            accelerator=settings.accelerator,
            devices=1,
            precision=settings.precision,
            max_epochs=settings.max_epochs,
            gradient_clip_val=settings.gradient_clip,
            accumulate_grad_batches=settings.accumulate,
            check_val_every_n_epoch=settings.val_every_epochs,
            limit_val_batches=1 if settings.fast_dev_run else None,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            plugins=[AtomicCheckpointIO()],
            callbacks=[
                RunCheckpoints(folder, save_every_steps=settings.save_every_steps, score=VALIDATION_SCORE),
                *callbacks,
            ],
        )
        try:
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as stop:  # how Lightning passes on Ctrl-C
            raise KeyboardInterrupt from stop
    state = read_checkpoint(folder.best)["state_dict"]
    prefix = "net." if recipe.model.average_decay is None else "averaged."
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    save_weights(weights, folder.weights, recipe.model.about)


def _require_possible(settings: TrainerConfig) -> None:
    for name in ("max_epochs", "steps_per_epoch", "accumulate", "val_every_epochs", "save_every_steps", "threads"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ConfigError(f"trainer.{name} = {value}: 1 or more is needed.")
    if settings.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            "trainer.accelerator is 'gpu', but torch finds no GPU here (`statefield doctor` says why): use auto or cpu."
        )
    if settings.max_epochs % settings.val_every_epochs and not settings.fast_dev_run:
        raise ConfigError(
            f"trainer.val_every_epochs = {settings.val_every_epochs} does not divide trainer.max_epochs = "
            f"{settings.max_epochs}: the last epoch would go without validation."
        )


def _shortened(recipe: SegmentationRecipe) -> SegmentationRecipe:
    trainer = dataclasses.replace(
        recipe.trainer, max_epochs=1, steps_per_epoch=2, accumulate=1, val_every_epochs=1, fast_dev_run=True
    )
    return dataclasses.replace(recipe, trainer=trainer)


def _require_same(folder: RunFolder, recipe: SegmentationRecipe) -> None:
    folder.require()
    differing = difference(read_recipe(folder.config), recipe)
    if differing:
        raise ConfigError(
            f"{folder.root} was started with other settings ({', '.join(differing)}), so continuing it would be "
            f"neither run. Resume with `--config {folder.config} --resume`, or start anew with --run."
        )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without the lines of Lightning's that a user of ours can do nothing about; each is named."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            "The 'train_dataloader' does not have many workers",  # patches take a small part of a step
            "The 'val_dataloader' does not have many workers",
            "You're resuming from a checkpoint that ended before the epoch ended",  # our sampler knows its position
            r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and torch
            "GPU available but not used",  # was asked for
            r"Found \d+ module\(s\) in eval mode at the start of training",  # after a resume
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
