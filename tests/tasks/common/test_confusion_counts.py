"""Confusion counts and overlap scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import DiceMetric, MeanIoU

from statefield.errors import LabelError, ShapeError
from statefield.tasks.common.config import UNLABELLED
from statefield.tasks.common.confusion import ConfusionState, observe, summarise

# target 0 0 0 0 1 1 1 2, prediction 0 0 1 2 1 1 0 2
TARGET = np.array([[0, 0, 0, 0], [1, 1, 1, 2]])
PREDICTION = np.array([[0, 0, 1, 2], [1, 1, 0, 2]])


def _one_hot(labels, num_classes):
    return torch.nn.functional.one_hot(torch.as_tensor(labels), num_classes).movedim(-1, 0)[None]


def test_hand_worked_counts_dice_and_iou():
    state = observe(PREDICTION, TARGET, num_classes=4)
    assert state.counts.tolist() == [[2, 1, 1, 0], [1, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    # class 0: TP 2, FP 1, FN 2; class 1: TP 2, FP 1, FN 1; class 2: TP 1, FP 1, FN 0; class 3: nowhere
    np.testing.assert_allclose(state.dice, [4 / 7, 4 / 6, 2 / 3, np.nan])
    np.testing.assert_allclose(state.iou, [2 / 5, 2 / 4, 1 / 2, np.nan])
    # of the 8 pixels 4, 5, 7 and 8 are not of the class; FP 1, 1, 1 and 0 of them
    np.testing.assert_allclose(state.sensitivity, [2 / 4, 2 / 3, 1 / 1, np.nan])
    np.testing.assert_allclose(state.specificity, [3 / 4, 4 / 5, 6 / 7, 8 / 8])
    np.testing.assert_allclose(state.precision, [2 / 3, 2 / 3, 1 / 2, np.nan])
    assert state.accuracy == pytest.approx(5 / 8)
    assert state.num_target.tolist() == [4, 3, 1, 0]
    assert state.num_predicted.tolist() == [3, 3, 2, 0]


def test_summary_names_metric_class_and_averaging():
    scores = summarise(observe(PREDICTION, TARGET, num_classes=3), ("ground", "left", "right"))
    assert scores["Dice/left (pooled)"] == pytest.approx(4 / 6)
    assert scores["IoU/right (pooled)"] == pytest.approx(1 / 2)
    with pytest.raises(ShapeError, match="2 class names"):
        summarise(observe(PREDICTION, TARGET, num_classes=3), ("a", "b"))


@given(st.integers(0, 2**32 - 1), st.integers(1, 11))
def test_sum_of_parts_equals_one_run(seed, cut):
    rng = np.random.default_rng(seed)
    prediction, target = rng.integers(0, 5, (2, 12))
    parts = [observe(prediction[part], target[part], num_classes=5) for part in (slice(cut), slice(cut, None))]
    whole = observe(prediction, target, num_classes=5)
    np.testing.assert_array_equal(sum(parts, ConfusionState.empty(5)).counts, whole.counts)


def test_counting_in_chunks_counts_every_pixel_once(monkeypatch):
    whole = observe(PREDICTION, TARGET, num_classes=3).counts
    for chunk in (1, 3, 8):
        monkeypatch.setattr("statefield.tasks.common.confusion._CHUNK", chunk)
        np.testing.assert_array_equal(observe(PREDICTION, TARGET, num_classes=3).counts, whole)


def test_dice_and_iou_equal_monais_on_random_maps():
    rng = np.random.default_rng(0)
    prediction, target = rng.integers(0, 4, (2, 6, 7, 8))
    state = observe(prediction, target, num_classes=5)  # class 4 is nowhere
    for metric, ours in ((DiceMetric(reduction="none"), state.dice), (MeanIoU(reduction="none"), state.iou)):
        theirs = metric(_one_hot(prediction, 5), _one_hot(target, 5)).numpy()[0]
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_places_that_are_not_valid_are_not_counted():
    valid = np.array([[True, True, False, False], [True, True, True, True]])
    state = observe(PREDICTION, TARGET, num_classes=3, valid=valid)
    assert state.counts.tolist() == [[2, 0, 0], [1, 2, 0], [0, 0, 1]]
    with pytest.raises(ShapeError, match="valid"):
        observe(PREDICTION, TARGET, num_classes=3, valid=valid[0])


def test_unlabelled_pixels_are_not_counted_whatever_is_predicted_there():
    target = np.array([[0, 0, UNLABELLED, UNLABELLED], [1, 1, 1, 2]])
    prediction = PREDICTION.copy()
    prediction[0, 2:] = UNLABELLED, 99  # not looked at
    state = observe(prediction, target, num_classes=3)
    assert state.counts.tolist() == [[2, 0, 0], [1, 2, 0], [0, 0, 1]]
    assert state.accuracy == pytest.approx(5 / 6)
    nothing = observe(PREDICTION, np.full_like(TARGET, UNLABELLED), num_classes=3)
    assert nothing.counts.sum() == 0
    assert np.isnan([nothing.accuracy, *nothing.dice, *nothing.specificity]).all()


def test_tensors_and_small_integer_types_count_alike():
    expected = observe(PREDICTION, TARGET, num_classes=3).counts
    np.testing.assert_array_equal(
        observe(torch.as_tensor(PREDICTION), TARGET.astype(np.uint8), num_classes=3).counts, expected
    )


def test_maps_that_cannot_be_compared_are_refused():
    with pytest.raises(ShapeError, match=r"\(2, 4\).*\(4,\)"):
        observe(PREDICTION, TARGET[0], num_classes=3)
    with pytest.raises(LabelError, match="prediction holds labels 0 to 2; the 2 classes"):
        observe(PREDICTION, np.zeros_like(TARGET), num_classes=2)
    with pytest.raises(LabelError, match="target holds labels -2"):
        observe(PREDICTION, TARGET - 2, num_classes=3)
    with pytest.raises(LabelError, match="prediction holds labels -1"):
        observe(PREDICTION - 1, TARGET, num_classes=3)
    with pytest.raises(LabelError, match="argmax"):
        observe(PREDICTION * 0.5, TARGET, num_classes=3)
    with pytest.raises(ShapeError, match="3 and of 4 classes"):
        ConfusionState.empty(3) + ConfusionState.empty(4)
