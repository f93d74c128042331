"""Resampling keeps places, ramps and label values, and gives the same voxels slab by slab."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.common.config import UNLABELLED
from statefield.tasks.common.resampling import (
    axis_weights,
    coarse_axis,
    grid_weights,
    reach,
    resample_image,
    resample_labels,
    resample_logits,
    resample_rows,
    resampled_shape,
)


def ramp(shape: tuple[int, ...], steps: tuple[float, ...], of: tuple[int, ...] | None = None) -> NDArray[np.float32]:
    """A linear function of the place in the field, sampled at the voxels of `shape`, in voxels of the grid `of`."""
    places = [
        ((np.arange(size) + 0.5) * (old / size) - 0.5) * step
        for size, old, step in zip(shape, of or shape, steps, strict=True)
    ]
    return np.asarray(sum(np.meshgrid(*places, indexing="ij")), dtype=np.float32)


def test_a_shape_covers_the_same_field() -> None:
    assert resampled_shape((10, 100, 61), (5.0, 0.8, 0.8), (2.5, 1.0, 1.6)) == (20, 80, 30)  # 30.5 rounds to even
    assert resampled_shape((3, 7), (1.0, 2.0), None) == (3, 7)
    assert resampled_shape((3, 7, 9), (9.0, 2.0, 2.0), (None, 1.0, None)) == (3, 14, 9)
    assert resampled_shape((1, 5, 5), (0.1, 1.0, 1.0), (10.0, 1.0, 1.0)) == (1, 5, 5)


@pytest.mark.parametrize("target", [(1.0, 0.0, 1.0), (1.0, float("inf"), 1.0), (1.0, float("nan"), 1.0)])
def test_a_target_that_is_no_length_is_refused(target: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="above 0 mm"):
        resampled_shape((4, 4, 4), (1.0, 1.0, 1.0), target)


def test_a_target_of_other_axes_is_refused() -> None:
    with pytest.raises(ShapeError, match="one entry per axis"):
        resampled_shape((4, 4, 4), (1.0, 1.0, 1.0), (1.0, 1.0))


def test_the_coarse_axis_is_the_one_beyond_three_times_the_finest() -> None:
    assert coarse_axis((3.0, 1.0, 1.0)) is None
    assert coarse_axis((3.1, 1.0, 1.0)) == 0
    assert coarse_axis((1.0, 1.0, 1.0), (None, None, 4.0)) == 2  # after resampling
    assert coarse_axis((4.0, 4.0, 1.0)) is None  # two are equally coarse
    assert coarse_axis((0.5, 2.0)) == 1


@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (3, 4, 5)])
def test_the_same_grid_changes_nothing(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    labels = np.random.default_rng(0).integers(-1, 4, shape)
    assert np.array_equal(resample_image(image, shape), image)
    assert np.array_equal(resample_labels(labels, shape), labels)


@pytest.mark.parametrize(
    ("shape", "new"),
    [((9, 11), (17, 31)), ((30, 31), (13, 11)), ((9, 20, 13), (23, 15, 13)), ((12, 12, 12), (12, 31, 7))],
)
def test_a_linear_ramp_stays_exact_but_for_the_border(shape: tuple[int, ...], new: tuple[int, ...]) -> None:
    steps = (0.7, -0.3, 0.11)[: len(shape)]
    made = resample_image(ramp(shape, steps)[None], new)[0]
    expected = ramp(new, steps, of=shape)
    # at the border the outermost voxel repeats, as far as the widened kernel (two steps) reaches
    inner = tuple(
        slice(margin := int(np.ceil(2 * max(b / a, 1))) + 1, b - margin) for a, b in zip(shape, new, strict=True)
    )
    assert expected[inner].size
    np.testing.assert_allclose(made[inner], expected[inner], rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 4, 1), (3, 3, 3)])
@pytest.mark.parametrize("factor", [0.4, 1.0, 2.7])
def test_a_constant_stays_constant_on_grids_of_any_size(shape: tuple[int, ...], factor: float) -> None:
    new = tuple(max(1, round(size * factor)) for size in shape)
    image = np.full((2, *shape), 3.25, dtype=np.float32)
    np.testing.assert_allclose(resample_image(image, new), np.full((2, *new), 3.25), rtol=1e-6)


@pytest.mark.parametrize(("size", "new"), [(7, 19), (8, 16), (5, 6), (1, 4)])
def test_enlarging_equals_torch_without_aligned_corners(size: int, new: int) -> None:
    image = np.random.default_rng(1).normal(size=(1, size, size)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(image)[None], (new, new), mode="bilinear")[0].numpy()
    np.testing.assert_allclose(resample_logits(image, (new, new)), theirs, atol=1e-6)


def test_enlarging_by_cubic_convolution_goes_through_keys_weights() -> None:
    # halfway between voxels, Keys' kernel with a = -1/2 weighs (-1, 9, 9, -1) / 16
    weights = axis_weights(6, 18, "cubic").toarray()
    thirds = weights[10]  # at 10.5 / 3 - 0.5 = 3: a voxel itself
    np.testing.assert_allclose(thirds, np.eye(6)[3], atol=1e-7)
    halves = axis_weights(3, 1, "linear").toarray()[0]  # widened to +-3 around the middle: 2/3, 1, 2/3, and the
    np.testing.assert_allclose(halves, np.array([1, 1, 1]) / 3, atol=1e-7)  # repeats beyond the border: 1/3 each
    np.testing.assert_allclose(axis_weights(4, 3, "cubic").toarray().sum(1), 1, atol=1e-6)
    between = axis_weights(9, 18, "cubic").toarray()[8]  # at 8.5 / 2 - 0.5 = 3.75: a quarter before voxel 4
    np.testing.assert_allclose(between[2:6], np.array([-0.0234375, 0.2265625, 0.8671875, -0.0703125]), atol=1e-7)


def test_shrinking_averages_what_plain_interpolation_would_fold() -> None:
    stripes = np.tile(np.array([0.0, 1.0], dtype=np.float32), 32)[None, None].repeat(64, axis=1)
    shrunk = resample_image(stripes, (64, 21))
    np.testing.assert_allclose(shrunk[..., 3:-3], 0.5, atol=0.05)


@pytest.mark.parametrize("new", [(9, 20, 15), (3, 7, 6), (5, 9, 31)])
def test_labels_are_no_others_than_before(new: tuple[int, ...]) -> None:
    labels = np.random.default_rng(2).choice(np.array([0, 3, 200, UNLABELLED]), (5, 11, 10)).astype(np.int16)
    made = resample_labels(labels, new)
    assert made.shape == new
    assert made.dtype == np.int16
    assert set(np.unique(made)) <= {0, 3, 200, UNLABELLED}


def test_regions_keep_their_place_and_what_is_unlabelled_stays_so() -> None:
    labels = np.zeros((4, 12, 12), dtype=np.int64)
    labels[:, :, :4], labels[:, :, 8:], labels[:, :6, 4:8] = UNLABELLED, 7, 2
    made = resample_labels(labels, (4, 24, 36))
    expected = labels.repeat(2, axis=1).repeat(3, axis=2)
    assert (made == expected).mean() > 0.97  # corners are rounded, edges lie between the same voxels
    for value in (UNLABELLED, 0, 2, 7):
        assert abs((made == value).mean() - (labels == value).mean()) < 0.02
    assert np.array_equal(resample_labels(made, labels.shape), labels)


def test_a_thin_line_between_two_classes_is_no_third_class() -> None:
    labels = np.repeat(np.array([[0, 2]]), 5, axis=0).repeat(6, axis=1)  # interpolated values pass 1
    assert set(np.unique(resample_labels(labels, (5, 31)))) == {0, 2}


def test_the_coarse_axis_takes_its_nearest_voxel() -> None:
    image = np.random.default_rng(3).normal(size=(1, 4, 8, 8)).astype(np.float32)
    apart = resample_image(image, (8, 16, 16), coarse_axis=0)
    in_plane = resample_image(image, (4, 16, 16), coarse_axis=0)
    assert np.array_equal(apart, in_plane.repeat(2, axis=1))
    assert not np.array_equal(resample_image(image, (8, 16, 16)), apart)
    labels = (image[0] > 0).astype(np.uint8)
    assert np.array_equal(
        resample_labels(labels, (8, 16, 16), coarse_axis=0),
        resample_labels(labels, (4, 16, 16), coarse_axis=0).repeat(2, axis=0),
    )


@pytest.mark.parametrize(
    ("shape", "new", "apart"),
    [
        ((7, 6, 5), (7, 6, 5), None),
        ((7, 6, 5), (13, 9, 11), None),
        ((13, 9, 11), (7, 6, 5), None),
        ((4, 6, 5), (9, 6, 8), 0),
        ((9, 6, 5), (4, 7, 5), 0),
        ((1, 4, 4), (5, 3, 9), None),
        ((5, 3, 9), (1, 4, 4), None),
    ],
)
@pytest.mark.parametrize("cuts", [(), (1, 2), (3,)])
def test_rows_made_slab_by_slab_are_those_of_the_whole(
    shape: tuple[int, ...], new: tuple[int, ...], apart: int | None, cuts: tuple[int, ...]
) -> None:
    logits = np.random.default_rng(4).normal(size=(3, *shape)).astype(np.float32)
    edges = [0, *(cut for cut in cuts if cut < shape[0]), shape[0]]
    slabs = (logits[:, start:stop] for start, stop in pairwise(edges))
    rows = list(resample_rows(slabs, grid_weights(shape, new, "linear", apart)))
    assert len(rows) == new[0]
    assert np.array_equal(np.stack(rows, axis=1), resample_logits(logits, new, coarse_axis=apart))


def test_a_band_of_columns_is_made_of_no_more_than_it_reaches() -> None:
    shape, new = (6, 20, 5), (11, 31, 4)
    logits = np.random.default_rng(5).normal(size=(2, *shape)).astype(np.float32)
    operators = grid_weights(shape, new, "linear")
    whole = resample_logits(logits, new)
    for start, stop in pairwise((0, 9, 10, 31)):
        low, high = reach(operators[1], start, stop)
        assert high - low <= stop - start + 2
        part = [operators[0], operators[1][start:stop, low:high], operators[2]]
        rows = list(resample_rows([logits[:, :, low:high]], part))
        assert np.array_equal(np.stack(rows, axis=1), whole[:, :, start:stop])
