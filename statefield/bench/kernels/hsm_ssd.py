"""The hidden states of HSM-SSD at the sizes of EfficientViM, beside plain PyTorch and the product they contain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from statefield.bench.kernels.report import ALLOWED, Goal, Row, fastest, largest_error, under
from statefield.bench.timing import race
from statefield.kernels import hsm_ssd_states, use_kernels


def measure(quick: bool, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    """First stages of EfficientViM-M1 at 224 and -M4 at 512 pixels; without a goal (report.py tells the contract)."""
    sizes = [(1, 37, 8, 5)] if quick else [(8, 196, 128, 49), (1, 1024, 224, 64)]
    return [row for size in sizes for row in _measure(*size, seconds / 2, rounds)], []


def _measure(batch: int, length: int, channels: int, states: int, seconds: float, rounds: int) -> list[Row]:
    ours = fastest("hsm_ssd")
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, channels, length), (batch, states, length), (states,), (batch, states, length))
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    cotangent = torch.randn(batch, channels, states, generator=generator)
    with use_kernels("reference"):
        exact = _gradients(leaves, cotangent)
    with use_kernels(ours):
        error = largest_error(_gradients(leaves, cotangent), exact)
    with use_kernels("chunked"), torch.no_grad():
        errors = {"chunked": largest_error([hsm_ssd_states(*inputs)], exact[:1]), "reference": 0.0}
    u, weights = inputs[0], inputs[1]
    contenders: dict[str, Callable[[], object]] = {
        "forward": under(ours, partial(hsm_ssd_states, *inputs)),
        "its matrix product": lambda: torch.bmm(u, weights.transpose(1, 2)),
        "chunked": under("chunked", partial(hsm_ssd_states, *inputs)),
        "reference": under("reference", partial(hsm_ssd_states, *inputs)),
    }
    with torch.no_grad():
        times = race(contenders, seconds=seconds, rounds=rounds)
    with use_kernels(ours):
        h = hsm_ssd_states(*leaves)
    backward = under(ours, lambda: torch.autograd.grad(h, leaves, cotangent, retain_graph=True))
    times |= race({"backward": backward}, seconds=seconds / 4, rounds=rounds)

    name, right = f"B {batch}, L {length}, D {channels}, N {states}", error <= ALLOWED
    rows = [
        Row("hsm_ssd", name, "forward", ours, error, 1e3 * times["forward"] if right else None),
        Row("hsm_ssd", name, "backward", ours, error, 1e3 * times["backward"] if right else None),
        Row("hsm_ssd", name, "forward", "its matrix product", 0.0, 1e3 * times["its matrix product"]),
    ]
    return rows + [
        Row("hsm_ssd", name, "forward", rival, found, 1e3 * times[rival] if found <= ALLOWED else None)
        for rival, found in errors.items()
        if rival != ours
    ]


def _gradients(leaves: Sequence[Tensor], cotangent: Tensor) -> list[Tensor]:
    """h and the gradients of u, dt and B; that of A is rounding in the reference and zero in ours."""
    h = hsm_ssd_states(*leaves)
    wanted = [leaf for place, leaf in enumerate(leaves) if place != 2]
    return [h.detach(), *torch.autograd.grad(h, wanted, cotangent)]
