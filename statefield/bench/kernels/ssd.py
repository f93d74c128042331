"""Mamba-2's scan at sizes of vision models, beside the matrix products that it contains, as calls of torch.bmm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from statefield.bench.kernels.report import ALLOWED, Goal, Row, fastest, goal, largest_error, under
from statefield.bench.timing import race
from statefield.kernels import ssd, use_kernels

_CHUNK = 64


@dataclass(frozen=True)
class SSDCase:
    """One image of `length` tokens: heads of `channels` channels with `states` states, one group."""

    length: int
    heads: int
    channels: int
    states: int

    @property
    def name(self) -> str:
        return f"b 1, L {self.length}, h {self.heads}, p {self.channels}, n {self.states}"

    def draw(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        return {
            "x": randn(1, self.length, self.heads, self.channels),
            "dt": 0.5 * randn(1, self.length, self.heads),
            "A": -torch.exp(0.5 * randn(self.heads)),
            "B": randn(1, self.length, 1, self.states),
            "C": randn(1, self.length, 1, self.states),
            "D": randn(self.heads),
            "dt_bias": 0.3 * randn(self.heads),
        }


def measure(quick: bool, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    """Tokens of a map of 56 x 56, heads of 48 and of 64 channels (report.py tells the contract)."""
    full = [SSDCase(3136, 8, 48, 64), SSDCase(3136, 8, 64, 64)]
    rows: list[Row] = []
    goals: list[Goal] = []
    for case in [SSDCase(150, 2, 16, 16)] if quick else full:
        more_rows, more_goals = _measure(case, seconds, rounds)
        rows += more_rows
        goals += more_goals
    return rows, goals


def _measure(case: SSDCase, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    ours = fastest("ssd")
    inputs = case.draw()
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    cotangent = torch.randn(inputs["x"].shape, generator=torch.Generator().manual_seed(1))
    with use_kernels("reference"), torch.no_grad():
        exact = [_run(inputs)]
    # Autograd through the loop would hold every state: gradients are held against the chunked form, which tests hold
    # against the loop.
    with use_kernels("chunked"):
        y, *grads = _gradients(leaves, cotangent)
    chunked_error = largest_error([y], exact)
    with use_kernels(ours):
        error = largest_error(_gradients(leaves, cotangent), [*exact, *grads])

    contenders: dict[str, Callable[[], object]] = {
        "forward": under(ours, lambda: _run(inputs)),
        "products": chunk_products(case),
        "chunked": under("chunked", lambda: _run(inputs)),
        "reference": under("reference", lambda: _run(inputs)),
    }
    with torch.no_grad():
        times = race(contenders, seconds=seconds, rounds=rounds)
    with use_kernels(ours):
        out = _run(leaves)

    def backward() -> object:
        return torch.autograd.grad(out, list(leaves.values()), cotangent, retain_graph=True)

    pair = {"backward": under(ours, backward), "products": chunk_products(case, backwards=True)}
    back = race(pair, seconds=seconds / 2, rounds=rounds)
    right = error <= ALLOWED
    rows = [
        Row("ssd", case.name, "forward", ours, error, 1e3 * times["forward"] if right else None),
        Row("ssd", case.name, "backward", ours, error, 1e3 * back["backward"] if right else None),
        Row("ssd", case.name, "forward", "its matrix products", 0.0, 1e3 * times["products"]),
        Row("ssd", case.name, "backward", "its matrix products", 0.0, 1e3 * back["products"]),
        Row("ssd", case.name, "forward", "reference", 0.0, 1e3 * times["reference"]),
    ]
    if ours != "chunked":
        in_time = 1e3 * times["chunked"] if chunked_error <= ALLOWED else None
        rows.append(Row("ssd", case.name, "forward", "chunked", chunked_error, in_time))
    where, units = f"SSD, p {case.channels}: ", "in units of its matrix products"
    return rows, [
        goal(f"{where}forward {units}", times["forward"] / times["products"], 1.3, right, at_most=True),
        goal(f"{where}backward {units}", back["backward"] / back["products"], 1.3, right, at_most=True),
    ]


def _run(given: dict[str, Tensor]) -> Tensor:
    x, dt, A, B, C, D = (given[name] for name in ("x", "dt", "A", "B", "C", "D"))
    return ssd(x, dt, A, B, C, D, dt_bias=given["dt_bias"], dt_softplus=True, chunk_size=_CHUNK)


def _gradients(leaves: dict[str, Tensor], cotangent: Tensor) -> list[Tensor]:
    y = _run(leaves)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), cotangent)]


def chunk_products(case: SSDCase, *, backwards: bool = False) -> Callable[[], None]:
    """The products by whole chunks and nothing else, as calls of torch.bmm into outputs that are there already.

    All heads share B and C, so what stands between these and all heads is one wide product a chunk. Forward: C B^T,
    scores times x, B^T x, C H. Backward: C B^T again; dy x^T and scores^T dy; the sum of the heads' gradients of the
    scores times B and times C; dy H^T, x dH^T, B dH and C^T dy.
    """
    Q, N, P, wide = _CHUNK, case.states, case.channels, case.heads * case.channels
    chunks = case.length // Q

    def operand(count: int, rows: int, columns: int) -> Tensor:
        return torch.randn(count, rows, columns)

    B, C, rows, H = operand(chunks, Q, N), operand(chunks, Q, N), operand(chunks, Q, wide), operand(chunks, N, wide)
    square, by_head, x = operand(chunks, Q, Q), operand(chunks * case.heads, Q, Q), operand(chunks * case.heads, Q, P)
    pairs = [(C, B.mT)]
    if backwards:
        pairs += [(x, x.mT), (by_head.mT, x), (square, B), (square.mT, C)]
        pairs += [(rows, H.mT), (rows, H.mT), (B, H), (C.mT, rows)]
    else:
        pairs += [(by_head, x), (B.mT, rows), (C, H)]
    calls = [(left, right, torch.bmm(left, right)) for left, right in pairs]

    def run() -> None:
        for left, right, out in calls:
            torch.bmm(left, right, out=out)

    return run
