"""The causal convolution with SiLU, beside torch's convolutions in either layout."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from statefield.bench.baselines import causal_convolution, causal_convolution_in_rows
from statefield.bench.kernels.report import ALLOWED, Goal, Row, fastest, goal, largest_error, under
from statefield.bench.timing import race, roof_contenders, roofs
from statefield.kernels import causal_conv1d, use_kernels


def measure(quick: bool, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    """Vim's convolution over a batch of images, and over one large one (report.py tells the contract)."""
    rows: list[Row] = []
    goals: list[Goal] = []
    for size in ((1, 50, 32),) if quick else ((8, 197, 384), (1, 3136, 192)):
        more_rows, more_goals = _measure_case(*size, seconds=seconds / 4, rounds=rounds)
        rows += more_rows
        goals += more_goals
    return rows, goals


def _measure_case(
    batch: int, length: int, channels: int, *, seconds: float, rounds: int
) -> tuple[list[Row], list[Goal]]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, weight, bias = randn(batch, length, channels), randn(channels, 4), randn(channels)
    leaves = [given.clone().requires_grad_() for given in (x, weight, bias)]
    cotangent = randn(*x.shape)
    x_bdl = x.transpose(1, 2).contiguous()
    leaves_bdl = [given.clone().requires_grad_() for given in (x_bdl, weight, bias)]
    cotangent_bdl = cotangent.transpose(1, 2).contiguous()
    ours = fastest("causal_conv1d")

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return causal_conv1d(x, weight, bias, "silu", layout="bld")

    def run() -> list[Tensor]:
        y = convolve(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, cotangent)]

    with use_kernels("reference"):
        wanted = run()
    with use_kernels(ours):
        error = largest_error(run(), wanted)
    with torch.no_grad():
        padded = causal_convolution(x_bdl, weight, bias).transpose(1, 2)
        in_rows = causal_convolution_in_rows(x, weight, bias)
    by_name = {ours: error, "conv1d, [B, D, L]": largest_error([padded], wanted[:1])}
    by_name |= {"conv1d, [B, L, D]": by_name["conv1d, [B, D, L]"], "reference": 0.0}
    by_name["conv2d, channels last"] = largest_error([in_rows], wanted[:1])

    elements = batch * length * channels
    contenders = roof_contenders(elements, elements) | {
        ours: under(ours, lambda: convolve(x, weight, bias)),
        "conv1d, [B, D, L]": lambda: causal_convolution(x_bdl, weight, bias),
        "conv1d, [B, L, D]": lambda: causal_convolution(x.transpose(1, 2), weight, bias).transpose(1, 2),
        "conv2d, channels last": lambda: causal_convolution_in_rows(x, weight, bias),
        "reference": under("reference", lambda: convolve(x, weight, bias)),
    }
    with torch.no_grad():
        times = race(contenders, seconds=seconds, rounds=rounds)
    y = convolve(*leaves)

    def derive(y: Tensor, inputs: list[Tensor], flow: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(y, inputs, flow, retain_graph=True)

    backwards = {
        ours: under(ours, derive(y, leaves, cotangent)),
        "conv1d, [B, D, L]": derive(causal_convolution(*leaves_bdl), leaves_bdl, cotangent_bdl),
        "conv2d, channels last": derive(causal_convolution_in_rows(*leaves), leaves, cotangent),
    }
    backward_times = race(backwards, seconds=seconds / 2, rounds=rounds)
    ceilings = roofs(times, elements, elements)
    least_by_bytes = 2 * 4 * elements / (ceilings.copy_gbps * 1e9)  # x and y once each
    least_by_exp = elements / (ceilings.exp_gps * 1e9)

    name = f"B {batch}, L {length}, D {channels}, K 4"
    rows = [
        Row("causal_conv1d", name, "forward", by, wrong, 1e3 * times[by], least_by_bytes / times[by],
            least_by_exp / times[by])
        for by, wrong in by_name.items()
    ]  # fmt: skip
    rows += [Row("causal_conv1d", name, "backward", by, by_name[by], 1e3 * took) for by, took in backward_times.items()]
    right = error <= ALLOWED
    rival = min(times[by] for by in times if by.startswith("conv"))
    backward_rival = min(backward_times[by] for by in backward_times if by.startswith("conv"))
    label = f"causal convolution, L {length}: "
    return rows, [
        goal(label + "times as fast as torch's fastest", rival / times[ours], 1.5, right),
        goal(label + "backward, times as fast as torch's fastest", backward_rival / backward_times[ours], 2, right),
    ]
