"""A whole run of scene classification: recipe -> run folder with weights, history, test scores and report; and back.

result = train(read_recipe(Path("recipes/remote_sensing/ucmerced.yaml")), overwrite=True)
run = load_run(result.folder.root)      # net in eval mode, classes, normalisation
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning.pytorch import Callback

from statefield.datasets.sample import DatasetInfo, Record
from statefield.datasets.scenes import SceneSet, open_scenes
from statefield.datasets.splits import Split
from statefield.errors import ConfigError
from statefield.tasks.common import fitting
from statefield.tasks.common.checkpointing import load_weights
from statefield.tasks.common.fitting import Announce
from statefield.tasks.common.outcome import TestResult
from statefield.tasks.common.parallel import is_first
from statefield.tasks.common.run_folder import RunFolder, best_epoch, read_history
from statefield.tasks.remote_sensing.scene_images import (
    Progress,
    SceneData,
    SceneInfo,
    SceneReader,
    inspect,
    require_auto_augment,
    tested,
)
from statefield.tasks.remote_sensing.scene_recipe import SceneRecipe, read_recipe, require_sound
from statefield.tasks.remote_sensing.scene_task import VALIDATION_SCORE, SceneTask, start_from
from statefield.tasks.remote_sensing.scene_testing import SceneContender, classify, finish

log = logging.getLogger(__name__)
_SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class SceneRun:
    """What a run folder holds for prediction: the net with its best weights, in eval mode, and what it expects."""

    folder: RunFolder
    recipe: SceneRecipe
    task: SceneTask
    info: SceneInfo


@dataclass(frozen=True, eq=False)
class SceneDataset:
    """An opened set of scenes: its adapter, what it says of itself, and where it lies."""

    adapter: SceneSet
    info: DatasetInfo
    root: Path | None

    @classmethod
    def of(cls, recipe: SceneRecipe) -> SceneDataset:
        data = recipe.data
        adapter, info = open_scenes(data.root, data.layout, data.options)
        for name, values in (("mean", data.mean), ("std", data.std)):
            if values is not None and len(values) != len(info.channels):
                raise ConfigError(
                    f"data.{name} has {len(values)} numbers, and {data.root} has {len(info.channels)} channels "
                    f"({', '.join(info.channels)}): give one for each, or null for those of the training scenes."
                )
        return cls(adapter, info, data.root)

    def records(self, split: Split) -> list[Record]:
        return self.adapter.records(self.root, split)


def fit(
    recipe: SceneRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    announce: Announce = log.info,
    progress: Progress | None = None,
) -> list[SceneRun]:
    """Train the recipe's model into its run folder, and then its control, if it names one.

    Args:
        resume: go on from the run folder's last checkpoint; the result equals that of an uninterrupted run.
        overwrite: replace a run that is there, once the recipe has been found to work.
        callbacks: further Lightning callbacks, such as a progress bar; of every process.
        announce: gets a line at each stage. progress: of reading, (what, done, of how many).

    Returns the model, and the control if there is one, with their best weights.

    Raises:
        ConfigError: settings that cannot work, a run folder in the way, or nothing to resume. DataError: scenes that
        cannot be read. TrainingDiverged: the loss is no longer a number.
    """
    recipe = fitting.begin(recipe, read_recipe, resume=resume, overwrite=overwrite)
    require_sound(recipe)
    dataset = SceneDataset.of(recipe)
    splits: dict[str, list[Record]] = {split: dataset.records(split) for split in _SPLITS}
    plans = fitting.plans_of(recipe)
    reader = SceneReader(dataset.adapter, keep=recipe.data.cache == "memory")
    known: list[SceneInfo] = []
    if resume:
        fitting.require_same_cases(plans[0].folder, splits)
        known.append(fitting.read_info(plans[0].folder, SceneInfo))

    def build_data() -> SceneData:
        if not known:
            announce(f"reading {sum(map(len, splits.values()))} scenes of {len(dataset.info.classes)} classes")
            known.append(_inspected(recipe, dataset, splits, reader, progress))
        return SceneData(recipe, known[0], reader, splits["train"], splits["val"])

    fitting.fit(
        plans,
        build_task=lambda plan, total_steps: build_task(plan, dataset.info, total_steps=total_steps),
        build_data=build_data,
        about=lambda: fitting.describe_dataset(dataset.adapter.name, known[0], splits),
        score=VALIDATION_SCORE,
        resume=resume,
        overwrite=overwrite,
        callbacks=callbacks,
        announce=announce,
    )
    return [load_run(plan.folder.root) for plan in plans]


def train(
    recipe: SceneRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    announce: Announce = log.info,
    progress: Progress | None = None,
) -> TestResult | None:
    """`fit`, then test what was trained on the held-out scenes, and write probabilities, scores and the report.

    Arguments and errors are those of `fit`; `progress` is of testing, too. Of several processes the first tests; the
    others get None.
    """
    runs = fit(recipe, resume=resume, overwrite=overwrite, callbacks=callbacks, announce=announce, progress=progress)
    if not is_first():
        return None
    recipe = runs[0].recipe
    dataset = SceneDataset.of(recipe)
    records = dataset.records("test")[: recipe.data.batch_size if recipe.trainer.fast_dev_run else None]
    announce(f"testing on {len(records)} scenes")
    reader = SceneReader(dataset.adapter, keep=len(runs) > 1 and recipe.data.cache == "memory")
    contenders = [
        _contender(run, reader, records, role="model" if run is runs[0] else "control", progress=progress)
        for run in runs
    ]
    return finish(
        runs[0].folder,
        recipe,
        runs[0].info,
        contenders[0],
        contenders[1:],
        adapter=dataset.adapter,
        records=records,
        train=dataset.records("train"),
        history=read_history(runs[0].folder.history),
    )


def test(
    folder: str | Path,
    *,
    split: Split = "test",
    root: Path | None = None,
    output: Path | None = None,
    announce: Announce = log.info,
    progress: Progress | None = None,
) -> TestResult:
    """Score a trained run on a split of its dataset, or of another one with the same classes and channels.

    Results go to `output`, by default RUN/test_SPLIT: metrics.json, predictions/ and report.html.
    """
    run = load_run(folder)
    recipe = run.recipe
    if root is not None:
        recipe = dataclasses.replace(
            recipe, data=dataclasses.replace(recipe.data, root=root, layout="auto", options={})
        )
    dataset = SceneDataset.of(recipe)
    if (dataset.info.classes, dataset.info.channels) != (run.info.classes, run.info.channels):
        raise ConfigError(
            f"{dataset.root} has classes {dataset.info.classes} and channels {dataset.info.channels}, but {folder} was "
            f"trained on {run.info.classes} and {run.info.channels}: the two must be equal."
        )
    records = dataset.records(split)
    announce(f"testing on {len(records)} scenes of the split {split}")
    reader = SceneReader(dataset.adapter, keep=False)
    return finish(
        RunFolder(output or run.folder.root / f"test_{split}"),
        recipe,
        run.info,
        _contender(run, reader, records, role="model", progress=progress),
        [],
        adapter=dataset.adapter,
        records=records,
        train=[],
        history=[],
    )


def load_run(folder: str | Path) -> SceneRun:
    """The trained model of a run folder.

    Raises:
        ConfigError: not a run folder. CheckpointError: its weights are missing, damaged, or of another net.
    """
    place = RunFolder(Path(folder))
    place.require()
    recipe = read_recipe(place.config)
    info = fitting.read_info(place, SceneInfo)
    fresh = dataclasses.replace(recipe.model, weights=None, new_classifier=False)
    task = build_task(dataclasses.replace(recipe, model=fresh), info, total_steps=0)
    load_weights(task.net, place.weights)
    return SceneRun(place, recipe, task.eval(), info)


def build_task(recipe: SceneRecipe, info: DatasetInfo, *, total_steps: int) -> SceneTask:
    """The task of a recipe; its weights follow from the seed alone, whatever was built before, or from a file."""
    task = fitting.seeded(
        recipe.seed,
        lambda: SceneTask(
            recipe.model,
            classes=info.classes,
            num_channels=len(info.channels),
            image_size=recipe.data.image_size,
            seed=recipe.seed,
            total_steps=total_steps,
            max_skipped_steps=recipe.trainer.max_skipped_steps,
        ),
    )
    if recipe.model.weights is not None:
        start_from(task.net, recipe.model)
    return task


def _inspected(
    recipe: SceneRecipe,
    dataset: SceneDataset,
    splits: Mapping[str, Sequence[Record]],
    reader: SceneReader,
    progress: Progress | None,
) -> SceneInfo:
    """The dataset with the values that become 0 and 1; every scene of every split was decoded for it."""
    every = [record for records in splits.values() for record in records]
    mean, std, eight_bit = inspect(reader, every, splits["train"], progress)
    require_auto_augment(recipe.data.augment, dataset.info.channels, eight_bit=eight_bit)
    return SceneInfo(
        dataset.info.classes,
        dataset.info.channels,
        dataset.info.spatial_dims,
        mean=tuple(recipe.data.mean or map(float, mean)),
        std=tuple(recipe.data.std or map(float, std)),
    )


def _contender(
    run: SceneRun,
    reader: SceneReader,
    records: Sequence[Record],
    *,
    role: Literal["model", "control"],
    progress: Progress | None,
) -> SceneContender:
    """A run's net, tested."""
    history = read_history(run.folder.history) if run.folder.history.exists() else []
    seconds = history[-1].get("seconds") if history else None
    return SceneContender(
        name=run.recipe.model.name,
        role=role,
        tested=classify(run.task.net, tested(run.recipe, records, reader, run.info), progress),
        num_parameters=run.task.num_parameters,
        train_seconds=seconds,
        best_epoch=best_epoch(history, VALIDATION_SCORE),
    )
