"""Bidirectional WKV, beside its forms in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from statefield.bench.baselines import wkv_by_cumulative_sums
from statefield.bench.kernels.report import ALLOWED, Goal, Row, fastest, goal, largest_error, under
from statefield.bench.timing import race, roof_contenders, roofs
from statefield.kernels import use_kernels, wkv

# Vision-RWKV at 224 pixels, and at larger images. The reference needs a row of weights for every token, and for its
# gradients all of them at once, so it is run on the first case only; the others are held against the chunked form in
# float64, which the tests hold against the reference.
CASES = ((1, 196, 192), (1, 1024, 384), (1, 4096, 192))


def measure(quick: bool, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    """Vision-RWKV's operator at three lengths (report.py tells the contract)."""
    rows: list[Row] = []
    goals: list[Goal] = []
    for place, size in enumerate(((1, 49, 32),) if quick else CASES):
        more_rows, more_goals = _measure_case(*size, with_reference=place == 0, seconds=seconds / 3, rounds=rounds)
        rows += more_rows
        goals += more_goals
    return rows, goals


def _measure_case(
    batch: int, tokens: int, channels: int, *, with_reference: bool, seconds: float, rounds: int
) -> tuple[list[Row], list[Goal]]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    size = (batch, tokens, channels)
    given = ((3 + randn(channels)) / tokens, randn(channels) / tokens, randn(*size), randn(*size))
    leaves = [x.clone().requires_grad_() for x in given]
    cotangent = randn(*size)
    ours = fastest("wkv")

    def run(inputs: list[Tensor], flow: Tensor) -> list[Tensor]:
        y = wkv(*inputs)
        return [y.detach(), *torch.autograd.grad(y, inputs, flow)]

    with use_kernels("reference" if with_reference else "chunked"):
        wanted = run([x.double().detach().requires_grad_() for x in leaves], cotangent.double())
    errors = {}
    for implementation in dict.fromkeys((ours, "chunked")):
        with use_kernels(implementation):
            errors[implementation] = largest_error(run(leaves, cotangent), wanted)
    with use_kernels("chunked"), torch.no_grad():
        by_paper = wkv(*(x.double() for x in given), mode="paper")
    by_sums = largest_error([wkv_by_cumulative_sums(*given)], [by_paper])

    y = under(ours, lambda: wkv(*leaves))()
    assert isinstance(y, Tensor)
    elements = batch * tokens * channels
    contenders = roof_contenders(elements, elements) | {
        ours: under(ours, lambda: wkv(*given)),
        "chunked": under("chunked", lambda: wkv(*given)),
        "cumulative sums (paper)": lambda: wkv_by_cumulative_sums(*given),
    }
    if with_reference:
        contenders["reference"] = under("reference", lambda: wkv(*given))
    with torch.no_grad():
        times = race(contenders, seconds=seconds, rounds=rounds)
    pair = {
        "forward": torch.no_grad()(contenders[ours]),
        "backward": under(ours, lambda: torch.autograd.grad(y, leaves, cotangent, retain_graph=True)),
    }
    pair_times = race(pair, seconds=seconds / 2, rounds=rounds)
    ceilings = roofs(times, elements, elements)
    least_by_bytes = 3 * 4 * elements / (ceilings.copy_gbps * 1e9)  # k, v and y once each
    least_by_exp = elements / (ceilings.exp_gps * 1e9)  # one a token and channel

    name = f"B {batch}, T {tokens}, C {channels}"
    by_name = errors | {"cumulative sums (paper)": by_sums, "reference": 0.0}
    rows = [
        Row("wkv", name, "forward", by, error, 1e3 * times[by], least_by_bytes / times[by], least_by_exp / times[by])
        if (error := by_name[by]) <= ALLOWED
        else Row("wkv", name, "forward", by, error, None)
        for by in times
        if by in by_name
    ]
    right = errors[ours] <= ALLOWED
    rows.insert(1, Row("wkv", name, "backward", ours, errors[ours], 1e3 * pair_times["backward"] if right else None))
    label = f"wkv, T {tokens}: "
    return rows, [
        goal(label + "times as fast as cumulative sums", times["cumulative sums (paper)"] / times[ours], 4, right),
        goal(label + "share of torch.exp's rate", least_by_exp / times[ours], 0.3, right),
        goal(
            label + "backward in units of forward", pair_times["backward"] / pair_times["forward"], 3.5, right,
            at_most=True,
        ),
    ]  # fmt: skip
