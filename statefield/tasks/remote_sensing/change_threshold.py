"""The probability above which a pixel is called changed, chosen on validation pairs: never on test pairs.

counts = ThresholdCounts.of(margin, target)      # margin: logit of change less that of unchanged
counts += ...                                    # tiles, pairs, machines
counts.best().threshold
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from statefield.labels import UNLABELLED

_BINS = 200


class Best(NamedTuple):
    """threshold: in (0, 1). f1: of class 1 at it, over all pixels counted together."""

    threshold: float
    f1: float


@dataclass(frozen=True, eq=False)
class ThresholdCounts:
    """counts: int64 [2, 200], of target pixels that are not and that are class 1, by the predicted probability."""

    counts: NDArray[np.int64]

    @classmethod
    def empty(cls) -> ThresholdCounts:
        """The state before anything was counted: the zero of `+`."""
        return cls(np.zeros((2, _BINS), np.int64))

    @classmethod
    def of(cls, margin: NDArray[Any], target: NDArray[Any]) -> ThresholdCounts:
        """Of one map or tile. Args: margin: [H, W], logit of class 1 less that of class 0. target: 0, 1, UNLABELLED."""
        known = np.asarray(target) != UNLABELLED
        probability = 1 / (1 + np.exp(-np.asarray(margin, np.float64)[known].clip(-60, 60)))
        bins = np.minimum((probability * _BINS).astype(np.int64), _BINS - 1)
        positive = (np.asarray(target)[known] > 0).astype(np.int64)
        return cls(np.bincount(positive * _BINS + bins, minlength=2 * _BINS).reshape(2, _BINS))

    def __add__(self, other: ThresholdCounts) -> ThresholdCounts:
        return ThresholdCounts(self.counts + other.counts)

    def best(self) -> Best:
        """The threshold, a multiple of 1/200, with the highest pooled F1 of class 1; 0.5 where there is no class 1.

        Among equals, the one nearest to 0.5.
        """
        # at or above edge i: what is called class 1 with the threshold i / 200
        above = self.counts[:, ::-1].cumsum(axis=1)[:, ::-1]
        false, hits = above[0], above[1]
        positives = int(self.counts[1].sum())
        if not positives:
            return Best(0.5, 0.0)
        f1 = 2 * hits / (hits + false + positives)
        edges = np.arange(_BINS) / _BINS
        f1[0] = -1.0  # a threshold of 0 calls everything changed, which no logit can say
        candidates = np.flatnonzero(f1 == f1.max())
        chosen = int(candidates[np.abs(edges[candidates] - 0.5).argmin()])
        return Best(float(edges[chosen]), float(f1[chosen]))
