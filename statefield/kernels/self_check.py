"""Each kernel against its reference on this machine, in a second: what `statefield doctor` runs."""

from __future__ import annotations

from dataclasses import dataclass

from statefield.errors import StatefieldError
from statefield.kernels._choice import implementations, use_kernels
from statefield.kernels.conformance import distance, draw, families, values_and_gradients

ALLOWED = 1e-4  # largest difference in values and gradients, as a share of the reference's largest value, float32


@dataclass(frozen=True)
class CheckRow:
    """One implementation of one operator. `error` is NaN when it did not run; `problem` is empty when all is well."""

    op: str
    implementation: str
    device: str
    error: float
    problem: str


def self_check() -> list[CheckRow]:
    """Compare values and gradients of every available implementation with the reference, on small odd shapes."""
    rows = []
    for row in implementations():
        if not row.available or row.implementation == "reference":
            continue
        if row.op not in families():
            unchecked = "its folder has no cases.py, so there is nothing to compare"
            rows.append(CheckRow(row.op, row.implementation, row.device, float("nan"), unchecked))
            continue
        try:
            error = _error(row.op, row.implementation, row.device)
        except (StatefieldError, RuntimeError, OSError) as problem:  # reported, and the others are still checked
            rows.append(CheckRow(row.op, row.implementation, row.device, float("nan"), f"it failed: {problem}"))
            continue
        wrong = "" if error <= ALLOWED else f"it differs from the reference by {error:.1e} of its largest value"
        rows.append(CheckRow(row.op, row.implementation, row.device, error, wrong))
    return rows


def _error(op: str, implementation: str, device: str) -> float:
    """The largest difference over outputs and gradients."""
    family = families()[op]
    given = draw(family, family.odd, device=device)
    with use_kernels("reference"):
        wanted = values_and_gradients(family, given)
    with use_kernels(implementation):
        found = values_and_gradients(family, given)
    errors = [distance(found[name], expected) for name, expected in wanted.items()]
    return float("nan") if any(error != error for error in errors) else max(errors)
