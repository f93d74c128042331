"""mLSTM at the sizes of Vision-LSTM, beside the matrix products that it contains, as calls of torch.bmm alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from statefield.bench.kernels.report import ALLOWED, Goal, Row, fastest, goal, largest_error, under
from statefield.bench.timing import race
from statefield.kernels import mlstm, use_kernels
from statefield.kernels.mlstm import mlstm_parallel

_CHUNK = 64
_LONGEST_LOOP = 200  # steps: beyond, autograd through the loop holds more states than fit a machine


@dataclass(frozen=True)
class MLSTMCase:
    """One image: `length` tokens in `heads` heads of `channels` channels."""

    length: int
    channels: int
    heads: int = 4

    @property
    def name(self) -> str:
        return f"B 1, NH {self.heads}, S {self.length}, DH {self.channels}"

    def draw(self) -> list[Tensor]:
        """q, k, v and the gates; forget gates around sigmoid(3), as Vision-LSTM begins."""
        generator = torch.Generator().manual_seed(0)
        rows, steps = (1, self.heads, self.length, self.channels), (1, self.heads, self.length)
        tensors = [torch.randn(shape, generator=generator) for shape in (rows, rows, rows, steps, steps)]
        tensors[4] += 3
        return tensors


def measure(quick: bool, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    """Stages of Vision-LSTM at 224, 448 and 896 pixels (report.py tells the contract)."""
    full = [MLSTMCase(196, 96), MLSTMCase(196, 192), MLSTMCase(784, 96), MLSTMCase(784, 192), MLSTMCase(3136, 96)]
    rows: list[Row] = []
    goals: list[Goal] = []
    for case in [MLSTMCase(70, 16, heads=2)] if quick else full:
        more_rows, more_goals = _measure(case, seconds / 2, rounds)
        rows += more_rows
        goals += more_goals
    return rows, goals


def _measure(case: MLSTMCase, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    ours = fastest("mlstm")
    inputs = case.draw()
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    cotangent = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
    with use_kernels("reference"), torch.no_grad():
        exact = [mlstm(*inputs)]
    # The gradients of a long sequence are held against the chunked form, which tests hold against the loop.
    with use_kernels("reference" if case.length <= _LONGEST_LOOP else "chunked"):
        exact += _gradients(leaves, cotangent)[1:]
    with use_kernels(ours):
        error = largest_error(_gradients(leaves, cotangent), exact)
    with torch.no_grad(), use_kernels("chunked"):
        errors = {"chunked": largest_error([mlstm(*inputs)], exact[:1]), "reference": 0.0}
        errors["official parallel form"] = largest_error([in_parallel(*inputs)], exact[:1])

    contenders: dict[str, Callable[[], object]] = {
        "forward": under(ours, partial(mlstm, *inputs)),
        "its matrix products": chunk_products(case),
        "chunked": under("chunked", partial(mlstm, *inputs)),
        "official parallel form": partial(in_parallel, *inputs),
        "reference": under("reference", partial(mlstm, *inputs)),
    }
    with torch.no_grad():
        times = race(contenders, seconds=seconds, rounds=rounds)
    with use_kernels(ours):
        h = mlstm(*leaves)

    def backward() -> object:
        return torch.autograd.grad(h, leaves, cotangent, retain_graph=True)

    pair = {"backward": under(ours, backward), "its products": chunk_products(case, backwards=True)}
    back = race(pair, seconds=seconds / 2, rounds=rounds)
    right = error <= ALLOWED
    rows = [
        Row("mlstm", case.name, "forward", ours, error, 1e3 * times["forward"] if right else None),
        Row("mlstm", case.name, "backward", ours, error, 1e3 * back["backward"] if right else None),
        Row("mlstm", case.name, "forward", "its matrix products", 0.0, 1e3 * times["its matrix products"]),
        Row("mlstm", case.name, "backward", "its matrix products", 0.0, 1e3 * back["its products"]),
    ]
    rows += [
        Row("mlstm", case.name, "forward", name, found, 1e3 * times[name] if found <= ALLOWED else None)
        for name, found in errors.items()
        if name != ours
    ]
    where, units = f"mLSTM, S {case.length}, DH {case.channels}: ", "in units of its matrix products"
    forward_ratio = times["forward"] / times["its matrix products"]
    backward_ratio = back["backward"] / back["its products"]
    return rows, [
        goal(f"{where}forward {units}", forward_ratio, 1.3, right, at_most=True),
        goal(f"{where}backward {units}", backward_ratio, 1.3, right, at_most=True),
    ]


def in_parallel(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    return mlstm_parallel(q, k, v, i, f)


def _gradients(leaves: Sequence[Tensor], cotangent: Tensor) -> list[Tensor]:
    h = mlstm(*leaves)
    return [h.detach(), *torch.autograd.grad(h, list(leaves), cotangent)]


def chunk_products(case: MLSTMCase, *, backwards: bool = False) -> Callable[[], None]:
    """The products by chunks and nothing else, into outputs that are there already.

    Forward: q k^T and its product with v within each chunk, C q and v k^T with its state. Backward: q k^T again, the
    gradients of both factors of both products within a chunk, and of the two with its state. Whole chunks are one call
    of torch.bmm each product, what is left over another.
    """
    whole, left = divmod(case.length, _CHUNK)
    groups = [(case.heads * whole, _CHUNK)] * bool(whole) + [(case.heads, left)] * bool(left)
    calls = []
    for count, steps in groups:
        q, k, v = (torch.randn(count, steps, case.channels) for _ in range(3))
        weights, C = torch.randn(count, steps, steps), torch.randn(count, case.channels, case.channels)
        by_step, by_pair, by_state = torch.zeros_like(q), torch.zeros_like(weights), torch.zeros_like(C)
        from_rows = (q, k.transpose(1, 2), by_pair)
        of_weights, of_weights_turned = (weights, v, by_step), (weights.transpose(1, 2), q, by_step)
        of_state, of_state_turned = (q, C, by_step), (v, C.transpose(1, 2), by_step)
        to_state = (v.transpose(1, 2), k, by_state)
        if backwards:
            calls += [from_rows, from_rows, of_weights, of_weights_turned, of_weights_turned]
            calls += [of_state, of_state_turned, of_state_turned, to_state]
        else:
            calls += [from_rows, of_weights, of_state, to_state]

    def run() -> None:
        for left_operand, right_operand, out in calls:
            torch.bmm(left_operand, right_operand, out=out)

    return run
