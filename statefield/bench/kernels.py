"""The protocol of `statefield bench kernels`: operators against their references, the machine's roofs, and goals.

In one run: every case is checked (values and gradients against the reference loop), then timed in turns with rivals.
A case that is wrong is reported as wrong and without a time. A number that misses its goal is reported all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from statefield.bench.baselines import fusion_by_convolutions, scan_by_mambas_loop
from statefield.bench.timing import Roofs, race, roof_contenders, roofs
from statefield.kernels import implementations, selective_scan, state_fusion, structure_aware_scan, use_kernels
from statefield.tasks.common.environment import describe_environment

ALLOWED = 1e-4  # largest difference from the reference, as a share of its largest value


@dataclass(frozen=True)
class Row:
    """One timed thing.

    `error` is the largest difference from the reference in values and gradients (values alone for rivals), as a share
    of the largest value. `ms` is None where that is too much. The shares say how near the time is to what the machine
    needs for the bytes alone and for the exponentials alone; above 1 our exp is faster than torch's. None where they
    are not counted.
    """

    operator: str
    case: str
    direction: str  # "forward" or "backward"
    by: str  # an implementation of ours, or the rival's name
    error: float
    ms: float | None
    share_of_bytes: float | None = None
    share_of_exp: float | None = None


@dataclass(frozen=True)
class Goal:
    """A limit that the project has set itself. `measured` is None where nothing could be measured."""

    name: str
    measured: float | None
    wanted: str
    met: bool


@dataclass(frozen=True)
class Report:
    """All that a run found.

    `correct` is False when any case differed from its reference. `load_before` is the number of programs that were
    running when the run began (the system's average over a minute): other people's, so 0 on a machine at rest.
    """

    environment: dict[str, str]
    load_before: float
    roofs: Roofs
    rows: tuple[Row, ...]
    goals: tuple[Goal, ...]
    correct: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


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


def run_kernels_benchmark(*, quick: bool = False) -> Report:
    """Check and measure all operators on the CPU.

    Quick: small shapes and few repetitions, to see that all works; the goals are of the full shapes and are left out.
    """
    many = ScanCase(1, 196, 64, 16) if quick else ScanCase(1, 3136, 192, 16)
    single = ScanCase(1, 512, 128, 1) if quick else ScanCase(1, 16384, 768, 1)
    map_size = (1, 14, 14, 64) if quick else (1, 56, 56, 192)
    seconds, rounds = (0.05, 1) if quick else (6.0, 5)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    fastest = _fastest("selective_scan")

    rows: list[Row] = []
    goals: list[Goal] = []
    ceilings: list[Roofs] = []
    for case in (many, single):
        found = _measure_scan(case, fastest, seconds, rounds)
        rows += found.rows
        goals += found.goals
        ceilings.append(found.roofs)
    for measure in (_measure_fusion, _measure_structure_aware):
        more_rows, more_goals = measure(map_size, seconds, rounds)
        rows += more_rows
        goals += more_goals
    # The small case's tensors fit the caches, so only the large one's copy tells the bandwidth of memory.
    best = Roofs(ceilings[-1].copy_gbps, max(roof.exp_gps for roof in ceilings))
    correct = all(row.error <= ALLOWED for row in rows)
    return Report(describe_environment(), load, best, tuple(rows), () if quick else tuple(goals), correct)


@dataclass(frozen=True)
class _Scan:
    rows: list[Row]
    goals: list[Goal]
    roofs: Roofs


def _measure_scan(case: ScanCase, fastest: str, seconds: float, rounds: int) -> _Scan:
    inputs = case.draw()
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    bdl = _in_mambas_layout(inputs)

    def forward() -> Tensor:
        return _scan(inputs)

    cotangent = torch.randn(case.batch, case.length, case.channels, generator=torch.Generator().manual_seed(1))
    with use_kernels("reference"):
        wanted = _with_gradients(leaves, cotangent)
    errors = {}
    for implementation in dict.fromkeys((fastest, "chunked")):
        with use_kernels(implementation):
            errors[implementation] = _largest_error(_with_gradients(leaves, cotangent), wanted)
    with torch.no_grad():
        mambas = scan_by_mambas_loop(**bdl).transpose(1, 2)
    mambas_error = _largest_error([mambas], wanted[:1])
    del mambas, wanted

    def under(implementation: str, run: Callable[[], object]) -> Callable[[], object]:
        def forced() -> object:
            with use_kernels(implementation):
                return run()

        return forced

    y = _scan(leaves)

    def backward() -> object:
        return torch.autograd.grad(y, list(leaves.values()), cotangent, retain_graph=True)

    elements = case.batch * case.length * case.channels
    contenders = roof_contenders(elements, case.exponentials) | {
        "forward": under(fastest, forward),
        "chunked": under("chunked", forward),
        "reference": under("reference", forward),
        "mamba's loop": lambda: scan_by_mambas_loop(**bdl),
    }
    with torch.no_grad():
        times = race(contenders, seconds=seconds, rounds=rounds)
    pair = {"forward": torch.no_grad()(under(fastest, forward)), "backward": under(fastest, backward)}
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

    rows = [row("forward", fastest, errors[fastest]), row("backward", fastest, errors[fastest])]
    if fastest != "chunked":
        rows.append(row("forward", "chunked", errors["chunked"]))
    rows += [row("forward", "reference", 0.0), row("forward", "mamba's loop", mambas_error)]

    right = errors[fastest] <= ALLOWED
    took, label = times["forward"], f"scan, N {case.states}: "
    if case.states > 1:
        goals = [
            _goal(label + "times as fast as mamba's loop", times["mamba's loop"] / took, 150, right),
            _goal(label + "share of torch.exp's rate", least_by_exp / took, 0.5, right),
        ]
    else:
        goals = [_goal(label + "share of the copy bandwidth", least_by_bytes / took, 0.4, right)]
    ratio = pair_times["backward"] / pair_times["forward"]
    goals.append(_goal(label + "backward in units of forward", ratio, 4.0, right, at_most=True))
    return _Scan(rows, goals, ceilings)


def _scan(x: dict[str, Tensor]) -> Tensor:
    weights = (x["A"], x["B"], x["C"], x["D"])
    return selective_scan(x["u"], x["delta"], *weights, None, x["delta_bias"], True, layout="bld")


def _with_gradients(leaves: dict[str, Tensor], cotangent: Tensor) -> list[Tensor]:
    y = _scan(leaves)
    return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), cotangent)]


def _in_mambas_layout(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.transpose(1, 2).contiguous() if x.dim() == 3 else x for name, x in inputs.items()}


def _measure_fusion(size: tuple[int, int, int, int], seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    batch, height, width, channels = size
    dilations = (1, 3, 5)
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(batch, height, width, channels, generator=generator).requires_grad_()
    weight = (torch.randn(3, channels, 3, 3, generator=generator) / 3).requires_grad_()
    alpha = torch.randn(3, generator=generator).requires_grad_()
    cotangent = torch.randn(h.shape, generator=generator)
    name = f"B {batch}, {height} x {width}, E {channels}, dilations 1 3 5"
    fastest = _fastest("state_fusion")

    def run() -> list[Tensor]:
        y = state_fusion(h, weight, alpha, dilations=dilations)
        return [y.detach(), *torch.autograd.grad(y, (h, weight, alpha), cotangent)]

    with use_kernels("reference"):
        wanted = run()
    with use_kernels(fastest):
        error = _largest_error(run(), wanted)
        y = state_fusion(h, weight, alpha, dilations=dilations)
        # torch may prefer either memory order; it is measured in both, and the better one counts.
        plain = h.detach().permute(0, 3, 1, 2).contiguous()
        last = plain.contiguous(memory_format=torch.channels_last)
        by_torch = _largest_error(
            [fusion_by_convolutions(plain, weight, alpha, dilations).permute(0, 2, 3, 1)], wanted[:1]
        )
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
        Row("state_fusion", name, "forward", fastest, error, 1e3 * times["forward"] if right else None),
        Row("state_fusion", name, "backward", fastest, error, 1e3 * times["backward"] if right else None),
        Row("state_fusion", name, "forward", "three torch convolutions", by_torch, 1e3 * rival),
    ]
    return rows, [
        _goal("state fusion: times as fast as three torch convolutions", rival / times["forward"], 3.0, right)
    ]


def _measure_structure_aware(
    size: tuple[int, int, int, int], seconds: float, rounds: int
) -> tuple[list[Row], list[Goal]]:
    """The whole of Spatial-Mamba's operator, for the record: it has no goal of its own."""
    batch, height, width, channels = size
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    given = {
        "u": randn(*size),
        "delta": 0.5 * randn(*size),
        "A": -torch.exp(0.5 * randn(channels, 1)),
        "B": randn(batch, height, width, 1),
        "C": randn(batch, height, width, 1),
        "D": randn(channels),
        "weight": randn(3, channels, 3, 3) / 3,
        "alpha": randn(3),
        "delta_bias": randn(channels),
    }
    name = f"B {batch}, {height} x {width}, E {channels}, N 1"
    fastest = _fastest("selective_scan")
    leaves: dict[str, Any] = {key: tensor.requires_grad_() for key, tensor in given.items()}
    cotangent = randn(*size)

    def run() -> list[Tensor]:
        y = structure_aware_scan(**leaves)
        return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), cotangent)]

    with use_kernels("reference"):
        wanted = run()
    with use_kernels(fastest):
        error = _largest_error(run(), wanted)
        y = structure_aware_scan(**leaves)
        times = race(
            {
                "forward": torch.no_grad()(lambda: structure_aware_scan(**leaves)),
                "backward": lambda: torch.autograd.grad(y, list(leaves.values()), cotangent, retain_graph=True),
            },
            seconds=seconds / 4,
            rounds=rounds,
        )
    right = error <= ALLOWED
    return [
        Row("structure_aware_scan", name, key, fastest, error, 1e3 * times[key] if right else None)
        for key in ("forward", "backward")
    ], []


def _fastest(op: str) -> str:
    """What runs on the CPU when nothing is forced."""
    return next(row.implementation for row in implementations() if row.op == op and row.device == "cpu" and row.chosen)


def _largest_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest difference as a share of each tensor's largest value; infinity where one is NaN."""
    errors = [((a - b).abs().max() / b.abs().max().clamp(min=1e-6)).item() for a, b in zip(found, wanted, strict=True)]
    return max(error if error == error else float("inf") for error in errors)


def _goal(name: str, measured: float, limit: float, right: bool, *, at_most: bool = False) -> Goal:
    met = right and (measured <= limit if at_most else measured >= limit)
    return Goal(name, measured if right else None, f"{'at most' if at_most else 'at least'} {limit:g}", met)
