"""Every metric, field and threshold equals TrackEval 1.3.0's, on random cases and on real ground truth.

trackeval_1_3_0.npz holds what TrackEval computed; record_trackeval.py tells how.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes.mot import (
    BENCHMARKS,
    KITTI_CASES,
    disturbed,
    kitti_case,
    random_cases,
    write_cases,
    write_ground_truth,
    write_kitti_cases,
)

from statefield.tasks.tracking.mot_evaluation.evaluate import METRICS, MotEvaluation, Summary, evaluate_mot

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).resolve().parents[5] / "shared" / "data")) / "mot"
REAL_SEED = 5  # as in record_trackeval.py
TOLERANCE = 1e-9

with np.load(Path(__file__).with_name("trackeval_1_3_0.npz")) as recorded:
    FIELDS = [str(field) for field in recorded["fields"]]
    EXPECTED = {tuple(map(str, row)): values for row, values in zip(recorded["rows"], recorded["values"], strict=True)}


def cells(summary: Summary) -> Iterator[tuple[str, float]]:
    for metric, fields in summary.items():
        for field, values in fields.items():
            for position, value in enumerate(np.atleast_1d(np.asarray(values, dtype=float))):
                yield f"{metric} {field} {position}", float(value)


def compare(name: str, evaluation: MotEvaluation) -> None:
    """Every row of a set against the recorded one; a difference is told by its row and field."""
    wrong = []
    rows = [row for row in EXPECTED if row[0] == name]
    tracker = evaluation.trackers[0]
    assert {row[2] for row in rows} == {each.name for each in evaluation.ground_truth.sequences} | {"COMBINED"}
    for row in rows:
        _, class_name, sequence = row
        summary = tracker.combined(class_name) if sequence == "COMBINED" else tracker.of_sequence(class_name, sequence)
        ours = dict(cells(summary))
        assert not set(FIELDS) - set(ours)
        for field, expected in zip(FIELDS, EXPECTED[row].tolist(), strict=True):
            if np.isinf(expected):  # TrackEval raises
                continue
            if not np.isclose(ours[field], expected, rtol=0, atol=TOLERANCE * max(1, abs(expected)), equal_nan=True):
                wrong.append(f"{class_name} {sequence} {field}: {ours[field]!r}, TrackEval {expected!r}")
    assert not wrong, f"{len(wrong)} differ: " + "; ".join(wrong[:8])


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_random_cases_are_equal_on_every_field(benchmark, tmp_path):
    write_cases(tmp_path, [case for case in random_cases() if case.benchmark == benchmark])
    evaluation = evaluate_mot(
        tmp_path / "gt", [tmp_path / "results"], benchmark=benchmark, metrics=list(METRICS), on_bad="skip"
    )
    compare(f"random {benchmark}", evaluation)


def test_random_cases_of_kitti_are_equal_on_every_field(tmp_path):
    write_kitti_cases(tmp_path, [kitti_case(number) for number in range(KITTI_CASES)])
    evaluation = evaluate_mot(tmp_path / "gt", [tmp_path / "results"], metrics=list(METRICS), on_bad="skip")
    assert evaluation.ground_truth.benchmark == "KITTI"
    compare("random KITTI", evaluation)


@pytest.mark.shared_data
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_real_ground_truth_against_disturbed_ground_truth_is_equal_on_every_field(benchmark, tmp_path):
    root = DATA / "motchallenge_gt" / f"{benchmark}-train"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    for sequence in sorted(root.iterdir()):
        text = disturbed(sequence / "gt" / "gt.txt", REAL_SEED)
        results = tmp_path / "disturbed" / f"{sequence.name}.txt"
        results.parent.mkdir(exist_ok=True)
        results.write_text(text)
    evaluation = evaluate_mot(root, [tmp_path / "disturbed"], metrics=list(METRICS))
    assert evaluation.ground_truth.benchmark == benchmark
    compare(benchmark, evaluation)


@pytest.mark.shared_data
def test_the_tracker_of_tud_is_equal_on_every_field(tmp_path):
    root = DATA / "motmetrics_tud"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    for name, length in (("TUD-Campus", 71), ("TUD-Stadtmitte", 179)):
        write_ground_truth(tmp_path / "gt", name, (root / name / "gt.txt").read_text(), length)
    evaluation = evaluate_mot(tmp_path / "gt", [root], metrics=list(METRICS))
    compare("TUD", evaluation)
