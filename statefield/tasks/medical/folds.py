"""k-fold cross-validation: k runs that each hold out another part of the cases, their scores pooled, and the ensemble.

    RUN/config.yaml, metrics.json, report.html, ...     the whole: out-of-fold scores, and the ensemble's
    RUN/fold_0 ... RUN/fold_{k-1}                       ordinary runs, scored on the cases they held out

The folds divide the training and validation cases together, whole patients at a time, by name and seed
(`datasets.splits.fold_cases`); the test cases belong to no fold. Every case is predicted once by a net that never saw
it, and these out-of-fold scores are pooled as states: the means are over all cases, never means of folds' means.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback

from statefield.datasets.sample import Record
from statefield.errors import ConfigError
from statefield.files import write_text
from statefield.tasks.common.outcome import TestResult
from statefield.tasks.common.parallel import is_first, launch
from statefield.tasks.common.report import Table, Value
from statefield.tasks.common.run_folder import RunFolder, read_history
from statefield.tasks.common.segmentation_metrics import SegmentationState
from statefield.tasks.common.trainer import require_possible
from statefield.tasks.medical.contenders import Trial, as_contender, contender, scored, wants_postprocessing
from statefield.tasks.medical.ensemble import load_folds
from statefield.tasks.medical.experiment import Dataset, TrainedRun
from statefield.tasks.medical.postprocessing import FILE_NAME, Choice, Postprocessing, choose
from statefield.tasks.medical.recipe import SegmentationRecipe, recipe_text
from statefield.tasks.medical.testing import CaseProgress, Contender, Scored, finish
from statefield.tasks.medical.training import Announce, fit, require_same, shortened

log = logging.getLogger(__name__)
Role = Literal["model", "control"]


@dataclass(frozen=True, eq=False)
class _Fold:
    """A trained fold: the scores of its held-out cases, of the model first, then of its control if there is one."""

    index: int
    cases: int
    contenders: Sequence[Contender]
    result: TestResult


def cross_validate(
    recipe: SegmentationRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    announce: Announce = log.info,
    progress: CaseProgress | None = None,
) -> TestResult | None:
    """Train and score the folds of a recipe one after the other, and then all of them together.

    With `recipe.fold`, that fold alone: machines may share the folds, and the last command, without `fold` and with
    `resume`, finds them trained. A run that was stopped anywhere goes on where it was with `resume`.

    Returns the result of the whole: the ensemble on the test cases, or, where the dataset has none, the out-of-fold
    scores; of a single fold, the scores of its held-out cases. Of several processes the first scores; the others get
    None.

    Raises: what `fit` raises.
    """
    if resume and overwrite:
        raise ConfigError("--resume continues a run and --overwrite replaces it: give one of them.")
    require_possible(recipe.trainer)
    launch(recipe.trainer)
    recipe = shortened(recipe)
    training: dict[str, Any] = {"callbacks": callbacks, "announce": announce, "progress": progress}
    if recipe.fold is not None:
        alone = _train_alone(recipe, resume=resume, overwrite=overwrite, **training)
        return None if alone is None else alone.result
    folder = RunFolder(recipe.run)
    if resume:
        require_same(folder, recipe)
    else:
        folder.require_free(overwrite=overwrite)
    dataset = Dataset.of(recipe)
    trial = Trial(len(dataset.info.classes)) if wants_postprocessing(recipe, dataset.info) else None

    def start() -> None:
        folder.start(recipe_text(recipe), overwrite=overwrite)

    first = None if resume else start
    folds = [
        _train_fold(
            recipe.of_fold(index),
            resume=resume,
            overwrite=overwrite and index == 0,  # with fold 0 the whole folder starts anew
            before_start=None if index else first,
            trial=trial,
            **training,
        )
        for index in range(_num_folds(recipe))
    ]
    scored_folds = [fold for fold in folds if fold is not None]
    if not is_first():
        return None
    choice = None
    if trial is not None and len(trial.state.cases) >= recipe.inference.postprocess_min_cases:
        choice = choose(trial.state)
        choice.write(folder.root, dataset.info.classes, source="the out-of-fold predictions of all cases")
    return _finish(recipe, folder, dataset, scored_folds, choice, announce=announce, progress=progress)


def _train_alone(recipe: SegmentationRecipe, *, resume: bool, overwrite: bool, **training: Any) -> _Fold | None:
    """One fold for itself, in a folder that other machines may be filling with the others."""
    assert recipe.fold is not None
    recipe = recipe.of_fold(recipe.fold)
    root = RunFolder(recipe.run.parent)
    whole = dataclasses.replace(recipe, run=root.root, fold=None)
    if root.exists():
        require_same(root, whole)
    else:
        root.require_free(overwrite=False)
    if resume:
        RunFolder(recipe.run).require()

    def start() -> None:
        if not root.exists():
            write_text(root.config, recipe_text(whole))

    return _train_fold(recipe, resume=resume, overwrite=overwrite, before_start=start, trial=None, **training)


def _train_fold(
    recipe: SegmentationRecipe,
    *,
    resume: bool,
    overwrite: bool = False,
    before_start: Callable[[], None] | None,
    trial: Trial | None,
    callbacks: Sequence[Callback],
    announce: Announce,
    progress: CaseProgress | None,
) -> _Fold | None:
    """Train a fold, or find it trained, and score its held-out cases as its run's own metrics.json and report."""
    assert recipe.fold is not None
    if is_first():
        announce(f"fold {recipe.fold} of 0 to {_num_folds(recipe) - 1}")
    place = RunFolder(recipe.run)
    begun = resume and place.dataset.exists()  # else nothing was trained in it yet
    trained = fit(
        recipe,
        resume=begun,
        overwrite=overwrite or (resume and not begun),
        callbacks=callbacks,
        announce=announce,
        before_start=before_start,
    )
    if not is_first():
        return None
    dataset = Dataset.of(recipe)
    records = dataset.records("val")[: 1 if recipe.trainer.fast_dev_run else None]
    announce(f"predicting the {len(records)} held-out cases of fold {recipe.fold}")
    contenders = [
        _held_out(run, dataset, records, role=role, trial=trial if role == "model" else None, progress=progress)
        for run, role in zip(trained, _ROLES, strict=False)
    ]
    main, *controls = contenders
    result = finish(
        place,
        recipe,
        dataset.info,
        main,
        controls,
        baseline=[],
        adapter=dataset.adapter,
        records=records,
        history=read_history(place.history),
        notes=[f"The cases shown are those that fold {recipe.fold} of the cross-validation held out."],
    )
    return _Fold(recipe.fold, len(records), contenders, result)


_ROLES: tuple[Role, ...] = ("model", "control")


def _held_out(
    run: TrainedRun,
    dataset: Dataset,
    records: Sequence[Record],
    *,
    role: Role,
    trial: Trial | None,
    progress: CaseProgress | None,
) -> Contender:
    result = scored(
        run,
        dataset,
        records,
        postprocess=Postprocessing(),  # it is chosen on these very predictions
        predictions=run.folder.predictions,
        progress=progress,
        trial=trial,
    )
    return as_contender(run, result, role=role)


def _finish(
    recipe: SegmentationRecipe,
    folder: RunFolder,
    dataset: Dataset,
    folds: Sequence[_Fold],
    choice: Choice | None,
    *,
    announce: Announce,
    progress: CaseProgress | None,
) -> TestResult:
    """Pool the folds, test their ensemble, and write metrics.json and the report of the whole."""
    pooled = [_pooled(folds, position) for position in range(len(folds[0].contenders))]
    records = dataset.test_records()[: 1 if recipe.trainer.fast_dev_run else None]
    if records:
        announce(f"testing the ensemble on {len(records)} cases")
        tested = [_tested(recipe, folder, dataset, records, folds, index, progress) for index in range(len(pooled))]
        notes = [
            f"The scores and pictures are of the ensemble of the {len(folds)} folds (mean of their class "
            "probabilities) on the test cases, which belong to no fold."
        ]
    else:
        tested = pooled
        records = [record for index in range(len(folds)) for record in Dataset.of(recipe.of_fold(index)).records("val")]
        notes = ["The dataset has no test cases: the scores and pictures are out-of-fold."]
    if choice is not None:
        notes.append(f"{choice.about(dataset.info.classes)} It was chosen on the out-of-fold predictions.")
    main, *controls = tested
    baseline = dataset.records("train") if recipe.threshold_baseline else []
    return finish(
        folder,
        recipe,
        dataset.info,
        main,
        controls,
        baseline=baseline,
        adapter=dataset.adapter,
        records=records,
        history=[],
        notes=notes,
        tables=[_table_of_folds(folds, pooled[0], dataset.info.classes), _table_of_scores(pooled[0].scored.summary)],
        extra={
            "cross_validation": {
                "folds": len(folds),
                "averaging": "over the cases of all folds together; no mean of folds' means",
                "out_of_fold": {one.role: {"encoder": one.name, "scores": one.scored.summary} for one in pooled},
                "cases": {f"fold_{fold.index}": sorted(fold.contenders[0].scored.state.cases) for fold in folds},
            },
            "postprocessing": FILE_NAME if choice is not None else None,
        },
    )


def _pooled(folds: Sequence[_Fold], position: int) -> Contender:
    """The out-of-fold scores of all cases: states add, so it is as if one net had predicted them all."""
    members = [fold.contenders[position] for fold in folds]
    first = members[0]
    state = sum((one.scored.state for one in members), SegmentationState())
    views = [view for one in members for view in one.scored.views]
    seconds = sum(one.scored.seconds for one in members)
    together = Scored(first.scored.metrics, first.scored.metrics.summarise(state), views, seconds, state)
    return dataclasses.replace(first, scored=together, train_seconds=_seconds(members), best_epoch=None)


def _tested(
    recipe: SegmentationRecipe,
    folder: RunFolder,
    dataset: Dataset,
    records: Sequence[Record],
    folds: Sequence[_Fold],
    position: int,
    progress: CaseProgress | None,
) -> Contender:
    run = load_folds(recipe, folder, control=position > 0)
    role = _ROLES[position]
    place: Path = folder.predictions if role == "model" else folder.control.predictions
    return contender(
        run,
        dataset,
        records,
        role=role,
        predictions=place,
        progress=progress,
        train_seconds=_seconds([fold.contenders[position] for fold in folds]),
    )


def _seconds(members: Sequence[Contender]) -> float | None:
    known = [one.train_seconds for one in members if one.train_seconds is not None]
    return sum(known) if len(known) == len(members) else None


def _table_of_folds(folds: Sequence[_Fold], pooled: Contender, classes: Sequence[str]) -> Table:
    def row(name: str, one: Contender) -> dict[str, Value]:
        dice = one.scored.summary["metrics"]["Dice"]
        values: dict[str, Value] = {"fold": name, "cases": one.scored.summary["num_cases"]}
        values |= {f"Dice {label}": dice["classes"][label]["pooled"] for label in classes[1:]}
        values["mean Dice"] = dice["foreground_pooled"]
        values["best epoch"] = one.best_epoch
        values["training"] = None if one.train_seconds is None else f"{one.train_seconds:.0f} s"
        return values

    rows = [row(str(fold.index), fold.contenders[0]) for fold in folds]
    lead = (
        "Each fold's net on the cases it never saw; Dice pooled over voxels. The last row is from the counts of all "
        "cases together and is no mean of the others."
    )
    return Table("Cross-validation", lead, [*rows, row("all", pooled)])


def _table_of_scores(summary: Mapping[str, Any]) -> Table:
    rows: list[dict[str, Value]] = []
    for metric, entry in summary["metrics"].items():
        for name, values in list(entry["classes"].items())[1:]:
            low, high = values["ci95"]
            row: dict[str, Value] = {"metric": metric, "class": name, "mean over cases": values["case_mean"]}
            row |= {"95 % from": low, "to": high, "cases counted": values["num_counted"]}
            rows.append(row)
    lead = (
        f"All {summary['num_cases']} cases, each predicted by the net of the fold that held it out, before "
        "post-processing. Intervals: 95 % percentile bootstrap over cases."
    )
    return Table("Out-of-fold scores", lead, rows)


def _num_folds(recipe: SegmentationRecipe) -> int:
    assert recipe.folds is not None
    return recipe.folds
