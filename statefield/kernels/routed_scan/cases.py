"""The routed scan's cases: small ones for every check, large ones for GPUs, and sizes as VMamba and Vim use them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from statefield.kernels.conformance import Family, Randn, Sized, Variant
from statefield.kernels.routed_scan import _by_token, routed_scan
from statefield.kernels.routed_scan.op import routed_scan_op
from statefield.kernels.routed_scan.orders import order_of

CROSS = ("raster", "raster~", "column", "column~")


def arguments(
    batch: int,
    shape: tuple[int, ...],
    channels: int,
    states: int,
    groups: int = 0,
    *,
    routes: tuple[str, ...] | Tensor = CROSS,
    own: bool = False,
    absent: tuple[str, ...] = (),
    softplus: bool = True,
    merge: bool = True,
) -> Variant:
    """A call of the scan.

    Args:
        groups: of channels that share B and C; 0 leaves the axis out.
        own: each route has its own input.
        absent: optional tensors that are not given.
    """
    num = len(routes)
    weights = (num, groups, states) if groups else (num, states)

    def make(randn: Randn) -> dict[str, Any]:
        optional = {"D": lambda: randn(num, channels), "delta_bias": lambda: 0.3 * randn(num, channels)}
        return {
            "x": randn(batch, *shape, *((num,) if own else ()), channels),
            "delta": 0.5 * randn(batch, *shape, num, channels) + (0.0 if softplus else 0.7),
            "A": -torch.exp(0.5 * randn(num, channels, states)),
            "B": randn(batch, *shape, *weights),
            "C": randn(batch, *shape, *weights),
            "routes": routes,
            "delta_softplus": softplus,
            "merge": merge,
            **{name: drawn() for name, drawn in optional.items() if name not in absent},
        }

    return make


def quarters(height: int, width: int) -> Tensor:
    """EfficientVMamba's four routes, each over a quarter of the map: every second row and column. int64 [4, T]."""
    cells = torch.arange(height * width).reshape(height, width)
    down = [cells[i::2, j::2] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))]
    ways = [down[0].flatten(), down[1].flatten().flip(0), down[2].t().flatten(), down[3].t().flatten().flip(0)]
    return torch.stack(ways)


def on_a_gpu_of(sms: int) -> Callable[[], AbstractContextManager[Any]]:
    """Let the scan's launcher believe in a GPU of so many multiprocessors: it decides who walks the routes."""

    @contextmanager
    def within() -> Iterator[None]:
        from statefield.kernels.routed_scan import triton  # here: it imports triton

        before = triton.multiprocessors
        triton.multiprocessors = lambda device: sms
        try:
            yield
        finally:
            triton.multiprocessors = before

    return within


# For the small cases below. On a GPU of no size, as the CPU is, a program walks all routes.
routes_apart = on_a_gpu_of(4)
cut_in_time = on_a_gpu_of(10_000)


def _op_arguments(given: dict[str, Any]) -> tuple[Any, ...]:
    tensors: list[Any] = [given.get(name) for name in ("x", "delta", "A", "B", "C", "D", "delta_bias")]
    order = order_of(given["routes"], tuple(given["delta"].shape[1:-2]), given["x"])
    return (*_by_token(*tensors), order, given["delta_softplus"], given["merge"], True)


def _timed(batch: int, shape: tuple[int, ...], channels: int, states: int, **options: Any) -> Sized:
    """One exponential for each state and step, and one for softplus."""
    steps = batch * torch.Size(shape).numel() * len(options.get("routes", CROSS))
    made = arguments(batch, shape, channels, states, **options)
    return Sized(made, torch.bfloat16, exponentials=steps * channels * (states + 1))


FAMILY = Family(
    name="routed_scan",
    function=routed_scan,
    variants={
        "tiny": arguments(1, (2, 3), 2, 2, routes=("raster", "column~")),
        "one_pixel": arguments(1, (1, 1), 1, 1),
        "odd_cross": arguments(2, (5, 7), 11, 3),
        "odd_own_input": arguments(2, (5, 3), 6, 2, 3, routes=("raster", "raster~"), own=True),
        "one_state": arguments(1, (7, 9), 40, 1),
        "one_state_grouped": arguments(1, (6, 7), 12, 1, 2, routes=("snake", "diagonal~", "window2"), absent=("D",)),
        "many_states": arguments(1, (3, 5), 9, 19, 3, routes=("column_snake",)),
        "sixteen_states": arguments(1, (6, 6), 17, 16, routes=("raster", "snake~")),
        "unmerged": arguments(2, (4, 5), 10, 2, merge=False),
        "own_input_unmerged": arguments(1, (4, 9), 5, 4, routes=("column", "column~"), own=True, merge=False),
        "sequence": arguments(2, (37,), 8, 3, routes=("raster", "raster~")),
        "volume": arguments(1, (3, 4, 3), 9, 2, routes=("raster", "column~", "snake")),
        "without_options": arguments(1, (5, 8), 24, 4, absent=("D", "delta_bias")),
        "no_softplus": arguments(1, (4, 9), 10, 8, softplus=False),
        "one_quarter_each": arguments(2, (4, 6), 9, 2, routes=quarters(4, 6)),
        "one_quarter_each_unmerged": arguments(1, (6, 4), 16, 1, routes=quarters(6, 4), own=True, merge=False),
        "seven_pixels": arguments(1, (1, 7), 3, 3, routes=("raster", "raster~")),
        "odd_routes_apart": arguments(1, (3, 5), 4, 2, 2, routes=("raster", "column~", "snake")),
        "odd_routes_together": arguments(1, (3, 3), 3, 2, routes=("raster", "column~")),
        "five_pixels_own_input": arguments(1, (1, 5), 2, 1, routes=("raster", "raster~"), own=True),
        "one_quarter_each_apart": arguments(1, (4, 2), 3, 1, routes=quarters(4, 2), absent=("D",), softplus=False),
        "cut_in_time": arguments(1, (7, 10), 3, 2, routes=("column", "snake~")),
        "own_input_cut_in_time": arguments(1, (65,), 2, 1, 2, routes=("raster~",), own=True, absent=("delta_bias",)),
    },
    op=routed_scan_op,
    op_arguments=_op_arguments,
    mapped=("x", "delta", "B", "C"),
    interpreted=(
        "tiny", "one_pixel", "one_state_grouped", "own_input_unmerged", "one_quarter_each",
        "one_quarter_each_unmerged", "seven_pixels", "odd_routes_apart", "odd_routes_together",
        "five_pixels_own_input", "one_quarter_each_apart", "cut_in_time", "own_input_cut_in_time",
    ),
    within={
        "odd_routes_apart": routes_apart,
        "one_quarter_each_apart": routes_apart,
        "cut_in_time": cut_in_time,
        "own_input_cut_in_time": cut_in_time,
        "large_cut_in_time": cut_in_time,
        "large_routes_together": on_a_gpu_of(0),
    },
    large={
        "large_cross": arguments(2, (31, 33), 96, 1),
        "large_cross_sixteen_states": arguments(1, (32, 32), 192, 16),
        "large_batch": arguments(64, (14, 14), 64, 1),
        "large_own_input": arguments(3, (197,), 70, 16, routes=("raster", "raster~"), own=True),
        "large_volume": arguments(1, (12, 13, 11), 48, 4, 4, routes=("raster", "raster~", "column")),
        "large_cut_in_time": arguments(2, (40, 40), 96, 16),
        "large_routes_together": arguments(3, (29, 31), 70, 2, routes=("raster", "hilbert~", "spiral")),
        "large_quarters": arguments(2, (28, 30), 64, 4, routes=quarters(28, 30)),
    },
    compiled={
        "routed scan, N = 1": Sized(arguments(2, (8, 8), 192, 1), torch.bfloat16),
        "routed scan, N = 16": Sized(arguments(2, (8, 8), 192, 16), torch.bfloat16),
        "routed scan, N = 16, cut in time": Sized(arguments(1, (8, 8), 192, 16), torch.bfloat16, cut_in_time),
    },
    measured={
        "B 8, 56 x 56, E 192, N 1, 4 routes": _timed(8, (56, 56), 192, 1),
        "B 1, 128 x 128, E 192, N 1, 4 routes": _timed(1, (128, 128), 192, 1),
        "B 8, 56 x 56, E 192, N 16, 4 routes": _timed(8, (56, 56), 192, 16),
        "B 32, L 197, E 384, N 16, 2 routes": _timed(32, (197,), 384, 16, routes=("raster", "raster~"), own=True),
    },
)  # fmt: skip
