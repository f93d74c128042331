"""Cases to batches: normalised volumes, 2-D patches of their slices, and an order that is a function of (seed, number).

Shape legend: C channels, D slices, H x W pixels, k neighbours on each side (`slice_context`).

Training draws an endless numbered list of patches. Patch n belongs to pass `n // num_slices` over all slices, in an
order of (seed, pass), and its place, augmentation and everything else random in it come from a generator seeded with
(seed, n). So a run that stopped after batch b continues with batch b + 1 exactly, whatever the number of workers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from statefield.datasets.adapter import DatasetAdapter
from statefield.datasets.sample import DatasetInfo, Meta, Record
from statefield.errors import ConfigError, DataError
from statefield.files import atomic_path
from statefield.tasks.common.augment import Augmentation
from statefield.tasks.common.config import UNLABELLED, NormalisationConfig

log = logging.getLogger(__name__)


def normalise(image: NDArray[np.float32], config: NormalisationConfig) -> NDArray[np.float32]:
    """`image` [C, *S] as `config` says, each channel by itself; float32, a new array.

    A constant channel becomes 0 with the z-scores. Raises `ConfigError` for settings that cannot work.
    """
    calibrated = config.method in ("range", "ct")
    if calibrated and (config.low is None or config.high is None or config.low >= config.high):
        raise ConfigError(
            f"data.normalisation: method {config.method!r} needs low < high in the file's units; given "
            f"low={config.low}, high={config.high}."
        )
    if config.method == "ct" and (config.mean is None or config.std is None or not config.std > 0):
        raise ConfigError(
            f"data.normalisation: method 'ct' needs mean, and std above 0, in the file's units; given "
            f"mean={config.mean}, std={config.std}. `statefield medical plan` finds them."
        )
    if config.clip_percentiles is not None and not 0 <= config.clip_percentiles[0] < config.clip_percentiles[1] <= 100:
        raise ConfigError(
            f"data.normalisation.clip_percentiles = {config.clip_percentiles}: two rising values in 0..100 are needed."
        )
    result = np.empty(image.shape, dtype=np.float32)
    for channel, values in enumerate(np.asarray(image, dtype=np.float32)):
        counted = values != 0 if config.method == "zscore_nonzero" else np.ones(values.shape, dtype=bool)
        if config.clip_percentiles is not None and counted.any():
            low, high = np.percentile(values[counted], config.clip_percentiles)
            values = np.where(counted, np.clip(values, low, high), values)
        if config.method == "none":
            result[channel] = values
        elif config.method == "range":
            assert config.low is not None and config.high is not None
            result[channel] = np.clip((values - config.low) / (config.high - config.low), 0, 1)
        elif config.method == "ct":
            assert config.mean is not None and config.std is not None
            result[channel] = (np.clip(values, config.low, config.high) - config.mean) / config.std
        else:
            chosen = values[counted]
            mean, deviation = (
                (chosen.mean(dtype=np.float64), chosen.std(dtype=np.float64)) if chosen.size else (0.0, 0.0)
            )
            result[channel] = np.where(counted, (values - mean) / (deviation if deviation > 0 else 1.0), 0.0)
    return result


def stack_neighbours(volume: NDArray[np.float32], index: int, context: int) -> NDArray[np.float32]:
    """Slices index-k .. index+k of `volume` [C, D, H, W] as channels, [(2k+1) * C, H, W]; the end slices repeat."""
    chosen = np.clip(np.arange(index - context, index + context + 1), 0, volume.shape[1] - 1)
    return np.ascontiguousarray(volume[:, chosen].swapaxes(0, 1).reshape(-1, *volume.shape[2:]))


@dataclass(frozen=True, eq=False)
class Volume:
    """One case in memory (or mapped from disk): `image` float32 [C, D, H, W] normalised, `mask` int16 [D, H, W].

    A photograph is a volume of one slice. `present[d, k]` says whether slice d shows class k.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.int16]
    present: NDArray[np.bool_]
    meta: Meta


class VolumeStore:
    """The cases of some records, each read once.

    Args:
        folder: where to keep arrays of all cases as .npy files, mapped into memory when read (for data larger than
            memory); None keeps them in memory.
    """

    def __init__(
        self, adapter: DatasetAdapter, info: DatasetInfo, normalisation: NormalisationConfig, folder: Path | None = None
    ) -> None:
        self.adapter, self.info, self.normalisation, self.folder = adapter, info, normalisation, folder

    def load(self, record: Record, *, keep: bool = True) -> Volume:
        """Read, check and normalise one case. Raises `DataError` when it has no mask."""
        sample = self.adapter.load(record)
        if "mask" not in sample:
            raise DataError(f"{sample['meta']['path']}: the case {record.case!r} has no labels; training needs them.")
        raw, labels = sample["image"], sample["mask"]
        if labels.ndim == 2:
            raw, labels = raw[:, None], labels[None]
        image, mask = normalise(raw, self.normalisation), labels.astype(np.int16)
        present = np.stack([(mask == k).any(axis=(1, 2)) for k in range(len(self.info.classes))], axis=1)
        if keep and self.folder is not None:
            stem = record.case.replace("/", "_")
            image = _mapped(self.folder / f"{stem}.image.npy", image)
            mask = _mapped(self.folder / f"{stem}.mask.npy", mask)
        return Volume(image, mask, present, sample["meta"])


def _as_it_is(case: Any) -> Any:
    return case


def _mapped(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    with atomic_path(path) as partial, partial.open("wb") as out:
        np.save(out, array)
    return np.load(path, mmap_mode="r")


class PatchItem(TypedDict):
    """A training example: `image` float32 [(2k+1) * C, h, w], `mask` int64 [h, w], where it is from, its number n."""

    image: Tensor
    mask: Tensor
    origin: str
    number: int


class PatchDataset(Dataset[PatchItem]):
    """The endless numbered list of training patches; `dataset[n]` depends on nothing but the data, the seed and n.

    Args:
        patch_size: rows and columns of a patch, or None for whole slices (which must then all have one size).
        foreground: the share of patches that are centred on a pixel of a foreground class (drawn evenly from the
            classes the slice shows; a slice that shows none gives its place to one that does).
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        *,
        patch_size: tuple[int, ...] | None,
        slice_context: int,
        foreground: float,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self.volumes, self.patch_size, self.slice_context = list(volumes), patch_size, slice_context
        self.foreground, self.augmentation, self.seed = foreground, augmentation, seed
        self.slices = [(v, d) for v, volume in enumerate(self.volumes) for d in range(volume.image.shape[1])]
        self.showing = [(v, d) for v, d in self.slices if self.volumes[v].present[d, 1:].any()]
        sizes = {volume.image.shape[2:] for volume in self.volumes}
        if patch_size is None and len(sizes) > 1:
            raise ConfigError(
                f"data.patch_size is null (whole slices), but the training slices have {len(sizes)} sizes "
                f"({', '.join(f'{h} x {w}' for h, w in sorted(sizes)[:3])}, ...): set data.patch_size."
            )

    def __len__(self) -> int:
        """Slices in one pass; patch numbers go on beyond it."""
        return len(self.slices)

    def __getitem__(self, number: int) -> PatchItem:
        order = np.random.default_rng((self.seed, 0, number // len(self.slices))).permutation(len(self.slices))
        v, d = self.slices[order[number % len(self.slices)]]
        rng = np.random.default_rng((self.seed, 1, number))
        centre: tuple[int, int] | None = None
        if self.showing and rng.random() < self.foreground:
            if not self.volumes[v].present[d, 1:].any():
                v, d = self.showing[rng.integers(len(self.showing))]
            centre = _foreground_pixel(self.volumes[v], d, rng)
        volume = self.volumes[v]
        image = stack_neighbours(volume.image, d, self.slice_context)
        mask = np.asarray(volume.mask[d], dtype=np.int64)
        if self.patch_size is not None:
            image, mask = _crop(image, mask, self.patch_size, centre, rng)
        image, mask = self.augmentation(image, mask, seed=int(rng.integers(2**32)))
        return {
            "image": torch.from_numpy(image),
            "mask": torch.from_numpy(mask),
            "origin": f"{volume.meta['path']} (case {volume.meta['case']}, slice {d})",
            "number": number,
        }


def _foreground_pixel(volume: Volume, index: int, rng: np.random.Generator) -> tuple[int, int]:
    classes = np.flatnonzero(volume.present[index, 1:]) + 1
    rows, columns = np.nonzero(np.asarray(volume.mask[index]) == rng.choice(classes))
    chosen = rng.integers(len(rows))
    return int(rows[chosen]), int(columns[chosen])


def _crop(
    image: NDArray[np.float32],
    mask: NDArray[np.int64],
    size: tuple[int, ...],
    centre: tuple[int, int] | None,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A patch of `size` around `centre` (moved inside the slice), or anywhere; a smaller slice is padded evenly.

    Padding is 0 in the image, as the sliding window pads, and `UNLABELLED` in the mask.
    """
    short = [max(want - have, 0) for want, have in zip(size, mask.shape, strict=True)]
    if any(short):
        edges = [(gap // 2, gap - gap // 2) for gap in short]
        image = np.pad(image, [(0, 0), *edges])
        mask = np.pad(mask, edges, constant_values=UNLABELLED)
        centre = None if centre is None else (centre[0] + edges[0][0], centre[1] + edges[1][0])
    start = []
    for axis in range(2):
        room = mask.shape[axis] - size[axis]
        wanted = rng.integers(room + 1) if centre is None else centre[axis] - size[axis] // 2
        start.append(int(np.clip(wanted, 0, room)))
    rows, columns = slice(start[0], start[0] + size[0]), slice(start[1], start[1] + size[1])
    return np.ascontiguousarray(image[:, rows, columns]), np.ascontiguousarray(mask[rows, columns])


class PositionSampler(Sampler[int]):
    """Patch numbers of one epoch, from wherever training stands.

    Args:
        batches_done: how many batches training has consumed since its beginning; asked anew for each epoch.
    """

    def __init__(self, batches_done: Callable[[], int], *, batches_per_epoch: int, batch_size: int) -> None:
        self.batches_done, self.batches_per_epoch, self.batch_size = batches_done, batches_per_epoch, batch_size

    def __len__(self) -> int:
        return self.batches_per_epoch * self.batch_size

    def __iter__(self) -> Iterator[int]:
        done = self.batches_done()
        end = (done // self.batches_per_epoch + 1) * self.batches_per_epoch
        return iter(range(done * self.batch_size, end * self.batch_size))


class CaseItem(TypedDict):
    """A whole case for validation: `volume` float32 [C, D, H, W] normalised, `mask` [D, H, W]."""

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


class SliceData(LightningDataModule):
    """Training patches and validation cases of one dataset.

    Args:
        store: reads and keeps the cases.
        train, val: records of the two splits; neither may be empty.
        steps_per_epoch: batches in an epoch; None: one pass over the training slices (the last batch filled up from
            the next pass).
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
        augmentation: Augmentation,
        batch_size: int,
        steps_per_epoch: int | None,
        workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        for split, records in (("train", train), ("val", val)):
            if not records:
                raise DataError(f"the split {split!r} is empty: training needs at least one case in it.")
        if not 0 <= foreground <= 1:
            raise ConfigError(f"data.foreground = {foreground}: a share from 0 to 1 is needed.")
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("slice_context", slice_context, 0),
            ("workers", workers, 0),
        ):
            if value < least:
                raise ConfigError(f"data.{name} = {value}: {least} or more is needed.")
        self.store, self.train_records, self.val_records = store, list(train), list(val)
        self.slice_context, self.batch_size, self.workers = slice_context, batch_size, workers
        self._patches = PatchDataset(
            [store.load(record) for record in train],
            patch_size=patch_size,
            slice_context=slice_context,
            foreground=foreground,
            augmentation=augmentation,
            seed=seed,
        )
        self._val = CaseDataset([store.load(record) for record in val])
        self.steps_per_epoch = steps_per_epoch or -(-len(self._patches) // batch_size)
        log.info("%d training slices, %d steps per epoch", len(self._patches), self.steps_per_epoch)

    def train_dataloader(self) -> DataLoader[PatchItem]:
        sampler = PositionSampler(
            self._batches_done, batches_per_epoch=self.steps_per_epoch, batch_size=self.batch_size
        )
        return DataLoader(
            self._patches,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            persistent_workers=False,
            generator=torch.Generator(),  # not the global one: nothing here may move its state
        )

    def val_dataloader(self) -> DataLoader[CaseItem]:
        return DataLoader(self._val, batch_size=None, collate_fn=_as_it_is, generator=torch.Generator())

    def _batches_done(self) -> int:
        assert self.trainer is not None
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
