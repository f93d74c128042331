"""What a route is, how one is registered, and how its permutation is looked up and checked.

A route is a function `(shape) -> order`. `order[t]` is the raster (row-major) index of the cell that the scan visits
at step t, so `x.flatten(1, 2)[:, order]` is the sequence and `sequence[:, inverse]` is the image again. The name with
`~` behind it is the same route walked backwards; the inverse is derived. A route takes no options: a variant with
another window is another name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
import torch

from statefield.errors import ConfigError, ShapeError
from statefield.registry import Registry

Shape = tuple[int, ...]
OrderFunction = Callable[[Shape], np.ndarray]

REVERSED = "~"


@dataclass(frozen=True)
class Route:
    """A scan order: the function that makes it and the numbers of axes it is defined for."""

    name: str
    order: OrderFunction
    spatial_dims: tuple[int, ...]

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.order) or "").partition("\n")[0]


ROUTES: Registry[Route] = Registry("route")


def route(name: str, spatial_dims: tuple[int, ...] = (2, 3)) -> Callable[[OrderFunction], OrderFunction]:
    """A decorator that files `(shape) -> int64 [L]` under `name`, for shapes of the given numbers of axes."""
    if REVERSED in name:
        raise ConfigError(f"the route name {name!r} holds {REVERSED!r}, which marks a reversed route: leave it out.")

    def file(function: OrderFunction) -> OrderFunction:
        ROUTES.register(name)(Route(name, function, spatial_dims))
        return function

    return file


def route_order(name: str, shape: Shape) -> torch.Tensor:
    """The order in which a route visits the cells of a grid.

    Args:
        name: a registered route, with `~` behind it for the reversed one ("snake", "snake~").
        shape: sizes of the grid's axes, (H, W), (D, H, W), (T, H, W) for a video, or (L,), each >= 1.
    Returns:
        int64 [L], L = prod(shape): the raster index of the cell visited at each step, a permutation of range(L).
    Raises:
        UnknownName: no such route. ShapeError: a size below 1, or a number of axes the route is not defined for.

    >>> route_order("column~", (2, 3)).tolist()
    [5, 2, 4, 1, 3, 0]
    """
    return torch.from_numpy(_checked_order(name, tuple(int(size) for size in shape)).copy())


def inverse_order(order: torch.Tensor) -> torch.Tensor:
    """The step at which each cell is visited: `inverse_order(order)[order[t]] == t`. int64 [L] -> int64 [L]."""
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), dtype=order.dtype, device=order.device)
    return inverse


@lru_cache(maxsize=256)
def _checked_order(name: str, shape: Shape) -> np.ndarray:
    entry = ROUTES[name.removesuffix(REVERSED)]
    if len(shape) not in entry.spatial_dims:
        wanted = " or ".join(f"{dims}-D" for dims in entry.spatial_dims)
        raise ShapeError(f"route {entry.name!r} is defined on {wanted} grids, but the shape is {shape}.")
    if min(shape) < 1:
        raise ShapeError(f"the shape {shape} of route {entry.name!r} has an axis without cells: sizes are >= 1.")
    order = np.ascontiguousarray(entry.order(shape), dtype=np.int64)
    if order.shape != (prod(shape),) or not np.array_equal(np.sort(order), np.arange(order.size)):
        raise ConfigError(
            f"route {entry.name!r} does not visit each cell of a grid of shape {shape} exactly once: it must return a"
            f" permutation of range({prod(shape)})."
        )
    return order[::-1] if name.endswith(REVERSED) else order
