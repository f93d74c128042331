"""Compare the classifiers of a scene's pixels on real data, and keep the table in benchmarks/results.

    python benchmarks/hyperspectral.py recipes/hyperspectral/indian_pines.yaml
    python benchmarks/hyperspectral.py recipes/hyperspectral/indian_pines.yaml --jobs 2 --run /scratch/indian_pines

Every other option is passed on to `statefield hyperspectral train`. A run that is whole already (its result.json is
there) is not made again. The file benchmarks/results/NAME.json is the run's result.json, with the rows of the table and
the time of the whole command: on the clock, and of the processors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from statefield.files import write_json
from statefield.tasks.remote_sensing.hyperspectral.comparison import rows_of

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--run", type=Path, help="the run folder (default: runs/NAME)")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/NAME.json")
    options, words = parser.parse_known_args()
    run = options.run or Path("runs") / options.recipe.stem
    timed = run / "benchmark.json"
    if not (run / "result.json").exists():
        command = [str(Path(sys.executable).with_name("statefield")), "hyperspectral", "train"]
        command += ["--config", str(options.recipe), "--run", str(run), *words]
        begun, before = time.perf_counter(), os.times()
        if subprocess.run(command, check=False).returncode:  # noqa: S603  (our own command)
            return 1
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        write_json(timed, {"wall": time.perf_counter() - begun, "processor": used})
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    command_seconds = json.loads(timed.read_text(encoding="utf-8")) if timed.exists() else None
    content = {
        "recipe": options.recipe.name,
        "rows": rows_of(result),
        "command": [
            {
                "wall minutes": command_seconds["wall"] / 60,
                "processor minutes": command_seconds["processor"] / 60,
                "processes": result["seconds"]["jobs"],
            }
        ]
        if command_seconds
        else [],
        **result,
    }
    target = options.json or RESULTS / f"{options.recipe.stem}.json"
    write_json(target, content)
    print(f"written: {target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
