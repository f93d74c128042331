"""The deformable convolution, beside the same by torch's grid sampling and a plain depthwise convolution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from statefield.bench.baselines import deformable_by_grid_sampling
from statefield.bench.kernels.report import ALLOWED, Goal, Row, fastest, goal, largest_error, under
from statefield.bench.timing import race
from statefield.kernels import deformable_conv, use_kernels


def measure(quick: bool, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    """The finest and the third branch of HRVMamba small at 224 x 224 (report.py tells the contract)."""
    rows: list[Row] = []
    goals: list[Goal] = []
    for side, groups in ((8, 2),) if quick else ((56, 2), (14, 8)):
        more_rows, more_goals = _measure_case(side, groups, 32, seconds=seconds / 4, rounds=rounds)
        rows += more_rows
        goals += more_goals
    return rows, goals


def _measure_case(
    side: int, groups: int, channels: int, *, seconds: float, rounds: int
) -> tuple[list[Row], list[Goal]]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, packed = randn(1, side, side, groups * channels), randn(1, side, side, groups, 27)
    leaves = [x.requires_grad_(), packed.requires_grad_()]
    cotangent, kernel = randn(*x.shape), randn(groups * channels, 1, 3, 3)
    ours = fastest("deformable_conv")

    def convolve(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        return function(x, packed[..., :18].unflatten(-1, (9, 2)), packed[..., 18:])

    def run(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        y = convolve(function)
        return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]

    with use_kernels("reference"):
        wanted = run(deformable_conv)
    with use_kernels(ours):
        error = largest_error(run(deformable_conv), wanted)
    by_name = {ours: error, "grid sampling": largest_error(run(deformable_by_grid_sampling)[:1], wanted[:1])}
    by_name["reference"] = 0.0

    contenders = {
        ours: under(ours, lambda: convolve(deformable_conv)),
        "grid sampling": lambda: convolve(deformable_by_grid_sampling),
        "reference": under("reference", lambda: convolve(deformable_conv)),
        "depthwise 3 x 3": lambda: functional.conv2d(
            x.permute(0, 3, 1, 2), kernel, padding=1, groups=groups * channels
        ),
    }
    with torch.no_grad():
        times = race(contenders, seconds=seconds, rounds=rounds)

    def derive(y: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(y, leaves, cotangent, retain_graph=True)

    backwards = {
        ours: under(ours, derive(convolve(deformable_conv))),
        "grid sampling": derive(convolve(deformable_by_grid_sampling)),
    }
    backward_times = race(backwards, seconds=seconds / 2, rounds=rounds)
    name = f"B 1, {side} x {side}, G {groups}, D {channels}"
    rows = [Row("deformable_conv", name, "forward", by, wrong, 1e3 * times[by]) for by, wrong in by_name.items()]
    # Another function, and so without an error: what a convolution costs that stays where it is.
    rows.append(Row("deformable_conv", name, "forward", "depthwise 3 x 3", 0.0, 1e3 * times["depthwise 3 x 3"]))
    rows += [
        Row("deformable_conv", name, "backward", by, by_name[by], 1e3 * took) for by, took in backward_times.items()
    ]
    right = error <= ALLOWED
    label = f"deformable convolution, {side} x {side}: "
    return rows, [
        goal(label + "times as fast as grid sampling", times["grid sampling"] / times[ours], 4, right),
        goal(
            label + "backward, times as fast as grid sampling",
            backward_times["grid sampling"] / backward_times[ours],
            4,
            right,
        ),
    ]
