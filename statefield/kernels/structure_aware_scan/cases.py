"""The structure-aware scan's cases."""

from __future__ import annotations

from typing import Any

import torch

from statefield.kernels.conformance import Family, Randn, Variant
from statefield.kernels.structure_aware_scan import structure_aware_scan
from statefield.kernels.structure_aware_scan.op import structure_aware_scan_op


def arguments(batch: int, height: int, width: int, channels: int, states: int) -> Variant:
    def make(randn: Randn) -> dict[str, Any]:
        return {
            "u": randn(batch, height, width, channels),
            "delta": 0.5 * randn(batch, height, width, channels),
            "A": -torch.exp(0.5 * randn(channels, states)),
            "B": randn(batch, height, width, states),
            "C": randn(batch, height, width, states),
            "D": randn(channels),
            "weight": randn(3, channels, 3, 3),
            "alpha": randn(3),
            "delta_bias": 0.3 * randn(channels),
        }

    return make


def _op_arguments(given: dict[str, Any]) -> tuple[Any, ...]:
    names = ("u", "delta", "A", "B", "C", "D", "weight", "alpha", "delta_bias")
    return (*(given[name] for name in names), True, [1, 3, 5], True)


FAMILY = Family(
    name="structure_aware_scan",
    function=structure_aware_scan,
    variants={
        "tiny": arguments(1, 2, 3, 2, 1),
        "one_pixel": arguments(1, 1, 1, 1, 1),
        "odd": arguments(2, 5, 9, 11, 3),
    },
    op=structure_aware_scan_op,
    op_arguments=_op_arguments,
    mapped=("u", "delta", "B", "C"),
    large={"large_map": arguments(2, 28, 28, 96, 1)},
)
