"""What benchmarks/medical.py and benchmarks/change.py share: a recipe trained with several seeds, and the mean of its
scores over them.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from statefield.files import write_json

RESULTS = Path(__file__).resolve().parent / "results"


def run(field: str, description: str | None) -> int:
    """Train by `statefield FIELD train` as the command line says, and write benchmarks/results/FIELD_NAME.json.

    A seed whose run is whole already (its metrics.json is there) is not trained again; one that was stopped goes on.
    Returns the exit status.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, help="folder of the run folders (default: runs/NAME)")
    parser.add_argument("--json", type=Path, help=f"default: benchmarks/results/{field}_NAME.json")
    options, settings = parser.parse_known_args()
    name = options.recipe.stem
    runs = options.runs or Path("runs") / name
    results = []
    for seed in options.seeds:
        folder = runs / f"seed_{seed}"
        if not (folder / "metrics.json").exists():
            command = [str(Path(sys.executable).with_name("statefield")), field, "train"]
            command += ["--config", str(options.recipe), "--seed", str(seed), "--run", str(folder), *settings]
            command += ["--resume"] if (folder / "config.yaml").exists() else []
            if subprocess.run(command, check=False).returncode:  # noqa: S603  (our own command)
                return 1
        results.append(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
    target = options.json or RESULTS / f"{field}_{name}.json"
    write_json(
        target,
        {
            "recipe": options.recipe.name,
            "seeds": options.seeds,
            "comparison": compared([result["comparison"] for result in results]),
            "runs": results,
            "environment": results[-1]["environment"],
        },
    )
    print(f"written: {target}")
    return 0


def compared(tables: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each contender: numbers as means over the seeds, and "KEY by seed" beside what differs.

    >>> compared([[{"name": "a", "mean Dice": 0.8}], [{"name": "a", "mean Dice": 0.9}]])[0]["mean Dice by seed"]
    '0.8000, 0.9000'
    """
    rows = []
    for same in zip(*tables, strict=True):
        if len({row["name"] for row in same}) > 1:
            raise ValueError(f"the seeds have different contenders: {[row['name'] for row in same]}")
        row: dict[str, Any] = {}
        for key, value in same[0].items():
            values = [_number(other[key]) for other in same]
            numbers = [number for number in values if number is not None]
            if isinstance(value, bool) or len(numbers) < len(values):
                row[key] = value
                continue
            row[key] = statistics.fmean(numbers)
            if isinstance(value, int) and len(set(numbers)) == 1:
                row[key] = value
            else:
                row[f"{key} by seed"] = ", ".join(f"{number:.4f}" for number in numbers)
        rows.append(row)
    return rows


def _number(value: Any) -> float | None:
    """A number, or the seconds in "173 s"."""
    if isinstance(value, (int, float)):
        return value
    seconds = re.fullmatch(r"(\d+) s", value) if isinstance(value, str) else None
    return float(seconds[1]) if seconds else None
