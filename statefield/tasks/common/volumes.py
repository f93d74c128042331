"""Files to arrays that a net can take: cases normalised, on the grid of the recipe, in memory or mapped from disk.

Shape legend: C channels, D slices, H x W pixels, k neighbours on each side (`slice_context`). A photograph is a volume
of one slice.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.adapter import DatasetAdapter
from statefield.datasets.sample import DatasetInfo, Meta, Record
from statefield.errors import DataError
from statefield.files import atomic_path
from statefield.tasks.common.config import NormalisationConfig
from statefield.tasks.common.normalisation import normalise as normalise
from statefield.tasks.common.resampling import coarse_axis, resample_image, resample_labels, resampled_shape

log = logging.getLogger(__name__)

Spacing = tuple[float | None, float | None, float | None]  # mm between slices, rows, columns; None: as stored


def stack_neighbours(volume: NDArray[np.float32], index: int, context: int) -> NDArray[np.float32]:
    """Slices index-k .. index+k of `volume` [C, D, H, W] as channels, [(2k+1) * C, H, W]; the end slices repeat."""
    chosen = np.clip(np.arange(index - context, index + context + 1), 0, volume.shape[1] - 1)
    return np.ascontiguousarray(volume[:, chosen].swapaxes(0, 1).reshape(-1, *volume.shape[2:]))


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a case lie, and on which grid a net wants them.

    shape, spacing: as stored, (D, H, W), the latter in mm. wanted_shape, wanted_spacing: for the net. coarse: the axis
    whose slices are too far apart to be interpolated, as `resampling.coarse_axis` finds it.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    wanted_shape: tuple[int, ...]
    wanted_spacing: tuple[float, ...]
    coarse: int | None

    @classmethod
    def of(cls, shape: Sequence[int], meta: Meta, wanted: Spacing | None) -> Grid:
        """The grid of a case of `shape` (D, H, W), for a net that was trained at `wanted` mm; None: as stored.

        Raises: ConfigError: a spacing that is not positive. DataError: a case that does not state its own.
        """
        here = tuple(int(side) for side in shape)
        stored = (1.0,) * (3 - len(meta["spacing"])) + tuple(float(side) for side in meta["spacing"])
        if wanted is None or all(side is None for side in wanted):
            return cls(here, stored, here, stored, None)
        if not meta["spacing_known"]:
            raise DataError(
                f"{meta['path']}: the case {meta['case']!r} does not state the distance between its voxels, so it "
                f"cannot be resampled to data.spacing = {tuple(wanted)} mm. Write its spacing into the file, or set "
                "data.spacing to null to use every case as stored."
            )
        if len(meta["spacing"]) == 2:  # a picture has no distance between slices
            wanted = (None, *wanted[1:])
        target = tuple(have if want is None else float(want) for have, want in zip(stored, wanted, strict=True))
        return cls(here, stored, resampled_shape(here, stored, wanted), target, coarse_axis(stored, wanted))

    @property
    def differs(self) -> bool:
        """Whether the case has to be resampled."""
        return self.wanted_shape != self.shape


@dataclass(frozen=True, eq=False)
class Volume:
    """One case in memory (or mapped from disk): `image` float32 [C, D, H, W] normalised, `mask` int16 [D, H, W].

    `present[d, k]` says whether slice d shows class k. `spacing`: mm between the voxels of these arrays, 1 where the
    file does not say; `meta` speaks of the file.
    """

    image: NDArray[np.float32]
    mask: NDArray[np.int16]
    present: NDArray[np.bool_]
    meta: Meta
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)


class VolumeStore:
    """The cases of some records, each read once.

    Intensities are normalised on the voxels as stored, and then resampled, in the order of nnU-Net; prediction does
    the same.

    Args:
        spacing: mm between slices, rows and columns to which every case is resampled; None, whole or for an axis: as
            stored.
        folder: where to keep arrays of all cases as .npy files, mapped into memory when read (for data larger than
            memory); None keeps them in memory.
    """

    def __init__(
        self,
        adapter: DatasetAdapter,
        info: DatasetInfo,
        normalisation: NormalisationConfig,
        folder: Path | None = None,
        *,
        spacing: Spacing | None = None,
    ) -> None:
        self.adapter, self.info, self.normalisation, self.folder = adapter, info, normalisation, folder
        self.spacing = spacing
        self._num_read, self._num_resampled = 0, 0
        self._stored_spacings: list[tuple[float, ...]] = []
        self._blank: list[str] = []  # cases without foreground

    def load(self, record: Record, *, keep: bool = True) -> Volume:
        """Read, check, normalise and resample one case.

        Args: keep: False to look at a case without keeping it: it is read and checked, but stays on its own grid.

        Raises: DataError when it has no mask, or no spacing where one is needed.
        """
        sample = self.adapter.load(record)
        if "mask" not in sample:
            raise DataError(f"{sample['meta']['path']}: the case {record.case!r} has no labels; training needs them.")
        raw, labels = sample["image"], sample["mask"]
        if labels.ndim == 2:
            raw, labels = raw[:, None], labels[None]
        grid = Grid.of(labels.shape, sample["meta"], self.spacing)
        image, mask, spacing = normalise(raw, self.normalisation), labels.astype(np.int16), grid.spacing
        if keep:
            self._num_read += 1
            if grid.differs:
                image = resample_image(image, grid.wanted_shape, coarse_axis=grid.coarse)
                mask = resample_labels(mask, grid.wanted_shape, coarse_axis=grid.coarse).astype(np.int16, copy=False)
                spacing = grid.wanted_spacing
                self._num_resampled += 1
        # counted from UNLABELLED on, one pass whatever the number of classes
        counts = [np.bincount(labels.ravel() + 1, minlength=len(self.info.classes) + 1) for labels in mask]
        present = np.stack(counts)[:, 1:] > 0
        if keep:
            self._note(record.case, grid, sample["meta"], present)
        if keep and self.folder is not None:
            stem = quote(record.case, safe="")  # a case of its own file, whatever its name holds
            image = mapped_on_disk(self.folder / f"{stem}.image.npy", image)
            mask = mapped_on_disk(self.folder / f"{stem}.mask.npy", mask)
        return Volume(image, mask, present, sample["meta"], spacing)

    def _note(self, case: str, grid: Grid, meta: Meta, present: NDArray[np.bool_]) -> None:
        if meta["spacing_known"]:
            self._stored_spacings.append(grid.spacing)
        if not present[:, 1:].any():
            self._blank.append(case)

    def report(self) -> None:
        """Log what is odd about the cases kept so far: no foreground, or different spacings that nobody asked to even
        out; and how many were resampled, when a spacing was asked for.
        """
        if self._blank:
            named = ", ".join(self._blank[:3]) + (", ..." if len(self._blank) > 3 else "")
            log.warning("%d of %d cases show nothing but background: %s", len(self._blank), self._num_read, named)
        if self.spacing is None and (differing := _differing(self._stored_spacings)):
            middle = ", ".join(f"{side:g}" for side in np.median(self._stored_spacings, axis=0))
            log.warning(
                "the distances between voxels differ among the cases (%s), and each is used as stored. Set "
                "data.spacing, say to their medians [%s], to resample all to one grid.",
                differing,
                middle,
            )
        if self.spacing is not None:
            log.info(
                "%d of %d cases resampled to %s mm (slices, rows, columns)",
                self._num_resampled,
                self._num_read,
                " x ".join("as stored" if side is None else f"{side:g}" for side in self.spacing),
            )


def _differing(spacings: Sequence[tuple[float, ...]]) -> str:
    """The axes along which spacings differ by more than a hundredth, with their ranges in mm; "" when none does."""
    if not spacings:
        return ""
    low, high = np.min(spacings, axis=0), np.max(spacings, axis=0)
    axes = zip(("slices", "rows", "columns"), low, high, strict=True)
    return ", ".join(f"{name} {a:g} to {b:g} mm" for name, a, b in axes if b > 1.01 * a)


def mapped_on_disk(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    """Write an array as .npy, and give it back mapped into memory."""
    with atomic_path(path) as partial, partial.open("wb") as out:
        np.save(out, array)
    return np.load(path, mmap_mode="r")
