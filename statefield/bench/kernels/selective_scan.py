"""The selective scan: many states, bound by exponentials, and one state over a long sequence, bound by bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from statefield.bench.baselines import scan_by_mambas_loop
from statefield.bench.kernels.report import ALLOWED, Goal, Row, fastest, goal, largest_error, under
from statefield.bench.timing import race, roof_contenders, roofs
from statefield.kernels import selective_scan, use_kernels


@dataclass(frozen=True)
class ScanCase:
    """A selective scan with softplus, bias and D, as the models use it."""

    batch: int
    length: int
    channels: int
    states: int

    @property
    def name(self) -> str:
        return f"B {self.batch}, L {self.length}, D {self.channels}, N {self.states}"

    @property
    def exponentials(self) -> int:
        return self.batch * self.length * self.channels * self.states

    @property
    def bytes_forward(self) -> int:
        """u, delta and y once each, B and C once each."""
        return 4 * self.batch * self.length * (3 * self.channels + 2 * self.states)

    def draw(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        rows, weights = (self.batch, self.length, self.channels), (self.batch, self.length, self.states)
        return {
            "u": randn(*rows),
            "delta": 0.5 * randn(*rows),
            "A": -torch.exp(0.5 * randn(self.channels, self.states)),
            "B": randn(*weights),
            "C": randn(*weights),
            "D": randn(self.channels),
            "delta_bias": 0.3 * randn(self.channels),
        }


def measure(quick: bool, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    """Both cases beside the chunked form, our reference loop and mamba's loop (report.py tells the contract)."""
    many = ScanCase(1, 196, 64, 16) if quick else ScanCase(1, 3136, 192, 16)
    single = ScanCase(1, 512, 128, 1) if quick else ScanCase(1, 16384, 768, 1)
    rows, goals = _measure(many, seconds, rounds)
    more_rows, more_goals = _measure(single, seconds, rounds)
    return rows + more_rows, goals + more_goals


def _measure(case: ScanCase, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    ours = fastest("selective_scan")
    inputs = case.draw()
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    bdl = in_mambas_layout(inputs)

    def forward() -> Tensor:
        return _scan(inputs)

    cotangent = torch.randn(case.batch, case.length, case.channels, generator=torch.Generator().manual_seed(1))
    with use_kernels("reference"):
        wanted = _with_gradients(leaves, cotangent)
    errors = {}
    for implementation in dict.fromkeys((ours, "chunked")):
        with use_kernels(implementation):
            errors[implementation] = largest_error(_with_gradients(leaves, cotangent), wanted)
    with torch.no_grad():
        mambas = scan_by_mambas_loop(**bdl).transpose(1, 2)
    mambas_error = largest_error([mambas], wanted[:1])
    del mambas, wanted

    y = _scan(leaves)

    def backward() -> object:
        return torch.autograd.grad(y, list(leaves.values()), cotangent, retain_graph=True)

    elements = case.batch * case.length * case.channels
    contenders = roof_contenders(elements, case.exponentials) | {
        "forward": under(ours, forward),
        "chunked": under("chunked", forward),
        "reference": under("reference", forward),
        "mamba's loop": lambda: scan_by_mambas_loop(**bdl),
    }
    with torch.no_grad():
        times = race(contenders, seconds=seconds, rounds=rounds)
    pair = {"forward": torch.no_grad()(under(ours, forward)), "backward": under(ours, backward)}
    pair_times = race(pair, seconds=seconds / 2, rounds=rounds)
    times["backward"] = pair_times["backward"]
    ceilings = roofs(times, elements, case.exponentials)
    least_by_bytes = case.bytes_forward / (ceilings.copy_gbps * 1e9)
    least_by_exp = case.exponentials / (ceilings.exp_gps * 1e9)

    def row(direction: str, by: str, error: float) -> Row:
        if error > ALLOWED:
            return Row("selective_scan", case.name, direction, by, error, None)
        took = times[by if by in times else direction]
        shares = (least_by_bytes / took, least_by_exp / took) if direction == "forward" else (None, None)
        return Row("selective_scan", case.name, direction, by, error, 1e3 * took, *shares)

    rows = [row("forward", ours, errors[ours]), row("backward", ours, errors[ours])]
    if ours != "chunked":
        rows.append(row("forward", "chunked", errors["chunked"]))
    rows += [row("forward", "reference", 0.0), row("forward", "mamba's loop", mambas_error)]

    right = errors[ours] <= ALLOWED
    took, label = times["forward"], f"scan, N {case.states}: "
    if case.states > 1:
        goals = [
            goal(label + "times as fast as mamba's loop", times["mamba's loop"] / took, 200, right),
            goal(label + "share of torch.exp's rate", least_by_exp / took, 0.6, right),
        ]
    else:
        goals = [goal(label + "share of the copy bandwidth", least_by_bytes / took, 0.6, right)]
    ratio = pair_times["backward"] / pair_times["forward"]
    goals.append(goal(label + "backward in units of forward", ratio, 3.5, right, at_most=True))
    return rows, goals


def _scan(x: dict[str, Tensor]) -> Tensor:
    weights = (x["A"], x["B"], x["C"], x["D"])
    return selective_scan(x["u"], x["delta"], *weights, None, x["delta_bias"], True, layout="bld")


def _with_gradients(leaves: dict[str, Tensor], cotangent: Tensor) -> list[Tensor]:
    y = _scan(leaves)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), cotangent)]


def in_mambas_layout(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """[B, L, D] to [B, D, L], dense in L; the names stay."""
    return {name: x.transpose(1, 2).contiguous() if x.dim() == 3 else x for name, x in inputs.items()}
