"""The trivial baseline: two intensity cuts, other | grey matter | white matter by increasing T1 intensity.

What a network on a T1 image must beat to have learnt more than a histogram. Fitting is exact over all pairs of cuts at
the given resolution: pooled Dice follows from cumulative histograms, so every pair costs a few additions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from statefield.datasets import Sample
from statefield.errors import ConfigError, DataError, ShapeError

_NUM_BINS = 1024


@dataclass(frozen=True)
class Thresholds:
    """Intensities in the image's own units: below `low` is class 0, from `low` class 1, from `high` class 2.

    train_dice: the pooled Dice of classes 1 and 2, averaged, that the cuts reach on the data they were fitted to.
    """

    low: float
    high: float
    train_dice: float

    def apply(self, image: np.ndarray) -> np.ndarray:
        """Label values int64 [*spatial] for an image [1, *spatial]."""
        if len(image) != 1:
            raise ShapeError(f"an image with {len(image)} channels given; the intensity cuts need one channel.")
        return (image[0] >= self.low).astype(np.int64) + (image[0] >= self.high)


def fit_thresholds(samples: Iterable[Sample], *, num_bins: int = _NUM_BINS) -> Thresholds:
    """The two cuts with the largest mean pooled Dice of classes 1 and 2.

    Args:
        samples: labelled samples of one channel and three classes (0, 1, 2 by increasing intensity).
        num_bins: candidate cuts, evenly spaced over the intensities found.

    Raises:
        DataError: no sample, an unlabelled one, labels above 2, or an image of one intensity.
        ShapeError: more than one channel.
    """
    pairs = [_pair(sample) for sample in samples]
    if not pairs:
        raise DataError("no sample given to fit the intensity cuts on; labelled training samples are needed.")
    lowest = min(float(values.min()) for values, _ in pairs)
    highest = max(float(values.max()) for values, _ in pairs)
    if not lowest < highest:
        raise DataError(f"every image holds the one intensity {lowest:g}, so no cut divides them.")
    edges = np.linspace(lowest, highest, num_bins + 1)
    counts = sum((_histograms(values, labels, edges) for values, labels in pairs), np.zeros((3, num_bins), np.int64))

    # below[k, i]: pixels of class k under the cut edges[i]
    below = np.concatenate([np.zeros((3, 1), np.int64), counts.cumsum(axis=1)], axis=1)
    total = below[:, -1]
    if total[1] == 0 or total[2] == 0:
        raise DataError("the samples hold no pixel of class 1 or none of class 2, so the cuts cannot be fitted.")
    num_below = below.sum(axis=0)
    # class 2 is predicted at or above the high cut: one value for each cut
    dice_2 = 2 * (total[2] - below[2]) / (total[2] + total.sum() - num_below)
    # class 1 is predicted between the cuts: one value for each pair [low, high]
    hits_1 = below[1][None, :] - below[1][:, None]
    dice_1 = 2 * hits_1 / (total[1] + num_below[None, :] - num_below[:, None]).clip(min=1)
    mean = np.where(np.triu(np.ones_like(dice_1, dtype=bool)), (dice_1 + dice_2[None, :]) / 2, -1.0)
    low, high = np.unravel_index(int(mean.argmax()), mean.shape)
    return Thresholds(float(edges[low]), float(edges[high]), float(mean[low, high]))


def _pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    case = sample["meta"]["case"]
    if "mask" not in sample:
        raise DataError(f"{case}: unlabelled; the intensity cuts are fitted on labelled samples.")
    if len(sample["image"]) != 1:
        raise ShapeError(f"{case}: {len(sample['image'])} channels found; the intensity cuts need one.")
    labels = sample["mask"].ravel()
    if labels.size and int(labels.max()) > 2:
        raise ConfigError(f"{case}: label {int(labels.max())} found; two cuts make the three classes 0, 1 and 2.")
    return sample["image"][0].ravel(), labels


def _histograms(values: np.ndarray, labels: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """int64 [3, bins]: the intensities of each class."""
    return np.stack([np.histogram(values[labels == label], bins=edges)[0] for label in range(3)])
