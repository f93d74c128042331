"""Scores of a binary change map: one confusion matrix over every pixel, in which class 1 is change.

    state = observe(prediction, target)                  # int [H, W] each, 0 unchanged, 1 changed, UNLABELLED
    state += observe(...)                                # tiles, images, machines
    summarise(state).values["F1/change (pooled)"]

With TP, FP, FN and TN counted over all pixels together (pooled; never a mean over images), change being positive:

    Recall = TP / (TP + FN)       F1  = 2 TP / (2 TP + FP + FN)       OA = (TP + TN) / all
    Precision = TP / (TP + FP)    IoU = TP / (TP + FP + FN)           kappa = (OA - pe) / (1 - pe)

where pe = sum over both classes of (share of the class in the target) * (its share in the prediction). kappa lies in
[-1, 1], the others in [0, 1]. mIoU is the mean of the IoU of both classes, which is far above the IoU of change where
change is rare: papers mix them up, so every name says of which class it is.

A score whose denominator is 0, such as the recall where nothing has changed, is given as 0.0, as scikit-learn and
torchmetrics do, and `Scores.notes` says which and why.

Source: Chen et al., ChangeMamba, 2024, arXiv 2404.03425; `Evaluator` of ChenHongruixuan/MambaCD, which gives NaN there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from statefield.errors import ShapeError
from statefield.tasks.common import confusion
from statefield.tasks.common.confusion import ConfusionState

UNCHANGED, CHANGED = 0, 1
UNDEFINED = 0.0  # what a score is given as when its denominator is 0


@dataclass(frozen=True)
class Scores:
    """values: score by name, class and averaging included. notes: a sentence for each that is a convention."""

    values: Mapping[str, float]
    notes: tuple[str, ...] = ()


def observe(prediction: ArrayLike, target: ArrayLike, *, valid: ArrayLike | None = None) -> ConfusionState:
    """Count one pair of change maps, or one tile of it.

    Args:
        prediction, target: integers 0 (unchanged) and 1 (changed), of one shape; in the target also `UNLABELLED`.
        valid: bool of the same shape; only True places are counted (where both images have data).

    Raises:
        ShapeError: shapes that differ.
        LabelError: other values, such as a map of 0 and 255.
    """
    return confusion.observe(prediction, target, num_classes=2, valid=valid)


def summarise(state: ConfusionState) -> Scores:
    """The scores of everything observed: Recall, Precision, F1, IoU of change, IoU of unchanged, mIoU, OA, kappa."""
    if state.counts.shape != (2, 2):
        raise ShapeError(f"counts of {len(state.counts)} classes given; a change map has 2, unchanged and changed.")
    notes: list[str] = []
    nowhere = "no pixel is changed in the target or the prediction"
    values = {
        "Recall/change (pooled)": or_undefined(
            state.sensitivity[CHANGED], "Recall/change", "no pixel of the target is changed", notes
        ),
        "Precision/change (pooled)": or_undefined(
            state.precision[CHANGED], "Precision/change", "no pixel is predicted as changed", notes
        ),
        "F1/change (pooled)": or_undefined(state.dice[CHANGED], "F1/change", nowhere, notes),
        "IoU/change (pooled)": or_undefined(state.iou[CHANGED], "IoU/change", nowhere, notes),
        "IoU/unchanged (pooled)": or_undefined(
            state.iou[UNCHANGED], "IoU/unchanged", "every pixel is changed in the target and in the prediction", notes
        ),
    }
    values["mIoU (mean of unchanged and change, pooled)"] = (
        values["IoU/unchanged (pooled)"] + values["IoU/change (pooled)"]
    ) / 2
    values["OA (pooled)"] = or_undefined(state.accuracy, "OA", "no pixel is counted", notes)
    why = "one class fills the target and the prediction" if state.counts.sum() else "no pixel is counted"
    values["kappa (pooled)"] = or_undefined(cohen_kappa(state.counts), "kappa", why, notes)
    return Scores(values, tuple(notes))


def cohen_kappa(counts: np.ndarray) -> float:
    """Cohen's kappa of counts [K, K], in [-1, 1]: agreement beyond that of two maps drawn with the same shares.

    NaN where it is 0 / 0: nothing is counted, or one class fills both maps.
    """
    total = counts.sum()
    if not total:
        return float("nan")
    # shares, since the products of counts of a large raster pass int64
    by_chance = float((counts.sum(axis=0) / total) @ (counts.sum(axis=1) / total))
    if by_chance == 1.0:
        return float("nan")
    return float((np.trace(counts) / total - by_chance) / (1 - by_chance))


def or_undefined(score: float, name: str, why: str, notes: list[str]) -> float:
    """`score`, or where it is NaN `UNDEFINED` and a sentence in `notes`."""
    if not np.isnan(score):
        return float(score)
    notes.append(f"{name} is 0 / 0, since {why}: it is given as {UNDEFINED:g} and is no measure of the prediction.")
    return UNDEFINED
