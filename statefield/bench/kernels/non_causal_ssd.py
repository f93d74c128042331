"""The non-causal state-space duality at the sizes of VSSD, beside the two matrix products that it is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from statefield.bench.kernels.report import ALLOWED, Goal, Row, fastest, goal, largest_error, under
from statefield.bench.timing import race
from statefield.kernels import non_causal_ssd, use_kernels


@dataclass(frozen=True)
class DualityCase:
    """One image of `length` positions, `heads` heads of 64 channels, 64 states: a stage of VSSD-Tiny or -Small."""

    length: int
    heads: int
    channels: int = 64
    states: int = 64

    @property
    def name(self) -> str:
        return f"B 1, L {self.length}, H {self.heads}, P {self.channels}, N {self.states}"

    def draw(self) -> list[Tensor]:
        """x, dt, A, B, C, D."""
        generator = torch.Generator().manual_seed(0)
        positions, weights = (1, self.length, self.heads), (1, self.length, self.states)
        tensors = [
            torch.randn(shape, generator=generator)
            for shape in ((*positions, self.channels), positions, (self.heads,), weights, weights, (self.heads,))
        ]
        tensors[1] = torch.nn.functional.softplus(tensors[1])
        tensors[2] = -torch.exp(0.5 * tensors[2])
        return tensors


def measure(quick: bool, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    """The first two stages of VSSD-Tiny at 224 pixels, and twice as wide (report.py tells the contract)."""
    full = [DualityCase(3136, 2), DualityCase(3136, 4), DualityCase(784, 4), DualityCase(784, 8)]
    rows: list[Row] = []
    goals: list[Goal] = []
    for case in [DualityCase(70, 2, 16, 16)] if quick else full:
        more_rows, more_goals = _measure(case, seconds / 2, rounds)
        rows += more_rows
        goals += more_goals
    return rows, goals


def _measure(case: DualityCase, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    ours = fastest("non_causal_ssd")
    inputs = case.draw()
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    cotangent = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    with use_kernels("reference"), torch.no_grad():
        exact = [non_causal_ssd(*inputs)]
    # Autograd through the loop keeps a state for each position: gradients are held against the products of plain
    # PyTorch, which the tests hold against the loop.
    with use_kernels("chunked"):
        exact += _gradients(leaves, cotangent)[1:]
    with use_kernels(ours):
        error = largest_error(_gradients(leaves, cotangent), exact)
    with torch.no_grad(), use_kernels("chunked"):
        errors = {"chunked": largest_error([non_causal_ssd(*inputs)], exact[:1]), "reference": 0.0}

    contenders: dict[str, Callable[[], object]] = {
        "forward": under(ours, partial(non_causal_ssd, *inputs)),
        "its matrix products": matrix_products(inputs),
        "chunked": under("chunked", partial(non_causal_ssd, *inputs)),
        "reference": under("reference", partial(non_causal_ssd, *inputs)),
    }
    with torch.no_grad():
        times = race(contenders, seconds=seconds, rounds=rounds)
    with use_kernels(ours):
        y = non_causal_ssd(*leaves)

    def backward() -> object:
        return torch.autograd.grad(y, leaves, cotangent, retain_graph=True)

    pair = {"backward": under(ours, backward), "its products": matrix_products(inputs, cotangent)}
    with torch.no_grad():
        back = race(pair, seconds=seconds / 2, rounds=rounds)
    right = error <= ALLOWED
    rows = [
        Row("non_causal_ssd", case.name, "forward", ours, error, 1e3 * times["forward"] if right else None),
        Row("non_causal_ssd", case.name, "backward", ours, error, 1e3 * back["backward"] if right else None),
        Row("non_causal_ssd", case.name, "forward", "its matrix products", 0.0, 1e3 * times["its matrix products"]),
        Row("non_causal_ssd", case.name, "backward", "its matrix products", 0.0, 1e3 * back["its products"]),
    ]
    rows += [
        Row("non_causal_ssd", case.name, "forward", name, found, 1e3 * times[name] if found <= ALLOWED else None)
        for name, found in errors.items()
        if name != ours
    ]
    where, units = f"non-causal SSD, L {case.length}, H {case.heads}: ", "in units of its matrix products"
    forward_ratio = times["forward"] / times["its matrix products"]
    backward_ratio = back["backward"] / back["its products"]
    return rows, [
        goal(f"{where}forward {units}", forward_ratio, 1.3, right, at_most=True),
        goal(f"{where}backward {units}", backward_ratio, 1.3, right, at_most=True),
    ]


def _gradients(leaves: Sequence[Tensor], cotangent: Tensor) -> list[Tensor]:
    y = non_causal_ssd(*leaves)
    return [y.detach(), *torch.autograd.grad(y, list(leaves), cotangent)]


def matrix_products(inputs: Sequence[Tensor], grad: Tensor | None = None) -> Callable[[], None]:
    """The products and nothing else, all heads in one call, as torch.matmul computes them.

    Forward: B^T x and C S. With `grad`, those of the backward: C^T dy, dy S^T, x dS^T and B dS.
    """
    x, B, C = (inputs[place].flatten(2)[0] for place in (0, 3, 4))
    state = torch.matmul(B.T, x)

    def forward() -> None:
        torch.matmul(C, torch.matmul(B.T, x))

    def backward() -> None:
        assert grad is not None
        g = grad.flatten(2)[0]
        grad_state = torch.matmul(C.T, g)
        torch.matmul(g, state.T)
        torch.matmul(x, grad_state.T)
        torch.matmul(B, grad_state)

    return forward if grad is None else backward
