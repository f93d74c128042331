"""Label files against label files: two folders matched by case name, scored in parallel. No model is needed."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from statefield.datasets import case_name
from statefield.datasets.description import DESCRIPTION, names_by_number, read_description
from statefield.datasets.readers import image as image_reader
from statefield.datasets.readers import nifti
from statefield.errors import ConfigError, DatasetLayoutError, ShapeError
from statefield.tasks.common.segmentation_metrics import SegmentationMetrics, SegmentationState

logger = logging.getLogger(__name__)

_MOST_NAMES_SHOWN = 20
OnCase = Callable[[str], None]


@dataclass(frozen=True)
class LabelPair:
    """One case: the predicted label file and the true one."""

    case: str
    prediction: Path
    target: Path


@dataclass(frozen=True)
class Evaluation:
    """The scores of every case. classes_from says where the classes come from; unmatched lists predictions left out."""

    metrics: SegmentationMetrics
    state: SegmentationState
    classes_from: str
    unmatched: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """`SegmentationMetrics.summarise`, with where the classes come from and which predictions had no target."""
        return {
            "class_names": list(self.metrics.classes),
            "classes_from": self.classes_from,
            "unmatched_predictions": list(self.unmatched),
            **self.metrics.summarise(self.state),
        }


def evaluate_folders(
    predictions: Path,
    targets: Path,
    *,
    classes: Sequence[str] | None = None,
    tolerance_mm: float = 1.0,
    spacing_mm: tuple[float, float] | None = None,
    distances: bool = True,
    jobs: int = 1,
    on_start: Callable[[int], None] | None = None,
    on_case: OnCase | None = None,
) -> Evaluation:
    """Score every target of a folder (or one file) against the prediction of the same name.

    Args:
        predictions, targets: folders of NIfTI files or of pictures, or one file each.
        classes: names by label value; None reads them from a dataset.json in or beside the targets' folder, or else
            takes the values found in the targets.
        tolerance_mm: of NSD; in pixels for pictures without `spacing_mm`.
        spacing_mm: (row, column) spacing of pictures, which carry none. NIfTI files state theirs.
        distances: False leaves out HD95, ASSD and NSD.
        jobs: processes; 1 works in this one. With more, a script guards its call by `if __name__ == "__main__"`.
        on_start, on_case: told the number of cases, and each case's name when it is scored.

    Raises:
        DatasetLayoutError: a folder without label files, or targets without a prediction (all are listed).
        ShapeError: a prediction on other voxels than its target (shape or affine).
        DataError, LabelError: files that cannot be read, or labels outside the classes.
        ConfigError: jobs below 1, or spacing_mm given for NIfTI files.
    """
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; at least 1 is needed.")
    pairs, unmatched = match_cases(predictions, targets)
    volumes = _is_volume(pairs[0].target)
    if volumes and spacing_mm is not None:
        raise ConfigError("spacing_mm is for pictures; NIfTI files state their own spacing. Leave it out.")
    if unmatched:
        logger.warning("%s: %d predictions have no target and are left out: %s", predictions, len(unmatched), unmatched)
    names, classes_from = _classes(classes, targets, pairs)
    metrics = SegmentationMetrics(
        names,
        tolerance_mm=tolerance_mm,
        unit="mm" if volumes or spacing_mm is not None else "px",
        distances=distances,
    )
    if on_start is not None:
        on_start(len(pairs))
    state = SegmentationState()
    for case, scored in _scored(pairs, metrics, spacing_mm, jobs):
        state = state + scored
        if on_case is not None:
            on_case(case)
    return Evaluation(metrics, state, classes_from, tuple(unmatched))


def match_cases(predictions: Path, targets: Path) -> tuple[list[LabelPair], list[str]]:
    """The cases of `targets` with their predictions, sorted by name, and the predictions that have no target."""
    if predictions.is_file() and targets.is_file():
        return [LabelPair(case_name(targets), predictions, targets)], []
    found, wanted = _label_files(predictions), _label_files(targets)
    missing = [case for case in wanted if case not in found]
    if missing:
        shown = "\n".join(f"  {case}" for case in missing[:_MOST_NAMES_SHOWN])
        more = f"\n  and {len(missing) - _MOST_NAMES_SHOWN} more" if len(missing) > _MOST_NAMES_SHOWN else ""
        raise DatasetLayoutError(
            f"{predictions}: {len(missing)} of the {len(wanted)} cases of {targets} have no prediction. Leaving them "
            f"out would change the score: predict them, or take them out of {targets}. Missing:\n{shown}{more}"
        )
    kinds = {_is_volume(path) for case in wanted for path in (found[case], wanted[case])}
    if len(kinds) > 1:
        raise DatasetLayoutError(
            f"{predictions} and {targets}: NIfTI files and pictures are mixed; one kind is needed."
        )
    return [LabelPair(case, found[case], wanted[case]) for case in wanted], [c for c in found if c not in wanted]


def score_pair(
    pair: LabelPair, metrics: SegmentationMetrics, spacing_mm: tuple[float, float] | None = None
) -> SegmentationState:
    """Read one case's two files, check that they lie on the same pixels, and score them."""
    num_classes = len(metrics.classes)
    if _is_volume(pair.target):
        target = nifti.read_labels(pair.target, num_classes)
        prediction = nifti.read_labels(pair.prediction, num_classes)
        reason = nifti.same_place(prediction, target)
        if reason is not None:
            raise ShapeError(
                f"{pair.prediction} and {pair.target}: they must lie on the same voxels, but {reason}. Write the "
                "prediction on the image's grid (nearest neighbour)."
            )
        return metrics.observe(prediction.array[0], target.array[0], case=pair.case, spacing=target.spacing)
    wanted = image_reader.read_mask(pair.target, num_classes)
    predicted = image_reader.read_mask(pair.prediction, num_classes)
    if predicted.shape != wanted.shape:
        raise ShapeError(
            f"{pair.prediction} is {' x '.join(map(str, predicted.shape))} pixels but {pair.target} is "
            f"{' x '.join(map(str, wanted.shape))}: they must have one size. Write the prediction at the image's size."
        )
    return metrics.observe(predicted, wanted, case=pair.case, spacing=spacing_mm or (1.0, 1.0))


def _scored(
    pairs: list[LabelPair], metrics: SegmentationMetrics, spacing_mm: tuple[float, float] | None, jobs: int
) -> Iterable[tuple[str, SegmentationState]]:
    if jobs == 1 or len(pairs) == 1:
        for pair in pairs:
            yield pair.case, score_pair(pair, metrics, spacing_mm)
        return
    # spawn: a forked child of a process with threads (progress bar, BLAS) can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(pairs)), mp_context=context) as pool:
        futures = {pool.submit(score_pair, pair, metrics, spacing_mm): pair.case for pair in pairs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the first error ends the rest
            raise


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


def _classes(classes: Sequence[str] | None, targets: Path, pairs: list[LabelPair]) -> tuple[tuple[str, ...], str]:
    """The class names, and a clause that says where they come from."""
    if classes is not None:
        return tuple(classes), "as given"
    for folder in (targets, targets.parent):
        if targets.is_dir() and (folder / DESCRIPTION).is_file():
            path = folder / DESCRIPTION
            return names_by_number(path, "labels", read_description(folder).get("labels")), f"read from {path}"
    values = [_values(pair.target) for pair in pairs]
    if not _is_volume(pairs[0].target) and all(found <= {0, 255} for found in values):
        highest = 1
    else:
        highest = max(max(found) for found in values)
    names = ("background", *(f"class_{k}" for k in range(1, max(highest, 1) + 1)))
    return names, "the values found in the targets"


def _values(path: Path) -> set[int]:
    if _is_volume(path):
        return {int(v) for v in np.unique(nifti.read_labels(path).array)}
    return {int(v) for v in image_reader.mask_values(path)}


def _is_volume(path: Path) -> bool:
    return path.name.lower().endswith(nifti.SUFFIXES)
