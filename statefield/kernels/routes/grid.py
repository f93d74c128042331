"""The routes: each is a few lines over the raster indices of the grid, `cells` [D, H, W] or [H, W]."""

from __future__ import annotations

from math import prod

import numpy as np

from statefield.kernels.routes.order import OrderFunction, Shape, route


def _cells(shape: Shape) -> np.ndarray:
    return np.arange(prod(shape), dtype=np.int64).reshape(shape)


def _snaked(cells: np.ndarray) -> np.ndarray:
    """`cells` in boustrophedon order: every second line, and in a volume every second slice, is walked backwards."""
    if cells.ndim == 1:
        return cells
    lines = [_snaked(part) for part in cells]
    return np.concatenate([line[::-1] if number % 2 else line for number, line in enumerate(lines)])


@route("raster")
def raster(shape: Shape) -> np.ndarray:
    """Row by row from left to right; a volume slice by slice."""
    return _cells(shape).ravel()


@route("column")
def column(shape: Shape) -> np.ndarray:
    """The first axis fastest: an image column by column from top to bottom."""
    return _cells(shape).ravel(order="F")


@route("snake")
def snake(shape: Shape) -> np.ndarray:
    """Row by row, every second row from right to left, so that each step goes to a neighbour (PlainMamba)."""
    return _snaked(_cells(shape))


@route("column_snake")
def column_snake(shape: Shape) -> np.ndarray:
    """Column by column, every second column upwards, so that each step goes to a neighbour (PlainMamba)."""
    return _snaked(_cells(shape).transpose())


@route("diagonal", spatial_dims=(2,))
def diagonal(shape: Shape) -> np.ndarray:
    """Down-right diagonals that wrap round the sides: cells (i, (i + t) mod W), t from 0 (FER-YOLO-Mamba)."""
    height, width = shape
    row, step = np.arange(height), np.arange(width)[:, None]
    return (row * width + (row + step) % width).ravel()


@route("anti_diagonal", spatial_dims=(2,))
def anti_diagonal(shape: Shape) -> np.ndarray:
    """Down-left diagonals that wrap round the sides: cells (i, (t - i) mod W), t from 0 (FER-YOLO-Mamba)."""
    height, width = shape
    row, step = np.arange(height), np.arange(width)[:, None]
    return (row * width + (step - row) % width).ravel()


def _windowed(size: int) -> OrderFunction:
    def window(shape: Shape) -> np.ndarray:
        place = np.indices(shape).reshape(len(shape), -1)
        keys = [*(place // size), *place]  # window by window, then raster inside; the far windows may be cut short
        return np.lexsort(keys[::-1])

    window.__doc__ = f"Window by window of {size} cells a side, raster order inside; windows at the far sides are cut."
    return window


for _size in (2, 4, 7, 8):
    route(f"window{_size}")(_windowed(_size))
