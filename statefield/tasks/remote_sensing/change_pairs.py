"""Pairs of images in memory, and the training patches that are cut from them.

Shape legend: C bands, H x W pixels of a pair, h x w of a patch.

Patch n is a function of (seed, n) alone: its pair, its place, its turns and its colours. A run that was stopped goes on
with the next one, whatever the number of workers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from statefield.datasets.change import ChangeAdapter, ChangeInfo, ChangeSample
from statefield.datasets.sample import Meta, Record
from statefield.errors import ConfigError, DataError
from statefield.labels import UNLABELLED
from statefield.tasks.common.data import NumberedBatches, require_cases
from statefield.tasks.common.patches import foreground_voxels, patch_box
from statefield.tasks.common.volumes import mapped_on_disk
from statefield.tasks.remote_sensing.change_kinds import ChangeKind
from statefield.tasks.remote_sensing.change_recipe import BandScalingConfig, ChangeDataConfig, PairAugmentConfig
from statefield.tasks.remote_sensing.raster_sources import BandScaling

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Pair:
    """One pair as stored: before, after [C, H, W] in the smallest type that holds them exactly; masks int16 [H, W]."""

    before: NDArray[Any]
    after: NDArray[Any]
    masks: Mapping[str, NDArray[np.int16]]
    meta: Meta

    @property
    def shape(self) -> tuple[int, int]:
        """H, W."""
        return self.before.shape[1], self.before.shape[2]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Pixels that are labelled, which pixels without data at a date never are; bool [H, W]."""
        return np.asarray(self.masks["mask"]) != UNLABELLED


class PairStore:
    """The pairs of some records, each read once.

    Args:
        bands: numbers of the channels to keep, in this order. kind: whose masks every pair must have.
        folder: where to keep the arrays as .npy files, mapped when read; None keeps them in memory.
    """

    def __init__(
        self, adapter: ChangeAdapter, kind: ChangeKind, bands: Sequence[int], folder: Path | None = None
    ) -> None:
        self.adapter, self.kind, self.bands, self.folder = adapter, kind, list(bands), folder

    def load(self, record: Record, *, keep: bool = True) -> Pair:
        """Read and check one pair; `keep=False` leaves it out of the folder. `DataError` when it lacks a mask."""
        sample = self.adapter.load(record)
        pair = as_pair(sample, self.kind, self.bands)
        if not keep or self.folder is None:
            return pair
        stem = quote(record.case, safe="")
        arrays = {"before": pair.before, "after": pair.after, **pair.masks}
        stored = {name: mapped_on_disk(self.folder / f"{stem}.{name}.npy", array) for name, array in arrays.items()}
        return Pair(stored.pop("before"), stored.pop("after"), stored, pair.meta)


def as_pair(sample: ChangeSample, kind: ChangeKind, bands: Sequence[int]) -> Pair:
    """The chosen bands and the masks that a question needs; `DataError` for one that is missing."""
    missing = [name for name in kind.masks if name not in sample]
    if missing:
        raise DataError(
            f"{sample['meta']['path']}: the pair {sample['meta']['case']!r} has no {' and no '.join(missing)}; "
            "training and testing need the labels."
        )
    masks: dict[str, NDArray[np.int16]] = {name: np.asarray(sample[name]).astype(np.int16) for name in kind.masks}
    chosen = list(bands)
    return Pair(_compact(sample["before"][chosen]), _compact(sample["after"][chosen]), masks, sample["meta"])


def band_numbers(names: Sequence[str] | None, info: ChangeInfo) -> list[int]:
    """The channel numbers, from 0, of band names; `ConfigError` for a name that the dataset does not have."""
    if names is None:
        return list(range(len(info.channels)))
    unknown = [name for name in names if name not in info.channels]
    if unknown or not names or len(set(names)) < len(names):
        raise ConfigError(
            f"data.bands = {list(names)}: names among {', '.join(info.channels)} are needed, each once; null takes all."
        )
    return [info.channels.index(name) for name in names]


def measured(images: Sequence[tuple[NDArray[Any], NDArray[np.bool_]]]) -> BandScaling:
    """Mean 0 and deviation 1 of each band over the valid pixels of images [C, H, W], all together."""
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for image, valid in images:
        values = np.asarray(image)[:, valid].astype(np.float64)
        if not values.size:
            continue
        # of each image mean and sum of squared deviations, joined as Chan, Golub and LeVeque (1983) do
        here, spread = values.mean(axis=1), values.var(axis=1) * values.shape[1]
        ahead, before = here - total, count
        count += values.shape[1]
        total = total + ahead * values.shape[1] / count
        squares = squares + spread + ahead**2 * before * values.shape[1] / count
    if not count:
        raise DataError("no valid pixel to measure the bands on: every pixel is unlabelled or without data.")
    deviation = np.sqrt(squares / count)
    return BandScaling.standardised(total.tolist(), np.where(deviation > 0, deviation, 1.0).tolist())


@dataclass(frozen=True)
class Scaler:
    """The scaling of a run: fixed for all images, or measured on each ("image").

    fixed: None where each image is measured.
    """

    fixed: BandScaling | None

    @classmethod
    def of(cls, config: BandScalingConfig, num_bands: int, train: Sequence[Pair]) -> Scaler:
        """What a recipe asks for, "training" measured on the pairs given. `ConfigError` for a range that is none."""
        if config.method == "image":
            return cls(None)
        if config.method == "training":
            return cls(measured([(image, pair.valid) for pair in train for image in (pair.before, pair.after)]))
        if config.method == "none":
            return cls(BandScaling.standardised([0.0] * num_bands, [1.0] * num_bands))
        if config.low is None or config.high is None or not config.low < config.high:
            raise ConfigError(
                f"data.scaling: method 'range' needs low < high in the file's units; given low={config.low}, "
                f"high={config.high}."
            )
        return cls(BandScaling.ranged([config.low] * num_bands, [config.high] * num_bands))

    def of_image(self, image: NDArray[Any], valid: NDArray[np.bool_]) -> BandScaling:
        """The scaling of one image [C, H, W] of a date."""
        return self.fixed or measured([(image, valid)])

    def scaled(self, pair: Pair) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Both dates as the net sees them, float32 [C, H, W]; pixels without a valid value are 0."""
        valid = pair.valid
        return _scaled(pair.before, self.of_image(pair.before, valid), valid), _scaled(
            pair.after, self.of_image(pair.after, valid), valid
        )


class PairPatches(Dataset[dict[str, Any]]):
    """The endless numbered list of training patches; `dataset[n]` depends on nothing but the pairs, the seed and n.

    An entry has `before` and `after` float32 [C, h, w], the kind's masks int64 [h, w], `origin` and `number`. A pass
    takes as many patches of each pair as cover it. Pairs smaller than the patch are padded evenly: 0 in the images,
    `UNLABELLED` in the masks.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        kind: ChangeKind,
        scaler: Scaler,
        *,
        patch_size: tuple[int, int],
        foreground: float,
        augment: PairAugmentConfig,
        seed: int,
    ) -> None:
        _require_augment(augment, patch_size, kind)
        if not 0 <= foreground <= 1 or min(patch_size) < 1:
            raise ConfigError(
                f"data.foreground = {foreground} and data.patch_size = {tuple(patch_size)}: a share from 0 to 1 and "
                "sides of 1 or more are needed."
            )
        self.pairs, self.kind, self.patch_size = list(pairs), kind, patch_size
        self.foreground, self.augment, self.seed = foreground, augment, seed
        self.scalings = [
            (scaler.of_image(pair.before, pair.valid), scaler.of_image(pair.after, pair.valid)) for pair in self.pairs
        ]
        self.index = [foreground_voxels(pair.masks["mask"], seed=(seed, 2, i)) for i, pair in enumerate(self.pairs)]
        self.units = [
            i
            for i, pair in enumerate(self.pairs)
            for _ in range(math.prod(-(-side // patch) for side, patch in zip(pair.shape, patch_size, strict=True)))
        ]
        self.showing = [i for i in self.units if self.index[i]]

    def __len__(self) -> int:
        """Patches in one pass; patch numbers go on beyond it."""
        return len(self.units)

    def __getitem__(self, number: int) -> dict[str, Any]:
        count = len(self.units)
        order = np.random.default_rng((self.seed, 0, number // count)).permutation(count)
        which = self.units[order[number % count]]
        rng = np.random.default_rng((self.seed, 1, number))
        centre: tuple[int, ...] | None = None
        if self.showing and rng.random() < self.foreground:
            if not self.index[which]:
                which = self.showing[rng.integers(len(self.showing))]
            voxels = self.index[which][int(rng.choice(sorted(self.index[which])))]
            place = np.unravel_index(int(voxels[rng.integers(len(voxels))]), self.pairs[which].shape)
            centre = tuple(int(index) for index in place)
        pair = self.pairs[which]
        box, edges = patch_box(pair.shape, self.patch_size, centre, rng)
        valid = np.asarray(pair.masks["mask"][box]) != UNLABELLED
        images = [
            np.pad(_scaled(image[(slice(None), *box)], scaling, valid), [(0, 0), *edges])
            for image, scaling in zip((pair.before, pair.after), self.scalings[which], strict=True)
        ]
        masks = {
            name: np.pad(mask[box].astype(np.int64), edges, constant_values=UNLABELLED)
            for name, mask in pair.masks.items()
        }
        before, after = augmented(images, masks, self.augment, rng)
        return {
            "before": torch.from_numpy(before),
            "after": torch.from_numpy(after),
            **{name: torch.from_numpy(np.ascontiguousarray(mask)) for name, mask in masks.items()},
            "origin": f"{pair.meta['path']} (case {pair.meta['case']}, rows {box[0].start} to {box[0].stop})",
            "number": number,
        }


def augmented(
    images: list[NDArray[np.float32]],
    masks: dict[str, NDArray[np.int64]],
    config: PairAugmentConfig,
    rng: np.random.Generator,
) -> list[NDArray[np.float32]]:
    """Both dates [C, h, w] augmented; the masks are turned in place of the dict.

    Every choice is drawn whatever the settings, so that leaving one out does not move the others.
    """
    flip_rows, flip_columns, swap = rng.random(3) < 0.5
    quarter = int(rng.integers(4))
    axes = tuple(axis for axis, wanted in ((-2, flip_rows), (-1, flip_columns)) if wanted and config.flips)

    def turned(array: NDArray[Any]) -> NDArray[Any]:
        array = np.flip(array, axes) if axes else array
        return np.rot90(array, quarter, (-2, -1)) if config.turns and quarter else array

    images = [turned(image) for image in images]
    for name in masks:
        masks[name] = turned(masks[name])
    if swap and config.swap_dates:
        images.reverse()
        if "after_mask" in masks:
            masks["before_mask"], masks["after_mask"] = masks["after_mask"], masks["before_mask"]
    coloured, valid = [], masks["mask"] != UNLABELLED
    for image in images:
        bands = (len(image), 1, 1)
        gain = 1 + config.gain * rng.uniform(-1, 1, bands)
        shift = config.shift * rng.uniform(-1, 1, bands)
        made = image * gain.astype(np.float32) + shift.astype(np.float32)
        if config.noise:
            level = np.float32(rng.uniform(0, config.noise))
            made = made + level * rng.standard_normal(image.shape, dtype=np.float32)
        coloured.append(np.ascontiguousarray(made * valid, dtype=np.float32))  # what has no data stays 0
    return coloured


class PairCases(Dataset[dict[str, Any]]):
    """Whole validation pairs as the net sees them: `before`, `after` float32 [C, H, W], `masks`, `case`."""

    def __init__(self, pairs: Sequence[Pair], scaler: Scaler) -> None:
        self.pairs, self.scaler = list(pairs), scaler

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs[index]
        before, after = self.scaler.scaled(pair)
        return {"before": before, "after": after, "masks": dict(pair.masks), "case": pair.meta["case"]}


class ChangeData(NumberedBatches):
    """The batches of a recipe; reads and checks every training and validation pair.

    Attributes: scaler: what was measured on the training pairs.
    """

    def __init__(
        self,
        store: PairStore,
        train: Sequence[Record],
        val: Sequence[Record],
        config: ChangeDataConfig,
        *,
        steps_per_epoch: int | None,
        seed: int,
    ) -> None:
        require_cases(train, val)
        pairs = [store.load(record) for record in train]
        self.scaler = Scaler.of(config.scaling, len(store.bands), pairs)
        patches = PairPatches(
            pairs,
            store.kind,
            self.scaler,
            patch_size=config.patch_size,
            foreground=config.foreground,
            augment=config.augment,
            seed=seed,
        )
        if not patches.showing:
            log.warning("no training pair shows any change: a net can only learn to say that nothing has changed")
        cases = PairCases([store.load(record) for record in val], self.scaler)
        super().__init__(
            patches, cases, batch_size=config.batch_size, steps_per_epoch=steps_per_epoch, workers=config.workers
        )


def _scaled(image: NDArray[Any], scaling: BandScaling, valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    made = scaling.apply(np.asarray(image, dtype=np.float32))
    made[:, ~valid] = 0
    return made


def _compact(image: NDArray[np.float32]) -> NDArray[Any]:
    """The values in the smallest of uint8, uint16 and float32 that holds them exactly: pictures take a quarter."""
    for kind in (np.uint8, np.uint16):
        small = image.clip(0, np.iinfo(kind).max).astype(kind)
        if (small == image).all():
            return small
    return image


def _require_augment(augment: PairAugmentConfig, patch_size: Sequence[int], kind: ChangeKind) -> None:
    if augment.turns and len(set(patch_size)) > 1:
        raise ConfigError(
            f"data.augment.turns with data.patch_size = {tuple(patch_size)}: only square patches can be turned by 90 "
            "degrees. Give it two equal sides, or set turns to false."
        )
    if augment.swap_dates and not kind.swaps:
        raise ConfigError(
            "data.augment.swap_dates with mamba_bda: damage has a before and an after. Set swap_dates to false."
        )
    if min(augment.gain, augment.shift, augment.noise) < 0:
        raise ConfigError(f"data.augment = {augment}: gain, shift and noise of 0 or more are needed.")
