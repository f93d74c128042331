"""Each family beside models of like size that do not scan: throughput and memory of the maps a dense decoder takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from statefield.bench.backbones.models import CONTROLS, FAMILIES, build, call, extra_mib_of, image, weights_mib
from statefield.bench.kernels.report import Goal, goal
from statefield.bench.timing import race


@dataclass(frozen=True)
class AtSide:
    """One image of that side: time, throughput, and the most memory beyond weights and image (None: not told)."""

    ms: float
    images_per_second: float
    extra_mib: float | None
    peak_mib: float | None


@dataclass(frozen=True)
class ControlRow:
    """A model that gives maps; `at` by the image's side, as text. Controls have their name as `family`."""

    family: str
    model: str
    is_control: bool
    parameters: int
    at: dict[str, AtSide]


def measure(
    families: Iterable[str], sides: Sequence[int], seconds: float, rounds: int
) -> tuple[list[ControlRow], list[Goal]]:
    """One row for each control and family, all raced side by side, one image at a time; and Spatial-Mamba's goals."""
    names = CONTROLS | {family: FAMILIES[family].like_swin_tiny for family in families}
    at: dict[str, dict[str, AtSide]] = {who: {} for who in names}
    parameters = {}
    for side in sides:
        x = image(side)
        models = {who: build(name, side, features=True) for who, name in names.items()}
        times = race({who: call(model, x) for who, model in models.items()}, seconds=seconds, rounds=rounds)
        weights = {who: weights_mib(model) for who, model in models.items()}
        parameters = {who: sum(p.numel() for p in model.parameters()) for who, model in models.items()}
        del models
        extra = extra_mib_of([{"name": name, "side": side, "features": True} for name in names.values()])
        for who, more in zip(names, extra, strict=True):
            took = times[who]
            at[who][str(side)] = AtSide(1e3 * took, 1 / took, more, None if more is None else weights[who] + more)
    rows = [ControlRow(who, name, who in CONTROLS, parameters[who], at[who]) for who, name in names.items()]
    return rows, _goals({row.family: row for row in rows})


def _goals(rows: dict[str, ControlRow]) -> list[Goal]:
    """Spatial-Mamba tiny beside Swin-T at 512 and 1024, and beside ConvNeXt-T at 1024."""

    def ms(who: str, side: str) -> float | None:
        return rows[who].at[side].ms if who in rows and side in rows[who].at else None

    goals = []
    for side in ("512", "1024"):
        ours, theirs = ms("Spatial-Mamba", side), ms("Swin-T", side)
        times = None if ours is None or theirs is None else theirs / ours
        goals.append(goal(f"Spatial-Mamba tiny at {side}: times as fast as Swin-T", times, 1.0))
    ours, theirs = ms("Spatial-Mamba", "1024"), ms("ConvNeXt-T", "1024")
    times = None if ours is None or theirs is None else ours / theirs
    return [*goals, goal("Spatial-Mamba tiny at 1024: time in units of ConvNeXt-T's", times, 1.5, at_most=True)]
