"""What a run of the benchmark finds, and the rules by which every operator's part of it measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from torch import Tensor

from statefield.bench.timing import Roofs
from statefield.kernels import implementations, use_kernels

ALLOWED = 1e-4  # largest difference from the reference, as a share of its largest value


@dataclass(frozen=True)
class Row:
    """One timed thing.

    `error` is the largest difference from the reference in values and gradients (values alone for rivals), as a share
    of the largest value. `ms` is None where that is too much. The shares say how near the time is to what the machine
    needs for the bytes alone and for the exponentials alone; above 1 our exp is faster than torch's. `extra_mib` is the
    most memory held beyond the inputs (see memory.py). None where they are not counted.
    """

    operator: str
    case: str
    direction: str  # "forward" or "backward"
    by: str  # an implementation of ours, or the rival's name
    error: float
    ms: float | None
    share_of_bytes: float | None = None
    share_of_exp: float | None = None
    extra_mib: float | None = None


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


class Measure(Protocol):
    """An operator's part of the benchmark: `measure` in the module that bears its name.

    Args:
        quick: small shapes, to see that all works.
        seconds, rounds: how long to race contenders that are compared, see `timing.race`; fewer where there is less to
            compare.

    Returns:
        the rows, and the goals that were held against them.
    """

    def __call__(self, quick: bool, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]: ...


def goal(name: str, measured: float | None, limit: float, right: bool = True, *, at_most: bool = False) -> Goal:
    """A goal held against a number; never met by a wrong kernel (`right`) nor by what was not measured (None)."""
    wanted = f"{'at most' if at_most else 'at least'} {limit:g}"
    if not right or measured is None:
        return Goal(name, None, wanted, False)
    return Goal(name, measured, wanted, measured <= limit if at_most else measured >= limit)


def fastest(op: str) -> str:
    """The implementation of an operator that runs on the CPU when nothing is forced."""
    return next(row.implementation for row in implementations() if row.op == op and row.device == "cpu" and row.chosen)


def largest_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest difference as a share of each tensor's largest value; infinity where one is NaN."""
    errors = [((a - b).abs().max() / b.abs().max().clamp(min=1e-6)).item() for a, b in zip(found, wanted, strict=True)]
    return max(error if error == error else float("inf") for error in errors)


def under(implementation: str, run: Callable[[], object]) -> Callable[[], object]:
    """`run` with every operator's `implementation` forced."""

    def forced() -> object:
        with use_kernels(implementation):
            return run()

    return forced
