"""What MambaEVT's small recipes learn on the real samples, gathered from their run folders.

    statefield sot train -c recipes/tracking/mambaevt_video.yaml --data.root ../shared/data/sot/bag_video/bag.avi \\
        --data.truth ../shared/data/sot/vot_gt/vot2018/VOT2018.json --control.without_scan true
    statefield sot train -c recipes/tracking/mambaevt_pedro.yaml \\
        --data.root ../shared/data/events/pedro_person_detection
    python benchmarks/tracking_single_object.py --runs runs/mambaevt_video runs/mambaevt_pedro \\
        --json benchmarks/results/tracking_single_object.json

A row is a contender on the test sequences of a run, its scores over all frames after the first, from 0 to 1. Frames a
second are of the tracker, reading left out. The environment is that of the first run; its commit and machine are in it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from statefield.files import write_json
from statefield.tasks.common.run_folder import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders of `statefield sot train`")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    for run in arguments.runs:
        folder = RunFolder(run)
        folder.require()
        metrics = json.loads(folder.metrics.read_text(encoding="utf-8"))
        result.setdefault("environment", metrics["environment"])
        result[run.name] = [row | {"frames_per_second": row.pop("frames/s")} for row in metrics["comparison"]]
    write_json(arguments.json, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
