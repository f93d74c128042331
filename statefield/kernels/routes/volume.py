"""Routes over the axes of a volume [D, H, W] or of a video or an image pair in time [T, H, W]."""

from __future__ import annotations

from itertools import permutations
from math import prod

import numpy as np

from statefield.kernels.routes.order import OrderFunction, Shape, route

_AXES = "dhw"
_MODELS = {
    "dhw": " (raster; U-Mamba, LightM-UNet, SegMamba's forward)",
    "hwd": ": each place through all slices (SegMamba's inter-slice)",
    "whd": " (column)",
}


def _nested(shape: Shape, axes: tuple[int, ...]) -> np.ndarray:
    """Raster order over the axes as they are listed, the first the slowest."""
    return np.arange(prod(shape), dtype=np.int64).reshape(shape).transpose(axes).ravel()


def _by_axes(letters: str) -> OrderFunction:
    axes = tuple(_AXES.index(letter) for letter in letters)

    def volume(shape: Shape) -> np.ndarray:
        return _nested(shape, axes)

    slowest, middle, fastest = list(letters.upper())
    volume.__doc__ = f"{fastest} fastest, then {middle}, then {slowest}{_MODELS.get(letters, '')}."
    return volume


for _letters in map("".join, permutations(_AXES)):
    route(f"volume_{_letters}", spatial_dims=(3,))(_by_axes(_letters))


@route("spatial_first", spatial_dims=(3,))
def spatial_first(shape: Shape) -> np.ndarray:
    """A video [T, H, W] frame by frame, each in raster order (VideoMamba)."""
    return _nested(shape, (0, 1, 2))


@route("temporal_first", spatial_dims=(3,))
def temporal_first(shape: Shape) -> np.ndarray:
    """A video [T, H, W] place by place in raster order, each through all frames (VideoMamba)."""
    return _nested(shape, (1, 2, 0))


@route("bitemporal_sequential", spatial_dims=(3,))
def bitemporal_sequential(shape: Shape) -> np.ndarray:
    """Two dates [T, H, W] side by side, row by row: a row of the first, then of the second (ChangeMamba)."""
    return _nested(shape, (1, 0, 2))


@route("bitemporal_sequential_column", spatial_dims=(3,))
def bitemporal_sequential_column(shape: Shape) -> np.ndarray:
    """Two dates [T, H, W] side by side, column by column: all of the first, then of the second (ChangeMamba)."""
    return _nested(shape, (0, 2, 1))


@route("bitemporal_cross", spatial_dims=(3,))
def bitemporal_cross(shape: Shape) -> np.ndarray:
    """Two dates [T, H, W] with their columns interleaved, row by row: each place at both dates (ChangeMamba)."""
    return _nested(shape, (1, 2, 0))


@route("bitemporal_cross_column", spatial_dims=(3,))
def bitemporal_cross_column(shape: Shape) -> np.ndarray:
    """Two dates [T, H, W] with their columns interleaved, column by column: in turns from each date (ChangeMamba)."""
    return _nested(shape, (2, 0, 1))
