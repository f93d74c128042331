"""Detection of lesions: a mask's connected components, found or missed as wholes whatever their size.

A lesion is a connected component of one class: 8-connected in pictures, 26-connected in volumes (pixels that share a
corner belong together). A pair of a predicted and a true lesion matches

    any overlap     when they share a pixel, or
    IoU >= t        when the IoU of the two components is at least t.

A true lesion is detected when it matches a predicted one; a predicted lesion is a false positive when it matches no
true one. One lesion may match several: nothing is assigned one to one, so two true lesions under one predicted blob are
both detected. Then

    lesion sensitivity = detected / true lesions               F1 = harmonic mean of the two
    lesion precision   = (predicted - false positives) / predicted lesions

Each lies in [0, 1]. NaN: the sensitivity without a true lesion, the precision without a predicted one, F1 without
either; with lesions on one side alone F1 is 0.

Source: the lesion-wise scores of ISLES 2022 (Hernandez Petzsche et al. 2022, doi 10.1038/s41597-022-01875-5), with any
overlap; its F1 counts hits from the truth's side alone, which differs where one blob covers several true lesions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import generate_binary_structure, label

from statefield.errors import ConfigError, ShapeError


@dataclass(frozen=True, eq=False)
class LesionState:
    """counts: int64 [K, 4], of each class its true, detected, predicted and false positive lesions; counts add."""

    counts: np.ndarray

    @classmethod
    def empty(cls, num_classes: int) -> LesionState:
        """The state before anything was observed: the zero of `+`."""
        return cls(np.zeros((num_classes, 4), np.int64))

    def __add__(self, other: LesionState) -> LesionState:
        if self.counts.shape != other.counts.shape:
            raise ShapeError(
                f"lesion counts of {len(self.counts)} and of {len(other.counts)} classes do not add: observe with the "
                "same number of classes."
            )
        return LesionState(self.counts + other.counts)

    @property
    def sensitivity(self) -> np.ndarray:
        """float64 [K] in [0, 1]; NaN for a class without a true lesion."""
        return _ratio(self.counts[:, 1], self.counts[:, 0])

    @property
    def precision(self) -> np.ndarray:
        """float64 [K] in [0, 1]; NaN for a class without a predicted lesion."""
        return _ratio(self.counts[:, 2] - self.counts[:, 3], self.counts[:, 2])

    @property
    def f1(self) -> np.ndarray:
        """float64 [K] in [0, 1]; NaN for a class without any lesion, 0 where only one side has lesions."""
        found, right = np.nan_to_num(self.sensitivity), np.nan_to_num(self.precision)
        harmonic = np.divide(2 * found * right, found + right, out=np.zeros(len(found)), where=found + right > 0)
        return np.where(self.counts[:, 0] + self.counts[:, 2] > 0, harmonic, np.nan)

    @property
    def false_positives(self) -> np.ndarray:
        """int64 [K] >= 0: predicted lesions that match no true one."""
        return self.counts[:, 3]


def rule_name(iou: float | None) -> str:
    """What the rule is called in a metric's name, "any" or "IoU0.1"; `ConfigError` for a share outside (0, 1]."""
    if iou is None:
        return "any"
    if not 0 < iou <= 1:
        raise ConfigError(
            f"a lesion IoU of {iou} given; a share above 0 and up to 1 is needed, or none for any overlap."
        )
    return f"IoU{iou:g}"


def count_lesions(prediction: ArrayLike, target: ArrayLike, *, iou: float | None = None) -> np.ndarray:
    """int64 [4]: true, detected, predicted and false positive lesions of two masks.

    Args:
        prediction, target: bool [H, W] or [D, H, W].
        iou: the least IoU of a match, in (0, 1]; None: any overlap.

    >>> count_lesions([[1, 1, 0, 0, 1]], [[0, 1, 0, 0, 0]]).tolist()
    [1, 1, 2, 1]
    """
    predicted, wanted = np.asarray(prediction, dtype=bool), np.asarray(target, dtype=bool)
    if predicted.shape != wanted.shape:
        raise ShapeError(f"masks of shapes {predicted.shape} and {wanted.shape} given; one shape is needed.")
    rule_name(iou)
    structure = generate_binary_structure(wanted.ndim, wanted.ndim)
    components_p, num_predicted = label(predicted, structure)
    components_t, num_target = label(wanted, structure)
    both = predicted & wanted
    # every pair that overlaps, with the pixels it shares: pair = target number * width + prediction number
    width = num_predicted + 1
    pairs, shared = np.unique(components_t[both].astype(np.int64) * width + components_p[both], return_counts=True)
    in_target, in_prediction = pairs // width, pairs % width
    if iou is not None:
        size_t = np.bincount(components_t.ravel(), minlength=num_target + 1)
        size_p = np.bincount(components_p.ravel(), minlength=width)
        union = size_t[in_target] + size_p[in_prediction] - shared
        matches = shared / union >= iou * (1 - 1e-12)  # an IoU of exactly the threshold counts, however it rounds
        in_target, in_prediction = in_target[matches], in_prediction[matches]
    num_detected, num_right = len(np.unique(in_target)), len(np.unique(in_prediction))
    return np.array([num_target, num_detected, num_predicted, num_predicted - num_right], np.int64)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)
