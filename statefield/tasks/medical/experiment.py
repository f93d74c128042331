"""What stands between a recipe and its training: the opened dataset, the task and the batches it asks for; and the way
back, from a run folder to a net that predicts.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from statefield.datasets import open_dataset
from statefield.datasets.adapter import DatasetAdapter
from statefield.datasets.sample import DatasetInfo, Record
from statefield.datasets.splits import Split, fold_cases
from statefield.errors import ConfigError, DataError, EmptySplit
from statefield.tasks.common.checkpointing import load_weights
from statefield.tasks.common.config import InferenceConfig, NormalisationConfig
from statefield.tasks.common.data import PatchData
from statefield.tasks.common.fitting import read_info, seeded
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.common.volumes import VolumeStore
from statefield.tasks.medical.recipe import SegmentationRecipe, read_recipe
from statefield.tasks.medical.segmentation import SegmentationTask

Splits = dict[Split, list[Record]]


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """What a run folder holds for prediction: the net with its best weights, in eval mode, and what it expects."""

    folder: RunFolder
    recipe: SegmentationRecipe
    task: SegmentationTask
    info: DatasetInfo

    @property
    def net(self) -> nn.Module:
        return self.task.net

    @property
    def classes(self) -> tuple[str, ...]:
        return self.info.classes

    @property
    def channels(self) -> tuple[str, ...]:
        return self.info.channels

    @property
    def normalisation(self) -> NormalisationConfig:
        return self.recipe.data.normalisation

    @property
    def spacing(self) -> tuple[float | None, float | None, float | None] | None:
        """The distance between voxels that the net was trained at (slices, rows, columns), mm; None: as stored."""
        return self.recipe.data.spacing

    @property
    def slice_context(self) -> int:
        return self.recipe.data.slice_context

    @property
    def roi(self) -> tuple[int, ...] | None:
        """The inference window in pixels; None: a whole slice."""
        return self.recipe.inference.roi or self.recipe.data.patch_size

    @property
    def inference(self) -> InferenceConfig:
        return self.recipe.inference


@dataclass(frozen=True, eq=False)
class Dataset:
    """An opened dataset: its adapter, what it says of itself, and where it lies.

    folds: train and val are divided anew, into so many folds; fold: the one that is val now, the others being train;
    None: all of them are train.
    """

    adapter: DatasetAdapter
    info: DatasetInfo
    root: Path | None
    folds: int | None = None
    fold: int | None = None

    @classmethod
    def of(cls, recipe: SegmentationRecipe) -> Dataset:
        data = recipe.data
        adapter, info = open_dataset(data.root, data.layout, data.options)
        if data.num_classes is not None and data.num_classes != len(info.classes):
            raise ConfigError(
                f"data.num_classes is {data.num_classes}, but {data.root or adapter.name} has {len(info.classes)} "
                f"classes ({', '.join(info.classes)}): correct the recipe or the dataset's class list."
            )
        if recipe.fold is not None:
            recipe.of_fold(recipe.fold)  # says what is wrong with it
        return cls(adapter, info, data.root, recipe.folds, recipe.fold)

    def records(self, split: Split) -> list[Record]:
        """The cases of a split; `DataError` when it is empty."""
        if self.folds is not None and split in ("train", "val"):
            return self._records_of_fold(split)
        found = self.adapter.records(self.root, split)
        if not found:
            raise DataError(
                f"{self.root or self.adapter.name}: the split {split!r} has no case in the layout "
                f"{self.adapter.name!r}; add cases, or set data.options so that each split gets some."
            )
        return found

    def test_records(self) -> list[Record]:
        """The test cases; in a cross-validation there may be none, as every case is held out once."""
        try:
            return self.records("test")
        except EmptySplit:
            if self.folds is None:
                raise
            return []

    def _records_of_fold(self, split: Split) -> list[Record]:
        assert self.folds is not None
        pool = self.adapter.records(self.root, "train")
        with suppress(EmptySplit):  # no case was set apart for validation: all the more are in the folds
            pool = pool + self.adapter.records(self.root, "val")
        patients = {record.case: record.group or record.case for record in pool}
        seed = getattr(self.adapter, "seed", 0)
        parts = fold_cases(list(patients), folds=self.folds, seed=seed, group_of=patients.__getitem__)
        if self.fold is None:
            if split == "val":
                raise ConfigError(
                    "each of the run's folds validates on other cases, which the others were trained on, so that their "
                    "ensemble has none of its own: RUN/metrics.json has the out-of-fold scores. Test on the split "
                    "test, or one fold alone, such as --run RUN/fold_0."
                )
            return sorted(pool, key=lambda record: record.case)
        held_out = set(parts[self.fold])
        chosen = [record for record in pool if (record.case in held_out) == (split == "val")]
        return sorted(chosen, key=lambda record: record.case)


def load_trained(folder: str | Path) -> TrainedRun:
    """The trained model of the folder of one training (`ensemble.load_run` takes cross-validated runs too).

    Raises:
        ConfigError: not a run folder. CheckpointError: its weights are missing, damaged, or of another net.
    """
    place = RunFolder(Path(folder))
    place.require()
    recipe = read_recipe(place.config)
    info = read_info(place, DatasetInfo)
    started_fresh = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, weights=None))
    task = build_task(started_fresh, info, total_steps=0)
    load_weights(task.net, place.weights)
    return TrainedRun(place, recipe, task.eval(), info)


def build_task(recipe: SegmentationRecipe, info: DatasetInfo, *, total_steps: int) -> SegmentationTask:
    """The task of a recipe; its weights follow from the seed alone, whatever was built before, or from a file."""
    task = seeded(
        recipe.seed,
        lambda: SegmentationTask(
            recipe.model,
            recipe.inference,
            classes=info.classes,
            num_channels=len(info.channels),
            slice_context=recipe.data.slice_context,
            patch_size=recipe.data.patch_size,
            seed=recipe.seed,
            total_steps=total_steps,
            max_skipped_steps=recipe.trainer.max_skipped_steps,
        ),
    )
    if recipe.model.weights is not None:
        load_weights(task.net, recipe.model.weights)
    return task


def build_data(recipe: SegmentationRecipe, dataset: Dataset, splits: Splits, folder: RunFolder) -> PatchData:
    """The batches of a recipe; reads, checks, normalises and resamples every training and validation case."""
    data = recipe.data
    store = VolumeStore(
        dataset.adapter,
        dataset.info,
        data.normalisation,
        folder.cache if data.cache == "disk" else None,
        spacing=data.spacing,
    )
    return PatchData(
        store,
        splits["train"],
        splits["val"],
        patch_size=data.patch_size,
        slice_context=data.slice_context,
        foreground=data.foreground,
        augment=data.augment,
        batch_size=data.batch_size,
        steps_per_epoch=recipe.trainer.steps_per_epoch,
        workers=data.workers,
        seed=recipe.seed,
    )
