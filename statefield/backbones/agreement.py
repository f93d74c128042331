"""How far our backbones are from what their authors' code computes, as the golden check last recorded it.

`goldens.json` beside this file is written by `tests/goldens/check.py --record` and committed; nothing is computed here.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from timm.models import model_entrypoint

RECORD = Path(__file__).with_name("goldens.json")


@dataclass(frozen=True)
class Agreement:
    """What the record says of a family.

    Attributes:
        goldens: files with numbers of the authors' code that were compared, outputs and gradients.
        passes: whether all of them agreed, on every implementation of the operators that was checked.
        worst: the largest difference as a share of the golden's standard deviation, None where a file had none.
        kernels: the implementations that were checked.
    """

    goldens: int
    passes: bool
    worst: float | None
    kernels: tuple[str, ...]


def agreement_of(model_name: str) -> Agreement | None:
    """The record of the family that a registered backbone belongs to; None where it has no goldens."""
    family = model_entrypoint(model_name).__module__.rpartition(".")[2]
    entries = [entry for entry in _record().values() if entry["family"] == family]
    if not entries:
        return None
    results = [result for entry in entries for result in entry["kernels"].values()]
    shares = [result["worst"] for result in results]
    return Agreement(
        goldens=len(entries),
        passes=all(result["passes"] for result in results),
        worst=None if None in shares else max(shares),
        kernels=tuple(sorted({name for entry in entries for name in entry["kernels"]})),
    )


def is_family(module: str | None) -> bool:
    """Whether `statefield.backbones` has a module of that name."""
    return module is not None and importlib.util.find_spec(f"statefield.backbones.{module}") is not None


@cache
def _record() -> dict[str, Any]:
    return json.loads(RECORD.read_text(encoding="utf-8"))
