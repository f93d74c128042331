"""Training patches of slices or of volumes, in an order that is a function of (seed, number).

Shape legend: C channels, D slices, H x W pixels, k neighbours on each side (`slice_context`), d x h x w a patch.

Training draws an endless numbered list of patches. Patch n belongs to pass `n // len(dataset)` over the data, in an
order of (seed, pass), and its place, augmentation and everything else random in it come from a generator seeded with
(seed, n). So a run that stopped after batch b continues with batch b + 1 exactly, whatever the number of workers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from statefield.errors import ConfigError
from statefield.tasks.common.augment import Augmentation
from statefield.tasks.common.augment_volumes import VolumeAugmentation
from statefield.tasks.common.config import UNLABELLED
from statefield.tasks.common.volumes import Volume, stack_neighbours

_INDEXED_VOXELS = 10_000  # of each class of a case; nnU-Net keeps as many


class PatchItem(TypedDict):
    """A training example: `image` float32 [C, *patch], `mask` int64 [*patch], where it is from, its number n.

    Of slices with neighbours the channels are (2k+1) * C.
    """

    image: Tensor
    mask: Tensor
    origin: str
    number: int


class PatchDataset(Dataset[PatchItem], ABC):
    """The endless numbered list of training patches; `dataset[n]` depends on nothing but the data, the seed and n.

    Subclasses say of what a pass consists (`units`), and cut the patches.

    Args:
        foreground: the share of patches that are centred on a voxel of a foreground class, the class drawn evenly from
            those that the unit shows; a unit that shows none gives its place to one that does.
    """

    def __init__(self, volumes: Sequence[Volume], *, foreground: float, seed: int) -> None:
        self.volumes, self.foreground, self.seed = list(volumes), foreground, seed
        self.units = self._units()
        self.showing = [unit for unit in self.units if self._classes(unit).size]

    @abstractmethod
    def _units(self) -> list[Any]:
        """What one pass over the data visits, each once."""

    @abstractmethod
    def _classes(self, unit: Any) -> NDArray[np.int64]:
        """The foreground classes that a unit shows."""

    @abstractmethod
    def _voxel(self, unit: Any, label: int, rng: np.random.Generator) -> tuple[int, ...]:
        """A voxel of the class `label` in a unit."""

    @abstractmethod
    def _patch(
        self, unit: Any, centre: tuple[int, ...] | None, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], Volume, str]:
        """The augmented patch around `centre`, or anywhere in the unit; its volume, and where in it."""

    def __len__(self) -> int:
        """Patches in one pass; patch numbers go on beyond it."""
        return len(self.units)

    def __getitem__(self, number: int) -> PatchItem:
        count = len(self.units)
        order = np.random.default_rng((self.seed, 0, number // count)).permutation(count)
        unit = self.units[order[number % count]]
        rng = np.random.default_rng((self.seed, 1, number))
        centre: tuple[int, ...] | None = None
        if self.showing and rng.random() < self.foreground:
            if not self._classes(unit).size:
                unit = self.showing[rng.integers(len(self.showing))]
            centre = self._voxel(unit, int(rng.choice(self._classes(unit))), rng)
        image, mask, volume, place = self._patch(unit, centre, rng)
        return {
            "image": torch.from_numpy(image),
            "mask": torch.from_numpy(mask),
            "origin": f"{volume.meta['path']} (case {volume.meta['case']}, {place})",
            "number": number,
        }


class SlicePatches(PatchDataset):
    """Patches of slices, [(2k+1) * C, h, w]; a pass visits every slice of every case once.

    Args:
        patch_size: rows and columns of a patch, or None for whole slices (which must then all have one size).
        slice_context: k. The others are those of `PatchDataset`.
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
        self.patch_size, self.slice_context, self.augmentation = patch_size, slice_context, augmentation
        super().__init__(volumes, foreground=foreground, seed=seed)
        sizes = {volume.image.shape[2:] for volume in self.volumes}
        if patch_size is None and len(sizes) > 1:
            raise ConfigError(
                f"data.patch_size is null (whole slices), but the training slices have {len(sizes)} sizes "
                f"({', '.join(f'{h} x {w}' for h, w in sorted(sizes)[:3])}, ...): set data.patch_size."
            )

    def _units(self) -> list[tuple[int, int]]:
        return [(v, d) for v, volume in enumerate(self.volumes) for d in range(volume.image.shape[1])]

    def _classes(self, unit: tuple[int, int]) -> NDArray[np.int64]:
        v, d = unit
        return np.flatnonzero(self.volumes[v].present[d, 1:]) + 1

    def _voxel(self, unit: tuple[int, int], label: int, rng: np.random.Generator) -> tuple[int, ...]:
        v, d = unit
        rows, columns = np.nonzero(np.asarray(self.volumes[v].mask[d]) == label)
        chosen = rng.integers(len(rows))
        return int(rows[chosen]), int(columns[chosen])

    def _patch(
        self, unit: tuple[int, int], centre: tuple[int, ...] | None, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], Volume, str]:
        v, d = unit
        volume = self.volumes[v]
        image, mask = stack_neighbours(volume.image, d, self.slice_context), volume.mask[d]
        image, labels = cut_patch(image, mask, self.patch_size or mask.shape, centre, rng)
        image, labels = self.augmentation(image, labels, seed=int(rng.integers(2**32)))
        return image, labels, volume, f"slice {d}"


class VolumePatches(PatchDataset):
    """Patches of volumes, [C, d, h, w]; a pass takes as many of each case as cover it.

    A list of at most 10,000 voxels of each class of a case, drawn evenly and once, is all that foreground patches are
    centred on, so that no patch has to search a volume.

    Args: patch_size: slices, rows and columns of a patch. The others are those of `PatchDataset`.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        *,
        patch_size: tuple[int, ...],
        foreground: float,
        augmentation: VolumeAugmentation,
        seed: int,
    ) -> None:
        self.patch_size, self.augmentation = patch_size, augmentation
        self.index = [foreground_voxels(volume.mask, seed=(seed, 2, v)) for v, volume in enumerate(volumes)]
        super().__init__(volumes, foreground=foreground, seed=seed)

    def _units(self) -> list[int]:
        units = []
        for v, volume in enumerate(self.volumes):
            sides = zip(volume.mask.shape, self.patch_size, strict=True)
            units += [v] * math.prod(-(-side // patch) for side, patch in sides)
        return units

    def _classes(self, unit: int) -> NDArray[np.int64]:
        return np.array(sorted(self.index[unit]), dtype=np.int64)

    def _voxel(self, unit: int, label: int, rng: np.random.Generator) -> tuple[int, ...]:
        voxels = self.index[unit][label]
        where = np.unravel_index(int(voxels[rng.integers(len(voxels))]), self.volumes[unit].mask.shape)
        return tuple(int(index) for index in where)

    def _patch(
        self, unit: int, centre: tuple[int, ...] | None, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], Volume, str]:
        volume = self.volumes[unit]
        image, mask = cut_patch(volume.image, volume.mask, self.patch_size, centre, rng)
        image, mask = self.augmentation(image, mask, seed=int(rng.integers(2**32)), spacing=volume.spacing)
        return image, mask, volume, "anywhere" if centre is None else f"around voxel {centre}"


def foreground_voxels(
    mask: NDArray[np.int16], *, seed: Sequence[int], limit: int = _INDEXED_VOXELS
) -> dict[int, NDArray[np.int64]]:
    """For each class above 0 that `mask` shows, the flat indices of its voxels, rising; of more than `limit` a draw."""
    flat = np.flatnonzero(mask > 0)
    labels = np.asarray(mask).reshape(-1)[flat]
    rng = np.random.default_rng(tuple(seed))
    found: dict[int, NDArray[np.int64]] = {}
    for label in np.unique(labels):
        voxels = flat[labels == label]
        if len(voxels) > limit:
            voxels = np.sort(rng.choice(voxels, limit, replace=False))
        found[int(label)] = voxels
    return found


def cut_patch(
    image: NDArray[np.float32],
    mask: NDArray[np.int16],
    size: Sequence[int],
    centre: tuple[int, ...] | None,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A patch of `size` around `centre` (moved inside the image), or anywhere; a smaller image is padded evenly.

    Padding is 0 in the image, as the sliding window pads, and `UNLABELLED` in the mask. Only the patch is read from an
    array that is mapped from disk.

    Args: image: [C, *S]. mask: [*S]. centre: a voxel of the mask.

    Returns: float32 [C, *size], int64 [*size], new arrays.
    """
    box, edges = patch_box(mask.shape, size, centre, rng)
    values = np.array(image[(slice(None), *box)], dtype=np.float32)
    labels = np.array(mask[box], dtype=np.int64)
    if any(edge for pair in edges for edge in pair):
        values = np.pad(values, [(0, 0), *edges])
        labels = np.pad(labels, edges, constant_values=UNLABELLED)
    return values, labels


def patch_box(
    shape: Sequence[int], size: Sequence[int], centre: Sequence[int] | None, rng: np.random.Generator
) -> tuple[tuple[slice, ...], list[tuple[int, int]]]:
    """Where a patch of `size` around `centre` (or anywhere) lies in an array of `shape`, and the padding it needs.

    Returns: a slice for each axis, inside the array; (before, after) padding for each axis, 0 where the array is
        larger than the patch.
    """
    box, edges = [], []
    for axis, (want, have) in enumerate(zip(size, shape, strict=True)):
        gap = max(want - have, 0)
        edges.append((gap // 2, gap - gap // 2))
        room = max(have - want, 0)
        wanted = rng.integers(room + 1) if centre is None else centre[axis] - want // 2
        start = int(np.clip(wanted, 0, room))
        box.append(slice(start, start + min(want, have)))
    return tuple(box), edges


class PositionSampler(Sampler[int]):
    """Patch numbers of one epoch, from wherever training stands.

    Args:
        batches_done: how many batches training has consumed since its beginning; asked anew for each epoch.
        batch_size: patches of a batch, of all processes together. Batch b holds b * batch_size and those that follow.
        rank, num_processes: which equal part of each batch this process has; the parts follow one another.
    """

    def __init__(
        self,
        batches_done: Callable[[], int],
        *,
        batches_per_epoch: int,
        batch_size: int,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.batches_done, self.batches_per_epoch, self.batch_size = batches_done, batches_per_epoch, batch_size
        self.share = batch_size // num_processes
        self.first = rank * self.share

    def __len__(self) -> int:
        return self.batches_per_epoch * self.share

    def __iter__(self) -> Iterator[int]:
        done = self.batches_done()
        end = (done // self.batches_per_epoch + 1) * self.batches_per_epoch
        starts = (batch * self.batch_size + self.first for batch in range(done, end))
        return (number for start in starts for number in range(start, start + self.share))
