"""The record of which goldens pass, and how far off they are: `statefield models` shows it and computes nothing.

python tests/goldens/check.py tests/goldens/*.npz --kernels native --record
python tests/goldens/check.py tests/goldens/*.npz --kernels reference --record
python benchmarks/models.py && python benchmarks/tables.py
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statefield.backbones import agreement
from statefield.files import write_json


@dataclass(frozen=True)
class Outcome:
    """What the comparison of one file gave.

    Attributes:
        family: the module of `statefield.backbones` that the golden's class belongs to; else the golden's system.
        compared: outputs and gradients that were compared.
        worst: the largest difference of all as a share of the golden's standard deviation, None where none was made.
    """

    path: Path
    family: str | None
    passes: bool
    compared: int
    worst: float | None


def record(outcomes: Iterable[Outcome], kernels: str) -> None:
    """Put outcomes in the place of those that the record has of the same files, and forget files that are gone."""
    known: dict[str, Any] = json.loads(agreement.RECORD.read_text()) if agreement.RECORD.exists() else {}
    folder = Path(__file__).parent
    for outcome in outcomes:
        if outcome.path.resolve().parent != folder or not agreement.is_family(outcome.family):
            continue  # another's file, or an operator's golden: `statefield doctor` checks operators
        digest = hashlib.sha256(outcome.path.read_bytes()).hexdigest()
        entry = known.get(outcome.path.name, {})
        if entry.get("sha256") != digest:
            entry = {"family": outcome.family, "sha256": digest, "kernels": {}}
        worst = None if outcome.worst is None else float(f"{outcome.worst:.1e}")
        entry["kernels"][kernels] = {"passes": outcome.passes, "compared": outcome.compared, "worst": worst}
        known[outcome.path.name] = entry
    write_json(agreement.RECORD, {name: known[name] for name in sorted(known) if (folder / name).exists()})
