"""Time `statefield mot evaluate` beside TrackEval: whole processes, start-up included, in turn, on one ground truth.

    python benchmarks/tracking_evaluation.py --gt ../shared/data/mot/motchallenge_gt/MOT17-train \\
        --trackeval-python oracle/bin/python --json benchmarks/results/tracking_evaluation_cpu.json

`oracle` is an environment of its own (`python -m venv oracle && oracle/bin/pip install trackeval==1.3.0`). Without it
only our time is measured. The results that are scored are the ground truth, disturbed as a tracker would (from a seed;
tests/fakes/mot.py). Both compute HOTA, CLEAR and Identity, print their tables and write nothing. Times are printed only
if both agree to 1e-9 on every combined score of every threshold in the same run.

`stages` says where our time goes: each stage of a process of its own, one sequence after the other in one thread (the
command scores sequences in as many threads as there are processors).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from statefield.datasets.tracking.multi_object import open_ground_truth
from statefield.files import write_json
from statefield.tasks.common.environment import describe_environment
from statefield.tasks.tracking.mot_evaluation.evaluate import evaluate_mot
from statefield.tasks.tracking.mot_evaluation.score_views import as_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fakes.mot import disturbed

SEED = 5
TOLERANCE = 1e-9
GOAL_SECONDS, GOAL_RATIO = 0.3, 8.0

# runs in the other environment: argument 1 is the settings, where "scores" names the file to write or is null
_TRACKEVAL = """
import json, sys
import numpy as np
from trackeval import Evaluator
from trackeval.datasets import MotChallenge2DBox
from trackeval.metrics import CLEAR, HOTA, Identity
settings = json.loads(sys.argv[1])
scores = settings.pop("scores")
quiet = {"PRINT_CONFIG": False, "TIME_PROGRESS": False}
evaluator = Evaluator({**quiet, "OUTPUT_SUMMARY": False, "OUTPUT_DETAILED": False, "PLOT_CURVES": False})
dataset = MotChallenge2DBox({**quiet, **settings})
results, _ = evaluator.evaluate([dataset], [HOTA(), CLEAR({"PRINT_CONFIG": False}), Identity({"PRINT_CONFIG": False})])
if scores:
    combined = results["MotChallenge2DBox"]["disturbed"]["COMBINED_SEQ"]["pedestrian"]
    with open(scores, "w") as file:
        json.dump({m: {k: np.asarray(v).tolist() for k, v in f.items()} for m, f in combined.items()}, file)
"""


# runs in a process of its own: argument 1 is the ground truth, argument 2 the results; prints seconds of each stage
_STAGES = """
import json, sys, time
from collections import defaultdict
seconds, since = defaultdict(float), time.perf_counter()
def done(stage):
    global since
    now = time.perf_counter()
    seconds[stage] += now - since
    since = now
import numpy
done("import of NumPy")
from pathlib import Path
from statefield.cli import main, mot_evaluate
from statefield.datasets.tracking.bad_rows import BadRows
from statefield.datasets.tracking.multi_object import open_ground_truth
from statefield.tasks.tracking.mot_evaluation import evaluate, protocols, score_views
from statefield.tasks.tracking.mot_evaluation.sequence import MotSequence
done("import of statefield")
import rich.console, rich.table
done("import of rich")
truth = open_ground_truth(Path(sys.argv[1]))
done("finding the files")
for each in truth.sequences:
    gt = evaluate.read_mot_ground_truth(
        each.ground_truth, num_frames=each.num_frames, has_classes=truth.has_classes, bad=BadRows(each.ground_truth)
    )
    path = Path(sys.argv[2], "data", each.name + ".txt")
    found = evaluate.read_mot_results(path, num_frames=each.num_frames, bad=BadRows(path))
    done("reading text")
    MotSequence.of(each.num_frames, gt, found)
    done("overlaps")
    ready = protocols.mot_sequence(
        gt, found, each.num_frames, benchmark=truth.benchmark, has_classes=truth.has_classes
    )
    done("rules of the benchmark")  # and the overlaps once more, taken off below
    ready.track_pairs, ready.gt_frames, ready.tracker_frames
    done("numbering of tracks")
    for name in ("HOTA", "CLEAR", "Identity"):
        evaluate.METRICS[name].observe(ready)
        done(name)
seconds["rules of the benchmark"] = max(0.0, seconds["rules of the benchmark"] - seconds["overlaps"])
print(json.dumps(seconds))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gt", type=Path, required=True, help="folder of a MOTChallenge ground truth, with seqinfo.ini"
    )
    parser.add_argument("--trackeval-python", type=Path, help="a Python that has trackeval 1.3.0")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        report = _measure(options, Path(folder))
    report |= {"load_before": load_before, "environment": describe_environment()}
    print(json.dumps({key: value for key, value in report.items() if key != "environment"}, indent=2))
    if options.json is not None:
        write_json(options.json, report)
    return 0 if report["agrees"] is not False else 1


def _measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    truth = open_ground_truth(options.gt)
    results = folder / "disturbed" / "data"
    results.mkdir(parents=True)
    num_rows = 0
    for sequence in truth.sequences:
        text = disturbed(sequence.ground_truth, SEED)
        num_rows += text.count("\n")
        (results / f"{sequence.name}.txt").write_text(text)
    scored = as_json(evaluate_mot(options.gt, [folder / "disturbed"]))["trackers"]["disturbed"]["pedestrian"][
        "combined"
    ]
    statefield = Path(sys.executable).with_name("statefield")
    commands = {"statefield": [str(statefield), "mot", "evaluate", "--gt", str(options.gt)]}
    commands["statefield"] += ["--results", str(folder / "disturbed")]
    agrees = None
    if options.trackeval_python is not None:
        settings = {
            "GT_FOLDER": str(options.gt),
            "TRACKERS_FOLDER": str(folder),
            "TRACKERS_TO_EVAL": ["disturbed"],
            "BENCHMARK": truth.benchmark,
            "SEQ_INFO": {each.name: each.num_frames for each in truth.sequences},
            "SKIP_SPLIT_FOL": True,
            "scores": str(folder / "scores.json"),
        }
        python = str(options.trackeval_python)
        _run([python, "-c", _TRACKEVAL, json.dumps(settings)])
        agrees = _agree(scored, json.loads((folder / "scores.json").read_text()))
        commands["TrackEval 1.3.0"] = [python, "-c", _TRACKEVAL, json.dumps(settings | {"scores": None})]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(options.repeats + 1):
        for name, command in commands.items():
            times[name].append(_run(command))
    rows = {name: _summary(measured[1:]) for name, measured in times.items()}  # the first filled the caches of files
    report: dict[str, Any] = {
        "ground_truth": f"{truth.benchmark}, {len(truth.sequences)} sequences",
        "ground_truth_boxes_scored": scored["Count"]["GT_Dets"],
        "result_boxes": num_rows,
        "repeats": options.repeats,
        "agrees": agrees,
        "goal_seconds": GOAL_SECONDS,
        "goal_ratio": GOAL_RATIO,
    }
    if agrees is False:
        return report  # no speed of what is wrong
    report["seconds"] = rows
    report["stages"] = _stages(options, folder / "disturbed")
    if agrees:
        ratios = [other[0] / ours[0] for ours, other in zip(*(times[name][1:] for name in commands), strict=True)]
        report["ratio"] = statistics.median(ratios)
        report["ratio_of_cpu_time"] = rows["TrackEval 1.3.0"]["median_cpu"] / rows["statefield"]["median_cpu"]
    report["runs"] = [{"program": name, **row} for name, row in rows.items()]
    return report


def _stages(options: argparse.Namespace, results: Path) -> list[dict[str, Any]]:
    """Medians of what each stage takes, milliseconds."""
    script = [sys.executable, "-c", _STAGES, str(options.gt), str(results)]
    measured = []
    for _ in range(options.repeats + 1):
        seconds = {"start of Python": _run([sys.executable, "-c", "pass"])[0]}
        out = subprocess.run(script, check=True, capture_output=True, text=True).stdout  # noqa: S603
        measured.append(seconds | json.loads(out))
    return [
        {"stage": stage, "ms": 1000 * statistics.median(each[stage] for each in measured[1:])} for stage in measured[0]
    ]


def _run(command: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _summary(measured: Sequence[tuple[float, float]]) -> dict[str, float]:
    walls, cpus = zip(*measured, strict=True)
    return {"median": statistics.median(walls), "least": min(walls), "median_cpu": statistics.median(cpus)}


def _agree(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return all(
        np.allclose(ours[metric][field], value, rtol=TOLERANCE, atol=TOLERANCE)
        for metric, fields in theirs.items()
        for field, value in fields.items()
    )


if __name__ == "__main__":
    raise SystemExit(main())
