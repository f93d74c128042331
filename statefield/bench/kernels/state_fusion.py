"""State fusion, beside the same sums by torch's convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

from statefield.bench.baselines import fusion_by_convolutions
from statefield.bench.kernels.report import ALLOWED, Goal, Row, fastest, goal, largest_error
from statefield.bench.timing import race
from statefield.kernels import state_fusion, use_kernels


def measure(quick: bool, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    """A stage of Spatial-Mamba beside torch's depthwise convolutions (report.py tells the contract)."""
    grid, channels = ((14, 14), 64) if quick else ((56, 56), 192)
    return beside_convolutions("state_fusion", "state fusion", grid, channels, seconds, rounds)


def beside_convolutions(
    op: str, title: str, grid: tuple[int, ...], channels: int, seconds: float, rounds: int
) -> tuple[list[Row], list[Goal]]:
    """The operator over one map or volume of `grid`, [1, *grid, channels], and the same by three convolutions.

    Args: op: the operator's name. title: of its goal. seconds, rounds: as for `measure`.
    """
    dilations = (1, 3, 5)
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(1, *grid, channels, generator=generator).requires_grad_()
    taps = [3] * len(grid)
    weight = (torch.randn(3, channels, *taps, generator=generator) / 3).requires_grad_()
    alpha = torch.randn(3, generator=generator).requires_grad_()
    cotangent = torch.randn(h.shape, generator=generator)
    name = f"B 1, {' x '.join(map(str, grid))}, E {channels}, dilations 1 3 5"
    ours = fastest(op)

    def run() -> list[Tensor]:
        y = state_fusion(h, weight, alpha, dilations=dilations)
        return [y.detach(), *torch.autograd.grad(y, (h, weight, alpha), cotangent)]

    with use_kernels("reference"):
        wanted = run()
    with use_kernels(ours):
        error = largest_error(run(), wanted)
        y = state_fusion(h, weight, alpha, dilations=dilations)
        # torch may prefer either memory order; it is measured in both, and the better one counts.
        last = h.detach().movedim(-1, 1)
        plain = last.contiguous()
        by_torch = largest_error([fusion_by_convolutions(plain, weight, alpha, dilations).movedim(1, -1)], wanted[:1])
        with torch.no_grad():
            times = race(
                {
                    "forward": lambda: state_fusion(h, weight, alpha, dilations=dilations),
                    "channels first": lambda: fusion_by_convolutions(plain, weight, alpha, dilations),
                    "channels last": lambda: fusion_by_convolutions(last, weight, alpha, dilations),
                },
                seconds=seconds / 2,
                rounds=rounds,
            )
        times |= race(
            {"backward": lambda: torch.autograd.grad(y, (h, weight, alpha), cotangent, retain_graph=True)},
            seconds=seconds / 4,
            rounds=rounds,
        )
    right = error <= ALLOWED
    rival = min(times["channels first"], times["channels last"])
    rows = [
        Row(op, name, "forward", ours, error, 1e3 * times["forward"] if right else None),
        Row(op, name, "backward", ours, error, 1e3 * times["backward"] if right else None),
        Row(op, name, "forward", "three torch convolutions", by_torch, 1e3 * rival),
    ]
    return rows, [goal(f"{title}: times as fast as three torch convolutions", rival / times["forward"], 3.0, right)]
