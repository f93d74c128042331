"""How well motion models know the next box, and what that is worth to a whole tracker; and how fast association is.

    statefield mot train -c recipes/tracking/mtp_mot17.yaml --data.root ../shared/data/mot/motchallenge_gt/MOT17-train
    python benchmarks/tracking_motion.py --run runs/mtp_mot17 --json benchmarks/results/tracking_motion.json \\
        --detections ../shared/data/mot/sort_mot15_detections --gt ../shared/data/mot/motchallenge_gt/MOT15-train \\
        --mot17 ../shared/data/mot/motchallenge_gt/MOT17-train

`next_box`: the mean IoU of the predicted box and the one that came, over all boxes of all tracks of the sequences that
the run held out: of the run's net, of its control where the run has one, and of the baselines.
`trackers`: each tracker on the detections of SORT's paper, scored by `statefield mot evaluate`. SORT's row has the six
sequences for which its authors publish MOTA beside what they publish.
`speed`: frames a second of prediction and association on MOT17's load: every true box of a person as a detection, moved
by 2 % of its sides and one in ten left out, in its two most crowded sequences. Processor seconds of one core, so that
other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from statefield.datasets.tracking.detections import Detections, read_detections
from statefield.files import write_json
from statefield.tasks.common.environment import describe_environment
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.tracking.mot_evaluation.evaluate import evaluate_mot
from statefield.tasks.tracking.motion.accuracy import NextBox
from statefield.tasks.tracking.motion.model import corners
from statefield.tasks.tracking.motion.training import compare, load_motion
from statefield.tasks.tracking.motion.windows import read_tracks
from statefield.tasks.tracking.trackers.run import TrackerSettings, track, write_tracks

# MOTA in per cent, README of abewley/sort at commit 2236dff
PUBLISHED_SORT = {
    "TUD-Campus": 62.7,
    "ETH-Sunnyday": 59.1,
    "ETH-Pedcross2": 45.4,
    "ADL-Rundle-8": 28.6,
    "Venice-2": 18.6,
    "KITTI-17": 60.2,
}
PUBLISHED_SORT_TOGETHER = 34.0
CROWDED = ("MOT17-02-FRCNN", "MOT17-04-FRCNN")
SEED = 0
JITTER, MISSED = 0.02, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder of `statefield mot train`")
    parser.add_argument(
        "--detections", type=Path, required=True, help="SORT's detections of MOT15's training sequences"
    )
    parser.add_argument("--gt", type=Path, required=True, help="MOT15's training sequences")
    parser.add_argument("--mot17", type=Path, required=True, help="MOT17's training sequences, for the speed")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"next_box": next_boxes(arguments.run, arguments.mot17)}
    settings = [
        TrackerSettings("sort"),
        TrackerSettings("bytetrack"),
        TrackerSettings("ocsort"),
        TrackerSettings("mambatrack", motion="kalman_sort"),
        TrackerSettings("mambatrack", weights=arguments.run),
        TrackerSettings("mambatrack", weights=arguments.run, values={"max_age": 0}),
    ]
    result["environment"] = describe_environment()
    result["speed"] = speeds(arguments.mot17, settings[:-2])
    result["trackers"] = []
    sequences = read_detections(arguments.detections)
    with tempfile.TemporaryDirectory() as folder:
        for one in settings:
            results = Path(folder) / name_of(one)
            write_tracks(track(sequences, one), results)
            result["trackers"].append(scored(one, results, arguments.gt))
            if one is settings[0]:
                result["sort_published"] = beside_published(results, arguments.gt)
            write_json(arguments.json, result)  # after each, as the last one takes longest
    print(json.dumps({name: result[name] for name in ("next_box", "trackers", "sort_published", "speed")}, indent=1))


def next_boxes(run: Path, mot17: Path) -> list[dict[str, Any]]:
    """A row for the net, its control and each baseline, on the sequences that the run held out."""
    model = load_motion(run)
    folder = RunFolder(run).control
    trained = [model, *([load_motion(folder.root)] if folder.weights.exists() else [])]
    held_out = read_tracks(mot17, sequences=model.recipe.data.test)
    return [
        {"name": name, "role": role, **sum(states.values(), NextBox()).summarise()}
        for (name, role), states in compare(trained, held_out).items()
    ]


def scored(settings: TrackerSettings, results: Path, gt: Path) -> dict[str, Any]:
    """A tracker's scores over all sequences, per cent."""
    summary = evaluate_mot(gt, [results]).trackers[0].combined("pedestrian")
    row: dict[str, Any] = {"tracker": settings.tracker, "motion": settings.motion_name, "patched": None}
    if settings.tracker == "mambatrack":  # a lost track's predictions are its history, or it ends at once
        row["patched"] = "no" if (settings.values or {}).get("max_age") == 0 else "yes"
    row["IDSW"] = int(summary["CLEAR"]["IDSW"])
    for metric, names in {"HOTA": ("HOTA", "DetA", "AssA"), "CLEAR": ("MOTA",), "Identity": ("IDF1",)}.items():
        row |= {name: float(np.mean(summary[metric][name])) * 100 for name in names}
    return row


def beside_published(results: Path, gt: Path) -> list[dict[str, Any]]:
    """SORT's MOTA on the sequences for which it is published, per cent."""
    six = evaluate_mot(gt, [results], sequences=list(PUBLISHED_SORT)).trackers[0]
    rows = [
        {"sequence": name, "published": mota, "ours": six.of_sequence("pedestrian", name)["CLEAR"]["MOTA"] * 100}
        for name, mota in PUBLISHED_SORT.items()
    ]
    together = six.combined("pedestrian")["CLEAR"]["MOTA"] * 100
    return [*rows, {"sequence": "all six", "published": PUBLISHED_SORT_TOGETHER, "ours": together}]


def name_of(settings: TrackerSettings) -> str:
    return "_".join([settings.tracker, settings.motion_name, *(f"{k}{v}" for k, v in (settings.values or {}).items())])


def speeds(mot17: Path, settings: list[TrackerSettings]) -> list[dict[str, Any]]:
    """Frames a second of each tracker; the detections are read and made beforehand."""
    rng = np.random.default_rng(SEED)
    sequences = []
    for each in read_tracks(mot17, sequences=CROWDED):
        seen = rng.random(len(each.frame)) >= MISSED
        boxes = each.boxes[seen] + rng.normal(0, JITTER, (int(seen.sum()), 4)) * each.boxes[seen][:, [2, 3, 2, 3]]
        order = np.argsort(each.frame[seen], kind="stable")
        frame = each.frame[seen][order] + 1
        scores = rng.uniform(0.3, 1.0, len(order))
        sequences.append(Detections(each.case, int(frame[-1]), frame, corners(boxes)[order], scores, each.image_size))
    frames, boxes = sum(each.num_frames for each in sequences), sum(len(each) for each in sequences)
    rows = []
    for one in settings:
        make = one.maker()
        begun = time.process_time()
        for each in sequences:
            tracker = make(each)
            for _, here, scores in each.frames():
                tracker.step(here, scores)
        seconds = time.process_time() - begun
        rows.append(
            {
                "tracker": one.tracker,
                "motion": one.motion_name,
                "frames_per_second": frames / seconds,
                "frames": frames,
                "detections": boxes,
            }
        )
    return rows


if __name__ == "__main__":
    main()
