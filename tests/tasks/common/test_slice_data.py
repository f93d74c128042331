"""Normalisation, neighbouring slices, patches as a function of (seed, number), and the position of the sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from statefield.errors import ConfigError
from statefield.tasks.common.augment import build_augmentation
from statefield.tasks.common.config import UNLABELLED, NormalisationConfig
from statefield.tasks.common.patches import PositionSampler, SlicePatches
from statefield.tasks.common.volumes import Volume, normalise, stack_neighbours


def _volume(shape=(6, 20, 24), *, case="a", channels=1, foreground_slices=(2, 3)) -> Volume:
    rng = np.random.default_rng(0)
    mask = np.zeros(shape, np.int16)
    for index in foreground_slices:
        mask[index, 4:6, 5:9] = 1
        mask[index, 15, 20] = 2
    image = rng.normal(size=(channels, *shape)).astype(np.float32)
    present = np.stack([(mask == k).any(axis=(1, 2)) for k in range(3)], axis=1)
    meta = {"case": case, "path": f"/data/{case}.nii.gz", "spacing": (1.0,) * 3, "spacing_known": True}
    return Volume(image, mask, present, meta | {"affine": None, "file": None})


def _patches(volumes, **settings) -> SlicePatches:
    defaults = {"patch_size": (8, 8), "slice_context": 0, "foreground": 0.5, "seed": 3}
    return SlicePatches(volumes, augmentation=build_augmentation("medical"), **(defaults | settings))


def test_zscore_gives_mean_zero_and_deviation_one_per_channel():
    image = np.random.default_rng(0).normal([[[5.0]], [[-70.0]]], [[[2.0]], [[30.0]]], (2, 30, 30)).astype(np.float32)
    result = normalise(image, NormalisationConfig("zscore"))
    np.testing.assert_allclose(result.mean(axis=(1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(result.std(axis=(1, 2)), 1, atol=1e-5)


def test_zscore_nonzero_leaves_zero_at_zero_and_counts_the_rest_only():
    image = np.array([[[0, 0, 0], [10, 20, 30]]], np.float32)
    result = normalise(image, NormalisationConfig("zscore_nonzero"))
    expected = (np.array([10, 20, 30]) - 20) / np.sqrt(200 / 3)
    np.testing.assert_allclose(result[0, 0], 0)
    np.testing.assert_allclose(result[0, 1], expected, rtol=1e-6)


def test_range_maps_low_to_zero_and_high_to_one_and_clips():
    image = np.array([[[-2000, -100, 50, 200, 3000]]], np.float32)
    result = normalise(image, NormalisationConfig("range", low=-100, high=200))
    np.testing.assert_allclose(result, [[[0, 0, 0.5, 1, 1]]])


def test_percentile_clipping_takes_away_outliers_before_the_statistics():
    image = np.concatenate([np.linspace(0, 1, 999), [1e6]]).astype(np.float32).reshape(1, 10, 100)
    result = normalise(image, NormalisationConfig("zscore", clip_percentiles=(0, 99.5)))
    assert result.max() < 2


def test_a_constant_image_becomes_zero_and_not_nan():
    assert (normalise(np.full((1, 4, 4), 7.0, np.float32), NormalisationConfig("zscore")) == 0).all()


def test_ct_clips_and_scales_every_case_by_the_same_numbers():
    image = np.array([[[-2000.0, -100.0, 50.0, 9000.0]]], np.float32)
    result = normalise(image, NormalisationConfig("ct", low=-100, high=200, mean=50, std=75))
    assert result.tolist() == [[[-2.0, -2.0, 0.0, 2.0]]]  # (-100 - 50) / 75, ..., (200 - 50) / 75


@pytest.mark.parametrize(
    "config",
    [
        NormalisationConfig("range"),
        NormalisationConfig("range", low=5, high=5),
        NormalisationConfig("ct", low=0, high=1, mean=0.5),
        NormalisationConfig("ct", low=0, high=1, mean=0.5, std=0),
        NormalisationConfig("ct", mean=0.5, std=1),
        NormalisationConfig(clip_percentiles=(99, 1)),
        NormalisationConfig(clip_percentiles=(0, 101)),
    ],
)
def test_normalisations_that_cannot_work_are_refused(config):
    with pytest.raises(ConfigError, match=r"data\.normalisation"):
        normalise(np.ones((1, 2, 2), np.float32), config)


def test_neighbours_are_stacked_from_below_to_above_and_the_end_slices_repeat():
    volume = np.arange(2 * 4, dtype=np.float32).reshape(2, 4, 1, 1)  # channel 0: slices 0..3, channel 1: slices 4..7
    assert stack_neighbours(volume, 1, 1).ravel().tolist() == [0, 4, 1, 5, 2, 6]
    assert stack_neighbours(volume, 0, 1).ravel().tolist() == [0, 4, 0, 4, 1, 5]
    assert stack_neighbours(volume, 3, 2).ravel().tolist() == [1, 5, 2, 6, 3, 7, 3, 7, 3, 7]
    assert stack_neighbours(volume, 2, 0).ravel().tolist() == [2, 6]


def test_a_patch_depends_on_seed_and_number_only():
    volumes = [_volume(case="a"), _volume(case="b")]
    one, two = _patches(volumes), _patches(volumes)
    later = [two[number] for number in (40, 7, 0)]
    for number, item in zip((40, 7, 0), later, strict=True):
        again = one[number]
        assert torch.equal(again["image"], item["image"])
        assert torch.equal(again["mask"], item["mask"])
        assert again["origin"] == item["origin"]
    different = _patches(volumes, seed=4)
    assert any(not torch.equal(one[n]["image"], different[n]["image"]) for n in range(4))


def test_each_pass_visits_each_slice_once_in_an_order_of_its_own():
    patches = _patches([_volume(), _volume(case="b")], foreground=0.0)
    passes = [[patches[n]["origin"] for n in range(start, start + 12)] for start in (0, 12)]
    assert len(set(passes[0])) == len(set(passes[1])) == 12
    assert passes[0] != passes[1]


def test_with_foreground_one_every_patch_holds_foreground_and_both_classes_are_drawn():
    patches = SlicePatches(
        [_volume()],
        patch_size=(8, 8),
        slice_context=0,
        foreground=1.0,
        augmentation=build_augmentation("none"),
        seed=0,
    )
    masks = [patches[n]["mask"] for n in range(40)]
    assert all((mask > 0).any() for mask in masks)
    assert sum(bool((mask == 1).any()) for mask in masks) > 10
    assert sum(bool((mask == 2).any()) for mask in masks) > 10


def test_a_slice_smaller_than_the_patch_is_padded_with_unlabelled_pixels():
    patches = SlicePatches(
        [_volume((2, 6, 30), foreground_slices=())],
        patch_size=(10, 12),
        slice_context=1,
        foreground=0.5,
        augmentation=build_augmentation("none"),
        seed=0,
    )
    item = patches[0]
    assert item["image"].shape == (3, 10, 12)
    assert (item["mask"][:2] == UNLABELLED).all()
    assert (item["mask"][-2:] == UNLABELLED).all()
    assert (item["mask"][2:-2] == 0).all()
    assert item["image"][:, :2].abs().max() == 0


def test_whole_slices_of_different_sizes_are_refused():
    with pytest.raises(ConfigError, match=r"data\.patch_size.*2 sizes"):
        _patches([_volume(), _volume((6, 22, 24))], patch_size=None)


def test_the_sampler_goes_on_from_where_training_stands():
    done = 0
    sampler = PositionSampler(lambda: done, batches_per_epoch=3, batch_size=2)
    assert list(sampler) == [0, 1, 2, 3, 4, 5]
    done = 3
    assert list(sampler) == [6, 7, 8, 9, 10, 11]
    done = 4
    assert list(sampler) == [8, 9, 10, 11]
    assert len(sampler) == 6
