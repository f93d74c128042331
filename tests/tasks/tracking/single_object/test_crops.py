"""Crops around a box: where they lie, what they hold, and the way back to the frame."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from statefield.errors import DataError, ShapeError
from statefield.tasks.tracking.single_object.crops import CropPlace, as_input, clipped, crop_around, cut


def frame(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_crop_has_the_factor_times_the_root_of_the_area_as_its_side():
    """A box of 8 x 18 has the area of a square of 12; twice that is 24, about the centre (24, 29)."""
    assert crop_around(np.array([20.0, 20.0, 8.0, 18.0]), 2.0) == CropPlace(12, 17, 24)


def test_a_side_is_rounded_up():
    assert crop_around(np.array([0.0, 0.0, 3.0, 3.1]), 2.0).side == 7  # 6.099


@pytest.mark.parametrize("seed", range(5))
def test_a_box_survives_the_way_into_a_crop_and_back(seed):
    rng = np.random.default_rng(seed)
    box = np.concatenate((rng.uniform(-20, 60, 2), rng.uniform(1, 50, 2)))
    around = np.concatenate((rng.uniform(-20, 60, 2), rng.uniform(1, 50, 2)))
    place = crop_around(around, 4.0)
    assert place.box_of(place.shares_of(box)) == pytest.approx(box, abs=1e-9)


def test_the_centre_of_a_box_lies_in_the_middle_of_its_own_crop():
    box = np.array([11.0, 7.0, 10.0, 10.0])
    assert crop_around(box, 4.0).shares_of(box) == pytest.approx([0.5, 0.5, 0.25, 0.25])


def test_a_crop_of_its_own_size_is_the_pixels_themselves():
    picture = frame()
    found = cut(picture, CropPlace(10, 5, 16), 16)
    assert torch.equal(found, torch.from_numpy(picture[5:21, 10:26]).permute(2, 0, 1).float())


def test_what_lies_beyond_the_frame_is_black():
    picture = frame() // 2 + 100
    found = cut(picture, CropPlace(-4, -6, 16), 16)
    assert (found[:, :6] == 0).all() and (found[:, :, :4] == 0).all()
    assert torch.equal(found[:, 6:, 4:], torch.from_numpy(picture[:10, :12]).permute(2, 0, 1).float())
    assert (cut(picture, CropPlace(100, 100, 8), 8) == 0).all()


@pytest.mark.parametrize(
    ("left", "top", "side", "size"), [(3, 4, 20, 32), (-7, 5, 31, 16), (50, 30, 23, 24), (0, 0, 9, 64)]
)
def test_resizing_is_that_of_torch_on_the_crop_with_its_black_edge(left, top, side, size):
    picture = frame()
    whole = np.zeros((side, side, 3), np.uint8)
    for row in range(side):
        for column in range(side):
            if 0 <= top + row < 40 and 0 <= left + column < 60:
                whole[row, column] = picture[top + row, left + column]
    wanted = functional.interpolate(
        torch.from_numpy(whole).permute(2, 0, 1)[None].float(), size=(size, size), mode="bilinear", align_corners=False
    )[0]
    torch.testing.assert_close(cut(picture, CropPlace(left, top, side), size), wanted, atol=2e-3, rtol=0)


def test_inputs_have_the_mean_and_deviation_of_imagenet():
    white = as_input(torch.full((3, 1, 1), 255.0)).flatten()
    assert white.tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        ((-5, -5, 20, 20), (0, 0, 15, 15)),
        ((55, 35, 20, 20), (50, 30, 10, 10)),
        ((200, 10, 20, 20), (50, 10, 10, 20)),
        ((-90, 10, 20, 20), (0, 10, 10, 20)),
        ((10, 10, 2, 3), (10, 10, 10, 10)),
    ],
)
def test_a_box_stays_within_the_frame_and_reaches_ten_pixels_into_it(box, kept):
    assert clipped(np.array(box, float), 60, 40, 10.0) == pytest.approx(kept)


@pytest.mark.parametrize("box", [(1, 1, 0, 5), (1, 1, 5, -2), (np.nan, 1, 5, 5)])
def test_a_box_without_area_is_refused(box):
    with pytest.raises(DataError, match="above 0"):
        crop_around(np.array(box, float), 2.0)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_a_frame_of_another_kind_is_refused(wrong):
    with pytest.raises(ShapeError, match="uint8"):
        cut(wrong, CropPlace(0, 0, 2), 2)
