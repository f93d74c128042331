"""Scores of scene classifiers: a case by hand, scikit-learn on random answers, and what is said of absent classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics

from statefield.errors import ShapeError
from statefield.tasks.common import confusion
from statefield.tasks.common.confusion import ConfusionState
from statefield.tasks.remote_sensing import scene_metrics


def test_scores_of_ten_scenes_worked_by_hand():
    # of 4 harbours 3 are found and one is given as river; of 6 rivers 4 are found and two are given as harbours
    state = ConfusionState(np.array([[3, 1], [2, 4]]))
    scores = scene_metrics.summarise(state, ("harbour", "river"))
    expected = {
        "OA": 7 / 10,
        "AA": (3 / 4 + 4 / 6) / 2,
        # by chance: 4/10 * 5/10 + 6/10 * 5/10 = 0.5
        "kappa": (0.7 - 0.5) / (1 - 0.5),
        "Precision/macro": (3 / 5 + 4 / 5) / 2,
        "Recall/macro": (3 / 4 + 4 / 6) / 2,
        "F1/macro": (6 / 9 + 8 / 11) / 2,
        "Precision/harbour": 3 / 5,
        "Precision/river": 4 / 5,
        "Recall/harbour": 3 / 4,
        "Recall/river": 4 / 6,
        "F1/harbour": 2 * 3 / (2 * 3 + 2 + 1),
        "F1/river": 2 * 4 / (2 * 4 + 1 + 2),
    }
    assert scores.values == pytest.approx(expected) and not scores.notes


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    wanted = rng.integers(0, 7, 300)
    given = np.where(rng.random(300) < 0.6, wanted, rng.integers(0, 7, 300))
    given[given == 6] = 0  # a class that is never given
    names = [f"class {k}" for k in range(7)]
    scores = scene_metrics.summarise(confusion.observe(given, wanted, num_classes=7), names)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(wanted, given, average="macro", zero_division=0)
    assert scores.values["Precision/macro"] == pytest.approx(precision)
    assert scores.values["Recall/macro"] == pytest.approx(recall)
    assert scores.values["F1/macro"] == pytest.approx(f1)
    assert scores.values["OA"] == pytest.approx(metrics.accuracy_score(wanted, given))
    assert scores.values["AA"] == pytest.approx(metrics.balanced_accuracy_score(wanted, given))
    assert scores.values["kappa"] == pytest.approx(metrics.cohen_kappa_score(wanted, given))
    each = metrics.f1_score(wanted, given, average=None, zero_division=0)
    assert [scores.values[f"F1/{name}"] for name in names] == pytest.approx(each)
    assert scores.notes == ("No scene was given the class class 6: its Precision and F1 count as 0.",)


def test_class_without_a_scene_has_no_score_and_is_in_no_mean():
    state = ConfusionState(np.array([[2, 0, 1], [0, 3, 0], [0, 0, 0]]))
    scores = scene_metrics.summarise(state, ("a", "b", "c"))
    assert math.isnan(scores.values["F1/c"]) and math.isnan(scores.values["Precision/c"])
    assert scores.values["F1/macro"] == pytest.approx((4 / 5 + 1) / 2)
    assert "over 2 classes: there is no test scene of c" in scores.notes[0]


def test_nothing_observed_gives_stated_values_and_says_so():
    scores = scene_metrics.summarise(ConfusionState.empty(2), ("a", "b"))
    assert all(scores.values[name] == 0.0 for name in scene_metrics.HEADLINES)
    assert sum("no scene is counted" in note for note in scores.notes) == len(scene_metrics.HEADLINES)
    with pytest.raises(ShapeError, match="3 class names"):
        scene_metrics.summarise(ConfusionState.empty(2), ("a", "b", "c"))


def test_parts_of_a_test_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    wanted, given = rng.integers(0, 4, (2, 50))
    whole = confusion.observe(given, wanted, num_classes=4)
    parts = confusion.observe(given[:20], wanted[:20], num_classes=4) + confusion.observe(
        given[20:], wanted[20:], num_classes=4
    )
    names = ("a", "b", "c", "d")
    assert scene_metrics.summarise(whole, names) == scene_metrics.summarise(parts, names)
