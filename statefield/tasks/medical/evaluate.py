"""Label files against label files: two folders matched by case name, scored in parallel. No model is needed."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statefield.datasets.description import DESCRIPTION, names_by_number, read_description
from statefield.errors import ConfigError
from statefield.tasks.common.segmentation_metrics import SegmentationMetrics, SegmentationState
from statefield.tasks.medical.label_files import LabelPair, is_volume, label_values, match_cases, read_pair

logger = logging.getLogger(__name__)

IGNORED_CLASS = "ignore"  # how nnU-Net's dataset.json names the label of voxels without one
OnCase = Callable[[str], None]


@dataclass(frozen=True)
class Evaluation:
    """The scores of every case. classes_from says where the classes come from; unmatched lists predictions left out;
    pairs are the files that were scored.
    """

    metrics: SegmentationMetrics
    state: SegmentationState
    classes_from: str
    unmatched: tuple[str, ...]
    ignore_label: int | None = None
    pairs: tuple[LabelPair, ...] = ()

    def summary(self) -> dict[str, Any]:
        """`SegmentationMetrics.summarise`, with where the classes come from and which predictions had no target."""
        return {
            "class_names": list(self.metrics.classes),
            "classes_from": self.classes_from,
            "unmatched_predictions": list(self.unmatched),
            "ignore_label": self.ignore_label,
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
    ignore_label: int | None = None,
    masks: Path | None = None,
    lesions: bool | Sequence[str] = False,
    lesion_iou: float | None = None,
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
        ignore_label: the targets' value for pixels without a label; None: none, unless the dataset.json names its last
            label "ignore".
        masks: folder of fields of view (or one file): where its file of the case is 0, nothing is scored.
        lesions: classes whose connected components are counted, True: all but the background; `lesion_iou`: from which
            IoU on one is detected, None: any overlap.
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
    pairs, unmatched = match_cases(predictions, targets, masks)
    volumes = is_volume(pairs[0].target)
    if volumes and spacing_mm is not None:
        raise ConfigError("spacing_mm is for pictures; NIfTI files state their own spacing. Leave it out.")
    if unmatched:
        logger.warning("%s: %d predictions have no target and are left out: %s", predictions, len(unmatched), unmatched)
    names, classes_from, ignored = _classes(classes, targets, pairs, ignore_label)
    metrics = SegmentationMetrics(
        names,
        tolerance_mm=tolerance_mm,
        unit="mm" if volumes or spacing_mm is not None else "px",
        distances=distances,
        lesions=lesions if isinstance(lesions, bool) else tuple(lesions),
        lesion_iou=lesion_iou,
    )
    if on_start is not None:
        on_start(len(pairs))
    state = SegmentationState()
    for case, scored in _scored(pairs, metrics, spacing_mm, ignored, jobs):
        state = state + scored
        if on_case is not None:
            on_case(case)
    return Evaluation(metrics, state, classes_from, tuple(unmatched), ignored, tuple(pairs))


def score_pair(
    pair: LabelPair,
    metrics: SegmentationMetrics,
    spacing_mm: tuple[float, float] | None = None,
    ignore_label: int | None = None,
) -> SegmentationState:
    """Read one case's files and score them; errors are those of `read_pair`."""
    maps = read_pair(pair, len(metrics.classes), ignore_label=ignore_label)
    spacing = maps.spacing_mm or spacing_mm or (1.0, 1.0)
    return metrics.observe(maps.prediction, maps.target, case=pair.case, spacing=spacing)


def _scored(
    pairs: list[LabelPair],
    metrics: SegmentationMetrics,
    spacing_mm: tuple[float, float] | None,
    ignore_label: int | None,
    jobs: int,
) -> Iterable[tuple[str, SegmentationState]]:
    if jobs == 1 or len(pairs) == 1:
        for pair in pairs:
            yield pair.case, score_pair(pair, metrics, spacing_mm, ignore_label)
        return
    # spawn: a forked child of a process with threads (progress bar, BLAS) can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(pairs)), mp_context=context) as pool:
        futures = {pool.submit(score_pair, pair, metrics, spacing_mm, ignore_label): pair.case for pair in pairs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # the first error ends the rest
            raise


def _classes(
    classes: Sequence[str] | None, targets: Path, pairs: list[LabelPair], ignore_label: int | None
) -> tuple[tuple[str, ...], str, int | None]:
    """The class names, a clause that says where they come from, and the label that is ignored."""
    if classes is not None:
        return tuple(classes), "as given", ignore_label
    for folder in (targets, targets.parent):
        if targets.is_dir() and (folder / DESCRIPTION).is_file():
            path = folder / DESCRIPTION
            declared = names_by_number(path, "labels", read_description(folder).get("labels"))
            if declared[-1] == IGNORED_CLASS:  # the last one, as nnU-Net has it
                return declared[:-1], f"read from {path}", len(declared) - 1 if ignore_label is None else ignore_label
            return declared, f"read from {path}", ignore_label
    values = [label_values(pair.target) - {ignore_label} for pair in pairs]
    if not is_volume(pairs[0].target) and all(found <= {0, 255} for found in values):
        highest = 1
    else:
        highest = max(max(found, default=0) for found in values)
    names = ("background", *(f"class_{k}" for k in range(1, max(highest, 1) + 1)))
    return names, "the values found in the targets", ignore_label
