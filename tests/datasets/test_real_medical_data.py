"""Published figures on the real files, where they are (STATEFIELD_DATA); nothing of them is kept in the project."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from statefield.datasets import open_dataset
from statefield.datasets.sample import UNLABELLED
from statefield.tasks.common.segmentation_metrics import SegmentationMetrics

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[3] / "shared" / "data")) / "medical"


def folder(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not there; set STATEFIELD_DATA to a folder that holds medical/{name}")
    return DATA / name


def test_second_observer_of_drive_scores_what_is_published_of_him():
    root = folder("DRIVE")
    first, info = open_dataset(root)
    second, _ = open_dataset(root, "drive", {"annotator": 2})
    assert [len(first.records(root, split)) for split in ("train", "val", "test")] == [18, 2, 20]
    metrics = SegmentationMetrics(info.classes, unit="px")
    dice, confusion = [], np.zeros((2, 2))
    for truth, rival in zip(first.records(root, "test"), second.records(root, "test"), strict=True):
        target, prediction = first.load(truth)["mask"], second.load(rival)["mask"]
        counted = target != UNLABELLED
        np.testing.assert_array_equal(counted, prediction != UNLABELLED)
        assert counted.mean() == pytest.approx(0.69, abs=0.01)
        filled = np.where(counted, prediction, 1)  # what lies outside the field of view must not count
        state = metrics.observe(filled, target, case=truth.case, spacing=(1.0, 1.0))
        dice.append(metrics.summarise(state)["metrics"]["Dice"]["classes"]["vessel"]["case_mean"])
        np.add.at(confusion, (target[counted], prediction[counted]), 1)
    (tn, fp), (fn, tp) = confusion
    assert np.mean(dice) == pytest.approx(0.7881, abs=5e-5)
    assert (tp + tn) / confusion.sum() == pytest.approx(0.9473, abs=5e-5)
    assert tp / (tp + fn) == pytest.approx(0.7746, abs=5e-4)
    assert tn / (tn + fp) == pytest.approx(0.9725, abs=5e-5)


def test_acdc_volumes_and_scribbles():
    root = folder("acdc_h5")
    full, info = open_dataset(root)
    scribbled, _ = open_dataset(root, "acdc_h5", {"labels": "scribble"})
    records = [record for split in ("train", "val", "test") for record in full.records(root, split)]
    assert len(records) == 24
    assert len({record.group for record in records}) == 12
    for record in records[:6]:
        sample = full.load(record)
        assert sample["image"].min() == 0.0
        assert sample["image"].max() == 1.0
        assert set(np.unique(sample["mask"])) == {0, 1, 2, 3}
        assert sample["mask"].shape == sample["image"].shape[1:]
    record = scribbled.records(root, "train")[0]
    mask = scribbled.load(record)["mask"]
    assert record.case == "patient001_frame01"
    assert dict(zip(*np.unique(mask, return_counts=True), strict=True)) == {
        UNLABELLED: 545186,
        0: 4123,
        1: 811,
        2: 1575,
        3: 1265,
    }
    assert info.classes[3] == "left_ventricle"


def test_isbi2012_sections_and_their_membranes():
    root = folder("isbi2012_em_membrane")
    adapter, _ = open_dataset(root)
    counts = {split: len(adapter.records(root, split)) for split in ("train", "val", "test")}
    assert counts == {"train": 21, "val": 3, "test": 6}
    mask = adapter.load(adapter.records(root, "train")[0])["mask"]
    assert mask.shape == (512, 512)
    assert mask.sum() == 57492
