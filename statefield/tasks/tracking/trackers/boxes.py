"""Overlap of boxes, and the assignment of tracks to detections."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

__all__ = ["assign", "overlap"]

Array = NDArray[np.float64]
Index = NDArray[np.intp]


def overlap(one: Array, other: Array) -> Array:
    """Intersection over union of every pair of boxes (x1, y1, x2, y2): [N, 4] and [M, 4] -> [N, M], within 0 and 1.

    A box without area overlaps nothing.
    """
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    sides = np.maximum(high - low, 0)
    shared = sides[..., 0] * sides[..., 1]
    union = _area(one)[:, None] + _area(other)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _area(boxes: Array) -> Array:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return sides[:, 0] * sides[:, 1]


def assign(gain: Array, least: float, *, within: bool = True, held_to: Array | None = None) -> tuple[Index, Index]:
    """Pairs of rows and columns with the largest total gain, each pair of at least `least`.

    Args:
        gain: [N, M]. least: what a pair has to gain.
        within: choose among such pairs alone (ByteTrack's assignment with a cost limit, where leaving two out costs the
            limit); without it, all are assigned first and pairs of less gain are dropped after (SORT's), unless no row
            and no column has a choice.
        held_to: [N, M], what `least` is of where it is not the gain.

    Returns:
        Rows and columns of the pairs, [K] each, rows in order.
    """
    if gain.size == 0:
        none = np.zeros(0, dtype=np.intp)
        return none, none
    held_to = gain if held_to is None else held_to
    enough = held_to >= least
    if not enough.any() or (enough.sum(0).max() == 1 and enough.sum(1).max() == 1):
        rows, columns = np.nonzero(enough)
        return rows, columns
    rows, columns = linear_sum_assignment(np.where(enough, gain - least, 0) if within else gain, maximize=True)
    taken = enough[rows, columns]
    return rows[taken], columns[taken]
