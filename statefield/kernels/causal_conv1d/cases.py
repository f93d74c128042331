"""The causal convolution's cases: small ones for every check, large ones for GPUs, and sizes as Vim uses them."""

from __future__ import annotations

from typing import Any

import torch

from statefield.kernels.causal_conv1d import causal_conv1d
from statefield.kernels.causal_conv1d.op import causal_conv1d_op
from statefield.kernels.conformance import Family, Randn, Sized, Variant


def arguments(batch: int, length: int, channels: int, taps: int = 4, *, bias: bool = True, **options: Any) -> Variant:
    layout = options.get("layout", "bld")

    def make(randn: Randn) -> dict[str, Any]:
        x = randn(batch, length, channels)
        return {
            "x": x.transpose(1, 2).contiguous() if layout == "bdl" else x,
            "weight": randn(channels, taps),
            **({"bias": randn(channels)} if bias else {}),
            **{"activation": "silu", "layout": layout, **options},
        }

    return make


def _op_arguments(given: dict[str, Any]) -> tuple[Any, ...]:
    return given["x"], given["weight"], given.get("bias"), given["activation"] == "silu", given.get("reverse", False)


def _timed(batch: int, length: int, channels: int) -> Sized:
    """One exponential for each value, that of SiLU."""
    make = arguments(batch, length, channels)
    return Sized(make, torch.bfloat16, exponentials=batch * length * channels)


FAMILY = Family(
    name="causal_conv1d",
    function=causal_conv1d,
    variants={
        "tiny": arguments(1, 6, 2, 3),
        "one_step": arguments(1, 1, 1),
        "odd": arguments(2, 37, 19),
        "odd_reverse": arguments(2, 41, 35, reverse=True),
        "fewer_steps_than_taps": arguments(2, 2, 17),
        "fewer_steps_than_taps_reverse": arguments(2, 2, 5, reverse=True),
        "two_tiles": arguments(1, 131, 40),
        "one_tap": arguments(1, 9, 5, 1),
        "two_taps": arguments(1, 9, 5, 2),
        "seven_taps_reverse": arguments(1, 40, 13, 7, reverse=True),
        "without_bias": arguments(1, 33, 9, bias=False),
        "without_activation": arguments(1, 33, 9, activation=None, bias=False),
        "channels_before_length": arguments(2, 35, 9, layout="bdl"),
    },
    op=causal_conv1d_op,
    op_arguments=_op_arguments,
    mapped=("x",),
    interpreted=(
        "tiny",
        "one_step",
        "odd_reverse",
        "fewer_steps_than_taps",
        "two_tiles",
        "seven_taps_reverse",
        "without_activation",
    ),
    large={
        "large_vim": arguments(8, 197, 384),
        "large_reverse": arguments(3, 1025, 100, reverse=True),
        "large_batch": arguments(300, 50, 33, 3),
    },
    compiled={
        "causal_conv1d": Sized(arguments(2, 197, 384), torch.bfloat16, stack_bytes=0),
        "causal_conv1d, reverse": Sized(arguments(2, 197, 384, reverse=True), torch.float32, stack_bytes=0),
    },
    measured={
        "B 64, L 197, D 384, K 4": _timed(64, 197, 384),
        "B 8, L 4096, D 768, K 4": _timed(8, 4096, 768),
    },
)
