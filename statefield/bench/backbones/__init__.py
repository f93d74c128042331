"""The protocol of `statefield bench backbones`: families against their reference loops, attention, and controls.

Three questions, each in a module of its own: how much the native operators save (against_reference.py), what a scan
saves beside attention on a large image (long_image.py), and where the families stand beside models of like size that
do not scan (controls.py). Contenders take turns within one run. A goal that is missed is reported all the same.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from statefield.bench.backbones import against_reference, controls, long_image
from statefield.bench.backbones.against_reference import ALLOWED, ReferenceRow
from statefield.bench.backbones.controls import AtSide, ControlRow
from statefield.bench.backbones.long_image import LongImageRow
from statefield.bench.backbones.models import CONTROL_FAMILY, CONTROLS, FAMILIES, Family
from statefield.bench.kernels.report import Goal
from statefield.tasks.common.environment import describe_environment

__all__ = [
    "CONTROLS",
    "CONTROL_FAMILY",
    "FAMILIES",
    "AtSide",
    "BackbonesReport",
    "ControlRow",
    "Family",
    "LongImageRow",
    "ReferenceRow",
    "run_backbones_benchmark",
]

QUICK_FAMILIES = ("Spatial-Mamba", "Vim")


@dataclass(frozen=True)
class BackbonesReport:
    """All that a run found; the fields are as of `statefield.bench.kernels.Report`, without roofs."""

    environment: dict[str, str]
    load_before: float
    against_reference: tuple[ReferenceRow, ...]
    long_image: tuple[LongImageRow, ...]
    controls: tuple[ControlRow, ...]
    goals: tuple[Goal, ...]
    correct: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run_backbones_benchmark(*, quick: bool = False) -> BackbonesReport:
    """Measure all on the CPU: about a quarter of an hour.

    Quick: two families, small images and few repetitions, to see that all works; the goals are left out.
    """
    families = QUICK_FAMILIES if quick else tuple(FAMILIES)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    reference_rows, goals = against_reference.measure(families, 64 if quick else 512, 0.05 if quick else 3.0)
    long_rows, more = long_image.measure(64 if quick else 1248, 1 if quick else 5)
    sides = (64,) if quick else (224, 512, 1024)
    control_rows, most = controls.measure(families, sides, 0.1 if quick else 20.0, 1 if quick else 3)
    return BackbonesReport(
        environment=describe_environment(),
        load_before=load,
        against_reference=tuple(reference_rows),
        long_image=tuple(long_rows),
        controls=tuple(control_rows),
        goals=() if quick else (*goals, *more, *most),
        correct=all(row.error <= ALLOWED for row in reference_rows),
    )
