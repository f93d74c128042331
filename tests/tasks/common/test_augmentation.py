"""Augmentation: determined by the seed, of any channel count, never clipping normalised intensities."""

from __future__ import annotations

import albumentations
import numpy as np
import pytest

from statefield.errors import ConfigError, UnknownName
from statefield.tasks.common import augment
from statefield.tasks.common.augment import GaussianNoise, IntensityJitter, build_augmentation
from statefield.tasks.common.config import UNLABELLED, TransformConfig


def _pair(channels: int = 2, size: tuple[int, int] = (24, 18)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(channels, *size)).astype(np.float32), rng.integers(-1, 3, size)


@pytest.mark.parametrize("preset", augment.PRESETS)
@pytest.mark.parametrize("channels", [1, 3, 5, 40])
def test_shapes_dtypes_and_labels_survive_every_preset(preset, channels):
    image, mask = _pair(channels, (24, 24))
    pipeline = build_augmentation(preset)
    for seed in range(4):
        out_image, out_mask = pipeline(image, mask, seed=seed)
        assert (out_image.shape, out_image.dtype) == (image.shape, np.float32)
        assert (out_mask.shape, out_mask.dtype) == (mask.shape, np.int64)
        assert set(np.unique(out_mask)) <= set(np.unique(mask))


@pytest.mark.parametrize("preset", ["flips", "medical", "natural"])
def test_the_same_seed_gives_the_same_result_in_any_order_and_seeds_differ(preset):
    image, mask = _pair(size=(24, 24))
    pipeline, other = build_augmentation(preset), build_augmentation(preset)
    forward = [pipeline(image, mask, seed=seed) for seed in range(16)]
    backward = [other(image, mask, seed=seed) for seed in reversed(range(16))][::-1]
    for (image_a, mask_a), (image_b, mask_b) in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(image_a, image_b)
        np.testing.assert_array_equal(mask_a, mask_b)
    # flips alone have four outcomes; fewer would mean that the transforms draw the same numbers
    assert len({image.tobytes() for image, _ in forward}) >= 4


def test_image_and_mask_move_together():
    image = np.zeros((1, 20, 20), np.float32)
    image[0, 3:7, 12:16] = 1
    mask = (image[0] > 0.5).astype(np.int64)
    for seed in range(8):
        out_image, out_mask = build_augmentation("flips")(image, mask, seed=seed)
        np.testing.assert_array_equal(out_image[0] > 0.5, out_mask == 1)


def test_unlabelled_pixels_stay_unlabelled():
    image, _ = _pair()
    mask = np.full(image.shape[1:], UNLABELLED)
    assert (build_augmentation("medical")(image, mask, seed=3)[1] == UNLABELLED).all()


def test_intensity_transforms_do_not_clip():
    image = np.linspace(-5, 5, 400, dtype=np.float32).reshape(20, 20, 1)
    jittered = albumentations.Compose([IntensityJitter(gain=0.2, shift=0.2, p=1)], seed=1)(image=image)["image"]
    noisy = albumentations.Compose([GaussianNoise(level=0.2, p=1)], seed=1)(image=image)["image"]
    for result in (jittered, noisy):
        assert result.min() < -3
        assert result.max() > 3
        assert not np.array_equal(result.ravel(), image.ravel())


def test_an_explicit_list_is_built_in_its_order_with_its_arguments():
    pipeline = build_augmentation(
        [
            TransformConfig("VerticalFlip", {"p": 1.0}),
            TransformConfig("statefield.tasks.common.augment.IntensityJitter", {"gain": 0.0, "shift": 0.0, "p": 1.0}),
        ]
    )
    image, mask = _pair()
    out_image, out_mask = pipeline(image, mask, seed=0)
    np.testing.assert_allclose(out_image, image[:, ::-1])
    np.testing.assert_array_equal(out_mask, mask[::-1])


@pytest.mark.parametrize(
    ("name", "found"), [("RandomBrightnessContrast", "clips"), ("GaussNoise", "clips"), ("RandomGamma", "NaN")]
)
def test_a_transform_that_would_destroy_normalised_intensities_is_refused(name, found):
    with pytest.raises(ConfigError, match=f"{name}.*{found}"):
        build_augmentation([TransformConfig(name)])


def test_an_unknown_transform_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownName, match="HorizontalFlip"):
        build_augmentation([TransformConfig("HorizontalFlipp")])


def test_an_argument_that_is_refused_is_a_config_error():
    with pytest.raises(ConfigError, match="IntensityJitter"):
        build_augmentation([TransformConfig("statefield.tasks.common.augment.IntensityJitter", {"gian": 1})])


def test_a_transform_that_changes_the_size_is_refused_when_it_does():
    pipeline = build_augmentation([TransformConfig("CenterCrop", {"height": 8, "width": 8, "p": 1.0})])
    with pytest.raises(ConfigError, match=r"data\.patch_size"):
        pipeline(*_pair(), seed=0)


def test_the_package_that_installs_over_the_same_name_is_refused(monkeypatch):
    monkeypatch.setattr(augment, "version", lambda name: "2.1.0")
    with pytest.raises(ConfigError, match=r"albumentationsx 2\.1\.0"):
        build_augmentation("none")
