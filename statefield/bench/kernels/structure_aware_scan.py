"""The structure-aware scan: scan and fusion in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statefield.bench.kernels.report import ALLOWED, Goal, Row, fastest, largest_error
from statefield.bench.timing import race
from statefield.kernels import structure_aware_scan, use_kernels


def measure(quick: bool, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    """The whole of Spatial-Mamba's operator, for the record: it has no goal of its own."""
    size = batch, height, width, channels = (1, 14, 14, 64) if quick else (1, 56, 56, 192)
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    given = {
        "u": randn(*size),
        "delta": 0.5 * randn(*size),
        "A": -torch.exp(0.5 * randn(channels, 1)),
        "B": randn(batch, height, width, 1),
        "C": randn(batch, height, width, 1),
        "D": randn(channels),
        "weight": randn(3, channels, 3, 3) / 3,
        "alpha": randn(3),
        "delta_bias": randn(channels),
    }
    name = f"B {batch}, {height} x {width}, E {channels}, N 1"
    ours = fastest("structure_aware_scan")
    leaves: dict[str, Any] = {key: tensor.requires_grad_() for key, tensor in given.items()}
    cotangent = randn(*size)

    def run() -> list[Tensor]:
        y = structure_aware_scan(**leaves)
        return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), cotangent)]

    with use_kernels("reference"):
        wanted = run()
    with use_kernels(ours):
        error = largest_error(run(), wanted)
        y = structure_aware_scan(**leaves)
        times = race(
            {
                "forward": torch.no_grad()(lambda: structure_aware_scan(**leaves)),
                "backward": lambda: torch.autograd.grad(y, list(leaves.values()), cotangent, retain_graph=True),
            },
            seconds=seconds / 4,
            rounds=rounds,
        )
    right = error <= ALLOWED
    return [
        Row("structure_aware_scan", name, key, ours, error, 1e3 * times[key] if right else None)
        for key in ("forward", "backward")
    ], []
