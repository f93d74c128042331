"""SORT on the detections of its paper has the MOTA that its authors publish."""

import os
from pathlib import Path

import pytest

from statefield.datasets.tracking.detections import read_detections
from statefield.tasks.tracking.mot_evaluation.evaluate import evaluate_mot
from statefield.tasks.tracking.trackers.run import TrackerSettings, track, write_tracks

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[4] / "../shared/data")) / "mot"
PUBLISHED = {"TUD-Campus": 62.7, "KITTI-17": 60.2}  # the two shortest of the six, README of abewley/sort


@pytest.mark.shared_data
def test_sort_has_its_published_mota(tmp_path):
    if not (DATA / "sort_mot15_detections").is_dir():
        pytest.skip(f"no detections at {DATA / 'sort_mot15_detections'}")
    sequences = read_detections(DATA / "sort_mot15_detections", sequences=list(PUBLISHED))
    write_tracks(track(sequences, TrackerSettings("sort")), tmp_path / "sort")
    truth = DATA / "motchallenge_gt" / "MOT15-train"
    scores = evaluate_mot(truth, [tmp_path / "sort"], sequences=list(PUBLISHED)).trackers[0]
    for name, mota in PUBLISHED.items():
        assert scores.of_sequence("pedestrian", name)["CLEAR"]["MOTA"] * 100 == pytest.approx(mota, abs=0.05)
