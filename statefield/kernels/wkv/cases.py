"""Bidirectional WKV's cases: small ones for every check, large ones for GPUs, and sizes as Vision-RWKV uses them."""

from __future__ import annotations

from typing import Any

import torch

from statefield.kernels.conformance import Family, Randn, Sized, Variant
from statefield.kernels.wkv import wkv
from statefield.kernels.wkv.op import wkv_op


def arguments(
    batch: int, tokens: int, channels: int, *, decay: float = 3.0, keys: float = 1.0, **options: Any
) -> Variant:
    """A call with w = (decay + noise) / T and u = noise / T, as the models have them; `keys` scales k."""

    def make(randn: Randn) -> dict[str, Any]:
        return {
            "w": (decay + randn(channels)) / tokens,
            "u": randn(channels) / tokens,
            "k": keys * randn(batch, tokens, channels),
            "v": randn(batch, tokens, channels),
            **options,
        }

    return make


def _op_arguments(given: dict[str, Any]) -> tuple[Any, ...]:
    tensors = (given[name] for name in "wukv")
    return (*tensors, given.get("mode", "kernel"), given.get("splits", 32), given.get("gradient", "exact"))


def _timed(batch: int, tokens: int, channels: int) -> Sized:
    """One exponential a token and channel is the least; the Triton form takes about eight."""
    make = arguments(batch, tokens, channels)
    return Sized(make, torch.bfloat16, exponentials=batch * tokens * channels)


FAMILY = Family(
    name="wkv",
    function=wkv,
    variants={
        "tiny": arguments(1, 7, 2, splits=3),
        "one_token": arguments(1, 1, 1),
        "odd": arguments(2, 37, 19),
        "odd_paper": arguments(2, 45, 11, mode="paper"),
        "fewer_tokens_than_splits": arguments(2, 7, 3),
        "many_chunks": arguments(1, 196, 18),
        "sixteen_splits": arguments(1, 65, 33, splits=16),
        "one_split": arguments(1, 33, 5, decay=1.0, splits=1),
        "odd_official_gradient": arguments(2, 67, 6, gradient="official"),
        "odd_few_tokens": arguments(1, 5, 3, decay=9.0, splits=2, gradient="official"),
        "paper_few_tokens": arguments(1, 7, 2, decay=21.0, keys=4.0, mode="paper", splits=2),
        "paper_one_token": arguments(1, 1, 3, mode="paper"),
        "growing_with_distance": arguments(1, 70, 9, decay=-5.0),
        "falling_fast": arguments(1, 41, 9, decay=15.0),
        "paper_falling_fast": arguments(1, 70, 9, decay=700.0, mode="paper"),
        "spread_keys": arguments(1, 71, 9, keys=5.0),
        "paper_spread_keys": arguments(1, 71, 9, keys=5.0, mode="paper"),
    },
    op=wkv_op,
    op_arguments=_op_arguments,
    mapped=("k", "v"),
    interpreted=("tiny", "one_token", "odd_few_tokens", "paper_few_tokens"),
    large={
        "large_196": arguments(8, 196, 192),
        "large_1024": arguments(2, 1024, 384),
        "large_paper": arguments(2, 1023, 70, mode="paper"),
        "large_batch": arguments(300, 49, 33),
    },
    compiled={
        "wkv, kernel": Sized(arguments(2, 196, 192), torch.bfloat16, stack_bytes=0),
        "wkv, paper": Sized(arguments(2, 196, 192, mode="paper"), torch.float32, stack_bytes=0),
    },
    measured={
        "B 64, T 196, C 192": _timed(64, 196, 192),
        "B 16, T 1024, C 384": _timed(16, 1024, 384),
        "B 8, T 4096, C 384": _timed(8, 4096, 384),
    },
)
