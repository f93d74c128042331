"""Lesions by hand: connected components found, missed and invented."""

from __future__ import annotations

import math

import numpy as np
import pytest

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.common.lesions import LesionState, count_lesions
from statefield.tasks.common.segmentation_metrics import SegmentationMetrics, SegmentationState


def _row(text):
    """A picture of one row: "11.1" has the lesions 11 and 1."""
    return np.array([[char == "1" for char in text]])


def test_hand_worked_counts_of_both_rules():
    truth = _row("1111111111.1.1")
    guess = _row("1...........1.")[:, :14]
    guess[0, 13] = True  # joins column 12 to 13: one predicted lesion on the third true one
    # true lesions of 10, 1 and 1 pixels; predicted ones of 1 (in the first) and 2 pixels (half on the third)
    assert count_lesions(guess, truth).tolist() == [3, 2, 2, 0]
    assert count_lesions(guess, truth, iou=0.1).tolist() == [3, 2, 2, 0]  # IoU 1/10 counts, and 1/2
    assert count_lesions(guess, truth, iou=0.11).tolist() == [3, 1, 2, 1]
    assert count_lesions(guess, truth, iou=0.6).tolist() == [3, 0, 2, 2]


def test_one_blob_over_two_lesions_detects_both_and_two_pieces_of_one_are_both_right():
    two, one = _row("11..11"), _row("111111")
    assert count_lesions(one, two).tolist() == [2, 2, 1, 0]
    assert count_lesions(two, one).tolist() == [1, 1, 2, 0]
    # IoU of each pair: 2 / 6
    assert count_lesions(one, two, iou=1 / 3).tolist() == [2, 2, 1, 0]
    assert count_lesions(one, two, iou=0.34).tolist() == [2, 0, 1, 1]


@pytest.mark.parametrize("axes", [2, 3])
def test_pixels_that_share_a_corner_are_one_lesion(axes):
    corner, apart = np.zeros((2, *(4,) * axes), bool)
    corner[(0,) * axes] = corner[(1,) * axes] = True
    apart[(0,) * axes] = apart[(2,) * axes] = True
    assert count_lesions(corner, apart).tolist() == [2, 1, 1, 0]


def test_scores_of_empty_sides():
    state = LesionState(np.array([[0, 0, 0, 0], [2, 0, 0, 0], [0, 0, 3, 3], [2, 0, 1, 1], [4, 3, 2, 1]]))
    np.testing.assert_array_equal(state.sensitivity, [math.nan, 0.0, math.nan, 0.0, 0.75])
    np.testing.assert_array_equal(state.precision, [math.nan, math.nan, 0.0, 0.0, 0.5])
    np.testing.assert_allclose(state.f1, [math.nan, 0.0, 0.0, 0.0, 2 * 0.75 * 0.5 / 1.25])
    np.testing.assert_array_equal(state.false_positives, [0, 0, 3, 1, 1])


def test_counts_add_over_cases_and_the_summary_pools_them():
    metrics = SegmentationMetrics(("background", "lesion"), distances=False, lesions=True)
    pairs = [("1.1.", "1.1."), ("1..1", "1..."), ("....", "...."), ("..1.", "....")]  # prediction, truth
    state = SegmentationState()
    for index, (guess, truth) in enumerate(pairs):
        state += metrics.observe(_row(guess).astype(int), _row(truth).astype(int), case=str(index), spacing=(1, 1))
    summary = metrics.summarise(state)
    assert summary["lesions"] == {
        "lesion": {"num_true": 3, "num_detected": 3, "num_predicted": 5, "num_false_positive": 2}
    }
    scores = {name: entry["classes"]["lesion"] for name, entry in summary["metrics"].items()}
    assert scores["lesion_sensitivity_any"]["case_mean"] == 1.0
    assert scores["lesion_sensitivity_any"]["num_counted"] == 2
    assert scores["lesion_precision_any"]["case_mean"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert scores["lesion_precision_any"]["pooled"] == pytest.approx(3 / 5)
    assert scores["lesion_F1_any"]["case_mean"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert scores["lesion_FP_any"]["case_mean"] == pytest.approx((0 + 1 + 0 + 1) / 4)  # every case counts
    assert scores["lesion_FP_any"]["num_counted"] == 4
    assert "pooled" not in scores["lesion_FP_any"]
    assert summary["metrics"]["lesion_FP_any"]["better"] == "lower"


def test_only_the_classes_named_have_lesions():
    metrics = SegmentationMetrics(("background", "organ", "lesion"), lesions=("lesion",))
    labels = np.array([[1, 0, 2], [0, 0, 0], [1, 0, 2]])
    scores = metrics.observe(labels, labels, case="a", spacing=(1, 1)).cases["a"]
    assert scores.lesions.counts.tolist() == [[0] * 4, [0] * 4, [2, 2, 2, 0]]
    np.testing.assert_array_equal(scores.values["lesion_FP_any"], [math.nan, math.nan, 0])


def test_masks_and_rules_that_cannot_work_are_refused():
    with pytest.raises(ShapeError, match="one shape"):
        count_lesions(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(ConfigError, match="lesion IoU"):
        count_lesions(np.ones((2, 2)), np.ones((2, 2)), iou=1.5)
    with pytest.raises(ShapeError, match="2 and of 3 classes"):
        LesionState.empty(2) + LesionState.empty(3)
