"""The two intensity cuts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from statefield.datasets import open_dataset
from statefield.errors import ConfigError, DataError, ShapeError
from statefield.tasks.common.confusion import observe
from statefield.tasks.common.segmentation_metrics import SegmentationMetrics, SegmentationState
from statefield.tasks.medical.baseline import fit_thresholds


def _sample(image, mask=None):
    meta = {"case": "x", "path": "x", "spacing": (1.0, 1.0), "spacing_known": False, "affine": None, "file": None}
    sample = {"image": np.asarray(image, np.float32)[None], "meta": meta}
    return sample if mask is None else sample | {"mask": np.asarray(mask, np.int64)}


def test_separable_classes_are_divided_without_error():
    mask = np.repeat([[0, 1, 2]], 6, axis=0)
    image = 50.0 * mask + np.random.default_rng(0).uniform(0, 40, mask.shape)
    cuts = fit_thresholds([_sample(image, mask)])
    assert cuts.train_dice == 1.0
    np.testing.assert_array_equal(cuts.apply(_sample(image)["image"]), mask)


def test_cuts_are_the_best_of_all_pairs():
    rng = np.random.default_rng(1)
    masks = [rng.integers(0, 3, (9, 9)) for _ in range(2)]
    samples = [_sample((3 * mask + rng.integers(0, 8, mask.shape)), mask) for mask in masks]
    cuts = fit_thresholds(samples, num_bins=14)
    image = np.concatenate([s["image"] for s in samples], axis=1)
    target = np.concatenate(masks)

    def score(low, high):
        prediction = (image[0] >= low).astype(int) + (image[0] >= high)
        return observe(prediction, target, num_classes=3).dice[1:].mean()

    candidates = np.linspace(image.min(), image.max(), 15)
    best = max(score(low, high) for low, high in itertools.combinations_with_replacement(candidates, 2))
    assert score(cuts.low, cuts.high) == pytest.approx(best) == pytest.approx(cuts.train_dice)


def test_samples_that_cannot_be_fitted_are_refused():
    flat = np.ones((4, 4))
    with pytest.raises(DataError, match="no sample"):
        fit_thresholds([])
    with pytest.raises(DataError, match="unlabelled"):
        fit_thresholds([_sample(flat)])
    with pytest.raises(DataError, match="one intensity"):
        fit_thresholds([_sample(flat, flat)])
    with pytest.raises(DataError, match="no pixel of class 1 or none of class 2"):
        fit_thresholds([_sample(np.arange(16).reshape(4, 4), np.eye(4))])
    with pytest.raises(ConfigError, match="label 3"):
        fit_thresholds([_sample(np.arange(16).reshape(4, 4), 3 * np.eye(4))])
    two_channels = _sample(flat, flat)
    two_channels["image"] = np.zeros((2, 4, 4), np.float32)
    with pytest.raises(ShapeError, match="2 channels"):
        fit_thresholds([two_channels])


def test_baseline_on_the_template_reaches_what_the_documents_say():
    pytest.importorskip("nilearn", reason="the mni152 layout reads nilearn's files")
    adapter, info = open_dataset(None, "mni152")
    cuts = fit_thresholds(adapter.load(record) for record in adapter.records(None, "train"))
    metrics = SegmentationMetrics(info.classes, distances=False)
    state = SegmentationState()
    for record in adapter.records(None, "test"):
        sample = adapter.load(record)
        state += metrics.observe(cuts.apply(sample["image"]), sample["mask"], case=record.case, spacing=(1.0, 1.0, 1.0))
    dice = metrics.summarise(state, intervals=False)["metrics"]["Dice"]["classes"]
    # measured 0.9634 and 0.9447 (case means), 0.9641 and 0.9522 pooled: the figure that a network must beat
    assert dice["grey_matter"]["case_mean"] == pytest.approx(0.9634, abs=5e-4)
    assert dice["white_matter"]["case_mean"] == pytest.approx(0.9447, abs=5e-4)
    assert dice["grey_matter"]["pooled"] == pytest.approx(0.9641, abs=5e-4)
    assert dice["white_matter"]["pooled"] == pytest.approx(0.9522, abs=5e-4)
