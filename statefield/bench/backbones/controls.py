"""Each family beside models of like size that do not scan: throughput and memory of the maps a dense decoder takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from statefield.bench.backbones.models import CONTROLS, FAMILIES, build, call, extra_mib_of, image, weights_mib
from statefield.bench.kernels.report import Goal, goal
from statefield.bench.timing import in_turns, median_ratio, race


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
    return rows, _goals(_beside_controls(5 * rounds)) if {512, 1024} <= set(sides) else []


def _beside_controls(rounds: int) -> dict[int, dict[str, list[float]]]:
    """Seconds of Spatial-Mamba tiny and of the controls of its goals, round by round, for each side.

    In a race of their own: among twenty models the turns of one lie a minute apart, and the goals are narrower than
    what a shared machine does in a minute.
    """
    names = {who: CONTROLS[who] for who in ("Swin-T", "ConvNeXt-T")}
    names["Spatial-Mamba"] = FAMILIES["Spatial-Mamba"].like_swin_tiny
    times = {}
    for side in (512, 1024):
        x = image(side)
        times[side] = in_turns(
            {who: call(build(name, side, features=True), x) for who, name in names.items()}, rounds=rounds
        )
    return times


def _goals(times: dict[int, dict[str, list[float]]]) -> list[Goal]:
    """Spatial-Mamba tiny beside Swin-T at 512 and 1024, and beside ConvNeXt-T at 1024; times as of `in_turns`."""
    goals = []
    for side in (512, 1024):
        faster = median_ratio(times[side], "Swin-T", "Spatial-Mamba")
        goals.append(goal(f"Spatial-Mamba tiny at {side}: times as fast as Swin-T", faster, 1.0))
    slower = median_ratio(times[1024], "Spatial-Mamba", "ConvNeXt-T")
    return [*goals, goal("Spatial-Mamba tiny at 1024: time in units of ConvNeXt-T's", slower, 1.5, at_most=True)]
