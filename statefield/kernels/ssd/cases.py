"""The cases of Mamba-2's scan: small ones for every check, large ones for GPUs, and sizes as models use them."""

from __future__ import annotations

import math
from typing import Any

import torch

from statefield.kernels.conformance import Family, Randn, Sized, Variant
from statefield.kernels.ssd import ssd
from statefield.kernels.ssd.op import matrix_product_flops, ssd_op

OPTIONAL = ("D", "z", "dt_bias", "initial_state", "last_state")
_NO_STATES = ("initial_state", "last_state")


def arguments(
    batch: int,
    length: int,
    heads: int,
    channels: int,
    states: int,
    groups: int = 1,
    *,
    chunk: int = 64,
    absent: tuple[str, ...] = (),
    skip_a_head: bool = False,
    softplus: bool = True,
    limit: tuple[float, float] = (0.0, math.inf),
    decay: float = 1.0,
) -> Variant:
    """A call of `ssd`.

    Args:
        absent: optional tensors that are not given, or ("last_state") not asked for.
        skip_a_head: D is [h] instead of [h, p].
        decay: A is around minus this.
    """

    def make(randn: Randn) -> dict[str, Any]:
        optional = {
            "D": lambda: randn(heads) if skip_a_head else randn(heads, channels),
            "z": lambda: randn(batch, length, heads, channels),
            "dt_bias": lambda: 0.3 * randn(heads),
            "initial_state": lambda: randn(batch, heads, channels, states),
        }
        return {
            "x": randn(batch, length, heads, channels),
            "dt": 0.5 * randn(batch, length, heads) + (0.0 if softplus else 0.7),
            "A": -decay * torch.exp(0.5 * randn(heads)),
            "B": randn(batch, length, groups, states),
            "C": randn(batch, length, groups, states),
            "dt_softplus": softplus,
            "dt_limit": limit,
            "chunk_size": chunk,
            "return_state": "last_state" not in absent,
            **{name: drawn() for name, drawn in optional.items() if name not in absent},
        }

    return make


def _op_arguments(given: dict[str, Any]) -> tuple[Any, ...]:
    names = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
    tensors = {name: given.get(name) for name in names}
    if tensors["D"] is not None and tensors["D"].dim() == 1:
        tensors["D"] = tensors["D"].unsqueeze(1).expand(given["x"].shape[2:])
    return (*tensors.values(), given["dt_softplus"], *given["dt_limit"], given["chunk_size"], True)


def _timed(
    dtype: torch.dtype, batch: int, length: int, heads: int, channels: int, states: int, **options: Any
) -> Sized:
    """Exponentials: of the triangle of decays of each chunk, softplus, and the gate."""
    chunk = options.get("chunk", 64)
    gated = "z" not in options.get("absent", ())
    exponentials = batch * length * heads * (chunk // 2 + 1 + gated * channels)
    flops = matrix_product_flops(
        (batch, length, heads, channels), (batch, length, options.get("groups", 1), states), chunk
    )
    make = arguments(batch, length, heads, channels, states, **options)
    return Sized(make, dtype, exponentials=exponentials, matrix_flops=flops)


FAMILY = Family(
    name="ssd",
    function=ssd,
    variants={
        "tiny": arguments(1, 5, 2, 2, 2, chunk=3),
        "one_step": arguments(1, 1, 1, 1, 1),
        "odd_grouped": arguments(2, 19, 4, 5, 7, 2, chunk=16),
        "several_chunks": arguments(1, 70, 2, 19, 17, chunk=32),
        "whole_chunks": arguments(1, 64, 2, 16, 16, chunk=32, skip_a_head=True),
        "shorter_than_a_chunk": arguments(2, 7, 3, 24, 3),
        "without_options": arguments(2, 40, 4, 8, 4, chunk=8, absent=OPTIONAL),
        "no_softplus": arguments(1, 23, 2, 5, 6, chunk=10, softplus=False, absent=("dt_bias",)),
        "limited_steps": arguments(1, 20, 2, 4, 3, chunk=7, limit=(0.4, 0.9)),
        "strong_decay": arguments(1, 66, 2, 4, 4, chunk=64, decay=60.0),
        "chunks_of_one_step": arguments(1, 5, 2, 3, 2, chunk=1),
        "one_state": arguments(2, 40, 4, 4, 1, 2, chunk=8, absent=("z",)),
        "wide_heads": arguments(1, 18, 1, 70, 66, chunk=16, absent=("D", "initial_state")),
    },
    op=ssd_op,
    op_arguments=_op_arguments,
    mapped=("x", "dt", "B", "C", "z", "initial_state"),
    data=("x", "dt", "B", "C", "z"),
    interpreted=("one_step", "odd_grouped", "no_softplus", "limited_steps", "strong_decay", "wide_heads"),
    large={
        "large_mamba2": arguments(2, 1000, 8, 64, 128),
        "large_long": arguments(1, 4099, 4, 48, 64, absent=("z", *_NO_STATES)),
        "large_grouped": arguments(3, 333, 8, 32, 16, 4),
        "large_256_states": arguments(1, 130, 3, 33, 256),
        "large_chunks_of_128": arguments(1, 500, 4, 64, 64, chunk=128),
        "large_heads_of_128": arguments(1, 200, 2, 128, 64),
        "large_strong_decay": arguments(1, 300, 4, 64, 64, decay=60.0),
    },
    compiled={
        "ssd, p 64, n 64, z": Sized(arguments(1, 128, 4, 64, 64), torch.bfloat16, stack_bytes=128),
    },
    measured={
        "B 8, L 3136, h 8, p 48, n 64": _timed(torch.bfloat16, 8, 3136, 8, 48, 64, absent=("z", *_NO_STATES)),
        "B 8, L 3136, h 24, p 64, n 128": _timed(torch.bfloat16, 8, 3136, 24, 64, 128, absent=("z", *_NO_STATES)),
        "B 8, L 3136, h 24, p 64, n 128, gated": _timed(torch.bfloat16, 8, 3136, 24, 64, 128, absent=_NO_STATES),
    },
)
