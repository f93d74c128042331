"""Distances between the surfaces of two masks, in millimetres: HD95, NSD and ASSD follow from them.

The surface of a mask is its pixels (voxels) with a 4- (6-) neighbour outside it or outside the image. With P and T the
two surfaces and d(p, T) the distance of p to the nearest pixel of T,

    HD95 = max(95th percentile of d(p, T) over P, 95th percentile of d(t, P) over T)
    NSD  = (|{p: d(p, T) <= tolerance}| + |{t: d(t, P) <= tolerance}|) / (|P| + |T|)
    ASSD = (sum of d(p, T) + sum of d(t, P)) / (|P| + |T|)

the definitions of MONAI's `compute_hausdorff_distance(percentile=95)`, `compute_surface_dice` and
`compute_average_surface_distance(symmetric=True)`, against which the tests hold them.

Empty masks: both empty, all three are NaN; one empty, NSD is 0 while HD95 and ASSD are NaN, as no distance exists.

Beside pixels without a label: a mask ends there because the labels end, not because the object does, so an unlabelled
neighbour makes no surface. Both masks are cleared in unlabelled pixels first. A mask may then be without any surface
(it fills its labelled patch); of the scores it is treated like an empty one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

from statefield.errors import ConfigError, ShapeError

# distances are sums of squared multiples of the spacing: 3 * 0.8 - 2 * 0.8 must count as within 0.8 mm
_ROUNDING_MM = 1e-6


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """from_prediction: float64 [|P|], each predicted surface pixel's distance to the target's surface; from_target: the
    reverse. Where the other surface is empty, the distances are infinite.
    """

    from_prediction: np.ndarray
    from_target: np.ndarray

    def hausdorff(self, percentile: float = 95.0) -> float:
        """HD at a percentile, in mm, >= 0 (100: the largest distance); NaN when either mask is empty."""
        if not (len(self.from_prediction) and len(self.from_target)):
            return float("nan")
        return float(max(np.percentile(self.from_prediction, percentile), np.percentile(self.from_target, percentile)))

    def nsd(self, tolerance_mm: float) -> float:
        """Share of both surfaces that lies within the tolerance, in [0, 1]; 0 when one mask is empty, NaN when both."""
        total = len(self.from_prediction) + len(self.from_target)
        if total == 0:
            return float("nan")
        limit = tolerance_mm + _ROUNDING_MM
        return float((np.sum(self.from_prediction <= limit) + np.sum(self.from_target <= limit)) / total)

    def assd(self) -> float:
        """Mean distance over both surfaces, in mm, >= 0; NaN when either mask is empty."""
        if not (len(self.from_prediction) and len(self.from_target)):
            return float("nan")
        total = len(self.from_prediction) + len(self.from_target)
        return float((self.from_prediction.sum() + self.from_target.sum()) / total)


def surface_distances(
    prediction: ArrayLike, target: ArrayLike, spacing_mm: Sequence[float], *, labelled: ArrayLike | None = None
) -> SurfaceDistances:
    """The distances between the surfaces of two boolean masks.

    Args:
        prediction, target: bool [H, W] or [D, H, W].
        spacing_mm: mm between pixels in the same axis order.
        labelled: bool of the same shape, False where the truth is not known; None: known everywhere.

    Memory goes with the bounding box of both masks (a few bytes a voxel) and the surfaces (about 60 bytes a voxel of
    surface), not with the image.
    """
    predicted, wanted = np.asarray(prediction, dtype=bool), np.asarray(target, dtype=bool)
    if predicted.shape != wanted.shape:
        raise ShapeError(f"masks of shapes {predicted.shape} and {wanted.shape} given; one shape is needed.")
    if len(spacing_mm) != predicted.ndim or not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise ConfigError(
            f"spacing_mm {tuple(spacing_mm)} given for masks with {predicted.ndim} axes; one finite length above 0 for "
            "each axis is needed."
        )
    unknown = None
    if labelled is not None:
        known = np.asarray(labelled, dtype=bool)
        if known.shape != wanted.shape:
            raise ShapeError(f"labelled has shape {known.shape}, the masks {wanted.shape}; one shape is needed.")
        predicted, wanted = predicted & known, wanted & known
        box = _widened(_bounding_box(predicted | wanted), wanted.shape)
        unknown = ~known[box]
    else:
        box = _bounding_box(predicted | wanted)
    surface_p = _surface(predicted[box], spacing_mm, unknown)
    surface_t = _surface(wanted[box], spacing_mm, unknown)
    return SurfaceDistances(_distances(surface_p, surface_t), _distances(surface_t, surface_p))


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, 0))
    return tuple(box)


def _widened(box: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """`box` with a pixel more on each side where the image has one: the neighbours that decide on surfaces."""
    return tuple(slice(max(side.start - 1, 0), min(side.stop + 1, n)) for side, n in zip(box, shape, strict=True))


def _surface(mask: np.ndarray, spacing_mm: Sequence[float], unknown: np.ndarray | None) -> np.ndarray:
    """Positions float64 [N, axes] in mm of the mask's surface pixels; outside the array counts as outside the mask."""
    if not mask.any():
        return np.empty((0, mask.ndim))
    inner = binary_erosion(mask if unknown is None else mask | unknown)
    return np.argwhere(mask & ~inner) * np.asarray(spacing_mm, dtype=np.float64)


def _distances(origins: np.ndarray, others: np.ndarray) -> np.ndarray:
    """From each origin to the nearest other; infinite when there are no others."""
    if not len(others):
        return np.full(len(origins), np.inf)
    if not len(origins):
        return np.empty(0)
    return cKDTree(others).query(origins)[0]
