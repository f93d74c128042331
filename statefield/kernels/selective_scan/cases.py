"""The selective scan's cases: small ones for every check, large ones for GPUs, and sizes as VMamba uses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from statefield.kernels.conformance import Family, Randn, Sized, Variant
from statefield.kernels.selective_scan import selective_scan
from statefield.kernels.selective_scan.op import selective_scan_op

OPTIONAL = ("D", "z", "delta_bias", "initial_state", "last_state")
_NO_STATES = ("initial_state", "last_state")


def arguments(
    batch: int,
    length: int,
    channels: int,
    states: int,
    groups: int = 1,
    *,
    constant: str = "",
    absent: tuple[str, ...] = (),
    softplus: bool = True,
    layout: str = "bld",
) -> Variant:
    """A call of the scan.

    Args:
        constant: which of B and C are constant in time: "", "B", "C", "BC".
        absent: optional tensors that are not given, or ("last_state") not asked for.
    """

    def make(randn: Randn) -> dict[str, Any]:
        def rows(*tail: int) -> Tensor:
            x = randn(batch, length, *tail)
            return x.movedim(1, -1).contiguous() if layout == "bdl" else x

        optional = {
            "D": lambda: randn(channels),
            "z": lambda: rows(channels),
            "delta_bias": lambda: 0.3 * randn(channels),
            "initial_state": lambda: randn(batch, channels, states),
        }
        return {
            "u": rows(channels),
            "delta": 0.5 * rows(channels) + (0.0 if softplus else 0.7),
            "A": -torch.exp(0.5 * randn(channels, states)),
            "B": randn(channels, states) if "B" in constant else rows(groups, states),
            "C": randn(channels, states) if "C" in constant else rows(groups, states),
            "delta_softplus": softplus,
            "layout": layout,
            "return_state": "last_state" not in absent,
            **{name: drawn() for name, drawn in optional.items() if name not in absent},
        }

    return make


@contextmanager
def cut_in_time() -> Iterator[None]:
    """Let the scan's launcher believe in a GPU so large that it cuts time into segments as short as they get."""
    from statefield.kernels.selective_scan import triton  # here: it imports triton

    before = triton.multiprocessors
    triton.multiprocessors = lambda device: 10_000
    try:
        yield
    finally:
        triton.multiprocessors = before


def _op_arguments(given: dict[str, Any]) -> tuple[Any, ...]:
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
    return (*(given.get(name) for name in names), given["delta_softplus"], True)


def _timed(dtype: torch.dtype, batch: int, length: int, channels: int, states: int, **options: Any) -> Sized:
    """One exponential for each state and step, one for softplus, one for the gate."""
    gated = "z" not in options.get("absent", ())
    exponentials = batch * length * channels * (states + 1 + gated)
    return Sized(arguments(batch, length, channels, states, **options), dtype, exponentials=exponentials)


FAMILY = Family(
    name="selective_scan",
    function=selective_scan,
    variants={
        "tiny": arguments(1, 5, 2, 2, 1),
        "one_step": arguments(1, 1, 1, 1, 1),
        "odd_grouped": arguments(2, 37, 12, 3, 2),
        "two_chunks": arguments(1, 65, 19, 16, 1),
        "one_state": arguments(1, 33, 40, 1, 1),
        "many_states": arguments(1, 7, 9, 19, 3),
        "without_options": arguments(2, 70, 24, 4, 1, absent=OPTIONAL),
        "no_softplus": arguments(1, 33, 10, 8, 1, softplus=False),
        "constant_B": arguments(2, 33, 6, 4, 2, constant="B"),
        "constant_C": arguments(2, 33, 6, 1, 1, constant="C"),
        "constant_B_and_C": arguments(1, 40, 17, 4, 1, constant="BC"),
        "channels_before_length": arguments(2, 34, 9, 3, 3, layout="bdl"),
        "seven_steps": arguments(1, 7, 3, 3),
        "sixteen_states": arguments(1, 33, 2, 16),
        "bare_grouped_no_softplus": arguments(2, 17, 4, 4, 2, absent=OPTIONAL, softplus=False),
        "constant_C_ungated": arguments(1, 33, 3, 1, constant="C", absent=("z", *_NO_STATES)),
        "constant_B_and_C_no_D": arguments(1, 40, 3, 2, constant="BC", absent=("D",)),
        "odd_and_small": arguments(2, 7, 6, 4, 3, constant="B", absent=("last_state",)),
        "segmented": arguments(1, 70, 2, 1),
        "bare_grouped_segmented": arguments(1, 65, 2, 2, 2, absent=OPTIONAL),
    },
    op=selective_scan_op,
    op_arguments=_op_arguments,
    mapped=("u", "delta", "z", "B", "C", "initial_state"),
    data=("u", "delta", "z", "B", "C"),
    interpreted=(
        "tiny",
        "one_step",
        "seven_steps",
        "one_state",
        "many_states",
        "sixteen_states",
        "bare_grouped_no_softplus",
        "constant_C_ungated",
        "constant_B_and_C_no_D",
        "odd_and_small",
        "segmented",
        "bare_grouped_segmented",
    ),
    within={"segmented": cut_in_time, "bare_grouped_segmented": cut_in_time, "large_segmented": cut_in_time},
    large={
        "large_sixteen_states": arguments(2, 1000, 192, 16),
        "large_one_state": arguments(3, 3136, 96, 1, absent=("z", *_NO_STATES)),
        "large_grouped": arguments(1, 4099, 40, 16, 4),
        "large_odd": arguments(2, 129, 70, 8, 2),
        "large_64_states": arguments(2, 100, 48, 64),
        "large_256_states": arguments(1, 50, 33, 256),
        "large_batch": arguments(300, 64, 64, 4, constant="C"),
        "large_segmented": arguments(2, 1000, 96, 16),
    },
    compiled={
        "scan, N = 16, z": Sized(arguments(2, 64, 192, 16, absent=_NO_STATES), torch.bfloat16),
        "scan, N = 1": Sized(
            arguments(2, 64, 128, 1, constant="C", absent=("D", "z", *_NO_STATES)), torch.float32, stack_bytes=0
        ),
        "scan, N = 64, z": Sized(arguments(2, 64, 192, 64, absent=_NO_STATES), torch.bfloat16, stack_bytes=256),
        "scan, N = 16, cut in time": Sized(arguments(1, 128, 192, 16, absent=_NO_STATES), torch.bfloat16, cut_in_time),
    },
    measured={
        "B 8, L 3136, D 384, N 16": _timed(torch.bfloat16, 8, 3136, 384, 16, absent=("z", *_NO_STATES)),
        "B 8, L 3136, D 384, N 16, gated": _timed(torch.bfloat16, 8, 3136, 384, 16, absent=_NO_STATES),
        "B 1, L 16384, D 192, N 16": _timed(torch.bfloat16, 1, 16384, 192, 16, absent=("z", *_NO_STATES)),
        "B 32, L 3136, D 384, N 1": _timed(torch.bfloat16, 32, 3136, 384, 1, absent=("z", *_NO_STATES)),
        "B 32, L 3136, D 128, N 1, constant C": _timed(
            torch.float32, 32, 3136, 128, 1, constant="C", absent=("D", "z", *_NO_STATES)
        ),
    },
)
