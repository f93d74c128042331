"""Surface distances against hand-worked cases and against MONAI."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import gaussian_filter

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.common.surface import surface_distances

pytestmark = [  # MONAI warns of empty masks, and of an argument that it passes to itself
    pytest.mark.filterwarnings("ignore:the (ground truth|prediction) of class:UserWarning"),
    pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning"),
]


def _monai(prediction, target, spacing, tolerance):
    """(HD95, NSD, ASSD) of one mask pair by MONAI."""
    pair = [torch.as_tensor(mask)[None, None] for mask in (prediction, target)]
    options = {"include_background": True, "spacing": list(spacing)}
    return (
        float(compute_hausdorff_distance(*pair, percentile=95, **options)),
        float(compute_surface_dice(*pair, class_thresholds=[tolerance], **options)),
        float(compute_average_surface_distance(*pair, symmetric=True, **options)),
    )


def _ours(prediction, target, spacing, tolerance):
    distances = surface_distances(prediction, target, spacing)
    return distances.hausdorff(95), distances.nsd(tolerance), distances.assd()


def test_two_lines_apart_by_hand():
    prediction, target = np.zeros((2, 6, 5), bool)
    prediction[1], target[3] = True, True  # rows 1 and 3, 2.5 mm a row
    distances = surface_distances(prediction, target, (2.5, 1.0))
    assert distances.from_prediction.tolist() == [5.0] * 5
    assert distances.hausdorff() == distances.assd() == 5.0
    assert (distances.nsd(4.9), distances.nsd(5.0)) == (0.0, 1.0)


def test_square_and_the_square_with_a_spike_by_hand():
    # a 3 x 3 square has 8 surface pixels (all but its centre); the spike adds the pixel two to its right,
    # and the pixel between; every square pixel is also surface of the other except where the spike joins it
    square = np.zeros((7, 9), bool)
    square[2:5, 2:5] = True
    spiked = square.copy()
    spiked[3, 5:7] = True
    distances = surface_distances(spiked, square, (1.0, 1.0))
    # spiked: 7 square pixels at 0 (the middle right one became interior), spike pixels at 1 and 2
    assert sorted(distances.from_prediction.tolist()) == [0.0] * 7 + [1.0, 2.0]
    # square: 7 at 0, the middle right one at 1 from the spike or its neighbours
    assert sorted(distances.from_target.tolist()) == [0.0] * 7 + [1.0]
    assert distances.hausdorff(100) == 2.0
    assert distances.assd() == pytest.approx((3 + 1) / (9 + 8))
    assert distances.nsd(0.0) == pytest.approx(14 / 17)
    assert distances.nsd(1.0) == pytest.approx(16 / 17)
    assert distances.hausdorff(95) == pytest.approx(np.percentile([0] * 7 + [1, 2], 95))


def test_spacing_times_steps_counts_as_within_the_tolerance():
    prediction, target = np.zeros((2, 8, 1), bool)
    prediction[2], target[3] = True, True
    assert surface_distances(prediction, target, (0.8, 1.0)).nsd(0.8) == 1.0  # 3 * 0.8 - 2 * 0.8 > 0.8 in floats


def test_empty_masks_follow_the_policy():
    empty, full = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    both = surface_distances(empty, empty, (1, 1))
    assert all(math.isnan(value) for value in (both.hausdorff(), both.assd(), both.nsd(1)))
    for pair in ((empty, full), (full, empty)):
        one = surface_distances(*pair, (1, 1))
        assert math.isnan(one.hausdorff())
        assert math.isnan(one.assd())
        assert one.nsd(1) == 0.0


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((24, 30), (1.0, 1.0)), ((24, 30), (0.7, 1.9)), ((12, 20, 16), (3.0, 0.8, 0.9)), ((5, 4, 6), (1.0, 1.0, 1.0))],
)
@pytest.mark.parametrize("smoothness", [0.0, 2.0])
def test_equal_to_monai_on_random_masks(shape, spacing, smoothness):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        fields = [gaussian_filter(rng.normal(size=shape), smoothness) for _ in range(2)]
        prediction, target = (field > np.quantile(field, 0.6) for field in fields)
        tolerance = float(rng.choice([0.5, 1.0, 2.0]))
        np.testing.assert_allclose(
            _ours(prediction, target, spacing, tolerance), _monai(prediction, target, spacing, tolerance), rtol=1e-5
        )


def test_empty_cases_equal_monais_where_monai_has_a_number():
    empty = np.zeros((6, 6), bool)
    square = empty.copy()
    square[2:4, 2:4] = True
    for pair in ((empty, empty), (empty, square), (square, empty)):
        hd95, nsd, assd = _monai(*pair, (1.0, 1.0), 1.0)
        ours = _ours(*pair, (1.0, 1.0), 1.0)
        np.testing.assert_equal(ours[1], nsd)
        # "no distance" is NaN or infinite there, always NaN here
        assert not math.isfinite(hd95)
        assert not math.isfinite(assd)
        assert math.isnan(ours[0])
        assert math.isnan(ours[2])


def test_symmetric_and_zero_for_equal_masks():
    rng = np.random.default_rng(0)
    first, second = (gaussian_filter(rng.normal(size=(14, 15, 16)), 2) > 0 for _ in range(2))
    assert _ours(first, second, (1, 2, 3), 1.0) == pytest.approx(_ours(second, first, (1, 2, 3), 1.0))
    assert _ours(first, first, (1, 2, 3), 0.0) == (0.0, 1.0, 0.0)


def test_distances_double_with_the_spacing():
    rng = np.random.default_rng(1)
    first, second = (gaussian_filter(rng.normal(size=(20, 20)), 2) > 0 for _ in range(2))
    once, twice = (surface_distances(first, second, (s, s)) for s in (1.0, 2.0))
    assert twice.hausdorff() == pytest.approx(2 * once.hausdorff())
    assert twice.nsd(2.0) == once.nsd(1.0)


def test_wrong_shapes_and_spacings_are_refused():
    mask = np.ones((4, 4), bool)
    with pytest.raises(ShapeError, match=r"\(4, 4\) and \(4,\)"):
        surface_distances(mask, mask[0], (1, 1))
    for spacing in ((1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, np.nan)):
        with pytest.raises(ConfigError, match="spacing_mm"):
            surface_distances(mask, mask, spacing)


def test_beside_unlabelled_pixels_there_is_no_surface():
    # one row of six pixels, the last two unlabelled: target 0 1 1 1 | ? ?, prediction 0 0 1 1 | 1 0
    target = np.array([[0, 1, 1, 1, 0, 0]], bool)
    prediction = np.array([[0, 0, 1, 1, 1, 0]], bool)
    labelled = np.array([[1, 1, 1, 1, 0, 0]], bool)
    tall = [np.repeat(array, 9, axis=0) for array in (prediction, target, labelled)]
    distances = surface_distances(*tall[:2], (1.0, 2.0), labelled=tall[2])
    # the target's surface: column 1 (its neighbour 0 is ground), and the image's border rows; column 3 ends at the
    # labels' end, so it is none. The same for the prediction with column 2. So 9 of that column, 2 x 2 or 2 x 1 ends
    assert len(distances.from_target) == 9 + 2 * 2
    assert len(distances.from_prediction) == 9 + 2 * 1
    # rows 0 and 8 touch (0 away) where both masks are; else column 1 is 2 mm from column 2
    assert sorted(distances.from_target.tolist()) == [0.0] * 4 + [2.0] * 9
    without = surface_distances(*tall[:2], (1.0, 2.0))
    assert len(without.from_prediction) == 9 + 9 + 2 * 1


def test_a_mask_that_fills_its_labelled_patch_has_no_surface_and_counts_like_an_empty_one():
    target = np.zeros((7, 7), bool)
    target[2:5, 2:5] = True
    labelled = target.copy()
    prediction = target.copy()
    prediction[3, 3] = False
    full = surface_distances(target, target, (1.0, 1.0), labelled=labelled)
    assert math.isnan(full.nsd(1.0))
    assert math.isnan(full.hausdorff())
    holed = surface_distances(prediction, target, (1.0, 1.0), labelled=labelled)
    assert len(holed.from_prediction) == 4  # the four neighbours of the hole
    assert holed.nsd(1.0) == 0.0
    assert math.isnan(holed.hausdorff())
    assert math.isnan(holed.assd())


def test_labels_known_everywhere_change_nothing():
    rng = np.random.default_rng(1)
    maps = gaussian_filter(rng.normal(size=(2, 9, 10, 11)), (0, 2, 2, 2)) > 0
    everywhere = surface_distances(*maps, (3.0, 1.0, 1.0), labelled=np.ones(maps.shape[1:], bool))
    plain = surface_distances(*maps, (3.0, 1.0, 1.0))
    np.testing.assert_array_equal(everywhere.from_target, plain.from_target)
    np.testing.assert_array_equal(everywhere.from_prediction, plain.from_prediction)
    with pytest.raises(ShapeError, match="labelled"):
        surface_distances(*maps, (3.0, 1.0, 1.0), labelled=np.ones(3, bool))
