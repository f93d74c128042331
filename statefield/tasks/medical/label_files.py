"""Folders of label files: which prediction, target and field of view are of one case, and what the files hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from statefield.datasets import case_name
from statefield.datasets.readers import image as image_reader
from statefield.datasets.readers import nifti
from statefield.errors import DatasetLayoutError, ShapeError
from statefield.labels import UNLABELLED

_MOST_NAMES_SHOWN = 20
_MASK_ENDINGS = ("", "_mask", "_fov")


@dataclass(frozen=True)
class LabelPair:
    """One case: the predicted label file, the true one, and a mask of what is scored (None: everything)."""

    case: str
    prediction: Path
    target: Path
    mask: Path | None = None


@dataclass(frozen=True, eq=False)
class LabelMaps:
    """The decoded files of a case: int64 [D, H, W] or [H, W]; spacing in mm, None for pictures. The target is
    `UNLABELLED` wherever it is not to be scored.
    """

    prediction: np.ndarray
    target: np.ndarray
    spacing_mm: tuple[float, ...] | None


def match_cases(predictions: Path, targets: Path, masks: Path | None = None) -> tuple[list[LabelPair], list[str]]:
    """The cases of `targets` with their predictions (and masks), sorted by name, and the predictions without target.

    A mask has the name of its case, or the name with _mask or _fov behind it.

    Raises:
        DatasetLayoutError: a folder without label files, one name twice, targets without prediction or mask (all are
            listed), or NIfTI files and pictures mixed.
    """
    for path in (predictions, targets):
        if not (path.is_file() or path.is_dir()):  # nothing, a link to nothing, a pipe
            raise DatasetLayoutError(f"{path}: nothing found where label files are needed, a folder of them or one.")
    if predictions.is_file() and targets.is_file():
        found, wanted = {case_name(targets): predictions}, {case_name(targets): targets}
    else:
        found, wanted = _label_files(predictions), _label_files(targets)
    _require_all(predictions, [case for case in wanted if case not in found], wanted, targets, "prediction")
    chosen: dict[str, Path | None] = dict.fromkeys(wanted)
    if masks is not None:
        available = {case_name(targets): masks} if masks.is_file() else _label_files(masks)
        for case in wanted:
            names = [case + ending for ending in _MASK_ENDINGS if case + ending in available]
            chosen[case] = available[names[0]] if names else None
        _require_all(masks, [case for case, mask in chosen.items() if mask is None], wanted, targets, "mask")
    files = [file for case in wanted for file in (found[case], wanted[case], chosen[case]) if file is not None]
    if len({is_volume(file) for file in files}) > 1:
        raise DatasetLayoutError(
            f"{predictions} and {targets}: NIfTI files and pictures are mixed; one kind is needed."
        )
    pairs = [LabelPair(case, found[case], wanted[case], chosen[case]) for case in wanted]
    return pairs, [case for case in found if case not in wanted]


def read_pair(pair: LabelPair, num_classes: int, *, ignore_label: int | None = None) -> LabelMaps:
    """Read one case's files, and check that they lie on the same pixels.

    Args:
        ignore_label: the target's value for what has no label.

    Raises:
        ShapeError: a prediction or mask on other voxels than the target (shape or affine).
        DataError, LabelError: files that cannot be read, or labels outside the classes.
    """
    if is_volume(pair.target):
        target = nifti.read_labels(pair.target, num_classes, unlabelled=ignore_label)
        prediction = nifti.read_labels(pair.prediction, num_classes)
        _require_same_voxels(pair.prediction, prediction, pair.target, target)
        truth, spacing = target.array[0], target.spacing
        if pair.mask is not None:
            mask = nifti.read_labels(pair.mask)
            _require_same_voxels(pair.mask, mask, pair.target, target)
            truth = np.where(mask.array[0] > 0, truth, UNLABELLED)
        return LabelMaps(prediction.array[0], truth, spacing)
    truth = image_reader.read_mask(pair.target, num_classes, unlabelled=ignore_label)
    guess = image_reader.read_mask(pair.prediction, num_classes)
    _require_same_pixels(pair.prediction, guess, pair.target, truth)
    if pair.mask is not None:
        view = image_reader.read_mask(pair.mask)
        _require_same_pixels(pair.mask, view, pair.target, truth)
        truth = np.where(view > 0, truth, UNLABELLED)
    return LabelMaps(guess, truth, None)


def label_values(path: Path) -> set[int]:
    """The distinct values of a label file, as stored (0/255 not turned into 0/1; an ignore label may be -1)."""
    if is_volume(path):
        return {int(v) for v in np.unique(nifti.read_labels(path, unlabelled=UNLABELLED).array)}
    return {int(v) for v in image_reader.mask_values(path)}


def is_volume(path: Path) -> bool:
    """Whether the name is that of a NIfTI file."""
    return path.name.lower().endswith(nifti.SUFFIXES)


def _require_same_voxels(path: Path, volume: nifti.Volume, target_path: Path, target: nifti.Volume) -> None:
    reason = nifti.same_place(volume, target)
    if reason is not None:
        raise ShapeError(
            f"{path} and {target_path}: they must lie on the same voxels, but {reason}. Write the prediction on the "
            "image's grid (nearest neighbour)."
        )


def _require_same_pixels(path: Path, labels: np.ndarray, target_path: Path, target: np.ndarray) -> None:
    if labels.shape != target.shape:
        raise ShapeError(
            f"{path} is {' x '.join(map(str, labels.shape))} pixels but {target_path} is "
            f"{' x '.join(map(str, target.shape))}: they must have one size. Write the prediction at the image's size."
        )


def _require_all(folder: Path, missing: list[str], wanted: Mapping[str, Path], targets: Path, what: str) -> None:
    if missing:
        shown = "\n".join(f"  {case}" for case in missing[:_MOST_NAMES_SHOWN])
        more = f"\n  and {len(missing) - _MOST_NAMES_SHOWN} more" if len(missing) > _MOST_NAMES_SHOWN else ""
        remedy = "predict them" if what == "prediction" else f"add their {what}s"
        raise DatasetLayoutError(
            f"{folder}: {len(missing)} of the {len(wanted)} cases of {targets} have no {what}. Leaving them "
            f"out would change the score: {remedy}, or take them out of {targets}. Missing:\n{shown}{more}"
        )


def _label_files(folder: Path) -> dict[str, Path]:
    """Label files by case name, sorted; hidden files left out."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DatasetLayoutError(f"{folder}: {found} found where a folder of label files is needed.")
    suffixes = (*nifti.SUFFIXES, *image_reader.MASK_SUFFIXES)
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file() or not path.name.lower().endswith(suffixes):
            continue
        case = case_name(path)
        if case in files:
            raise DatasetLayoutError(f"{folder}: {files[case].name} and {path.name} name the same case; keep one.")
        files[case] = path
    if not files:
        raise DatasetLayoutError(f"{folder}: no label file found; names ending in {', '.join(suffixes)} are needed.")
    return files
