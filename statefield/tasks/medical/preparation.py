"""From the voxels of a case to the image a net sees: normalised, then resampled, some slices at a time.

Shape legend: C channels, D x H x W the grid of the file, d x h x w that of the net.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.readers.mapped import Workspace
from statefield.tasks.common.config import NormalisationConfig
from statefield.tasks.common.normalisation import apply, measure, require_normalisation
from statefield.tasks.common.resampling import grid_weights, resample_rows
from statefield.tasks.common.volumes import Grid

_BYTES_AT_A_TIME = 32 << 20


class Source(Protocol):
    """An image that is read in parts. `shape`: (C, D, H, W)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, channel: int, start: int, stop: int) -> NDArray[np.float32]:
        """Slices start..stop of a channel, float32 [stop - start, H, W], in the file's units."""


class ArraySource:
    """An image [C, D, H, W] in memory."""

    def __init__(self, image: NDArray[np.float32]) -> None:
        self.image = image

    @property
    def shape(self) -> tuple[int, ...]:
        return self.image.shape

    def read(self, channel: int, start: int, stop: int) -> NDArray[np.float32]:
        return self.image[channel, start:stop]


def prepare(
    source: Source, normalisation: NormalisationConfig, grid: Grid, workspace: Workspace
) -> NDArray[np.float32]:
    """The image float32 [C, d, h, w], in memory or on disk as `workspace` has room.

    Equal, bit for bit, to `normalise` and then `resample_image` of the whole.
    """
    require_normalisation(normalisation)
    image = workspace.empty((source.shape[0], *grid.wanted_shape), np.float32)
    operators = grid_weights(grid.shape, grid.wanted_shape, "cubic", grid.coarse)
    for channel in range(source.shape[0]):
        intensities = measure(partial(_slices, source, channel, workspace), normalisation)
        parts = (apply(part, normalisation, intensities) for part in _parts(source, channel, workspace))
        if grid.differs:
            for index, row in enumerate(resample_rows((part[None] for part in parts), operators)):
                image[channel, index] = row[0]
        else:
            start = 0
            for part in parts:
                image[channel, start : start + len(part)] = part
                start += len(part)
    workspace.release()
    return image


def _parts(source: Source, channel: int, workspace: Workspace) -> Iterator[NDArray[np.float32]]:
    _, depth, height, width = source.shape
    step = max(1, _BYTES_AT_A_TIME // (4 * height * width))
    for start in range(0, depth, step):
        yield source.read(channel, start, min(start + step, depth))
        workspace.release()


def _slices(source: Source, channel: int, workspace: Workspace) -> Iterator[NDArray[np.float32]]:
    for part in _parts(source, channel, workspace):
        yield from part
