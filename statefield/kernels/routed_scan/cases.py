"""The routed scan's cases: small ones for every check, large ones for GPUs, and sizes as VMamba and Vim use them."""

from __future__ import annotations

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


def _op_arguments(given: dict[str, Any]) -> tuple[Any, ...]:
    tensors = (given.get(name) for name in ("x", "delta", "A", "B", "C", "D", "delta_bias"))
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
    },
    op=routed_scan_op,
    op_arguments=_op_arguments,
    mapped=("x", "delta", "B", "C"),
    interpreted=(
        "tiny", "one_pixel", "odd_own_input", "one_state_grouped", "unmerged", "own_input_unmerged", "volume",
        "no_softplus", "one_quarter_each", "one_quarter_each_unmerged", "seven_pixels",
    ),
    large={
        "large_cross": arguments(2, (31, 33), 96, 1),
        "large_cross_sixteen_states": arguments(1, (32, 32), 192, 16),
        "large_batch": arguments(64, (14, 14), 64, 1),
        "large_own_input": arguments(3, (197,), 70, 16, routes=("raster", "raster~"), own=True),
        "large_volume": arguments(1, (12, 13, 11), 48, 4, 4, routes=("raster", "raster~", "column")),
        "large_quarters": arguments(2, (28, 30), 64, 4, routes=quarters(28, 30)),
    },
    compiled={
        "routed scan, 4 routes, N = 1": Sized(arguments(2, (8, 8), 192, 1), torch.bfloat16),
        "routed scan, 4 routes, N = 16": Sized(arguments(1, (8, 8), 192, 16), torch.bfloat16),
        "routed scan, own input, N = 16": Sized(
            arguments(1, (64,), 192, 16, routes=("raster", "raster~"), own=True), torch.bfloat16
        ),
    },
    measured={
        "B 8, 56 x 56, E 192, N 1, 4 routes": _timed(8, (56, 56), 192, 1),
        "B 1, 128 x 128, E 192, N 1, 4 routes": _timed(1, (128, 128), 192, 1),
        "B 8, 56 x 56, E 192, N 16, 4 routes": _timed(8, (56, 56), 192, 16),
        "B 32, L 197, E 384, N 16, 2 routes": _timed(32, (197,), 384, 16, routes=("raster", "raster~"), own=True),
    },
)  # fmt: skip
