"""Each kernel against its reference on this machine, in a second: what `statefield doctor` runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from statefield.errors import StatefieldError
from statefield.kernels._choice import implementations, use_kernels
from statefield.kernels.selective_scan import selective_scan
from statefield.kernels.state_fusion import state_fusion
from statefield.kernels.structure_aware_scan import structure_aware_scan

ALLOWED = 1e-4  # largest difference in values and gradients, as a share of the reference's largest value, float32


@dataclass(frozen=True)
class CheckRow:
    """One implementation of one operator. `error` is NaN when it did not run; `problem` is empty when all is well."""

    op: str
    implementation: str
    device: str
    error: float
    problem: str


def self_check() -> list[CheckRow]:
    """Compare values and gradients of every available implementation with the reference, on small odd shapes."""
    rows = []
    for row in implementations():
        if not row.available or row.implementation == "reference":
            continue
        try:
            error = _error(row.op, row.implementation, row.device)
        except (StatefieldError, RuntimeError, OSError) as problem:  # reported, and the others are still checked
            rows.append(CheckRow(row.op, row.implementation, row.device, float("nan"), f"it failed: {problem}"))
            continue
        wrong = "" if error <= ALLOWED else f"it differs from the reference by {error:.1e} of its largest value"
        rows.append(CheckRow(row.op, row.implementation, row.device, error, wrong))
    return rows


def _error(op: str, implementation: str, device: str) -> float:
    """The largest difference over outputs and gradients."""
    with use_kernels("reference"):
        wanted = _CASES[op](device)
    with use_kernels(implementation):
        found = _CASES[op](device)
    scales = [tensor.abs().max().clamp(min=1e-2) for tensor in wanted]
    errors = [((a - b).abs().max() / scale).item() for a, b, scale in zip(found, wanted, scales, strict=True)]
    return float("nan") if any(error != error for error in errors) else max(errors)


def _scan_case(device: str) -> list[Tensor]:
    draw = _Draw(device)
    u, delta, z = draw(2, 45, 24), draw(2, 45, 24), draw(2, 45, 24)
    A = -draw(24, 16).detach().exp().requires_grad_()
    B, C = draw(2, 45, 2, 16), draw(2, 45, 2, 16)
    inputs = (u, delta, A, B, C, draw(24), z, draw(24))
    start = draw(2, 24, 16)
    y, state = selective_scan(*inputs, True, initial_state=start, return_state=True, layout="bld")
    return [y.detach(), state.detach(), *torch.autograd.grad(y.square().sum() + state.sum(), (*inputs, start))]


def _fusion_case(device: str) -> list[Tensor]:
    draw = _Draw(device)
    inputs = (draw(2, 7, 9, 3, 24), draw(3, 24, 3, 3), draw(3), draw(2, 7, 9, 3), draw(24), draw(2, 7, 9, 24))
    y = state_fusion(*inputs)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), inputs)]


def _structure_aware_case(device: str) -> list[Tensor]:
    draw = _Draw(device)
    u, delta = draw(2, 7, 9, 24), draw(2, 7, 9, 24)
    A = -draw(24, 3).detach().exp().requires_grad_()
    inputs = (u, delta, A, draw(2, 7, 9, 3), draw(2, 7, 9, 3), draw(24), draw(3, 24, 3, 3), draw(3), draw(24))
    y = structure_aware_scan(*inputs)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), inputs)]


class _Draw:
    """Normal random leaves, the same on every device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.device).requires_grad_()


_CASES: dict[str, Callable[[str], list[Tensor]]] = {
    "selective_scan": _scan_case,
    "state_fusion": _fusion_case,
    "structure_aware_scan": _structure_aware_case,
}
