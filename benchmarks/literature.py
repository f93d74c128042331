"""Write benchmarks/results/literature.json, for the tables of docs/literature.md, from docs/literature.toml.

python benchmarks/literature.py && python benchmarks/tables.py

What the map calls ours must be registered under that name, and what is registered must stand in the map.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from statefield.backbones import BACKBONES
from statefield.files import write_json
from statefield.kernels._choice import OPERATORS
from statefield.kernels.routes import ROUTES
from statefield.tasks.medical.nets import NETS
from statefield.tasks.remote_sensing.hyperspectral.contenders import CONTENDERS
from statefield.tasks.remote_sensing.nets import CHANGE_NETS
from statefield.tasks.tracking.motion.model import MOTION_MODELS
from statefield.tasks.tracking.trackers import TRACKERS

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "docs" / "literature.toml"
RESULT = ROOT / "benchmarks" / "results" / "literature.json"
_NUMBER = re.compile(r"\d{4}\.\d{4,5}")


class MapError(ValueError):
    """The map and the registries disagree: the message says where."""


def registered() -> dict[str, dict[str, str]]:
    """For each kind what has to stand in the map, and how a table calls it; of routes any may."""
    families: dict[str, list[str]] = {}
    for name, info in BACKBONES.items():
        families.setdefault(info.family, []).append(name)
    return {
        "backbone": {family: _together(names) for family, names in families.items()},
        "net": {name: f"`{name}`" for name in NETS},
        "change": {name: f"`{name}`" for name in CHANGE_NETS},
        "pixels": {name: f"`{name}`" for name in CONTENDERS},
        "tracker": {name: f"`{name}`" for name in TRACKERS},
        "motion": {name: f"motion `{name}`" for name in MOTION_MODELS},
        "operator": {name: f"operator `{name}`" for name in OPERATORS},
        "route": {name: f"route `{name}`" for name in ROUTES},
    }


def _together(names: list[str]) -> str:
    """ "`vim_tiny` and 7 more": the first of a family, and how many others there are."""
    return f"`{names[0]}`" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def mapped(sections: Mapping[str, Any], known: Mapping[str, Mapping[str, str]]) -> dict[str, list[dict[str, Any]]]:
    """The tables' rows by section, sorted as the source has them.

    Raises: MapError for a row that is none, a number that no arXiv paper has, a name that is not registered, or
    something registered that no row names.
    """
    named: set[str] = set()
    tables: dict[str, list[dict[str, Any]]] = {}
    for section, content in sections.items():
        tables[section] = []
        for row in content["models"]:
            if len(row) != 6:
                raise MapError(f"{section}: {row} has {len(row)} entries; 6 are needed.")
            model, family, scan, task, number, ours = row
            if number and not _NUMBER.fullmatch(number):
                raise MapError(f"{section}, {model}: {number!r} is no arXiv number.")
            named |= set(ours)
            tables[section].append(
                {
                    "model": model,
                    "family": family,
                    "scan": scan or None,
                    "task": task,
                    "paper": f"[{number}](https://arxiv.org/abs/{number})" if number else None,
                    "ours": ", ".join(_called(name, known, f"{section}, {model}") for name in ours) or "not here",
                }
            )
    missing = {f"{kind}:{name}" for kind, names in known.items() if kind != "route" for name in names} - named
    if missing:
        raise MapError(f"registered, but in no row of {SOURCE.name}: {', '.join(sorted(missing))}.")
    return tables


def _called(entry: str, known: Mapping[str, Mapping[str, str]], where: str) -> str:
    kind, _, name = entry.partition(":")
    if kind == "class":
        module, _, attribute = name.rpartition(".")
        if not hasattr(import_module(module), attribute):
            raise MapError(f"{where}: {name} does not exist.")
        return f"`{attribute}`"
    if name not in known.get(kind, {}):
        raise MapError(f"{where}: {entry!r} is not registered; of that kind are {', '.join(known.get(kind, {}))}.")
    return known[kind][name]


def main() -> None:
    tables = mapped(tomllib.loads(SOURCE.read_text(encoding="utf-8")), registered())
    rows = [row for table in tables.values() for row in table]
    here = sum(row["ours"] != "not here" for row in rows)
    write_json(
        RESULT, {"counts": [{"models": len(rows), "here": here, "not here": len(rows) - here}], "tables": tables}
    )


if __name__ == "__main__":
    main()
