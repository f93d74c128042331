"""What MambaEVT's small recipes learn on the real samples, gathered from their run folders.

    BAG="--data.root ../shared/data/sot/bag_video/bag.avi --data.truth ../shared/data/sot/vot_gt/vot2018/VOT2018.json"
    statefield sot train -c recipes/tracking/mambaevt_video.yaml $BAG \\
        --control.without_scan false --control.convolution true
    statefield sot train -c recipes/tracking/mambaevt_video.yaml $BAG \\
        --model.without_scan true --run runs/mambaevt_video_without_scan
    statefield sot train -c recipes/tracking/mambaevt_pedro.yaml \\
        --data.root ../shared/data/events/pedro_person_detection
    python benchmarks/tracking_single_object.py --runs runs/mambaevt_video runs/mambaevt_pedro \\
        --controls runs/mambaevt_video_without_scan --json benchmarks/results/tracking_single_object.json

A row is a contender on the test sequences of a run, its scores over all frames after the first, from 0 to 1. Frames a
second are of the tracker, reading left out. A run trains one control; the model of a run of `--controls` is one more of
the run that it shares data, schedule and seed with. The environment is that of the first run; its commit and machine
are in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from statefield.files import write_json
from statefield.tasks.common.checkpointing import read_weights
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.tracking.single_object.recipe import SotRecipe, read_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="run folders of `statefield sot train`")
    parser.add_argument("--controls", type=Path, nargs="*", default=[], help="runs whose model is a control of another")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    runs, controls = ([opened(path) for path in paths] for paths in (arguments.runs, arguments.controls))
    result: dict[str, Any] = {"environment": metrics_of(runs[0])["environment"]}
    used = []
    for run in runs:
        fitting = [one for one in controls if all_else_equal(read_recipe(one.config), read_recipe(run.config))]
        used += fitting
        beside = [*rows_of(run), *(rows_of(one)[0] | {"role": "control"} for one in fitting)]
        result[run.root.name] = sorted(beside, key=lambda row: ("model", "control", "baseline").index(row["role"]))
    if left := [one.root for one in controls if one not in used]:
        parser.error(f"{left[0]} shares data, schedule and seed with none of the runs: it is no control of them.")
    write_json(arguments.json, result)
    print(json.dumps(result, indent=1))


def opened(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.require()
    return folder


def metrics_of(folder: RunFolder) -> dict[str, Any]:
    return json.loads(folder.metrics.read_text(encoding="utf-8"))


def rows_of(folder: RunFolder) -> list[dict[str, Any]]:
    """The contenders of a run; the trained ones with their weights counted, the model first."""
    weights = {"model": folder.weights, "control": folder.control.weights}
    rows = []
    for row in metrics_of(folder)["comparison"]:
        row["frames_per_second"] = row.pop("frames/s")
        row["parameters"] = parameters_of(weights[row["role"]]) if row["role"] in weights else None
        rows.append(row)
    return rows


def parameters_of(weights: Path) -> int:
    """Of a file of weights, what norms count of their inputs left out."""
    counted = ("running_mean", "running_var", "num_batches_tracked")
    return sum(value.numel() for name, value in read_weights(weights).items() if not name.endswith(counted))


def all_else_equal(one: SotRecipe, other: SotRecipe) -> bool:
    """Whether two runs differ in nothing but the scans of their nets and their controls."""
    return _plain(one) == _plain(other) and one.model != other.model


def _plain(recipe: SotRecipe) -> SotRecipe:
    model = dataclasses.replace(recipe.model, without_scan=False, convolution=False)
    return dataclasses.replace(recipe, run=Path(), model=model, control=None)


if __name__ == "__main__":
    main()
