"""An image or volume through the net of a run, and slices of the result to look at.

Shape legend: C channels, D x H x W the grid of the file (a picture is one slice).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from statefield.datasets.adapter import load_files
from statefield.errors import ConfigError
from statefield.files import atomic_path
from statefield.tasks.common.figures import Pixels, class_colour, displayed, tinted
from statefield.tasks.medical.ensemble import load_ensemble
from statefield.tasks.medical.experiment import TrainedRun
from statefield.tasks.medical.inputs import find_cases, place_outputs
from statefield.tasks.medical.postprocessing import load_postprocessing
from statefield.tasks.medical.predict import predict_cases

Progress = Callable[[int, int], None]
_SHOWN_PX = 640  # the shorter side of a slice on screen, at least half of it


@dataclass(frozen=True)
class ClassShare:
    """How much of a case a class is: voxels, their share from 0 to 1, and millilitres where spacings are known."""

    name: str
    colour: str
    count: int
    share: float
    millilitres: float | None


@dataclass(frozen=True)
class MedicalResult:
    """A segmented case on disk.

    pictures: .npy uint8 [D, H, W, 3]. labels: .npy uint8 or uint16 [D, H, W]. aspect: height of a pixel divided by its
    width. is_volume: drawn with the front of the body up. files: what there is to download. fullest: the slice, from 0,
    with most foreground.
    """

    name: str
    pictures: Path
    labels: Path
    aspect: float
    is_volume: bool
    fullest: int
    num_slices: int
    shares: tuple[ClassShare, ...]
    files: tuple[Path, ...]

    def slice(self, index: int, opacity: float) -> Pixels:
        """Slice `index`, from 0, with its classes washed over it; opacity 0 to 1; pixels are square on screen."""
        index = min(max(index, 0), self.num_slices - 1)
        picture = np.load(self.pictures, mmap_mode="r")[index]
        labels = np.load(self.labels, mmap_mode="r")[index]
        shown = np.array(picture) if opacity <= 0 else tinted(np.array(picture), labels, strength=min(opacity, 1.0))
        if self.is_volume:
            shown = shown[::-1]
        height, width = shown.shape[0] * self.aspect, float(shown.shape[1])
        factor = max(1, round(_SHOWN_PX / min(height, width))) if min(height, width) < _SHOWN_PX else 1
        size = max(1, round(width * factor)), max(1, round(height * factor))
        return np.asarray(Image.fromarray(shown).resize(size, Image.Resampling.NEAREST))


class MedicalJob:
    """The net of one run or of several, ready to segment.

    Raises: those of `load_ensemble`.
    """

    def __init__(self, runs: Sequence[Path], device: str) -> None:
        self.run: TrainedRun = load_ensemble(list(runs))
        self.net: nn.Module = self.run.net.to(device)
        self.postprocess = load_postprocessing(self.run.folder.root)

    @property
    def about(self) -> str:
        """The model in a sentence."""
        run = self.run
        classes = ", ".join(run.classes[1:])
        return f"{run.recipe.model.name} of {run.folder.root}: {', '.join(run.channels)} → {classes}"

    def segment(self, files: Sequence[Path], folder: Path, progress: Progress | None = None) -> MedicalResult:
        """Predict one case as `statefield medical predict` does, and make its slices ready to be looked at.

        Args:
            files: the case: one file, or one of each channel as nnU-Net names them. folder: for the result's files.
            progress: called as progress(slices or windows done, in all).

        Raises: ConfigError for files that are not one case; DataError and ShapeError for one that cannot be read or has
            other channels.
        """
        run = self.run
        cases = find_cases(files, len(run.channels))
        if len(cases) != 1:
            raise ConfigError(
                f"{len(cases)} cases were given ({', '.join(case.name for case in cases)}), and one is shown at a "
                f"time. Give one file, or the {len(run.channels)} channels of one case named case_0000, case_0001, ..."
            )
        outputs = place_outputs(cases, folder, overlay=True)
        (outcome,) = predict_cases(
            self.net,
            cases,
            outputs,
            info=run.info,
            normalisation=run.normalisation,
            slice_context=run.slice_context,
            roi=run.roi,
            inference=run.inference,
            spacing=run.spacing,
            postprocess=self.postprocess,
            progress=None if progress is None else lambda _, done, total: progress(done, total),
        )
        if outcome.error is not None:
            raise outcome.error
        sample = load_files(cases[0].files, outputs[0].labels, case=cases[0].name, info=run.info)
        image = sample["image"] if sample["image"].ndim == 4 else sample["image"][:, None]
        labels = np.asarray(sample["mask"]).reshape(image.shape[1:])
        labels = labels.astype(np.uint8 if len(run.classes) <= 256 else np.uint16)
        meta = sample["meta"]
        spacing_mm = tuple(meta["spacing"]) if meta["spacing_known"] else None
        return MedicalResult(
            name=cases[0].name,
            pictures=_saved(folder / "pictures.npy", _pictures(image)),
            labels=_saved(folder / "labels.npy", labels),
            aspect=1.0 if spacing_mm is None else float(spacing_mm[-2] / spacing_mm[-1]),
            is_volume=cases[0].is_volume and len(labels) > 1,
            fullest=int(np.argmax([np.count_nonzero(one) for one in labels])),
            num_slices=len(labels),
            shares=_shares(labels, run.classes, spacing_mm),
            files=outputs[0].wanted(),
        )


def _pictures(image: NDArray[np.float32]) -> Pixels:
    """[C, D, H, W] as 8-bit [D, H, W, 3], all slices by the same percentiles."""
    channels, depth, height, width = image.shape
    return displayed(image.reshape(channels, depth * height, width)).reshape(depth, height, width, 3)


def _saved(path: Path, array: NDArray[Any]) -> Path:
    with atomic_path(path) as partial, partial.open("wb") as stream:
        np.save(stream, array)
    return path


def _shares(
    labels: NDArray[Any], classes: Sequence[str], spacing_mm: tuple[float, ...] | None
) -> tuple[ClassShare, ...]:
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    voxel_ml = float(np.prod(spacing_mm)) / 1000 if spacing_mm is not None and len(spacing_mm) == 3 else None
    return tuple(
        ClassShare(
            name,
            class_colour(index),
            int(counts[index]),
            float(counts[index] / labels.size),
            None if voxel_ml is None else float(counts[index] * voxel_ml),
        )
        for index, name in enumerate(classes)
        if index
    )
