"""Images and label maps on another grid of voxels, and logits on the way back, slab by slab.

Shape legend: C channels, K classes, *S spatial (2-D `H, W` or 3-D `D, H, W`).

A resampled array covers the same field: voxel i of n new ones lies at (i + 1/2) * S / n - 1/2 old ones, and what lies
beyond the outermost voxel centres repeats them. Resampling is separable, one axis after the other, so each axis is a
sparse matrix of weights [new size, old size]; some rows of it make some rows of the result, which is what lets a
volume be resampled without being in memory.

What nnU-Net does (Isensee et al. 2021, supplement "Resampling") and what is done here:

- Images: it uses third-order splines. Here: cubic convolution (Keys 1981, a = -1/2), whose four taps need no
  prefilter over the whole axis.
- Labels: class by class, linearly, then the class with most weight, as there. Logits on the way back: linearly.
- One axis much coarser than the others (`coarse_axis`: more than 3 x): nearest neighbour along that axis, as there.
- Shrinking: it drops voxels between the samples. Here the kernels widen with the step (anti-aliasing), so that fine
  texture does not fold into false structure; of labels the majority remains. Not along the coarse axis.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from statefield.errors import ConfigError, ShapeError

Kernel = Literal["nearest", "linear", "cubic"]

_COARSE = 3.0  # nnU-Net's ANISO_THRESHOLD
_RADIUS = {"linear": 1.0, "cubic": 2.0}


def resampled_shape(
    shape: Sequence[int], spacing: Sequence[float], target: Sequence[float | None] | None
) -> tuple[int, ...]:
    """How many voxels of `target` spacing cover what `shape` voxels of `spacing` cover; at least one on each axis.

    Args:
        shape, spacing: of the volume, one entry per axis, mm.
        target: mm; a None in it keeps that axis, None keeps all.

    >>> resampled_shape((10, 100, 100), (5.0, 0.8, 0.8), (None, 1.0, 1.0))
    (10, 80, 80)
    """
    if target is None:
        return tuple(int(size) for size in shape)
    if not len(shape) == len(spacing) == len(target):
        raise ShapeError(
            f"shape {tuple(shape)}, spacing {tuple(spacing)} and target spacing {tuple(target)} given: one entry per "
            "axis is needed in each."
        )
    for name, lengths in (("spacing", spacing), ("target spacing", target)):
        if any(mm is not None and not 0 < mm < float("inf") for mm in lengths):
            raise ConfigError(f"{name} {tuple(lengths)}: lengths above 0 mm are needed.")
    return tuple(
        int(size) if new is None else max(1, round(size * mm / new))
        for size, mm, new in zip(shape, spacing, target, strict=True)
    )


def coarse_axis(spacing: Sequence[float], target: Sequence[float | None] | None = None) -> int | None:
    """The one axis whose spacing is more than 3 x the finest, before resampling or after it; None if there is none.

    Where two axes are equally coarse, neither is apart from the rest.

    >>> coarse_axis((5.0, 0.8, 0.8)), coarse_axis((1.0, 0.8, 0.8)), coarse_axis((5.0, 5.0, 1.0))
    (0, None, None)
    """
    after = [mm if new is None else new for mm, new in zip(spacing, target or [None] * len(spacing), strict=True)]
    for lengths in (list(spacing), after):
        coarsest = max(lengths)
        if coarsest > _COARSE * min(lengths) and lengths.count(coarsest) == 1:
            return lengths.index(coarsest)
    return None


def axis_weights(size: int, new_size: int, kernel: Kernel) -> csr_array:
    """The weights of `size` old voxels in `new_size` new ones: sparse float32 [new_size, size], rows of sum one."""
    if size < 1 or new_size < 1:
        raise ShapeError(f"an axis of {size} voxels cannot become one of {new_size}: at least one each is needed.")
    rows = np.arange(new_size)[:, None]
    if size == new_size:
        return csr_array(coo_array((np.ones(size, np.float32), (rows[:, 0], rows[:, 0])), shape=(size, size)))
    if kernel == "nearest":
        index = ((2 * rows + 1) * size) // (2 * new_size)
        weights = np.ones(index.shape)
    else:
        stretch = max(size / new_size, 1.0)
        centre = (rows + 0.5) * (size / new_size) - 0.5
        reach = _RADIUS[kernel] * stretch
        index = np.ceil(centre - reach).astype(np.int64) + np.arange(int(np.floor(2 * reach)) + 1)
        weights = _balanced(_bump(np.abs(index - centre) / stretch, kernel), index - centre)
    columns = index.clip(0, size - 1)  # beyond the border the outermost voxel repeats: its weights add up
    matrix = csr_array(
        coo_array(
            (weights.ravel(), (np.broadcast_to(rows, index.shape).ravel(), columns.ravel())), shape=(new_size, size)
        )
    )
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix.astype(np.float32)


def _bump(x: NDArray[np.float64], kernel: Kernel) -> NDArray[np.float64]:
    """The kernel at distances x >= 0, in voxels."""
    if kernel == "linear":
        return np.maximum(1 - x, 0)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _balanced(weights: NDArray[np.float64], offsets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of sum one and mean offset zero, so that ramps stay ramps: a widened kernel, sampled, just misses it."""
    weights = weights / weights.sum(1, keepdims=True)
    mean = (weights * offsets).sum(1, keepdims=True)
    variance = (weights * offsets**2).sum(1, keepdims=True) - mean**2
    tilt = np.divide(-mean, variance, out=np.zeros_like(mean), where=np.abs(mean) > 1e-12)
    return weights * (1 + tilt * (offsets - mean))


def resample_image(
    image: NDArray[np.floating[Any]], shape: Sequence[int], *, coarse_axis: int | None = None
) -> NDArray[np.float32]:
    """An image on a grid of `shape` voxels over the same field.

    Args:
        image: [C, *S], finite. Normalise first: a mask of voxels that are exactly 0 does not survive interpolation.
        shape: the new *S.
        coarse_axis: the spatial axis (0 first) that takes its nearest voxel, as the function `coarse_axis` finds it.

    Returns: float32 [C, *shape]; `image` itself (as float32) where the shape is the same.
    """
    operators = grid_weights(image.shape[1:], shape, "cubic", coarse_axis)
    values = np.asarray(image, dtype=np.float32)
    if tuple(shape) == values.shape[1:]:
        return values
    result = np.empty((values.shape[0], *shape), dtype=np.float32)
    for channel, source in enumerate(values):
        result[channel] = _resampled(source, operators)
    return result


def resample_labels(
    labels: NDArray[np.integer[Any]], shape: Sequence[int], *, coarse_axis: int | None = None
) -> NDArray[np.integer[Any]]:
    """A label map on a grid of `shape` voxels: of all values around a new voxel, the one with most weight.

    `UNLABELLED` counts as a value like the others. Of equal weights the lowest value wins.

    Args:
        labels: [*S], integers.
        shape, coarse_axis: as for `resample_image`.

    Returns: [*shape], the dtype of `labels`, no value that `labels` has not.
    """
    operators = grid_weights(labels.shape, shape, "linear", coarse_axis)
    if tuple(shape) == labels.shape:
        return labels
    values = np.unique(labels)
    result = np.full(tuple(shape), values[0], dtype=labels.dtype)
    most = np.full(result.shape, -np.inf, dtype=np.float32)
    for value in values:
        weight = _resampled((labels == value).astype(np.float32), operators)
        # weights are sums of rounded products: a lead of less than their rounding is a tie
        wins = weight > most + 1e-6
        result[wins], most[wins] = value, weight[wins]
    return result


def resample_logits(
    logits: NDArray[np.float32], shape: Sequence[int], *, coarse_axis: int | None = None
) -> NDArray[np.float32]:
    """The whole logits [K, *S] on a grid of `shape` voxels, float32 [K, *shape]: the slow truth of `resample_rows`."""
    operators = grid_weights(logits.shape[1:], shape, "linear", coarse_axis)
    return np.stack([_resampled(values, operators) for values in np.asarray(logits, dtype=np.float32)])


def resample_rows(
    slabs: Iterable[NDArray[np.float32]], operators: Sequence[csr_array]
) -> Iterator[NDArray[np.float32]]:
    """Resample logits that arrive slab by slab along the first spatial axis; hands them out row by row.

    Kept in memory are the rows that later ones still need: two along that axis, or a few more where it shrinks.

    Args:
        slabs: [K, rows, *S[1:]], one after the other, together all rows of the first axis.
        operators: the weights of each spatial axis, as `grid_weights` gives them; those of a later axis may be a part
            of the rows, which then are what is made.

    Yields the rows of the result in order, each float32 [K, *shape[1:]].
    """
    first, rest = operators[0], operators[1:]
    held: deque[NDArray[np.float32]] = deque()
    dropped = made = 0
    for slab in slabs:
        held.extend(slab[:, row] for row in range(slab.shape[1]))
        while made < first.shape[0]:
            taps = slice(first.indptr[made], first.indptr[made + 1])
            columns, weights = first.indices[taps], first.data[taps]
            if columns[-1] >= dropped + len(held):
                break
            while dropped < columns[0]:
                held.popleft()
                dropped += 1
            row = held[columns[0] - dropped]
            if len(columns) > 1 or weights[0] != 1:
                row = row * weights[0]
                for column, weight in zip(columns[1:], weights[1:], strict=True):
                    row += held[column - dropped] * weight
            yield _each(row, rest)
            made += 1
        # views of a slab keep all of it alive: keep only the rows that are still to be used
        if made < first.shape[0]:
            needed = int(first.indices[first.indptr[made]])
            while held and dropped < needed:
                held.popleft()
                dropped += 1
        held = deque(np.array(row) for row in held)


def grid_weights(
    shape: Sequence[int], new_shape: Sequence[int], kernel: Kernel, coarse_axis: int | None = None
) -> list[csr_array]:
    """`axis_weights` of every axis; "nearest" along the coarse one."""
    if len(shape) != len(new_shape):
        raise ShapeError(f"a grid {tuple(shape)} cannot become {tuple(new_shape)}: as many axes are needed.")
    return [
        axis_weights(size, new_size, "nearest" if axis == coarse_axis else kernel)
        for axis, (size, new_size) in enumerate(zip(shape, new_shape, strict=True))
    ]


def reach(weights: csr_array, start: int, stop: int) -> tuple[int, int]:
    """The old voxels lo..hi that new voxels start..stop are made of."""
    used = weights.indices[weights.indptr[start] : weights.indptr[stop]]
    return int(used.min()), int(used.max()) + 1


def _resampled(values: NDArray[np.float32], operators: Sequence[csr_array]) -> NDArray[np.float32]:
    """[*S] along every axis, the first one first: the order in which rows can be made one by one."""
    return _each(values[None], operators)[0]


def _each(values: NDArray[np.float32], operators: Sequence[csr_array]) -> NDArray[np.float32]:
    """[K, *S] along its spatial axes; axes whose weights are the identity cost nothing."""
    for axis, weights in enumerate(operators, start=1):
        if _is_identity(weights):
            continue
        moved = np.moveaxis(values, axis, 0)
        made = weights @ np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
        values = np.moveaxis(made.reshape(-1, *moved.shape[1:]), 0, axis)
    return np.ascontiguousarray(values)


def _is_identity(weights: csr_array) -> bool:
    size = weights.shape[0]
    return bool(
        weights.shape == (size, size)
        and weights.nnz == size
        and np.array_equal(weights.indices, np.arange(size))
        and (weights.data == 1).all()
    )
