"""What the non-causal state-space duality is checked, compiled and timed on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statefield.kernels.conformance import Family, Randn, Sized, Variant
from statefield.kernels.non_causal_ssd import non_causal_ssd
from statefield.kernels.non_causal_ssd.op import non_causal_ssd_op


def _made(
    batch: int,
    length: int,
    heads: int,
    channels: int,
    states: int,
    groups: int | None = 1,
    *,
    skip: bool = True,
    positive_decay: bool = True,
) -> Variant:
    """The arguments of `non_causal_ssd`; groups None for B and C [B, L, N]."""

    def make(randn: Randn) -> dict[str, Any]:
        weights = (batch, length, states) if groups is None else (batch, length, groups, states)
        arguments: dict[str, Any] = {
            "x": randn(batch, length, heads, channels),
            "dt": torch.nn.functional.softplus(randn(batch, length, heads)),
            "A": -torch.exp(0.5 * randn(heads)),
            "B": randn(*weights),
            "C": randn(*weights),
            "positive_decay": positive_decay,
        }
        return arguments | ({"D": randn(heads)} if skip else {})

    return make


def _op_arguments(arguments: dict[str, Any]) -> tuple[Any, ...]:
    x, dt, A, B, C = (arguments[name] for name in ("x", "dt", "A", "B", "C"))
    B, C = (_grouped(weights) for weights in (B, C))
    return x, dt, A, B, C, arguments.get("D")


def _grouped(weights: Tensor) -> Tensor:
    return weights.unsqueeze(2) if weights.dim() == 3 else weights


def _sized(batch: int, length: int, heads: int, dtype: torch.dtype) -> Sized:
    channels, states = 64, 64
    flops = 4 * batch * length * heads * channels * states
    return Sized(_made(batch, length, heads, channels, states), dtype, matrix_flops=flops)


FAMILY = Family(
    name="non_causal_ssd",
    function=non_causal_ssd,
    variants={
        "tiny": _made(1, 4, 2, 2, 2),
        "one_position": _made(1, 1, 1, 1, 1),
        "odd": _made(2, 37, 3, 19, 13),
        "odd_grouped": _made(1, 71, 4, 5, 3, 2),
        "a_group_for_each_head": _made(1, 9, 3, 8, 4, 3),
        "ungrouped_without_skip": _made(2, 20, 2, 16, 8, None, skip=False),
        "negative_decay": _made(1, 33, 2, 9, 7, positive_decay=False),
        "several_tiles": _made(1, 90, 2, 35, 67),
        "several_segments": _made(1, 530, 2, 3, 2),
    },
    op=non_causal_ssd_op,
    op_arguments=_op_arguments,
    mapped=("x", "dt", "B", "C"),
    large={
        "vssd_tiny_stage_1": _made(2, 3136, 2, 64, 64),
        "vssd_micro_stage_2": _made(3, 784, 4, 48, 48),
        "many_states_and_channels": _made(1, 1000, 2, 200, 160),
        "many_groups": _made(2, 513, 16, 32, 24, 4, skip=False),
    },
    compiled={
        "vssd_tiny": _sized(2, 784, 4, torch.bfloat16),
        "vssd_tiny_float32": _sized(2, 784, 4, torch.float32),
    },
    measured={
        "vssd_tiny_stage_1": _sized(64, 3136, 2, torch.bfloat16),
        "vssd_tiny_stage_2": _sized(64, 784, 4, torch.bfloat16),
    },
)
