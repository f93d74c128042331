"""A whole run: recipe -> run folder with weights, history, test scores, predictions and report; and back again.

result = train(read_recipe(Path("recipes/medical/demo.yaml")), overwrite=True)
run = load_run(result.folder.root)      # net in eval mode, classes, normalisation, ...
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback

from statefield.datasets.sample import Record
from statefield.datasets.splits import Split
from statefield.errors import ConfigError
from statefield.tasks.common.outcome import TestResult
from statefield.tasks.common.parallel import is_first
from statefield.tasks.common.run_folder import RunFolder, read_history
from statefield.tasks.medical.contenders import choose_on_validation, contender
from statefield.tasks.medical.ensemble import load_run
from statefield.tasks.medical.experiment import Dataset
from statefield.tasks.medical.folds import cross_validate
from statefield.tasks.medical.recipe import SegmentationRecipe
from statefield.tasks.medical.testing import CaseProgress, finish
from statefield.tasks.medical.training import Announce, fit

__all__ = ["fit", "load_run", "test", "train"]

log = logging.getLogger(__name__)


def train(
    recipe: SegmentationRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    announce: Announce = log.info,
    progress: CaseProgress | None = None,
) -> TestResult | None:
    """`fit`, then test what was trained on the held-out cases, and write predictions, scores and the report.

    With `recipe.folds`, `cross_validate`. Between the two, largest-component post-processing is chosen on the
    validation cases of volumes (`inference.postprocess`).

    Arguments and errors are those of `fit`; `progress(case, slices_done, slices)` is called while testing. Of several
    processes the first tests; the others get None.
    """
    if recipe.folds is not None or recipe.fold is not None:
        return cross_validate(
            recipe, resume=resume, overwrite=overwrite, callbacks=callbacks, announce=announce, progress=progress
        )
    trained = fit(recipe, resume=resume, overwrite=overwrite, callbacks=callbacks, announce=announce)
    if not is_first():
        return None
    dataset = Dataset.of(recipe)
    records = dataset.records("test")[: 1 if recipe.trainer.fast_dev_run else None]
    for run in trained:
        if (choice := choose_on_validation(run, dataset, progress)) is not None:
            announce(f"{run.recipe.model.name}: {choice.about(run.classes)}")
    announce(f"testing on {len(records)} cases")
    main, *controls = [
        contender(run, dataset, records, role="model" if run is trained[0] else "control", progress=progress)
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
    scored = contender(run, dataset, records, role="model", progress=progress, predictions=place.predictions)
    return finish(
        place, recipe, dataset.info, scored, [], baseline=[], adapter=dataset.adapter, records=records, history=[]
    )


def _baseline_records(recipe: SegmentationRecipe, dataset: Dataset) -> list[Record]:
    wanted = recipe.threshold_baseline
    if wanted is None:
        wanted = dataset.adapter.name == "mni152"
    return dataset.records("train") if wanted else []
