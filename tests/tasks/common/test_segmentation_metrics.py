"""Scores per case and class, their sums and their summary."""

from __future__ import annotations

import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric, compute_hausdorff_distance, compute_surface_dice

from statefield.datasets.readers.nifti import read_labels
from statefield.errors import ConfigError, DataError, LabelError, ShapeError
from statefield.labels import UNLABELLED
from statefield.tasks.common.bootstrap import bootstrap_interval, case_mean, class_mean
from statefield.tasks.common.segmentation_metrics import SegmentationMetrics, SegmentationState

CLASSES = ("background", "left", "right")
DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[3] / "../shared/data"))
REAL = DATA / "medical/totalsegmentator_examples"


def _case(left, right, shape=(8, 8)):
    """A map with `left` pixels of class 1 in row 1 and `right` pixels of class 2 in row 5."""
    labels = np.zeros(shape, np.int64)
    labels[1, :left] = 1
    labels[5, :right] = 2
    return labels


def _observed(metrics, *pairs):
    state = SegmentationState()
    for index, (prediction, target) in enumerate(pairs):
        state += metrics.observe(prediction, target, case=f"case_{index}", spacing=(1.0, 1.0))
    return state


def test_hand_worked_means_counts_and_pooled_scores():
    metrics = SegmentationMetrics(CLASSES)
    state = _observed(
        metrics,
        (_case(4, 2), _case(4, 4)),  # left 2*4/8 = 1; right 2*2/6 = 2/3
        (_case(2, 0), _case(4, 0)),  # left 2*2/6 = 2/3; right nowhere
        (_case(4, 0), _case(0, 4)),  # left invented: 0; right missed: 0
    )
    summary = metrics.summarise(state)
    dice = summary["metrics"]["Dice"]
    assert dice["classes"]["left"]["case_mean"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert dice["classes"]["right"]["case_mean"] == pytest.approx((2 / 3 + 0) / 2)
    assert (dice["classes"]["right"]["num_counted"], dice["classes"]["right"]["num_not_counted"]) == (2, 1)
    assert dice["classes"]["left"]["pooled"] == pytest.approx(2 * (4 + 2) / ((4 + 2 + 4) + (4 + 4)))
    assert dice["classes"]["right"]["pooled"] == pytest.approx(2 * 2 / (2 + 8))
    assert dice["foreground_mean"] == pytest.approx(((1 + 2 / 3) / 3 + (2 / 3) / 2) / 2)
    assert dice["num_foreground_counted"] == 2
    assert summary["classes"]["left"] == {"num_present": 2, "num_predicted": 3, "num_missed": 0, "num_invented": 1}
    assert summary["classes"]["right"] == {"num_present": 2, "num_predicted": 1, "num_missed": 1, "num_invented": 0}
    # row 5: 2 of 4 pixels predicted, the others 1 and 2 away
    hd95 = summary["metrics"]["HD95_mm"]["classes"]
    assert hd95["right"]["case_mean"] == pytest.approx(np.percentile([0, 0, 1, 2], 95))
    assert (hd95["right"]["num_counted"], hd95["left"]["num_counted"]) == (1, 2)
    nsd = summary["metrics"]["NSD_1mm"]["classes"]["right"]
    assert nsd["case_mean"] == pytest.approx((5 / 6 + 0) / 2)
    assert nsd["num_counted"] == 2
    assert math.isnan(summary["metrics"]["HD95_mm"]["classes"]["background"]["case_mean"])


def test_sum_of_states_equals_one_run_whatever_the_grouping():
    metrics = SegmentationMetrics(CLASSES)
    rng = np.random.default_rng(0)
    states = [metrics.observe(*rng.integers(0, 3, (2, 6, 7)), case=f"case_{i}", spacing=(1.0, 2.0)) for i in range(5)]
    left_to_right = sum(states, SegmentationState())
    other = (states[4] + states[1]) + (states[0] + (states[3] + states[2]))
    np.testing.assert_equal(metrics.summarise(other), metrics.summarise(left_to_right))


def test_a_case_observed_twice_is_refused():
    metrics = SegmentationMetrics(CLASSES)
    state = _observed(metrics, (_case(1, 1), _case(1, 1)))
    with pytest.raises(DataError, match="case_0"):
        state + state


def test_states_travel_between_processes_and_summaries_into_json(tmp_path):
    metrics = SegmentationMetrics(CLASSES)
    state = _observed(metrics, (_case(1, 2), _case(3, 2)), (_case(1, 2), _case(3, 2)))
    again = pickle.loads(pickle.dumps(state))
    np.testing.assert_equal(metrics.summarise(again), metrics.summarise(state))
    assert json.loads(json.dumps(metrics.summarise(state)))["num_cases"] == 2


def test_units_and_tolerance_ride_in_the_names():
    shares = ("sensitivity", "specificity", "precision")
    assert SegmentationMetrics(CLASSES, tolerance_mm=2.5).names[2:] == ("HD95_mm", "ASSD_mm", "NSD_2.5mm", *shares)
    assert SegmentationMetrics(CLASSES, unit="px").names[2:] == ("HD95_px", "ASSD_px", "NSD_1px", *shares)
    assert SegmentationMetrics(CLASSES, distances=False).names == ("Dice", "IoU", *shares)
    lesions = ("lesion_sensitivity_any", "lesion_precision_any", "lesion_F1_any", "lesion_FP_any")
    assert SegmentationMetrics(CLASSES, distances=False, lesions=True).names[5:] == lesions
    tenth = SegmentationMetrics(CLASSES, lesions=True, lesion_iou=0.1)
    assert tenth.names[-2:] == ("lesion_F1_IoU0.1", "lesion_FP_IoU0.1")


def test_background_enters_the_means_only_when_asked():
    pair = (_case(4, 4), _case(4, 2))
    without = SegmentationMetrics(CLASSES)
    with_it = SegmentationMetrics(CLASSES, background=None)
    dice = _observed(without, pair).cases["case_0"].values["Dice"]
    assert without.foreground_means(_observed(without, pair))["Dice"] == pytest.approx(dice[1:].mean())
    assert with_it.foreground_means(_observed(with_it, pair))["Dice"] == pytest.approx(dice.mean())
    assert math.isfinite(_observed(with_it, pair).cases["case_0"].values["HD95_mm"][0])


def test_volume_of_one_slice_is_scored_as_the_picture_it_is():
    metrics = SegmentationMetrics(CLASSES)
    prediction, target = np.zeros((2, 10, 12), int)
    prediction[2:8, 2:8], target[2:8, 3:9] = 1, 1
    flat = metrics.observe(prediction, target, case="a", spacing=(1.0, 0.5))
    for axis in range(3):
        spacing = list(np.insert([1.0, 0.5], axis, 9.0))
        volume = metrics.observe(
            np.expand_dims(prediction, axis), np.expand_dims(target, axis), case="a", spacing=spacing
        )
        for name in metrics.names:
            np.testing.assert_equal(volume.cases["a"].values[name], flat.cases["a"].values[name])


def test_unlabelled_pixels_enter_no_score():
    # class 1 fills rows 2-5 of the truth and rows 3-6 of the prediction; rows 0 and 1 and column 5 have no label
    target, prediction = np.zeros((2, 8, 6), np.int64)
    target[2:6], prediction[3:7] = 1, 1
    target[:2], target[:, 5] = UNLABELLED, UNLABELLED
    prediction[:2], prediction[:, 5] = 2, 2  # invented, where nobody knows
    metrics = SegmentationMetrics(CLASSES, lesions=True)
    scores = metrics.observe(prediction, target, case="a", spacing=(1.0, 1.0)).cases["a"]
    assert scores.confusion.num_target.tolist() == [2 * 5, 4 * 5, 0]
    values = {name: array[1] for name, array in scores.values.items()}
    assert values["Dice"] == pytest.approx(2 * 15 / (20 + 20))
    assert values["sensitivity"] == values["precision"] == pytest.approx(15 / 20)
    assert values["specificity"] == pytest.approx(5 / 10)
    assert scores.confusion.accuracy == pytest.approx((15 + 5) / 30)
    assert math.isnan(scores.values["Dice"][2])
    assert scores.lesions.counts.tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    # surfaces: of the truth row 5 (row 2 lies at unlabelled rows) and column 0 of rows 2-5, the image's border; of the
    # prediction rows 3 and 6 and column 0. Truth: (5, 1..4) are 1 from row 6, (5, 0), (4, 0), (3, 0) lie on the
    # prediction's surface, (2, 0) is 1 from (3, 0). Prediction: row 6 (five pixels) is 1 from row 5; column 0 of rows
    # 3-5 is 0 away; (3, c) is c from column 0 or 2 from row 5: min(c, 2) for c = 1..4
    assert values["ASSD_mm"] == pytest.approx(((4 + 0 + 1) + (5 + 0 + 1 + 2 + 2 + 2)) / (8 + 12))
    assert values["NSD_1mm"] == pytest.approx((8 + 9) / (8 + 12))


def test_no_score_depends_on_what_is_predicted_where_no_label_is():
    rng = np.random.default_rng(3)
    target = rng.integers(0, 3, (9, 10, 11))
    target[:, 6:] = UNLABELLED
    predictions = rng.integers(0, 3, (2, 9, 10, 11))
    predictions[1, :, :6] = predictions[0, :, :6]
    metrics = SegmentationMetrics(CLASSES, lesions=True, lesion_iou=0.1)
    predictions = predictions[0].astype(np.uint8), predictions[1]  # predictions are often unsigned
    first, second = (metrics.observe(p, target, case="a", spacing=(2.0, 1.0, 1.0)).cases["a"] for p in predictions)
    for name in metrics.names:
        np.testing.assert_array_equal(first.values[name], second.values[name])


def test_wrong_input_names_the_case():
    metrics = SegmentationMetrics(CLASSES)
    good = _case(1, 1)
    with pytest.raises(LabelError, match=r"'brain'.*labels 0 to 4"):
        metrics.observe(good * 2, good, case="brain", spacing=(1, 1))
    with pytest.raises(ShapeError, match="'brain'"):
        metrics.observe(good[:4], good, case="brain", spacing=(1, 1))
    with pytest.raises(ConfigError, match=r"'brain'.*one length for each axis"):
        metrics.observe(good, good, case="brain", spacing=(1, 1, 1))
    with pytest.raises(DataError, match="no case"):
        metrics.summarise(SegmentationState())
    for options in (
        {"classes": ("one",)},
        {"classes": CLASSES, "tolerance_mm": -1.0},
        {"classes": CLASSES, "background": 3},
        {"classes": CLASSES, "lesions": ("background",)},
        {"classes": CLASSES, "lesions": True, "lesion_iou": 0.0},
    ):
        with pytest.raises(ConfigError):
            SegmentationMetrics(**options)


def test_means_leave_out_what_has_no_score():
    values = np.array([[1.0, np.nan], [0.0, np.nan], [np.nan, np.nan]])
    np.testing.assert_equal(case_mean(values), [0.5, np.nan])
    assert class_mean(values) == 0.5
    assert math.isnan(class_mean(np.full((3, 2), np.nan)))


def test_bootstrap_interval_covers_as_a_normal_interval_does():
    values = np.random.default_rng(0).normal(0.8, 0.1, (200, 1))
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std(ddof=1) / np.sqrt(200)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert bootstrap_interval(values) == (low, high)
    assert all(math.isnan(bound) for bound in bootstrap_interval(values[:1]))
    assert bootstrap_interval(np.full((5, 2), 0.7)) == pytest.approx((0.7, 0.7))


def test_bootstrap_in_pieces_is_what_it_is_at_once(monkeypatch):
    values = np.random.default_rng(0).random((20, 3))
    whole = bootstrap_interval(values)
    monkeypatch.setattr("statefield.tasks.common.bootstrap._MOST_VALUES_AT_ONCE", 3000)
    assert bootstrap_interval(values) == whole


@pytest.mark.shared_data
@pytest.mark.filterwarnings("ignore:the (ground truth|prediction) of class:UserWarning")
@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")
def test_equal_to_monai_on_real_organ_maps():
    if not REAL.is_dir():
        pytest.skip(f"no real label maps at {REAL} (STATEFIELD_DATA)")
    target, prediction = (read_labels(REAL / name) for name in ("example_seg.nii.gz", "example_seg_fast.nii.gz"))
    labels = np.unique(target.array)[:9]  # renumbered to the first eight organs: MONAI takes seconds for all
    maps = [np.where(np.isin(v.array[0], labels), np.searchsorted(labels, v.array[0]), 0) for v in (prediction, target)]
    metrics = SegmentationMetrics(tuple(f"organ_{k}" for k in labels))
    values = metrics.observe(*maps, case="ct", spacing=target.spacing).cases["ct"].values
    pair = [torch.nn.functional.one_hot(torch.as_tensor(m), len(labels)).movedim(-1, 0)[None] for m in maps]
    options = {"spacing": list(target.spacing), "include_background": False}
    np.testing.assert_allclose(values["Dice"], DiceMetric(reduction="none")(*pair).numpy()[0], atol=1e-6)
    hd95 = compute_hausdorff_distance(*pair, percentile=95, **options).numpy()[0]
    np.testing.assert_allclose(values["HD95_mm"][1:], hd95, rtol=1e-5)
    nsd = compute_surface_dice(*pair, class_thresholds=[1.0] * (len(labels) - 1), **options).numpy()[0]
    np.testing.assert_allclose(values["NSD_1mm"][1:], nsd, atol=1e-6)
    assert np.isfinite(hd95).sum() >= 5
