"""Splits of a scene's pixels: what is tested must not be seen in training, and where it is, the share is told."""

from __future__ import annotations

import dataclasses
from itertools import combinations

import numpy as np
import pytest

from statefield.datasets.hyperspectral import Scene, open_scene
from statefield.datasets.sample import DatasetInfo
from statefield.errors import ConfigError, UnknownName
from statefield.tasks.remote_sensing.hyperspectral.splits import (
    PARTS,
    SPLITS,
    PixelSplit,
    block_split,
    random_leaky_split,
    share_that_sees_training,
    split_scene,
)
from statefield.tasks.remote_sensing.hyperspectral.windows import Windows


def fields(seed: int = 0, size: int = 60) -> np.ndarray:
    """Five classes in patches of 10 x 10 pixels, a third of them without a label."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.choice([-1, 0, 1, 2, 3, 4, -1], (size // 10, size // 10)), np.ones((10, 10))).astype(np.int64)


def covered(pixels: np.ndarray, window: int, size: int) -> np.ndarray:
    """bool [size, size]: what the windows of these pixels hold, one pixel after the other."""
    seen = np.zeros((size, size), bool)
    for row, column in pixels:
        top, left = max(0, row - window // 2), max(0, column - window // 2)
        seen[top : row + (window - 1) // 2 + 1, left : column + (window - 1) // 2 + 1] = True
    return seen


@pytest.mark.parametrize("window", [1, 4, 5, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_windows_of_two_parts_share_no_pixel(window: int, seed: int) -> None:
    split = block_split(fields(), window=window, seed=seed)
    seen = {part: covered(split.pixels(part), window, 60) for part in PARTS}
    assert all(seen[part].any() for part in PARTS)
    for first, second in combinations(PARTS, 2):
        assert not (seen[first] & seen[second]).any()
    assert share_that_sees_training(split) == 0


@pytest.mark.parametrize("window", [9, 12, 15])
def test_windows_larger_than_half_a_block_are_guarded_too_and_warned_of(
    window: int, caplog: pytest.LogCaptureFixture
) -> None:
    labels = np.kron(np.random.default_rng(0).integers(0, 3, (12, 12)), np.ones((10, 10))).astype(np.int64)
    split = block_split(labels, window=window)
    seen = {part: covered(split.pixels(part), window, 120) for part in PARTS}
    assert all(seen[part].any() for part in PARTS)
    for first, second in combinations(PARTS, 2):
        assert not (seen[first] & seen[second]).any()
    used = f"{(split.part >= 0).sum() / 14400:.1%} of the labelled pixels are used"
    assert used in caplog.text and used in split.notes[-1]


def test_what_the_guard_leaves_is_noted_and_smaller_windows_are_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    labels = fields()
    split = block_split(labels, window=7)
    share = (split.part >= 0).sum() / (labels >= 0).sum()
    assert f"{share:.1%} of the labelled pixels are used" in split.notes[-1] and 0 < share < 1
    assert not caplog.records


def official_scene() -> Scene:
    """40 x 40 pixels, two classes; the left third is for training and the right third for testing."""
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 2, (40, 40))
    train, test = np.full((2, 40, 40), -1)
    train[:, :13], test[:, 27:] = labels[:, :13], labels[:, 27:]
    meta = {"case": "town", "path": "", "spacing": (1.0, 1.0), "spacing_known": False, "affine": None, "file": None}
    return Scene(np.zeros((1, 40, 40), np.float32), labels, DatasetInfo(("a", "b"), ("1",), 2), meta, (train, test))


def test_the_official_split_keeps_the_publishers_test_pixels(caplog: pytest.LogCaptureFixture) -> None:
    scene = official_scene()
    assert scene.official is not None
    split = split_scene("official", scene, window=5, seed=0)
    assert ((split.part == 2) == (scene.official[1] >= 0)).all()
    assert (((split.part == 0) | (split.part == 1)) == (scene.official[0] >= 0)).all()
    for number in (0, 1):
        count = int((scene.official[0] == number).sum())
        assert ((split.part == 1) & (scene.labels == number)).sum() == count // 4
    assert "0.0% of the test windows" in split.notes[0] and not caplog.records
    other = split_scene("official", scene, window=5, seed=1)
    assert (other.part != split.part).any() and ((other.part == 2) == (split.part == 2)).all()


def test_official_samples_whose_windows_overlap_are_told(caplog: pytest.LogCaptureFixture) -> None:
    split = split_scene("official", official_scene(), window=31)
    # of columns 27 to 39 the windows of 27 reach back to column 12, those of 28 to 13: only column 27 sees training
    share = float((split.part[:, 27] == 2).sum() / (split.part == 2).sum())
    assert f"{share:.1%} of the test windows" in split.notes[0] and "official split" in caplog.text


def test_a_scene_without_an_official_split_is_told_so() -> None:
    scene = dataclasses.replace(official_scene(), official=None)
    with pytest.raises(ConfigError, match="town has no official split"):
        split_scene("official", scene, window=5)
    with pytest.raises(UnknownName, match="did you mean 'official'"):
        split_scene("oficial", scene, window=5)


def test_a_guard_for_smaller_windows_does_not_hold_for_larger_ones() -> None:
    split = block_split(fields(), window=1)
    assert share_that_sees_training(split, 1) == 0 < share_that_sees_training(split, 7)


def test_indian_pines_by_blocks_keeps_the_classes_that_spread(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("tensorly")
    labels = open_scene(None, "indian_pines").labels
    for seed in (0, 1, 2):
        split = block_split(labels, window=7, seed=seed)
        train, test = (set(labels[split.part == number].tolist()) for number in (0, 2))
        assert train == test and len(train) + len(split.left_out) == 16
        # alfalfa, mown grass and oats are one small field each: only they may be without both kinds of pixel
        assert {1, 2, 4, 5, 7, 9, 10, 11, 13, 14} <= train
        shares = [(split.part == number).sum() for number in range(3)]
        assert shares[2] > shares[0] > 300


@pytest.mark.parametrize("name", list(SPLITS))
def test_the_seed_alone_decides(name: str) -> None:
    first, again, other = (SPLITS[name](fields(), window=4, seed=seed).part for seed in (3, 3, 4))
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("name", list(SPLITS))
def test_pixels_without_a_label_are_in_no_part(name: str) -> None:
    labels = fields()
    assert (SPLITS[name](labels, window=4).part[labels == -1] == -1).all()


def test_the_random_split_has_the_papers_fractions_in_every_class_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    labels = fields()
    split = random_leaky_split(labels, window=4)
    for number in range(5):
        counts = np.bincount(split.part[labels == number], minlength=3)
        assert counts.tolist() == [counts.sum() // 4, counts.sum() // 4, counts.sum() // 2]
    share = share_that_sees_training(split)
    assert share > 0.9  # 15 neighbours, a quarter of which are trained on: 1 - 0.75**15 = 0.987 inside a field
    assert f"{share:.1%} of the test windows" in caplog.text and f"{share:.1%}" in split.notes[0]


@pytest.mark.parametrize("window", [3, 4])
def test_the_measured_share_counts_windows_as_they_are_cut(window: int) -> None:
    rng = np.random.default_rng(0)
    part = rng.choice([-1, -1, -1, 0, 2], (12, 13)).astype(np.int8)
    split = PixelSplit(part, "drawn", window)
    windows = Windows((part == 0).astype(np.float32)[None], window)
    assert share_that_sees_training(split) == pytest.approx(
        float((windows(split.pixels("test")).amax((1, 2, 3)) > 0).float().mean())
    )


def test_a_class_in_one_place_is_left_out_and_named() -> None:
    labels = fields()
    labels[labels == 4] = -1
    labels[3:5, 3:5] = 4
    split = block_split(labels, window=5)
    assert split.left_out == (4,) and "classes 4 lie too close together" in split.notes[0]
    assert not (split.part[labels == 4] >= 0).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 16}, "larger blocks"),
        ({"window": 0}, "1 or more"),
        ({"window": 3, "fractions": (0.5, 0.5, 0.5)}, "sum to 1"),
        ({"window": 3, "fractions": (0.5, 0.0, 0.5)}, "above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        block_split(fields(), **settings)
