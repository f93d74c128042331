"""Training examples and validation cases as Lightning asks for them: of any field, and of slices and volumes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.strategies import ModelParallelStrategy
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from statefield.datasets.sample import Record
from statefield.errors import ConfigError, DataError
from statefield.tasks.common.augment import build_augmentation
from statefield.tasks.common.augment_volumes import build_volume_augmentation
from statefield.tasks.common.config import AugmentPreset, TransformConfig
from statefield.tasks.common.parallel import num_processes, rank, share_of_batch
from statefield.tasks.common.patches import PatchDataset, PositionSampler, SlicePatches, VolumePatches
from statefield.tasks.common.volumes import Volume, VolumeStore

log = logging.getLogger(__name__)


class CaseItem(TypedDict):
    """A whole case for validation: `volume` float32 [C, D, H, W] normalised, `mask` [D, H, W]; both as the net sees
    them, on the grid of `data.spacing`.
    """

    volume: NDArray[np.float32]
    mask: NDArray[np.int16]
    case: str


class CaseDataset(Dataset[CaseItem]):
    """Whole labelled cases."""

    def __init__(self, volumes: Sequence[Volume]) -> None:
        self.volumes = list(volumes)

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> CaseItem:
        volume = self.volumes[index]
        return {"volume": volume.image, "mask": volume.mask, "case": volume.meta["case"]}


class NumberedBatches(LightningDataModule):
    """Batches from an endless numbered list of examples, in their order, and cases for validation one at a time.

    What a field's data module extends. Batch b of training holds the examples b * batch_size and those that follow,
    whatever the number of processes and workers, so that a resumed run goes on with the next one exactly.

    Args:
        examples: `examples[n]` depends on n alone, for any n from 0; its length is that of one pass over the data.
        cases: the validation cases, handed out as they are, without a batch axis.
        batch_size: examples of a batch, of all processes together.
        steps_per_epoch: batches in an epoch; None: one pass (the last batch filled up from the next pass).
        workers: processes that prepare examples; 0 does it in this one. The examples are the same.
        collate: makes a batch of a list of examples; None: torch's, which stacks.

    Raises: ConfigError: a number below what makes sense.
    """

    def __init__(
        self,
        examples: Dataset[Any],
        cases: Dataset[Any],
        *,
        batch_size: int,
        steps_per_epoch: int | None,
        workers: int,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        super().__init__()
        self.collate = collate
        require_counts(batch_size=batch_size, workers=workers)
        self.examples, self.cases, self.batch_size, self.workers = examples, cases, batch_size, workers
        length = len(examples)  # type: ignore[arg-type]
        self.steps_per_epoch = steps_per_epoch or -(-length // batch_size)
        log.info("%d training examples in a pass, %d steps per epoch", length, self.steps_per_epoch)

    def train_dataloader(self) -> DataLoader[Any]:
        sampler = PositionSampler(
            self._batches_done,
            batches_per_epoch=self.steps_per_epoch,
            batch_size=self.batch_size,
            rank=rank(),
            num_processes=num_processes(),
        )
        return DataLoader(
            self.examples,
            batch_size=share_of_batch(self.batch_size),
            sampler=sampler,
            num_workers=self.workers,
            persistent_workers=False,
            collate_fn=self.collate,
            generator=torch.Generator(),  # not the global one: nothing here may move its state
        )

    def val_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        count = len(self.cases)  # type: ignore[arg-type]
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            cases = list(range(count))  # a sharded net computes in all processes at once, so on equal windows
        else:
            # Equally many for each process; where they do not divide, some cases are seen twice and count once.
            each = -(-count // num_processes())
            cases = [(rank() + step * num_processes()) % count for step in range(each)]
        return DataLoader(self.cases, batch_size=None, sampler=cases, collate_fn=_as_it_is, generator=torch.Generator())

    def _batches_done(self) -> int:
        assert self.trainer is not None
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready


def require_cases(train: Sequence[Any], val: Sequence[Any]) -> None:
    """Raise `DataError` where a split that training needs is empty."""
    for split, records in (("train", train), ("val", val)):
        if not records:
            raise DataError(f"the split {split!r} is empty: training needs at least one case in it.")


def require_counts(*, batch_size: int = 1, workers: int = 0, slice_context: int = 0) -> None:
    """Raise `ConfigError` for settings of `data` that are too small."""
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("slice_context", slice_context, 0),
        ("workers", workers, 0),
    ):
        if value < least:
            raise ConfigError(f"data.{name} = {value}: {least} or more is needed.")


class PatchData(NumberedBatches):
    """Training patches and validation cases of one dataset.

    Args:
        store: reads and keeps the cases.
        train, val: records of the two splits; neither may be empty.
        patch_size: two numbers for patches of slices, three for patches of volumes, None for whole slices.
        slice_context: neighbours on each side of a slice that are further channels; 0 for volumes.
        foreground: share of patches centred on foreground.
        augment: a preset; for slices also a list of transforms.
        steps_per_epoch: batches in an epoch; None: one pass over the data, which is every slice once, or as many
            patches of each volume as cover it (the last batch filled up from the next pass).
        workers: processes that prepare patches; 0 does it in this one. The patches are the same.
    """

    def __init__(
        self,
        store: VolumeStore,
        train: Sequence[Record],
        val: Sequence[Record],
        *,
        patch_size: tuple[int, ...] | None,
        slice_context: int,
        foreground: float,
        augment: AugmentPreset | Sequence[TransformConfig],
        batch_size: int,
        steps_per_epoch: int | None,
        workers: int,
        seed: int,
    ) -> None:
        require_cases(train, val)
        if not 0 <= foreground <= 1:
            raise ConfigError(f"data.foreground = {foreground}: a share from 0 to 1 is needed.")
        require_counts(batch_size=batch_size, workers=workers, slice_context=slice_context)
        patches = _patches(
            store,
            train,
            patch_size=patch_size,
            slice_context=slice_context,
            foreground=foreground,
            augment=augment,
            seed=seed,
        )
        cases = CaseDataset([store.load(record) for record in val])
        store.report()
        super().__init__(patches, cases, batch_size=batch_size, steps_per_epoch=steps_per_epoch, workers=workers)
        self._patches = patches
        self.store, self.train_records, self.val_records = store, list(train), list(val)
        self.slice_context = slice_context


def _patches(
    store: VolumeStore,
    records: Sequence[Record],
    *,
    patch_size: tuple[int, ...] | None,
    slice_context: int,
    foreground: float,
    augment: AugmentPreset | Sequence[TransformConfig],
    seed: int,
) -> PatchDataset:
    """The patches of a recipe; what cannot work is said before any file is read."""
    if patch_size is not None and (len(patch_size) not in (2, 3) or any(side < 1 for side in patch_size)):
        raise ConfigError(
            f"data.patch_size = {patch_size}: two numbers (rows, columns) for a net of slices or three (slices, rows, "
            "columns) for a net of volumes are needed, each 1 or more."
        )
    if patch_size is None or len(patch_size) == 2:
        pipeline = build_augmentation(augment)
        return SlicePatches(
            [store.load(record) for record in records],
            patch_size=patch_size,
            slice_context=slice_context,
            foreground=foreground,
            augmentation=pipeline,
            seed=seed,
        )
    if slice_context:
        raise ConfigError(
            f"data.slice_context = {slice_context} with data.patch_size = {patch_size}: neighbouring slices are "
            "channels of a net of slices only. Set it to 0, or give patch_size two numbers."
        )
    volume_pipeline = build_volume_augmentation(augment)
    return VolumePatches(
        [store.load(record) for record in records],
        patch_size=patch_size,
        foreground=foreground,
        augmentation=volume_pipeline,
        seed=seed,
    )


def _as_it_is(case: Any) -> Any:
    return case
