"""The routed scan: four routes over a map at one state, beside copies of the map, our own scan of them, and their sum.

The rival is measured in two ways to make the copies (cross_scan.py), and the faster counts; its delta, B and C are in
the order of the routes already. Memory is the most held beyond the inputs (memory.py), with gradients in the rows of
the backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from statefield.bench.cross_scan import CROSS, CrossScan
from statefield.bench.kernels.report import ALLOWED, Goal, Row, fastest, goal, largest_error
from statefield.bench.memory import extra_mib
from statefield.bench.timing import race, roof_contenders, roofs
from statefield.kernels import routed_scan, use_kernels

RIVAL = "copies, our scan, sum"
_NAMES = ("x", "delta", "A", "B", "C", "D", "delta_bias")
_WAYS = {"by views": True, "by index": False}


@dataclass(frozen=True)
class RoutedCase:
    """A square map with softplus, bias and D, as VMamba uses it."""

    side: int
    channels: int
    states: int = 1

    @property
    def name(self) -> str:
        return f"B 1, {self.side} x {self.side}, E {self.channels}, N {self.states}, {len(CROSS)} routes"

    @property
    def elements(self) -> int:
        return self.side**2 * self.channels * len(CROSS)

    @property
    def bytes_forward(self) -> int:
        """x and y once each, delta, B and C once each."""
        tokens, routes = self.side**2, len(CROSS)
        return 4 * tokens * (2 * self.channels + routes * (self.channels + 2 * self.states))

    def draw(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        plane, routes = (1, self.side, self.side), len(CROSS)
        return {
            "x": randn(*plane, self.channels),
            "delta": 0.5 * randn(*plane, routes, self.channels),
            "A": -torch.exp(0.5 * randn(routes, self.channels, self.states)),
            "B": randn(*plane, routes, self.states),
            "C": randn(*plane, routes, self.states),
            "D": randn(routes, self.channels),
            "delta_bias": 0.3 * randn(routes, self.channels),
        }

    def ways(self) -> dict[str, CrossScan]:
        return {name: CrossScan(self.side, self.side, by_views) for name, by_views in _WAYS.items()}

    def in_route_order(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rival's inputs."""
        change = CrossScan(self.side, self.side, by_views=True).in_route_order
        return {name: change(x) if name in ("delta", "B", "C") else x for name, x in inputs.items()}


def measure(quick: bool, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    """Two stages of VMamba's maps (report.py tells the contract)."""
    cases = [RoutedCase(10, 48)] if quick else [RoutedCase(56, 192), RoutedCase(128, 192)]
    found = [_measure(case, quick, seconds, rounds) for case in cases]
    return [row for rows, _ in found for row in rows], [one for _, goals in found for one in goals]


def _measure(case: RoutedCase, quick: bool, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    ours = fastest("routed_scan")
    inputs, ways = case.draw(), case.ways()
    rivals_inputs = case.in_route_order(inputs)
    errors = _errors(case, ours, inputs, rivals_inputs)
    right = errors[ours] <= ALLOWED

    contenders: dict[str, Callable[[], object]] = {ours: lambda: _ours(inputs)}
    contenders |= {name: functools.partial(way, **rivals_inputs) for name, way in ways.items()}
    with use_kernels("chunked"), torch.no_grad():
        chunked = race({"chunked": lambda: _ours(inputs)}, seconds=seconds / 8, rounds=1)["chunked"]
    with torch.no_grad():
        times = race(contenders | roof_contenders(case.elements, case.elements), seconds=seconds, rounds=rounds)
    ceilings = roofs(times, case.elements, case.elements)
    backwards = {ours: _backward(_ours, inputs)}
    backwards |= {name: _backward(way, rivals_inputs) for name, way in ways.items()}
    back = race(backwards, seconds=seconds, rounds=rounds)

    way = min(ways, key=lambda name: times[name])
    way_back = min(ways, key=lambda name: back[name])
    held = {} if quick else {key: _held(case, *key) for key in _calls(way, way_back)}
    shares = (
        case.bytes_forward / (ceilings.copy_gbps * 1e9) / times[ours],
        case.elements * case.states / (ceilings.exp_gps * 1e9) / times[ours],
    )

    def row(direction: str, by: str, error: float, took: float, *more: float | None) -> Row:
        return Row("routed_scan", case.name, direction, by, error, 1e3 * took if error <= ALLOWED else None, *more)

    rows = [
        row("forward", ours, errors[ours], times[ours], *shares, held.get(("ours", False))),
        row("backward", ours, errors[ours], back[ours], None, None, held.get(("ours", True))),
        row("forward", RIVAL, errors[way], times[way], None, None, held.get((way, False))),
        row("backward", RIVAL, errors[way_back], back[way_back], None, None, held.get((way_back, True))),
        row("forward", "chunked", errors["chunked"], chunked),
    ]
    label = f"routed scan, {case.side} x {case.side}: "
    mine, rivals = held.get(("ours", False)), held.get((way, False))
    share = mine / rivals if mine is not None and rivals else None
    return rows, [
        goal(label + "times as fast as copies", times[way] / times[ours], 3.0, right),
        goal(label + "share of the memory of copies", share, 1 / 3, right, at_most=True),
    ]


def _ours(inputs: Mapping[str, Tensor]) -> Tensor:
    x, delta, A, B, C, D, delta_bias = (inputs[name] for name in _NAMES)
    return routed_scan(x, delta, A, B, C, D, routes=CROSS, delta_bias=delta_bias, delta_softplus=True)


def _leaves(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.clone().requires_grad_() for name, x in inputs.items()}


def _called(function: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    return function(**inputs) if isinstance(function, CrossScan) else function(inputs)


def _backward(function: Any, inputs: Mapping[str, Tensor]) -> Callable[[], object]:
    leaves = _leaves(inputs)
    y = _called(function, leaves)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return lambda: torch.autograd.grad(y, list(leaves.values()), cotangent, retain_graph=True)


def _errors(
    case: RoutedCase, ours: str, inputs: Mapping[str, Tensor], rivals_inputs: Mapping[str, Tensor]
) -> dict[str, float]:
    """Of ours and the chunked form in values and gradients, of the rivals in values."""

    def with_gradients() -> list[Tensor]:
        leaves = _leaves(inputs)
        y = _ours(leaves)
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        return [y.detach(), *torch.autograd.grad(y, list(leaves.values()), cotangent)]

    with use_kernels("reference"):
        wanted = with_gradients()
    errors = {}
    for implementation in dict.fromkeys((ours, "chunked")):
        with use_kernels(implementation):
            errors[implementation] = largest_error(with_gradients(), wanted)
    for name, way in case.ways().items():
        errors[name] = largest_error([way(**rivals_inputs)], wanted[:1])
    return errors


def _calls(way: str, way_back: str) -> list[tuple[str, bool]]:
    return [("ours", False), ("ours", True), (way, False), (way_back, True)]


def _held(case: RoutedCase, by: str, with_gradients: bool) -> float | None:
    given = {"by": by, "with_gradients": with_gradients}
    full = given | {"side": case.side, "channels": case.channels}
    return extra_mib(f"{__name__}:prepare", full, given | {"side": 6, "channels": 16})


def prepare(side: int, channels: int, by: str, with_gradients: bool) -> Callable[[], object]:
    """One call for `extra_mib`: `by` is "ours" or a way of copies; with gradients it is a forward and a backward."""
    case = RoutedCase(side, channels)
    inputs = case.draw() if by == "ours" else case.in_route_order(case.draw())
    function: Any = _ours if by == "ours" else case.ways()[by]
    if not with_gradients:
        return torch.no_grad()(lambda: _called(function, inputs))
    leaves = _leaves(inputs)
    cotangent = torch.randn(leaves["x"].shape)
    return lambda: torch.autograd.grad(_called(function, leaves), list(leaves.values()), cotangent)
