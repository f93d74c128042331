"""Confusion counts, and the overlap scores that follow from them; counts add, so any partition gives the same score.

For class k with TP, FP, FN and TN counted in pixels or voxels:

    Dice = 2 TP / (2 TP + FP + FN)        sensitivity = TP / (TP + FN)      precision = TP / (TP + FP)
    IoU  = TP / (TP + FP + FN)            specificity = TN / (TN + FP)      accuracy  = all hits / all pixels

All lie in [0, 1]. Where numerator and denominator are 0 the result is NaN, which is not a score: Dice and IoU of a
class that is neither predicted nor present, the sensitivity of one not present, the precision of one not predicted.
Pixels whose target is `UNLABELLED` are not counted, whatever is predicted there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from statefield.errors import LabelError, ShapeError
from statefield.labels import UNLABELLED

_CHUNK = 1 << 20  # pixels counted at a time


@dataclass(frozen=True, eq=False)
class ConfusionState:
    """counts: int64 [K, K], row = target class, column = predicted class."""

    counts: np.ndarray

    @classmethod
    def empty(cls, num_classes: int) -> ConfusionState:
        """The state before anything was observed: the zero of `+`."""
        return cls(np.zeros((num_classes, num_classes), np.int64))

    def __add__(self, other: ConfusionState) -> ConfusionState:
        if self.counts.shape != other.counts.shape:
            raise ShapeError(
                f"confusion counts of {len(self.counts)} and of {len(other.counts)} classes do not add: observe with "
                "the same number of classes."
            )
        return ConfusionState(self.counts + other.counts)

    @property
    def num_target(self) -> np.ndarray:
        """int64 [K]: how many pixels are of the class."""
        return self.counts.sum(axis=1)

    @property
    def num_predicted(self) -> np.ndarray:
        """int64 [K]: how many pixels are predicted as the class."""
        return self.counts.sum(axis=0)

    @property
    def dice(self) -> np.ndarray:
        """float64 [K] in [0, 1]; NaN for a class neither present nor predicted."""
        return _ratio(2 * np.diag(self.counts), self.num_target + self.num_predicted)

    @property
    def iou(self) -> np.ndarray:
        """float64 [K] in [0, 1]; NaN for a class neither present nor predicted."""
        hits = np.diag(self.counts)
        return _ratio(hits, self.num_target + self.num_predicted - hits)

    @property
    def sensitivity(self) -> np.ndarray:
        """float64 [K] in [0, 1], also called recall; NaN for a class that is not present."""
        return _ratio(np.diag(self.counts), self.num_target)

    @property
    def specificity(self) -> np.ndarray:
        """float64 [K] in [0, 1]; NaN for a class that fills every counted pixel."""
        num_other = self.counts.sum() - self.num_target
        false_positives = self.num_predicted - np.diag(self.counts)
        return _ratio(num_other - false_positives, num_other)

    @property
    def precision(self) -> np.ndarray:
        """float64 [K] in [0, 1]; NaN for a class that is not predicted."""
        return _ratio(np.diag(self.counts), self.num_predicted)

    @property
    def accuracy(self) -> float:
        """Share of the counted pixels that have their class, in [0, 1] (overall accuracy); NaN when none is counted."""
        total = int(self.counts.sum())
        return float(np.trace(self.counts) / total) if total else float("nan")


def observe(
    prediction: ArrayLike, target: ArrayLike, *, num_classes: int, valid: ArrayLike | None = None
) -> ConfusionState:
    """Count one pair of label maps.

    Args:
        prediction, target: integers 0 .. num_classes - 1, of one shape (any number of axes; CPU tensors will do). In
            the target also `UNLABELLED`: such pixels are not counted, and their prediction is not looked at.
        valid: bool of the same shape; only True places are counted (a field of view, or all but an ignored label).

    Raises:
        ShapeError: shapes that differ.
        LabelError: values outside the classes.
    """
    predicted, wanted = np.asarray(prediction), np.asarray(target)
    if predicted.shape != wanted.shape:
        raise ShapeError(
            f"a prediction of shape {predicted.shape} and a target of shape {wanted.shape} given; one is needed."
        )
    if valid is not None:
        places = np.asarray(valid, dtype=bool)
        if places.shape != wanted.shape:
            raise ShapeError(f"valid has shape {places.shape}, the label maps {wanted.shape}; one shape is needed.")
        predicted, wanted = predicted[places], wanted[places]
    if wanted.dtype.kind == "i" and wanted.min(initial=0) == UNLABELLED:
        places = wanted != UNLABELLED
        predicted, wanted = predicted[places], wanted[places]
    for name, labels in (("prediction", predicted), ("target", wanted)):
        if labels.dtype.kind not in "biu":
            raise LabelError(
                f"the {name} is of type {labels.dtype}; integers are needed (take the argmax of logits first)."
            )
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise LabelError(
                f"the {name} holds labels {int(labels.min())} to {int(labels.max())}; the {num_classes} classes allow "
                f"0 to {num_classes - 1}."
            )
    counts = np.zeros(num_classes**2, np.int64)
    flat_wanted, flat_predicted = wanted.ravel(), predicted.ravel()
    for first in range(0, flat_wanted.size, _CHUNK):  # int64 copies of a chunk, not of the volume
        part = slice(first, first + _CHUNK)
        pairs = flat_wanted[part].astype(np.int64) * num_classes + flat_predicted[part].astype(np.int64)
        counts += np.bincount(pairs, minlength=num_classes**2)
    return ConfusionState(counts.reshape(num_classes, num_classes))


def summarise(state: ConfusionState, classes: Sequence[str]) -> dict[str, float]:
    """`{"Dice/liver (pooled)": 0.91, "IoU/liver (pooled)": 0.84, ...}`, pooled over everything observed."""
    if len(classes) != len(state.counts):
        raise ShapeError(f"{len(classes)} class names given for counts of {len(state.counts)} classes.")
    scores: dict[str, float] = {}
    for metric, values in (("Dice", state.dice), ("IoU", state.iou)):
        scores |= {f"{metric}/{name} (pooled)": float(value) for name, value in zip(classes, values, strict=True)}
    return scores


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where both are 0."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)
