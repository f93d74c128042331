"""Colours mean what the legend says; every kind of image can be shown."""

from __future__ import annotations

import numpy as np
import pytest

from statefield.errors import ShapeError
from statefield.tasks.common.figures import (
    ERROR_COLOURS,
    class_colour,
    curve_panels,
    displayed,
    error_map,
    overview,
    tinted,
    training_curves,
)


def rgb(colour: str) -> list[int]:
    return [int(colour[start : start + 2], 16) for start in (1, 3, 5)]


def relative_luminance(colour: str) -> float:
    linear = [(v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4) for v in (c / 255 for c in rgb(colour))]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_classes_and_errors_have_different_colours() -> None:
    colours = [class_colour(index) for index in range(22)]
    assert len(set(colours)) == 22
    assert not {class_colour(index) for index in range(4)} & set(ERROR_COLOURS.values())


def test_error_colours_are_twice_as_bright_as_the_brightest_tissue_under_them() -> None:
    white = np.full((1, 1, 3), 255, np.uint8)
    faded = error_map(white, np.zeros((1, 1)), np.zeros((1, 1)), num_classes=2)[0, 0]
    under = relative_luminance("#" + "".join(f"{value:02X}" for value in faded))
    for colour in ERROR_COLOURS.values():
        assert (relative_luminance(colour) + 0.05) / (under + 0.05) > 2  # the contrast ratio of WCAG


def test_each_kind_of_error_has_its_colour_and_right_pixels_have_none() -> None:
    target = np.array([[0, 0, 1, 1, 2, 1, -1, 9]])
    prediction = np.array([[0, 1, 0, 1, 1, 1, 1, 0]])
    errors = error_map(np.full((1, 8, 3), 200, np.uint8), target, prediction, num_classes=3)
    faded = [60, 60, 60]
    assert errors[0].tolist() == [
        faded,
        rgb(ERROR_COLOURS["false foreground"]),
        rgb(ERROR_COLOURS["missed foreground"]),
        faded,
        rgb(ERROR_COLOURS["wrong class"]),
        *([faded] * 3),  # a right pixel, and two without a label
    ]


def test_tint_leaves_background_alone_and_outlines_regions() -> None:
    labels = np.zeros((7, 7), dtype=np.int64)
    labels[1:6, 1:6] = 2
    picture = tinted(np.full((7, 7, 3), 100, np.uint8), labels, strength=0.5)
    assert picture[0, 0].tolist() == [100, 100, 100]
    assert picture[1, 3].tolist() == rgb(class_colour(2))
    assert picture[3, 3].tolist() == [round(50 + value / 2) for value in rgb(class_colour(2))]


@pytest.mark.parametrize(
    "image",
    [np.full((1, 3, 3), 7.0), np.full((1, 3, 3), np.nan), np.array([[[0.0, np.inf, 1.0]]]), np.zeros((2, 3, 3))],
    ids=["constant", "all NaN", "infinite", "two channels"],
)
def test_any_image_can_be_shown(image: np.ndarray) -> None:
    picture = displayed(image)
    assert picture.shape == (*image.shape[1:], 3)
    assert picture.dtype == np.uint8


def test_three_channels_are_colours_and_the_range_is_used() -> None:
    image = np.zeros((3, 10, 10))
    image[0, :5] = 4.0
    picture = displayed(image)
    assert picture[0, 0].tolist() == [255, 0, 0]
    assert picture[9, 0].tolist() == [0, 0, 0]
    with pytest.raises(ShapeError, match=r"\(10, 10\)"):
        displayed(image[0])


def test_curves_are_grouped_by_what_they_measure_and_gaps_stay_gaps() -> None:
    history = [
        {"epoch": 3, "train/loss": 2.0, "val/loss": 2.5, "val/Dice grey": 0.3, "val/Dice white": 0.4, "lr-AdamW": 1e-3},
        {"epoch": 4, "train/loss": 1.0, "val/loss": None, "val/Dice grey": 0.5, "val/HD95_mm": float("nan")},
    ]
    assert curve_panels(history) == {
        "loss": ["train/loss", "val/loss"],
        "Dice": ["val/Dice grey", "val/Dice white"],
        "HD95 (mm)": ["val/HD95_mm"],
        "learning rate": ["lr-AdamW"],
    }
    figure = training_curves(history, ("other", "grey", "white"))
    losses, dice, hausdorff, _ = figure.axes
    assert [line.get_xydata().tolist() for line in losses.lines] == [[[3, 2], [4, 1]], [[3, 2.5]]]
    assert [line.get_color() for line in dice.lines] == [class_colour(1), class_colour(2)]
    assert [text.get_text() for text in dice.get_legend().get_texts()] == ["grey", "white"]
    assert not hausdorff.lines


def test_curves_without_a_class_do_not_borrow_a_class_s_colour() -> None:
    history = [{"epoch": e, "train_loss": 1.0, "Dice/grey": 0.5, "Dice/white": 0.5, "Dice/mean": 0.5} for e in (1, 2)]
    loss, dice = training_curves(history, ("other", "grey", "white")).axes
    grey, white, mean = (line.get_color() for line in dice.lines)
    assert (grey, white) == (class_colour(1), class_colour(2))
    assert mean not in (grey, white)
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train loss"]  # not validation's


def test_a_sheet_of_pictures_says_what_its_colours_mean() -> None:
    pictures = [np.zeros((4, 6, 3), np.uint8)] * 2
    legend = {"grey": class_colour(1), **ERROR_COLOURS}
    sheet = overview([("best", pictures, 2.0), ("worst", pictures, 1.0)], ("image", "errors"), legend)
    (shown,) = sheet.legends
    assert [text.get_text() for text in shown.get_texts()] == list(legend)
    assert [axes.get_title() for axes in sheet.axes[:2]] == ["image", "errors"]
    assert [axes.get_ylabel() for axes in sheet.axes[::2]] == ["best", "worst"]
