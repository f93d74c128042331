"""HOTA, CLEAR, Identity, VACE and track mAP: worked by hand, the official code's goldens, and what must hold always."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from fakes.mot import write_ground_truth
from scipy.optimize import linear_sum_assignment

from statefield.datasets.tracking.track_boxes import TrackBoxes
from statefield.tasks.tracking.mot_evaluation import workers
from statefield.tasks.tracking.mot_evaluation.assignment import matched_pairs
from statefield.tasks.tracking.mot_evaluation.continued_matching import _best_of, _matchings
from statefield.tasks.tracking.mot_evaluation.evaluate import METRICS, evaluate_mot
from statefield.tasks.tracking.mot_evaluation.hota import ALPHAS, _sums_of_row, observe_hota
from statefield.tasks.tracking.mot_evaluation.overlaps import Frames
from statefield.tasks.tracking.mot_evaluation.protocols import _linked
from statefield.tasks.tracking.mot_evaluation.sequence import MotSequence
from statefield.tasks.tracking.mot_evaluation.workers import in_threads

GOLDEN = Path(__file__).parents[3] / "goldens" / "metrics_mot.json"


def boxes(rows) -> TrackBoxes:
    """Rows of (frame from 0, id, left, top, width, height)."""
    table = np.array(rows, dtype=float).reshape(-1, 6)
    count = len(table)
    return TrackBoxes(
        frame=table[:, 0].astype(np.int64),
        ids=table[:, 1].astype(np.int64),
        corners=np.concatenate([table[:, 2:4], table[:, 2:4] + table[:, 4:]], axis=1),
        size=table[:, 4:],
        classes=np.ones(count, np.int64),
        confidence=np.ones(count),
        counts=np.ones(count, bool),
        lines=np.arange(1, count + 1),
    )


def summary(sequence: MotSequence) -> dict[str, dict]:
    return {name: METRICS[name].observe(sequence).summary() for name in METRICS}


def random_sequence(seed: int, *, num_frames: int = 6, most: int = 14, lattice: bool = False) -> MotSequence:
    rng = np.random.default_rng(seed)

    def some():
        rows = []
        for frame in range(num_frames):
            for track in range(int(rng.integers(0, most))):
                place, size = rng.uniform(0, 60, 2), rng.uniform(10, 40, 2)
                if lattice:
                    place, size = np.round(place / 10) * 10, np.full(2, 20.0)
                rows.append([frame, track, *place, *size])
        return boxes(rows)

    return MotSequence.of(num_frames, some(), some())


def matrices(sequence: MotSequence) -> list[np.ndarray]:
    """The IoU matrix of each frame, from the definition."""
    found = []
    for frame in range(sequence.num_frames):
        ours, theirs = (side.corners[side.frame == frame] for side in (sequence.gt, sequence.tracker))
        low = np.maximum(ours[:, None, :2], theirs[None, :, :2])
        high = np.minimum(ours[:, None, 2:], theirs[None, :, 2:])
        both = np.prod(np.maximum(high - low, 0), axis=2)
        areas = [np.prod(side[:, 2:] - side[:, :2], axis=1) for side in (ours, theirs)]
        found.append(both / np.maximum(areas[0][:, None] + areas[1][None] - both, 1e-12))
    return found


def test_one_switch_by_hand():
    # One object, four frames, found exactly, as track 7 twice and then as track 8.
    # A match's association: TPA 2, FNA 2 (the other frames), FPA 0: 2 / 4. DetA 1, so HOTA = sqrt(1 * 0.5).
    # MOTA = 1 - (0 misses + 0 false + 1 switch) / 4. One track is the object: IDTP 2, IDFN 2, IDFP 2: IDF1 = 2 / 4.
    gt = boxes([[t, 1, 10 * t, 0, 20, 40] for t in range(4)])
    tracker = boxes([[t, 7 if t < 2 else 8, 10 * t, 0, 20, 40] for t in range(4)])
    scores = summary(MotSequence.of(4, gt, tracker))
    assert scores["HOTA"]["DetA"] == pytest.approx(np.ones(19))
    assert scores["HOTA"]["AssA"] == pytest.approx(np.full(19, 0.5))
    assert scores["HOTA"]["HOTA"] == pytest.approx(np.full(19, math.sqrt(0.5)))
    assert scores["CLEAR"]["MOTA"] == 0.75
    assert (scores["CLEAR"]["IDSW"], scores["CLEAR"]["Frag"], scores["CLEAR"]["MT"]) == (1, 0, 1)
    assert scores["Identity"]["IDF1"] == 0.5
    # Each track is there in 2 of the object's 4 frames: 0.5; one of them is matched, over (2 + 1) / 2 tracks.
    assert scores["VACE"]["ATA"] == pytest.approx(0.5 / 1.5)
    assert scores["VACE"]["SFDA"] == pytest.approx(1.0)
    # Track IoU 0.5 for both: at the threshold 0.5 the first is a hit, the second false, at higher ones both are false.
    assert scores["TrackMAP"]["AR_all"][0] == 1
    assert scores["TrackMAP"]["AP_all"][0] == pytest.approx(1)
    assert scores["TrackMAP"]["AP_all"][1] == 0


def test_the_box_that_is_half_covered_by_hand():
    # The box 0..20 x 0..20 and the same moved by 5: intersection 15 * 20, union 25 * 20: IoU 0.6, a hit up to 0.6.
    sequence = MotSequence.of(1, boxes([[0, 1, 0, 0, 20, 20]]), boxes([[0, 1, 5, 0, 20, 20]]))
    assert sequence.pairs.iou == pytest.approx([0.6])
    hota = observe_hota(sequence)
    assert hota.tp.tolist() == [1.0] * 12 + [0.0] * 7
    assert hota.summary()["LocA"].tolist() == pytest.approx([0.6] * 12 + [1.0] * 7)  # 1 where nothing is matched


def test_ground_truth_against_itself_is_perfect():
    sequence = random_sequence(3)
    itself = MotSequence.of(sequence.num_frames, sequence.gt, sequence.gt)
    scores = summary(itself)
    for metric, field in (("HOTA", "HOTA"), ("CLEAR", "MOTA"), ("Identity", "IDF1"), ("VACE", "SFDA")):
        assert np.mean(scores[metric][field]) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("lattice", [False, True])
def test_overlaps_are_the_matrices_of_the_definition(seed, lattice):
    sequence = random_sequence(seed, lattice=lattice)
    dense = [np.zeros_like(matrix) for matrix in matrices(sequence)]
    for gt, tracker, frame, iou in zip(
        sequence.pairs.gt, sequence.pairs.tracker, sequence.pairs.frame, sequence.pairs.iou, strict=True
    ):
        row = gt - sequence.gt_frames.first[frame]
        dense[frame][row, tracker - sequence.tracker_frames.first[frame]] = iou
    for ours, definition in zip(dense, matrices(sequence), strict=True):
        assert ours == pytest.approx(definition, abs=1e-12)


@pytest.mark.parametrize("lattice", [False, True], ids=["any boxes", "many ties"])
def test_the_matching_is_the_one_of_a_dense_solver_also_among_equals(lattice):
    for seed in range(40):
        sequence = random_sequence(seed, lattice=lattice)
        pairs = sequence.pairs
        matched = matched_pairs(pairs, pairs.iou, sequence.gt_frames, sequence.tracker_frames)
        for frame in range(sequence.num_frames):
            rows = sequence.gt_frames.first[frame : frame + 2]
            columns = sequence.tracker_frames.first[frame : frame + 2]
            dense = np.zeros((rows[1] - rows[0], columns[1] - columns[0]))
            of_frame = pairs.frame == frame
            dense[pairs.gt[of_frame] - rows[0], pairs.tracker[of_frame] - columns[0]] = pairs.iou[of_frame]
            best = {(r, c) for r, c in zip(*linear_sum_assignment(-dense), strict=True) if dense[r, c] > 0}
            chosen = of_frame & matched
            assert best == set(zip(pairs.gt[chosen] - rows[0], pairs.tracker[chosen] - columns[0], strict=True))


def test_who_asks_of_some_pairs_gets_what_the_whole_matching_has():
    for seed in range(40):
        sequence = random_sequence(seed, lattice=seed % 2 == 0)
        pairs = sequence.pairs
        frames = sequence.gt_frames, sequence.tracker_frames
        asked = pairs.gt % 7 == seed % 7
        linked = _linked(pairs, asked, sequence.num_gt, sequence.num_tracker)
        assert np.all(linked[asked])
        shared = np.isin(pairs.gt, pairs.gt[linked]) | np.isin(pairs.tracker, pairs.tracker[linked])
        assert np.array_equal(shared, linked), "closed under sharing a box"
        some, every = (matched_pairs(pairs, pairs.iou, *frames, asked=each) for each in (linked, None))
        assert np.array_equal(some[linked], every[linked])


@pytest.mark.parametrize("shift", [0.0, -31_000.25, 40_000.5, 1e7])
def test_overlaps_far_from_the_origin_are_found_too(shift):
    gt = boxes([[0, 1, shift, 0, 20, 20], [0, 2, 100, shift, 20, 20]])
    tracker = boxes([[0, 1, shift + 19.5, 0, 20, 20], [0, 2, shift + 20, 0, 20, 20], [0, 3, 100, shift + 5, 20, 20]])
    pairs = MotSequence.of(1, gt, tracker).pairs
    # of 20: half a pixel in common, 0.5 / 39.5; touching is no overlap; 15 in common, 15 / 25
    assert list(zip(pairs.gt.tolist(), pairs.tracker.tolist(), strict=True)) == [(0, 0), (1, 2)]
    assert pairs.iou == pytest.approx([0.5 / 39.5, 0.6])


def test_every_matching_of_a_group_to_which_nothing_can_be_added():
    # row * 16 + column: one box for two; a chain of three; two by two
    assert _matchings((0, 1)) == ((0,), (1,))
    assert _matchings((0, 1, 17)) == ((0, 2), (1,))
    assert _matchings((0, 1, 16, 17)) == ((0, 3), (1, 2))
    three_by_three = _matchings(tuple(16 * row + column for row in range(3) for column in range(3)))
    assert three_by_three is not None and len(three_by_three) == 6
    assert _best_of(((0, 2), (1,)), [0.6, 1000.5, 0.7]) == (1,)
    assert _best_of(((0,), (1,)), [0.6, 0.6]) is None, "equals are for the solver to choose from"


def test_work_in_threads_is_in_order_and_tells_the_first_error(monkeypatch):
    monkeypatch.setattr(workers, "_processors", lambda: 3)
    assert in_threads(lambda item: item * item, range(20), lambda item: item) == [item * item for item in range(20)]

    def fails(item):
        if item in (4, 11):
            raise ValueError(f"item {item}")
        return item

    for size in (lambda item: item, lambda item: -item):
        with pytest.raises(ValueError, match="item 4"):
            in_threads(fails, range(20), size)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 7), (9, 1), (1, 20), (12, 8), (30, 45), (5, 140), (140, 1)])
def test_row_sums_are_those_of_numpy_to_the_last_bit(sizes):
    rng = np.random.default_rng(sizes)

    def side(count):
        return boxes([[0, k, *rng.uniform(0, 30, 2), *rng.uniform(20, 60, 2)] for k in range(count)])

    sequence = MotSequence.of(1, side(sizes[0]), side(sizes[1]))
    dense = np.zeros(sizes)
    dense[sequence.pairs.gt, sequence.pairs.tracker] = sequence.pairs.iou
    assert np.array_equal(_sums_of_row(sequence, by="gt"), dense.sum(1))
    assert np.array_equal(_sums_of_row(sequence, by="tracker"), dense.sum(0))


def test_states_of_sequences_add_up_whatever_their_order():
    states = [{name: METRICS[name].observe(random_sequence(seed)) for name in METRICS} for seed in range(3)]
    for name in METRICS:
        one = (states[0][name] + states[1][name] + states[2][name]).summary()
        other = (states[2][name] + (states[0][name] + states[1][name])).summary()
        for field in one:
            if name != "TrackMAP":  # equal scores are ranked by the order of sequences there
                assert np.asarray(one[field]) == pytest.approx(np.asarray(other[field]), nan_ok=True)


def test_nothing_at_all_has_scores():
    empty = boxes([])
    scores = summary(MotSequence.of(3, empty, empty))
    assert scores["HOTA"]["LocA"].tolist() == [1.0] * 19
    assert scores["CLEAR"]["MLR"] == 1
    assert math.isnan(scores["VACE"]["SFDA"])
    assert scores["TrackMAP"]["AP_all"].tolist() == [-1.0] * 10


def test_frames_know_where_their_boxes_are():
    frames = Frames.of(np.array([0, 0, 3], np.int64), 5)
    assert frames.first.tolist() == [0, 2, 2, 2, 3, 3]
    assert frames.counts.tolist() == [2, 0, 0, 1, 0]


def test_thresholds_are_those_that_the_official_code_computes():
    assert len(ALPHAS) == 19
    assert ALPHAS[2] == 0.15000000000000002


def test_the_official_codes_goldens(tmp_path):
    golden = json.loads(GOLDEN.read_text())
    for sequence in golden["sequences"]:
        text = "".join(f"{row}\n" for row in sequence["gt"])
        write_ground_truth(tmp_path / "gt", sequence["name"], text, sequence["length"])
        results = tmp_path / "tracker" / f"{sequence['name']}.txt"
        results.parent.mkdir(exist_ok=True)
        results.write_text("".join(f"{row}\n" for row in sequence["tracker"]))
    evaluation = evaluate_mot(
        tmp_path / "gt", [tmp_path / "tracker"], benchmark="MOT17", metrics=list(METRICS), on_bad="skip"
    )
    tracker = evaluation.trackers[0]
    compared = 0
    for metric, by_sequence in golden["per_sequence"].items():
        for sequence, fields in [*by_sequence.items(), ("", golden["combined"][metric])]:
            scores = tracker.of_sequence("pedestrian", sequence) if sequence else tracker.combined("pedestrian")
            for field, value in fields.items():
                if field != "sequences_combined":
                    assert np.asarray(scores[metric][field], float) == pytest.approx(np.asarray(value, float), abs=1e-9)
                    compared += 1
    assert compared > 500
    for name, counts in golden["counts"].items():
        count = tracker.of_sequence("pedestrian", name)["Count"]
        assert [count[key] for key in ("GT_Dets", "Dets", "GT_IDs", "IDs", "Frames")] == [
            counts[key] for key in ("num_gt_dets", "num_tracker_dets", "num_gt_ids", "num_tracker_ids", "num_timesteps")
        ]
