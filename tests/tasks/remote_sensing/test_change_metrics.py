"""Binary, semantic and damage scores: the official evaluators' numbers, hand-worked cases, and what is 0 / 0."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

from statefield.datasets.readers.image import read_mask
from statefield.errors import ConfigError, LabelError, ShapeError
from statefield.labels import UNLABELLED
from statefield.tasks.common.confusion import ConfusionState
from statefield.tasks.remote_sensing import change_metrics, damage_metrics
from statefield.tasks.remote_sensing.semantic_change_metrics import ChangeMaps, SemanticChangeMetrics

GOLDENS = Path(__file__).parents[2] / "goldens"
OFFICIAL = json.loads((GOLDENS / "metrics_changemamba.json").read_text(encoding="utf-8"))
DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[3] / "../shared/data"))
SAMPLES = DATA / "change_detection/changeformer_samples"

_spec = importlib.util.spec_from_file_location("recipe", GOLDENS / "recipe.py")
recipe = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recipe)


def _draws(rule, kind):
    """For each image of a case, a function from a key to uniform numbers in [-1, 1) of the image's shape."""
    for index, shape in enumerate(rule["sizes"]):
        yield lambda key, i=index, s=tuple(shape): recipe.uniform(f"{rule['tag']}.{kind}.{key}.{i}", s)


def _in_classes(u, count):
    return np.floor((u + 1) / 2 * count).astype(np.int64)


@pytest.mark.parametrize("case", OFFICIAL["bcd"], ids=lambda case: case["rule"]["tag"])
def test_binary_scores_are_those_of_the_official_evaluator(case):
    rule, state = case["rule"], ConfusionState.empty(2)
    for draw in _draws(rule, "bcd"):
        label = (draw("label") > rule["thr"]).astype(np.int64)
        prediction = np.where(draw("flip") > rule["flip"], 1 - label, label)
        if rule["ign"] is not None:
            label[draw("ignore") > rule["ign"]] = UNLABELLED
        state += change_metrics.observe(prediction, label)
    assert state.counts.tolist() == case["confusion_rows_gt_cols_pred"]
    scores = change_metrics.summarise(state)
    assert scores.notes == ()
    for name, key in (
        ("Recall/change (pooled)", "recall"),
        ("Precision/change (pooled)", "precision"),
        ("F1/change (pooled)", "f1"),
        ("IoU/change (pooled)", "iou"),
        ("mIoU (mean of unchanged and change, pooled)", "mean_iou"),
        ("OA (pooled)", "oa"),
        ("kappa (pooled)", "kappa"),
    ):
        assert scores.values[name] == pytest.approx(case[key], abs=1e-9), name


def _semantic_maps(rule, draw):
    change = (draw("cd") > rule["thr"]).astype(np.int64)
    guess = np.where(draw("flip") > rule["flip"], 1 - change, change)
    before, after = 1 + _in_classes(draw("A"), 6), 1 + _in_classes(draw("B"), 6)
    other_before = np.where(draw("swapA") > rule["swap"], before % 6 + 1, before)
    other_after = np.where(draw("swapB") > rule["swap"], (after + 2) % 6 + 1, after)
    return ChangeMaps(guess, other_before, other_after), ChangeMaps(change, before, after)


@pytest.mark.parametrize("case", OFFICIAL["scd"], ids=lambda case: case["rule"]["tag"])
def test_semantic_scores_are_those_of_the_official_evaluator(case):
    metrics = SemanticChangeMetrics()
    state = metrics.empty
    for index, draw in enumerate(_draws(case["rule"], "scd")):
        state += metrics.observe(*_semantic_maps(case["rule"], draw), case=str(index))
    scores = metrics.summarise(state)
    assert scores.notes == ()
    for name, key in (
        ("kappa/transitions without unchanged (pooled)", "kappa_n0"),
        ("Fscd/transitions (pooled)", "fscd"),
        ("mIoU (mean of unchanged and change, pooled)", "miou"),
        ("SeK (pooled)", "sek"),
        ("OA/transitions (mean over images, official)", "oa_mean_per_image"),
    ):
        assert scores.values[name] == pytest.approx(case[key], abs=1e-9), name


@pytest.mark.parametrize("case", OFFICIAL["bda"], ids=lambda case: case["rule"]["tag"])
def test_damage_scores_are_those_of_the_official_evaluator(case):
    rule, state = case["rule"], damage_metrics.DamageState.empty()
    for draw in _draws(rule, "bda"):
        buildings = (draw("loc") > rule["thr"]).astype(np.int64)
        guess = np.where(draw("flip") > rule["flip"], 1 - buildings, buildings)
        damage = (1 + _in_classes(draw("clf"), 4)) * buildings
        other = np.where(draw("swap") > rule["swap"], _in_classes(draw("other"), 5), damage)
        if rule["drop"]:
            other[other == rule["drop"]] = 0
        state += damage_metrics.observe(guess, other, buildings, damage)
    assert state.buildings.counts.tolist() == case["confusion_loc"]
    assert state.damage.counts.tolist() == case["confusion_clf"]
    official = list(damage_metrics.summarise(state, official=True).values.values())
    expected = [case["f1_loc"], *case["f1_per_class_1_to_4"], case["f1_clf_harmonic"], case["f1_overall"]]
    np.testing.assert_allclose(official, expected, rtol=0, atol=1e-9)
    exact = list(damage_metrics.summarise(state).values.values())
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-6)
    assert bool(damage_metrics.summarise(state).notes) == (rule["drop"] is not None)


def test_toy_case_of_semantic_scores():
    place = np.arange(400)
    label = np.where(place % 5 < 3, 0, 7 * place % 36 + 1)
    guess = label.copy()
    guess[::9] = 0
    guess[4::17] = 5

    def maps(codes):
        codes = codes.reshape(20, 20)
        return ChangeMaps((codes > 0).astype(int), np.where(codes, (codes - 1) // 6 + 1, 0), (codes - 1) % 6 + 1)

    # codes are (before - 1) * 6 + after, so after = (code - 1) % 6 + 1 and before = (code - 1) // 6 + 1
    metrics = SemanticChangeMetrics()
    values = metrics.summarise(metrics.observe(maps(guess), maps(label), case="toy")).values
    assert values["kappa/transitions without unchanged (pooled)"] == pytest.approx(0.756859, abs=5e-7)
    assert values["Fscd/transitions (pooled)"] == pytest.approx(0.839117, abs=5e-7)
    assert values["mIoU (mean of unchanged and change, pooled)"] == pytest.approx(0.850608, abs=5e-7)
    assert values["SeK (pooled)"] == pytest.approx(0.633345, abs=5e-7)
    assert values["OA/transitions (pooled)"] == 0.8975
    assert values["OA/transitions (mean over images, official)"] == 0.8975


def _reference():
    return json.loads((DATA / "REFERENCE.json").read_text(encoding="utf-8"))["changeformer_predictions"]


@pytest.mark.shared_data
@pytest.mark.parametrize("samples, key", [("samples_LEVIR", "LEVIR7"), ("samples_DSIFN", "DSIFN10")])
@pytest.mark.parametrize("net", ["ChangeFormerV6", "BIT", "DTCDSCN", "SiamUnet_conc", "SiamUnet_diff", "Unet"])
def test_scores_of_published_networks_are_reproduced(samples, key, net):
    if not SAMPLES.is_dir():
        pytest.skip(f"no stored predictions at {SAMPLES} (STATEFIELD_DATA)")
    home, state = SAMPLES / samples, ConfusionState.empty(2)
    (predictions,) = home.glob(f"predict_CD_{net}") if "LEVIR" in samples else home.glob(f"predict_{net}")
    names = (home / "list/demo.txt").read_text(encoding="utf-8").split()
    assert len(names) == int(key[5:])
    for name in names:
        state += change_metrics.observe(read_mask(predictions / name, 2), read_mask(home / "label" / name, 2))
    values = change_metrics.summarise(state).values
    spelled = {"P": "Precision", "R": "Recall", "F1": "F1", "IoU": "IoU"}
    for short, expected in _reference()[key][net].items():
        assert round(values[f"{spelled[short]}/change (pooled)"], 4) == expected, short


def test_binary_scores_by_hand():
    # TP 2, FN 1, FP 1, TN 4: pe = (3 * 3 + 5 * 5) / 64 = 34 / 64, kappa = (48 - 34) / (64 - 34)
    values = change_metrics.summarise(ConfusionState(np.array([[4, 1], [1, 2]]))).values
    assert values["F1/change (pooled)"] == pytest.approx(4 / 6)
    assert values["IoU/change (pooled)"] == pytest.approx(2 / 4)
    assert values["IoU/unchanged (pooled)"] == pytest.approx(4 / 6)
    assert values["OA (pooled)"] == pytest.approx(6 / 8)
    assert values["kappa (pooled)"] == pytest.approx(14 / 30)


def test_scene_without_change_gives_zero_and_says_so():
    nothing = np.zeros((4, 4), np.int64)
    scores = change_metrics.summarise(change_metrics.observe(nothing, nothing))
    told = " ".join(scores.notes)
    for name in ("Recall", "Precision", "F1", "IoU"):
        assert scores.values[f"{name}/change (pooled)"] == 0.0
        assert f"{name}/change is 0 / 0" in told
    assert scores.values["OA (pooled)"] == 1.0
    assert scores.values["kappa (pooled)"] == 0.0 and "one class fills" in told
    invented = change_metrics.summarise(change_metrics.observe(nothing + 1, nothing))
    assert invented.values["F1/change (pooled)"] == 0.0
    assert len(invented.notes) == 1 and "no pixel of the target is changed" in invented.notes[0]


def test_nothing_counted_is_said_for_every_score():
    unknown = np.full((3, 3), UNLABELLED)
    scores = change_metrics.summarise(change_metrics.observe(np.ones((3, 3), int), unknown))
    assert set(scores.values.values()) == {0.0} and not np.isnan(list(scores.values.values())).any()
    assert len(scores.notes) == 7
    metrics = SemanticChangeMetrics(2)
    maps = ChangeMaps(unknown, unknown, unknown)
    guess = ChangeMaps(np.ones((3, 3), int), np.ones((3, 3), int), np.ones((3, 3), int))
    semantic = metrics.summarise(metrics.observe(guess, maps, case="a"))
    assert set(semantic.values.values()) == {0.0} and "no pixel is counted" in " ".join(semantic.notes)
    damage = damage_metrics.summarise(damage_metrics.DamageState.empty())
    assert set(damage.values.values()) == {0.0} and len(damage.notes) == 6


def test_binary_labels_of_255_are_refused():
    with pytest.raises(LabelError, match="255"):
        change_metrics.observe(np.array([[0, 1]]), np.array([[0, 255]]))
    with pytest.raises(ShapeError, match="3 classes"):
        change_metrics.summarise(ConfusionState.empty(3))


def test_kappa_of_a_large_raster_does_not_overflow():
    counts = np.array([[40_000_000_000, 10_000_000_000], [10_000_000_000, 20_000_000_000]])
    # in units of 1e10: total 8, pe = (5 * 5 + 3 * 3) / 64, kappa = (48 - 34) / (64 - 34)
    assert change_metrics.cohen_kappa(counts) == pytest.approx(14 / 30)


def test_tiles_add_up_to_the_image():
    metrics = SemanticChangeMetrics()
    rule = OFFICIAL["scd"][0]["rule"]
    guess, target = _semantic_maps(rule, next(_draws(rule, "scd")))

    def part(maps, rows):
        return ChangeMaps(maps.change[rows], maps.before[rows], maps.after[rows])

    whole = metrics.observe(guess, target, case="a")
    tiles = metrics.empty
    for rows in (slice(10, 24), slice(0, 3), slice(3, 10)):
        tiles += metrics.observe(part(guess, rows), part(target, rows), case="a")
    assert metrics.summarise(tiles) == metrics.summarise(whole)


def test_mean_over_images_and_pooled_accuracy_are_told_apart():
    metrics = SemanticChangeMetrics(2)
    ones, zeros = np.ones((1, 1), int), np.zeros((1, 1), int)
    wide = np.zeros((1, 3), int)
    state = metrics.observe(ChangeMaps(zeros, zeros, zeros), ChangeMaps(ones, ones, ones), case="wrong, 1 pixel")
    state += metrics.observe(ChangeMaps(wide, wide, wide), ChangeMaps(wide, wide, wide), case="right, 3 pixels")
    values = metrics.summarise(state).values
    assert values["OA/transitions (pooled)"] == 3 / 4
    assert values["OA/transitions (mean over images, official)"] == 1 / 2


def test_change_predicted_without_a_class_counts_as_change_of_no_right_class():
    """Officially, index (0 - 1) * 6 + after < 0 stops the run, and (1 - 1) * 6 + 0 = 0 would read as unchanged."""
    metrics = SemanticChangeMetrics()
    change = np.array([[1, 1, 1, 0]])
    target = ChangeMaps(change, np.array([[1, 1, 2, 0]]), np.array([[2, 2, 3, 0]]))
    guess = ChangeMaps(change, np.array([[0, 1, 2, 0]]), np.array([[2, 0, 3, 0]]))
    scores = metrics.summarise(metrics.observe(guess, target, case="a"))
    assert scores.values["IoU/change (pooled)"] == 1.0
    assert scores.values["Fscd/transitions (pooled)"] == pytest.approx(1 / 3)  # 1 of 3 predicted, 1 of 3 changed
    assert len(scores.notes) == 1 and scores.notes[0].startswith("2 pixels are predicted as changed without a class")


def test_semantic_targets_are_checked():
    metrics = SemanticChangeMetrics(2)
    one, zero = np.ones((1, 1), int), np.zeros((1, 1), int)
    fine = ChangeMaps(one, one, one)
    with pytest.raises(LabelError, match=r"case 'x'.* 1 pixels of the target are changed but have class 0"):
        metrics.observe(fine, ChangeMaps(one, one, zero), case="x")
    with pytest.raises(LabelError, match="'after' of type int64 holds 0 to 3"):
        metrics.observe(ChangeMaps(one, one, 3 * one), fine, case="x")
    with pytest.raises(LabelError, match="prediction's map 'change'"):
        metrics.observe(ChangeMaps(-one, one, one), fine, case="x")
    with pytest.raises(ShapeError, match="one shape"):
        metrics.observe(ChangeMaps(one, one, np.ones((1, 2), int)), fine, case="x")
    with pytest.raises(ShapeError, match="transition codes"):
        SemanticChangeMetrics(6).summarise(metrics.observe(fine, fine, case="x"))
    with pytest.raises(ConfigError):
        SemanticChangeMetrics(0)


def test_change_of_unknown_class_is_not_counted():
    metrics = SemanticChangeMetrics(2)
    target = ChangeMaps(np.array([1, 1, 0]), np.array([1, UNLABELLED, 0]), np.array([2, 2, UNLABELLED]))
    guess = ChangeMaps(np.array([1, 1, 0]), np.array([1, 1, 0]), np.array([2, 2, 0]))
    state = metrics.observe(guess, target, case="a")
    assert state.images == {"a": (2, 2)}  # an unchanged pixel needs no class


def test_damage_is_scored_in_the_targets_buildings_whatever_is_found_there():
    target = np.array([[1, 1, 0, 0]])
    state = damage_metrics.observe(np.zeros((1, 4), int), np.array([[2, 1, 3, 4]]), target, np.array([[2, 2, 0, 0]]))
    values = damage_metrics.summarise(state).values
    assert values["F1/building (pooled)"] == 0.0
    assert values["F1/minor damage (pooled, in the target's buildings)"] == pytest.approx(2 / 3)
    unclassified = damage_metrics.observe(target, target, target, np.array([[UNLABELLED, 1, 0, 0]]))
    assert unclassified.damage.counts.sum() == 1 and unclassified.buildings.counts.sum() == 4
    with pytest.raises(ShapeError, match="one shape"):
        damage_metrics.observe(target, target, target, np.zeros((2, 4), int))
