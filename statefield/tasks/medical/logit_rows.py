"""The logits of a volume, row by row on the grid of its file, without ever being there as a whole.

Shape legend: C channels, K classes, D x H x W the grid of the file, d x h x w that of the net (`data.spacing`).

A net of volumes sees windows d0 x h0 x w0 (`tiling.sliding_slabs`), a net of slices sees slices. Either hands out
finished slabs of rows along d. Each row along D is interpolated between the one or two it lies between, then along the
other axes (`resampling.resample_rows`). Memory holds K * d0 * h * w sums of logits, and a row or two of results; in
bands of columns, only a band's share of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statefield.errors import CheckpointError, ConfigError, ShapeError
from statefield.tasks.common.config import InferenceConfig
from statefield.tasks.common.resampling import grid_weights, reach, resample_rows
from statefield.tasks.common.tiling import Progress, num_windows, sliding_slabs, sliding_window
from statefield.tasks.common.volumes import Grid, stack_neighbours

Net = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Row:
    """Row `index` along D, columns start..stop along H: `logits` float32 [K, stop - start, W]."""

    index: int
    start: int
    stop: int
    logits: NDArray[np.float32]


def logit_rows(
    net: Net,
    image: NDArray[np.float32],
    *,
    grid: Grid,
    slice_context: int,
    roi: tuple[int, ...] | None,
    inference: InferenceConfig,
    num_bands: int = 1,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> Iterator[Row]:
    """The logits of `net` for every voxel of the file: all rows of the first band, then those of the next.

    Args:
        image: float32 [C, d, h, w], normalised, on the net's grid; may be mapped from a file.
        grid: from the file's grid (D, H, W) to the net's.
        roi: three sides for a net of volumes; two, or None, for one of slices.
        num_bands: how many bands of columns to work in; 1 for a net of slices, whose slabs are small.
        progress: called with (windows done, windows in all) for volumes, (slices done, slices in all) for slices.

    Raises: ShapeError, ConfigError: an image, roi and grid that do not fit each other.
    """
    if image.ndim != 4 or 0 in image.shape:
        raise ShapeError(f"an image of shape {image.shape} given; [C, D, H, W] without empty axes is needed.")
    if image.shape[1:] != grid.wanted_shape:
        raise ShapeError(f"an image of shape {image.shape} given; its grid for the net is {grid.wanted_shape}.")
    is_volume = roi is not None and len(roi) == 3
    if is_volume and slice_context:
        raise ConfigError(
            f"slice_context = {slice_context} with windows of volumes, {roi}: such a net sees its neighbours already. "
            "Set data.slice_context to 0."
        )
    if not 1 <= num_bands <= (grid.shape[1] if is_volume else 1):
        raise ConfigError(f"{num_bands} bands of an image of {grid.shape[1]} columns asked for.")
    back = grid_weights(grid.wanted_shape, grid.shape, "linear", grid.coarse)
    edges = [round(index * grid.shape[1] / num_bands) for index in range(num_bands + 1)]
    bands = [(start, stop, *reach(back[1], start, stop)) for start, stop in pairwise(edges)]
    total = 0
    if is_volume:
        assert roi is not None
        counts = [num_windows(grid.wanted_shape, roi, inference.overlap, band[2:]) for band in bands]
        total = sum(counts)
    for number, (start, stop, low, high) in enumerate(bands):
        if is_volume:
            assert roi is not None
            told = None if progress is None else _shifted(progress, sum(counts[:number]), total)
            slabs = _volume_slabs(net, image, roi, inference, (low, high), device, told)
        else:
            slabs = _slice_slabs(net, image, slice_context, roi, inference, device, progress)
        for index, logits in enumerate(resample_rows(slabs, [back[0], back[1][start:stop, low:high], back[2]])):
            yield Row(index, start, stop, logits)


def same_grid(shape: Sequence[int]) -> Grid:
    """The grid of an image (D, H, W) whose logits stay where it is."""
    depth, height, width = shape
    return Grid((depth, height, width), (1.0,) * 3, (depth, height, width), (1.0,) * 3, None)


def bands_needed(grid: Grid, roi: tuple[int, ...] | None, num_classes: int, max_bytes: int) -> int:
    """Into how many bands the columns must be divided so that the logits in flight take no more than `max_bytes`.

    The logits of one column at the least, whatever they take; 1 for a net of slices.
    """
    if roi is None or len(roi) == 2:
        return 1
    _, columns, width = grid.wanted_shape
    rows = roi[0] + 4  # the sums, and finished rows on their way
    bytes_needed = 4 * num_classes * rows * columns * max(width, roi[2])
    if grid.differs:  # a row between two others, and again along each axis
        bytes_needed += 4 * num_classes * 3 * max(grid.shape[1], columns) * max(grid.shape[2], width)
    return min(max(1, -(-bytes_needed // max(max_bytes, 1))), grid.shape[1])


def most_probable(logits: NDArray[np.float32], labels: NDArray[np.unsignedinteger]) -> None:
    """Write the class of the largest logit into `labels` [*S]; of equal ones the first. logits: float32 [K, *S].

    A running maximum: numpy's and torch's argmax over the first axis take three times as long.

    Raises: CheckpointError: NaN among the logits.
    """
    best = np.array(logits[0])
    labels[...] = 0
    for index in range(1, len(logits)):
        np.copyto(labels, index, where=logits[index] > best, casting="unsafe")
        np.maximum(best, logits[index], out=best)  # hands NaN on
    if np.isnan(best).any():
        raise CheckpointError(
            f"the net's logits are NaN in {int(np.isnan(best).sum())} of {best.size} voxels of a row: its weights are "
            "damaged, or its training diverged. Use another checkpoint, or train again with a smaller learning rate."
        )


def _volume_slabs(
    net: Net,
    image: NDArray[np.float32],
    roi: tuple[int, ...],
    inference: InferenceConfig,
    band: tuple[int, int],
    device: torch.device | None,
    progress: Progress | None,
) -> Iterator[NDArray[np.float32]]:
    with warnings.catch_warnings():
        # the image may be mapped read-only; windows are copied before a net sees them
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        tensor = torch.from_numpy(image)
    slabs = sliding_slabs(
        tensor[None],
        net,
        roi,
        overlap=inference.overlap,
        batch_size=inference.batch_size,
        weighting=inference.weighting,
        mirror_axes=(0, 1, 2) if inference.mirror else (),
        device=device,
        progress=progress,
        band=band,
    )
    for slab in slabs:
        yield slab.logits[0].numpy()


def _slice_slabs(
    net: Net,
    image: NDArray[np.float32],
    slice_context: int,
    roi: tuple[int, ...] | None,
    inference: InferenceConfig,
    device: torch.device | None,
    progress: Progress | None,
) -> Iterator[NDArray[np.float32]]:
    depth = image.shape[1]
    for start in range(0, depth, inference.batch_size):
        stop = min(start + inference.batch_size, depth)
        slices = np.stack([stack_neighbours(image, index, slice_context) for index in range(start, stop)])
        logits = sliding_window(
            torch.from_numpy(slices),
            net,
            roi or (int(image.shape[2]), int(image.shape[3])),
            overlap=inference.overlap,
            batch_size=inference.batch_size,
            weighting=inference.weighting,
            mirror_axes=(0, 1) if inference.mirror else (),
            device=device,
        )
        yield logits.transpose(0, 1).numpy()
        if progress is not None:
            progress(stop, depth)


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    """The progress of one band as part of the whole."""
    return lambda done, _: progress(before + done, total)
