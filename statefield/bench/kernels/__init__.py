"""The protocol of `statefield bench kernels`: operators against their references, the machine's roofs, and goals.

Each operator has a module here that bears its name, with a function `measure` (report.py tells its contract); that is
all it takes to be part of the benchmark. In one run every case is checked (values and gradients against the reference
loop), then timed in turns with its rivals. A case that is wrong is reported as wrong and without a time. A number that
misses its goal is reported all the same.
"""

from __future__ import annotations

import importlib
import importlib.util
import os

from statefield.bench.kernels.report import ALLOWED, Goal, Measure, Report, Row
from statefield.bench.timing import Roofs, race, roof_contenders, roofs
from statefield.kernels import implementations
from statefield.tasks.common.environment import describe_environment

__all__ = ["ALLOWED", "Goal", "Report", "Row", "measures", "run_kernels_benchmark"]


def measures() -> dict[str, Measure]:
    """What measures each registered operator that has a module here, by the operator's name."""
    names = dict.fromkeys(row.op for row in implementations())
    return {
        name: importlib.import_module(f"{__name__}.{name}").measure
        for name in names
        if importlib.util.find_spec(f"{__name__}.{name}") is not None
    }


def run_kernels_benchmark(*, quick: bool = False) -> Report:
    """Check and measure all operators on the CPU.

    Quick: small shapes and few repetitions, to see that all works; the goals are of the full shapes and are left out.
    """
    seconds, rounds = (0.05, 1) if quick else (6.0, 5)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    ceilings = _machine_roofs(quick, seconds / 3, rounds)
    rows: list[Row] = []
    goals: list[Goal] = []
    for measure in measures().values():
        more_rows, more_goals = measure(quick, seconds, rounds)
        rows += more_rows
        goals += more_goals
    correct = all(row.error <= ALLOWED for row in rows)
    return Report(describe_environment(), load, ceilings, tuple(rows), () if quick else tuple(goals), correct)


def _machine_roofs(quick: bool, seconds: float, rounds: int) -> Roofs:
    """Copies beyond the caches, and exponentials in and beyond them: what the run as a whole is held against."""
    elements, exponentials = (1 << 18, 1 << 18) if quick else (16384 * 768, 3136 * 192 * 16)
    return roofs(race(roof_contenders(elements, exponentials), seconds=seconds, rounds=rounds), elements, exponentials)
