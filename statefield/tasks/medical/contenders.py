"""From a trained run to a scored contender, and the post-processing that a run's held-out cases speak for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray

from statefield.datasets.sample import DatasetInfo, Record
from statefield.tasks.common.run_folder import best_epoch, read_history
from statefield.tasks.medical.experiment import Dataset, TrainedRun
from statefield.tasks.medical.postprocessing import (
    FILE_NAME,
    Choice,
    Postprocessing,
    TrialState,
    choose,
    load_postprocessing,
    try_candidates,
)
from statefield.tasks.medical.recipe import SegmentationRecipe
from statefield.tasks.medical.segmentation import VALIDATION_SCORE
from statefield.tasks.medical.testing import CaseProgress, Contender, Scored, evaluate


def scored(
    run: TrainedRun,
    dataset: Dataset,
    records: Sequence[Record],
    *,
    postprocess: Postprocessing,
    predictions: Path | None,
    progress: CaseProgress | None = None,
    trial: Trial | None = None,
) -> Scored:
    """Predict and score cases with a run's net, on a GPU where the recipe allows one and there is one.

    Args:
        postprocess: what is done to each label map before it is scored and written.
        predictions: the folder of the written label maps; None: they are not written.
        trial: is shown each label map, as the net gave it.
    """
    gpu = run.recipe.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return evaluate(
        run.net.to("cuda" if gpu else "cpu"),
        dataset.adapter,
        records,
        classes=run.classes,
        normalisation=run.normalisation,
        slice_context=run.slice_context,
        roi=run.roi,
        inference=run.inference,
        scoring=run.recipe.metrics,
        predictions=predictions,
        progress=progress,
        spacing=run.spacing,
        postprocess=postprocess,
        observe=trial,
    )


def contender(
    run: TrainedRun,
    dataset: Dataset,
    records: Sequence[Record],
    *,
    role: Literal["model", "control"],
    predictions: Path | None = None,
    progress: CaseProgress | None = None,
    train_seconds: float | None = None,
) -> Contender:
    """A trained run, tested: with its own post-processing, its predictions in its folder unless told otherwise.

    `train_seconds` is what an ensemble cost, which has no history of its own.
    """
    result = scored(
        run,
        dataset,
        records,
        postprocess=load_postprocessing(run.folder.root),
        predictions=predictions or run.folder.predictions,
        progress=progress,
    )
    return as_contender(run, result, role=role, train_seconds=train_seconds)


def as_contender(
    run: TrainedRun, result: Scored, *, role: Literal["model", "control"], train_seconds: float | None = None
) -> Contender:
    """The scores of a run beside what its training cost."""
    history = read_history(run.folder.history) if run.folder.history.exists() else []
    return Contender(
        name=run.recipe.model.name,
        role=role,
        scored=result,
        num_parameters=run.task.num_parameters,
        train_seconds=history[-1]["seconds"] if history else train_seconds,
        best_epoch=best_epoch(history, VALIDATION_SCORE),
    )


def wants_postprocessing(recipe: SegmentationRecipe, info: DatasetInfo) -> bool:
    """Whether a largest component is looked for: in volumes, unless the recipe says no. An organ is one piece of a
    volume; what a picture shows (vessels, cells, polyps) is as often several."""
    return recipe.inference.postprocess == "auto" and info.spatial_dims == 3


class Trial:
    """Tries every candidate of post-processing on the label maps it is shown."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.state = TrialState()

    def __call__(self, case: str, labels: NDArray[Any], target: NDArray[Any]) -> None:
        self.state += try_candidates(labels, target, case=case, num_classes=self.num_classes)


def choose_on_validation(run: TrainedRun, dataset: Dataset, progress: CaseProgress | None = None) -> Choice | None:
    """Choose a run's post-processing on its validation cases and write it.

    None where it is not wanted, is there already, or has too few cases to rest on.
    """
    if not wants_postprocessing(run.recipe, run.info) or (run.folder.root / FILE_NAME).exists():
        return None
    records = dataset.records("val")[: 1 if run.recipe.trainer.fast_dev_run else None]
    if len(records) < run.recipe.inference.postprocess_min_cases:
        return None
    trial = Trial(len(run.classes))
    scored(run, dataset, records, postprocess=Postprocessing(), predictions=None, progress=progress, trial=trial)
    choice = choose(trial.state)
    choice.write(run.folder.root, run.classes, source="the validation cases")
    return choice
