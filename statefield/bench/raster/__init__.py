"""The protocol of `statefield bench raster`: change maps of rasters of up to 50,000 x 50,000 pixels in little memory.

Pairs are made of patches of two dates (see `pair`), tiled and sparse: data lie in a strip of 512 rows across the full
width, everything else is without data and skipped. What the engine holds does not depend on how much of a raster is
empty, so peak memory says the same as if all of it were full; the time is what the strip takes, and reading and writing
the rest. How much of the time is the net's is measured on a pair that is full.

The net is a narrow one (`cases.narrow_net`): a wide one would take longer, and the rest of the time a smaller share.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from statefield.bench.kernels.report import Goal, goal
from statefield.bench.raster.cases import RasterCase, run_apart
from statefield.bench.raster.pair import patches_of
from statefield.tasks.common.environment import describe_environment

__all__ = ["RasterCase", "RasterReport", "RasterRow", "run_raster_benchmark"]

LARGE = 50_000
FLAT = (5_000, 10_000, 20_000)
FULL = 5_000
LIMIT_GB = 2.0
LARGEST_GROWTH = 1.1  # of peak memory between the smallest and the largest of FLAT
LEAST_SHARE = 0.9  # of the time that is the net's
LARGEST_SEAM = 1e-5


@dataclass(frozen=True)
class RasterRow:
    """One prediction, in a process of its own.

    raster: its size. data: where its pixels with data are. tiles: windows that went through the net; skipped: windows
    without data. seconds: from the files to the finished map, overviews included; net_seconds: of that inside the net;
    net_share: their ratio. alone_share: what the net takes for as many windows with nothing beside it, as a share of
    `seconds` (reading and writing threads slow the net down, too); None where it was not measured. peak_gb: resident
    memory of the process at most, libraries included. same_grid: CRS, transform and nodata equal to the input's.
    """

    raster: str
    data: str
    tiles: int
    skipped: int
    seconds: float
    net_seconds: float
    net_share: float
    alone_share: float | None
    peak_gb: float
    same_grid: bool


@dataclass(frozen=True)
class Seam:
    """The largest difference of probabilities between tiles and the whole image at once.

    name: which comparison. error: the largest difference over all pixels.
    """

    name: str
    error: float


@dataclass(frozen=True)
class RasterReport:
    """All that a run found; the fields are as of `statefield.bench.kernels.Report`, without roofs.

    net: what was run. patches: what the pairs are made of.
    """

    environment: dict[str, str]
    load_before: float
    net: str
    patches: str
    rows: tuple[RasterRow, ...]
    seams: tuple[Seam, ...]
    goals: tuple[Goal, ...]
    correct: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run_raster_benchmark(
    *,
    quick: bool = False,
    folder: Path | None = None,
    patches: Sequence[Path] = (),
    sides: Sequence[int] | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> RasterReport:
    """Measure all on the CPU, under `folder` (the system's temporary one).

    Args:
        quick: small rasters, to see that all works; goals of memory and time are left out.
        patches: folders with pictures of two dates in A/ and B/; none: synthetic textures.
        sides: measure strips of rasters of these sides alone, and no goal. tell: called with what is done next.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cases = _cases(quick, sides)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="statefield-bench-", dir=folder) as place:
        for case in cases:
            tell(case.in_words)
            found.append(run_apart("predict", case, patches, Path(place)))
        seams = []
        if sides is None:
            tell("tiles against the whole image")
            seams = [Seam(**one) for one in run_apart("seams", cases[0], patches, Path(place))["seams"]]
    rows = tuple(
        RasterRow(raster=case.size, data=case.data, **{k: v for k, v in one.items() if k != "net"})
        for case, one in zip(cases, found, strict=True)
    )
    return RasterReport(
        environment=describe_environment(),
        load_before=load,
        net=found[0]["net"],
        patches=patches_of(patches)[1],
        rows=rows,
        seams=tuple(seams),
        goals=_goals(rows, seams, timed=not quick) if sides is None else (),
        correct=all(row.same_grid for row in rows) and all(seam.error <= LARGEST_SEAM for seam in seams),
    )


def _cases(quick: bool, sides: Sequence[int] | None) -> list[RasterCase]:
    if sides is not None:
        return [RasterCase(side, full=False) for side in sides]
    flat, large, full = ((600, 700, 800), 1100, 600) if quick else (FLAT, LARGE, FULL)
    return [*(RasterCase(side, full=False) for side in (*flat, large)), RasterCase(full, full=True)]


def _goals(rows: Sequence[RasterRow], seams: Sequence[Seam], *, timed: bool) -> tuple[Goal, ...]:
    goals = [goal(f"seam: {seam.name}", seam.error, LARGEST_SEAM, at_most=True) for seam in seams]
    if not timed:
        return tuple(goals)
    *flat, large, full = rows
    growth = flat[-1].peak_gb / flat[0].peak_gb
    return (
        goal(f"peak GB, {large.raster}", large.peak_gb, LIMIT_GB, at_most=True),
        goal(f"peak memory, {flat[-1].raster} over {flat[0].raster}", growth, LARGEST_GROWTH, at_most=True),
        goal(f"share of the time in the net, {full.raster} full of data", full.net_share, LEAST_SHARE),
        *goals,
    )
