"""Routes over the cells of a grid, each a few lines over raster indices; those over time and depth are in volume.py."""

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


@route("raster", spatial_dims=(1, 2, 3))
def raster(shape: Shape) -> np.ndarray:
    """Row by row from left to right; a volume slice by slice; a sequence from its first step to its last."""
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


@route("snake_from_bottom", spatial_dims=(2,))
def snake_from_bottom(shape: Shape) -> np.ndarray:
    """The snake from the bottom left, row by row upwards (LaMamba-Diff)."""
    return _snaked(_cells(shape)[::-1])


@route("column_snake_from_bottom", spatial_dims=(2,))
def column_snake_from_bottom(shape: Shape) -> np.ndarray:
    """The column snake from the bottom left, its first column upwards (LaMamba-Diff)."""
    return _snaked(_cells(shape)[::-1].T)


@route("column_snake_from_bottom_right", spatial_dims=(2,))
def column_snake_from_bottom_right(shape: Shape) -> np.ndarray:
    """The column snake from the bottom right, its first column upwards, then to the left (LaMamba-Diff)."""
    return _snaked(_cells(shape)[::-1, ::-1].T)


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


def _zigzagged(cells: np.ndarray) -> np.ndarray:
    row, column = np.indices(cells.shape).reshape(2, -1)
    number = row + column  # of the anti-diagonal
    return cells.ravel()[np.lexsort((np.where(number % 2 == 0, -row, row), number))]


@route("zigzag", spatial_dims=(2,))
def zigzag(shape: Shape) -> np.ndarray:
    """Anti-diagonals i + j = 0, 1, 2, ... in turns upwards and downwards, as JPEG reads its blocks (MHS-VM's X0)."""
    return _zigzagged(_cells(shape))


@route("zigzag_from_right", spatial_dims=(2,))
def zigzag_from_right(shape: Shape) -> np.ndarray:
    """The zigzag of the image mirrored left to right: it starts at the top right (MHS-VM's X1)."""
    return _zigzagged(_cells(shape)[:, ::-1])


def _spiralled(cells: np.ndarray) -> np.ndarray:
    parts = []
    while cells.size:
        parts.append(cells[0])
        cells = np.rot90(cells[1:])  # what is left, turned so that its next side lies at the top
    return np.concatenate(parts)


@route("spiral", spatial_dims=(2,))
def spiral(shape: Shape) -> np.ndarray:
    """Clockwise from the top left inwards; each step goes to a neighbour (MHS-VM's S0)."""
    return _spiralled(_cells(shape))


@route("spiral_from_bottom", spatial_dims=(2,))
def spiral_from_bottom(shape: Shape) -> np.ndarray:
    """Counter-clockwise from the bottom left inwards; each step goes to a neighbour (MHS-VM's S1)."""
    return _spiralled(_cells(shape)[::-1])


def _windowed(size: int, *, by_column: bool) -> OrderFunction:
    def window(shape: Shape) -> np.ndarray:
        place = np.indices(shape).reshape(len(shape), -1)
        if by_column:
            place = place[::-1]
        keys = [*(place // size), *place]  # window by window, then raster inside; the far windows may be cut short
        return np.lexsort(keys[::-1])

    how = "columns of windows, columns inside (LocalMamba, DiMSUM)" if by_column else "raster order inside (LocalMamba)"
    window.__doc__ = f"Window by window of {size} cells a side, {how}; windows at the far sides are cut."
    return window


def _atrous(step: int, *, by_column: bool) -> OrderFunction:
    def atrous(shape: Shape) -> np.ndarray:
        place = np.indices(shape).reshape(len(shape), -1)
        keys = [*(place % step)[::-1], *(place[::-1] if by_column else place)]
        return np.lexsort(keys[::-1])

    how = "columns" if by_column else "raster order"
    atrous.__doc__ = (
        f"Each cell (i, j) with (i, j) mod {step} = (0, 0), then (1, 0), ...; {how} inside (EfficientVMamba)."
    )
    return atrous


for _size in (2, 4, 7, 8):
    route(f"window{_size}")(_windowed(_size, by_column=False))
    route(f"column_window{_size}")(_windowed(_size, by_column=True))
for _step in (2, 4):
    route(f"atrous{_step}")(_atrous(_step, by_column=False))
    route(f"column_atrous{_step}")(_atrous(_step, by_column=True))


@route("skip2", spatial_dims=(2,))
def skip2(shape: Shape) -> np.ndarray:
    """EfficientVMamba's four sequences in a row: even rows in raster order, odd by columns (as [4, L / 4])."""
    row, column = np.indices(shape).reshape(2, -1)
    by_column = row % 2 == 1
    keys = (column % 2, row % 2, np.where(by_column, column, row), np.where(by_column, row, column))
    return np.lexsort(keys[::-1])
