"""Augmentation of volumes: determined by the seed, true rotations in mm, coarse axes left alone, no clipping."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from statefield.errors import ConfigError, UnknownName
from statefield.tasks.common import augment_volumes
from statefield.tasks.common.augment_volumes import VolumeAugmentation, build_volume_augmentation, warp
from statefield.tasks.common.config import UNLABELLED, TransformConfig

EVEN, THICK = (1.0, 1.0, 1.0), (5.0, 0.8, 0.8)
ALWAYS = tuple((1.0, step) for _, step in augment_volumes.NNUNET_INTENSITY)


def _pair(channels: int = 2, size: tuple[int, int, int] = (10, 12, 14)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(channels, *size)).astype(np.float32), rng.integers(-1, 3, size)


@pytest.mark.parametrize("preset", augment_volumes.PRESETS)
@pytest.mark.parametrize("spacing", [EVEN, THICK])
@pytest.mark.parametrize("channels", [1, 4])
def test_shapes_dtypes_and_labels_survive_every_preset(preset, channels, spacing):
    image, mask = _pair(channels, (8, 12, 12))
    pipeline = build_volume_augmentation(preset)
    for seed in range(12):
        out_image, out_mask = pipeline(image, mask, seed=seed, spacing=spacing)
        assert (out_image.shape, out_image.dtype) == (image.shape, np.float32)
        assert (out_mask.shape, out_mask.dtype) == (mask.shape, np.int64)
        assert set(np.unique(out_mask)) <= set(np.unique(mask))
        assert np.isfinite(out_image).all()


@pytest.mark.parametrize("preset", ["flips", "medical", "natural"])
def test_the_same_seed_gives_the_same_result_in_any_order_and_seeds_differ(preset):
    image, mask = _pair()
    before = image.copy(), mask.copy()
    forward = [build_volume_augmentation(preset)(image, mask, seed=seed, spacing=EVEN) for seed in range(16)]
    backward = [build_volume_augmentation(preset)(image, mask, seed=s, spacing=EVEN) for s in reversed(range(16))][::-1]
    for (image_a, mask_a), (image_b, mask_b) in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(image_a, image_b)
        np.testing.assert_array_equal(mask_a, mask_b)
    assert len({image.tobytes() for image, _ in forward}) >= 6
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


def test_flips_move_image_and_mask_together_along_every_axis():
    image, _ = _pair(1)
    labels = (image[0] > 0).astype(np.int64)
    seen = set()
    for seed in range(60):
        out_image, out_mask = build_volume_augmentation("flips")(image, labels, seed=seed, spacing=EVEN)
        np.testing.assert_array_equal(out_image[0] > 0, out_mask == 1)
        seen.add(out_image.tobytes())
    assert len(seen) == 8


def test_medical_mirrors_left_and_right_only():
    pipeline = VolumeAugmentation(flip_axes=augment_volumes.PRESETS["medical"].flip_axes)
    image, mask = _pair(1)
    seen = {pipeline(image, mask, seed=seed, spacing=EVEN)[0].tobytes() for seed in range(20)}
    assert seen == {image.tobytes(), np.ascontiguousarray(image[..., ::-1]).tobytes()}


def test_warping_equals_scipys_affine_transform_away_from_the_border():
    image, _ = _pair(1, (11, 12, 13))
    source = Rotation.from_euler("xyz", (10, -7, 12), degrees=True).as_matrix() / 1.1
    centre = (np.array(image.shape[1:]) - 1) / 2
    for nearest in (False, True):
        expected = affine_transform(image[0], source, centre - source @ centre, order=0 if nearest else 1)
        result = warp(image, source, None, nearest=nearest)[0]
        np.testing.assert_allclose(result[3:-3, 3:-3, 3:-3], expected[3:-3, 3:-3, 3:-3], atol=1e-5)


@pytest.mark.parametrize("coarse", [0, 1, 2])
def test_planes_across_a_coarse_axis_are_warped_each_by_itself(coarse):
    image, _ = _pair(2, (9, 10, 11))
    angles = np.zeros(3)
    angles[coarse] = 20
    source = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    np.testing.assert_allclose(warp(image, source, coarse), warp(image, source, None), atol=1e-5)
    altered = image.copy()
    altered[(slice(None),) * (1 + coarse) + (4,)] += 100
    # without the coarse axis named, rounding may touch a neighbouring plane; with it, never
    changed = np.abs(warp(altered, source, coarse) - warp(image, source, coarse)).max(
        axis=tuple(axis for axis in range(4) if axis != coarse + 1)
    )
    assert (changed > 0).tolist() == [index == 4 for index in range(image.shape[coarse + 1])]


def test_a_rotation_is_one_in_millimetres():
    """A ball of 8 mm stays a ball of its volume, turned about any axis, where slices are twice as thick as pixels."""
    spacing = (2.0, 1.0, 1.0)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (21, 41, 41)), indexing="ij"), axis=-1)
    ball = (np.linalg.norm((grid - (10, 20, 20)) * spacing, axis=-1) <= 8).astype(np.float32)
    pipeline = VolumeAugmentation(rotate=30)
    turned = 0
    for seed in range(40):
        image, mask = pipeline(ball[None], ball.astype(np.int64), seed=seed, spacing=spacing)
        turned += not np.array_equal(mask, ball)
        assert np.abs(image[0] - ball).mean() < 0.01
        assert (mask != ball).mean() < 0.02
    assert turned > 3


@pytest.mark.parametrize(
    ("size", "spacing"), [((10, 12, 14), THICK), ((4, 16, 16), EVEN)], ids=["thick slices", "flat patch"]
)
def test_nothing_is_mixed_between_slices_that_are_far_apart(size, spacing):
    """Slices of one value each keep it, whatever is done within them, but for what is added to a channel as a whole."""
    steps = tuple((1.0, step) for step in (augment_volumes.blur, augment_volumes.lower_resolution))
    pipeline = VolumeAugmentation(rotate=30, zoom=(0.7, 1.4), intensity=steps)
    values = np.arange(size[0], dtype=np.float32)
    image = np.broadcast_to(values[None, :, None, None], (1, *size)).copy()
    for seed in range(20):
        out_image, _ = pipeline(image, np.zeros(size, np.int64), seed=seed, spacing=spacing)
        np.testing.assert_allclose(out_image, image, atol=1e-5)


def test_unlabelled_voxels_stay_unlabelled():
    image, mask = _pair()
    mask = np.full(mask.shape, UNLABELLED)
    for seed in range(8):
        _, out = build_volume_augmentation("medical")(image, mask, seed=seed, spacing=EVEN)
        assert (out == UNLABELLED).all()


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (-1000.0, 400.0)], ids=["z-scores", "Hounsfield"])
def test_intensities_are_not_clipped(offset, scale):
    image = np.random.default_rng(0).normal(offset, scale, (1, 12, 12, 12)).astype(np.float32)
    mask = np.zeros(image.shape[1:], np.int64)
    for seed in range(8):
        out, _ = VolumeAugmentation(intensity=ALWAYS)(image, mask, seed=seed, spacing=EVEN)
        middle, width = (out.mean() - offset) / scale, out.std() / scale
        assert abs(middle) < 0.3 * abs(offset) / scale + 0.2
        assert 0.2 < width < 2.5
        assert len(np.unique(out)) > 0.9 * out.size  # clipping would leave many voxels at one value


@pytest.mark.parametrize("step", [step for _, step in augment_volumes.NNUNET_INTENSITY])
def test_a_constant_patch_stays_constant_and_finite(step):
    image = np.full((2, 6, 6, 6), 3.0, np.float32)
    for seed in range(4):
        out = step(image, np.random.default_rng(seed), None)
        assert np.isfinite(out).all()
        np.testing.assert_allclose(out, out[0, 0, 0, 0], rtol=1e-4)


def test_a_list_of_transforms_of_slices_is_refused_and_the_presets_are_named():
    with pytest.raises(ConfigError, match=r"HorizontalFlip.*for slices.*none, flips, medical, natural"):
        build_volume_augmentation([TransformConfig("HorizontalFlip")])
    with pytest.raises(UnknownName, match="did you mean 'medical'"):
        build_volume_augmentation("medicall")  # type: ignore[arg-type]
