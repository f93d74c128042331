"""Training and testing of change detection: recipe -> run folder with weights, history, scores, maps and report.

result = train(read_recipe(Path("recipes/remote_sensing/oscd.yaml")), overwrite=True)
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from statefield.datasets.sample import Record
from statefield.datasets.splits import Split
from statefield.errors import ConfigError
from statefield.files import write_json
from statefield.tasks.common import fitting
from statefield.tasks.common.fitting import Announce
from statefield.tasks.common.outcome import TestResult
from statefield.tasks.common.parallel import is_first
from statefield.tasks.common.run_folder import RunFolder, read_history
from statefield.tasks.remote_sensing.change_kinds import ShiftedLogits, change_kind
from statefield.tasks.remote_sensing.change_pairs import ChangeData, PairStore, as_pair, band_numbers
from statefield.tasks.remote_sensing.change_recipe import ChangeRecipe, read_recipe
from statefield.tasks.remote_sensing.change_run import THRESHOLD_FILE, ChangeDataset, ChangeRun, load_change_run
from statefield.tasks.remote_sensing.change_task import build_task, predict_pair
from statefield.tasks.remote_sensing.change_testing import CaseProgress, contender, finish

log = logging.getLogger(__name__)
_SPLITS: tuple[Split, ...] = ("train", "val", "test")


def fit(
    recipe: ChangeRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    announce: Announce = log.info,
) -> list[ChangeRun]:
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
    recipe = fitting.begin(recipe, read_recipe, resume=resume, overwrite=overwrite)
    dataset = ChangeDataset.of(recipe)
    bands = band_numbers(recipe.data.bands, dataset.info)
    kind = change_kind(recipe.model.task, dataset.info, recipe.model.loss)
    splits = {split: dataset.records(split) for split in _SPLITS}
    plans = fitting.plans_of(recipe)
    if resume:
        fitting.require_same_cases(plans[0].folder, splits)
    cache = plans[0].folder.cache if recipe.data.cache == "disk" else None
    built: list[ChangeData] = []

    def data() -> ChangeData:
        store = PairStore(dataset.adapter, kind, bands, cache)
        steps = recipe.trainer.steps_per_epoch
        made = ChangeData(store, splits["train"], splits["val"], recipe.data, steps_per_epoch=steps, seed=recipe.seed)
        for record in splits["test"]:  # a damaged test pair is said now and not after the training
            store.load(record, keep=False)
        built.append(made)
        return made

    def about() -> dict[str, Any]:
        fixed = built[0].scaler.fixed
        scaling = None if fixed is None else dataclasses.asdict(fixed)
        return fitting.describe_dataset(dataset.adapter.name, dataset.info, splits) | {"scaling": scaling}

    fitting.fit(
        plans,
        build_task=lambda plan, steps: build_task(plan, dataset.info, num_bands=len(bands), total_steps=steps),
        build_data=data,
        about=about,
        score=kind.score,
        resume=resume,
        overwrite=overwrite,
        callbacks=callbacks,
        announce=announce,
    )
    return [load_change_run(plan.folder.root) for plan in plans]


def train(
    recipe: ChangeRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    announce: Announce = log.info,
    progress: CaseProgress | None = None,
) -> TestResult | None:
    """`fit`, then test what was trained on the held-out pairs, and write maps, scores and the report.

    Between the two the threshold is chosen on the validation pairs, where the recipe asks for it. Arguments and errors
    are those of `fit`; `progress(case, windows_done, windows)` is called while predicting. Of several processes the
    first tests; the others get None.
    """
    trained = fit(recipe, resume=resume, overwrite=overwrite, callbacks=callbacks, announce=announce)
    if not is_first():
        return None
    dataset = ChangeDataset.of(recipe)
    few = 1 if recipe.trainer.fast_dev_run else None
    if recipe.inference.threshold == "val":
        trained = [_with_threshold(run, dataset, dataset.records("val")[:few], progress) for run in trained]
        for run in trained:
            announce(f"{run.recipe.model.name}: threshold {run.threshold:g}, chosen on the validation pairs")
    records = dataset.records("test")[:few]
    announce(f"testing on {len(records)} pairs")
    main, *controls = [
        contender(run, dataset, records, role="model" if run is trained[0] else "control", progress=progress)
        for run in trained
    ]
    folder = trained[0].folder
    return finish(folder, recipe, dataset, records, main, controls, history=read_history(folder.history))


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
    run = load_change_run(folder)
    recipe = run.recipe
    if root is not None:
        data = dataclasses.replace(recipe.data, root=root, layout="auto", options={})
        recipe = dataclasses.replace(recipe, data=data)
    dataset = ChangeDataset.of(recipe)
    if dataset.info != run.info:
        raise ConfigError(
            f"{dataset.root or dataset.adapter.name} is {dataset.info}, but {folder} was trained on {run.info}: "
            "classes and channels must be equal."
        )
    records = dataset.records(split)
    place = RunFolder(output or run.folder.root / f"test_{split}")
    announce(f"testing on {len(records)} pairs of the split {split}")
    scored = contender(run, dataset, records, role="model", progress=progress, predictions=place.predictions)
    return finish(place, recipe, dataset, records, scored, [], history=[], split=split)


def _with_threshold(
    run: ChangeRun, dataset: ChangeDataset, records: Sequence[Record], progress: CaseProgress | None
) -> ChangeRun:
    """The run with the threshold that is best on the pairs given; kept in its folder, and taken from there."""
    kept = run.folder.root / THRESHOLD_FILE
    if not kept.exists():
        plain = ShiftedLogits(run.net.net, run.kind.shifts(0.5)).eval()
        counted = []
        for record in records:
            pair = as_pair(dataset.adapter.load(record), run.kind, run.bands)
            before, after = run.scaler.scaled(pair)
            _, counts = predict_pair(
                plain,
                before,
                after,
                run.kind,
                roi=run.roi,
                inference=run.recipe.inference,
                target=pair.masks,
                progress=None if progress is None else partial(progress, record.case),
            )
            counted.append(counts)
        best = reduce(add, counted).best()
        write_json(
            kept,
            {
                "threshold": best.threshold,
                f"F1 of {run.layers[0].classes[1]} on the validation pairs": best.f1,
                "pairs": [record.case for record in records],
            },
        )
    return load_change_run(run.folder.root)
