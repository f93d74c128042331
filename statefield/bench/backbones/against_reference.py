"""Each family on the native operators and on the reference loops: the whole model, one image."""

from __future__ import annotations

import time
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from statefield.bench.backbones.models import FAMILIES, build, image
from statefield.bench.kernels.report import Goal, goal, largest_error
from statefield.bench.timing import race
from statefield.kernels import use_kernels

ALLOWED = 1e-4  # largest difference of a map, as a share of its largest value
WANTED = 10.0  # times as fast as on the reference loop, of families that scan


@dataclass(frozen=True)
class ReferenceRow:
    """The maps that a family's smallest model makes of one image of `side` x `side`.

    `operators` are those of ours that it runs. `reference_ms` is of one pass: the loops take seconds to minutes, so a
    few milliseconds of unrest do not matter. `error` is the largest difference between both, as a share of the largest
    value of each map; where that is too much, it is that to the loop in float64, since a loop that adds up 16,384
    positions in float32 is itself off by more (VSSD: 1.8e-4, the native operator 4e-5). The times are None where that
    is too much, too.
    """

    family: str
    model: str
    side: int
    operators: str
    error: float
    native_ms: float | None
    reference_ms: float | None
    times_as_fast: float | None


class _Seen(TorchDispatchMode):
    """Writes down which operators of ours are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "statefield":
            self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def measure(families: Iterable[str], side: int, seconds: float) -> tuple[list[ReferenceRow], list[Goal]]:
    """One row for each family, and the goal of those that scan."""
    rows = [_row(family, side, seconds) for family in families]
    goals = [
        goal(f"{row.model} at {side}: times as fast as on the reference loop", row.times_as_fast, WANTED)
        for row in rows
        if "scan" in row.operators
    ]
    return rows, goals


@torch.no_grad()
def _row(family: str, side: int, seconds: float) -> ReferenceRow:
    name = FAMILIES[family].smallest
    model, x = _spread(build(name, side, features=True)), image(side)
    with _Seen() as seen:
        found = model(x)
    with use_kernels("reference"):
        started = time.perf_counter()
        wanted = model(x)
        reference = time.perf_counter() - started
    error = largest_error(found, wanted)
    if not error <= ALLOWED:
        with use_kernels("reference"):
            error = largest_error(found, deepcopy(model).double()(x.double()))
    operators = ", ".join(sorted(seen.names))
    if not error <= ALLOWED:
        return ReferenceRow(family, name, side, operators, error, None, None, None)
    native = race({name: lambda: model(x)}, seconds=seconds, rounds=3)[name]
    return ReferenceRow(family, name, side, operators, error, 1e3 * native, 1e3 * reference, reference / native)


def _spread(model: nn.Module) -> nn.Module:
    """The model off its initial values, of which many are zeros or tiny scales that would hide a wrong operator."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model
