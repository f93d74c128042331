"""Pictures of segmentations and of training: overlays, error maps, curves. Arrays in, arrays or matplotlib figures out.

Colours are those of Okabe and Ito (2008), which people with any of the common colour-vision deficiencies can tell
apart. Class 0 is the background and stays untinted.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from statefield.errors import ShapeError

Array = NDArray[Any]
Pixels = NDArray[np.uint8]  # [H, W, 3]

_OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
_UNTINTED = "#8A8F98"

# What each pixel of an error map means: name -> colour. Not the colours of the first classes, and of three lightnesses.
ERROR_COLOURS = {"false foreground": "#D55E00", "missed foreground": "#F0E442", "wrong class": "#CC79A7"}
_FADED = (
    0.3  # how much of the image an error map keeps: the darkest error colour is then twice as bright as white tissue
)


def class_colour(index: int) -> str:
    """The colour of class `index`, "#RRGGBB"; after seven classes the hues return, darker each time.

    >>> class_colour(1), class_colour(8)
    ('#E69F00', '#A16F00')
    """
    if index == 0:
        return _UNTINTED
    hue, round_ = (index - 1) % len(_OKABE_ITO), (index - 1) // len(_OKABE_ITO)
    channels = [int(value * 0.7**round_) for value in _rgb(_OKABE_ITO[hue])]
    return "#" + "".join(f"{value:02X}" for value in channels)


def displayed(image: Array) -> Pixels:
    """[C, H, W] of any range as [H, W, 3] 8-bit: three channels as colours, else the first one as grey.

    Values between the percentiles 0.5 and 99.5 of the finite ones use the whole range, so that a few bright voxels
    do not darken the rest.
    """
    if image.ndim != 3:
        raise ShapeError(f"an image of shape {image.shape}: pictures are made of [C, H, W].")
    shown = np.asarray(image if image.shape[0] == 3 else image[:1], dtype=np.float64)
    finite = shown[np.isfinite(shown)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    if high <= low:
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    scaled = np.nan_to_num((shown - low) / (high - low if high > low else 1.0)).clip(0, 1)
    grey_or_rgb = np.broadcast_to(scaled, (3, *scaled.shape[1:]))
    return (np.moveaxis(grey_or_rgb, 0, -1) * 255).round().astype(np.uint8)


def tinted(picture: Pixels, labels: Array, *, strength: float = 0.5) -> Pixels:
    """`picture` with each class of `labels` [H, W] washed over it in its colour, and its outline drawn in full."""
    blended = picture.astype(np.float64)
    for index in np.unique(labels):
        if index <= 0:
            continue
        inside = labels == index
        colour = np.array(_rgb(class_colour(int(index))), dtype=np.float64)
        blended[inside] = (1 - strength) * blended[inside] + strength * colour
        blended[inside & _outline(inside)] = colour
    return blended.round().astype(np.uint8)


def error_map(picture: Pixels, target: Array, prediction: Array, num_classes: int) -> Pixels:
    """`picture`, faded, with every wrong pixel in the colour that `ERROR_COLOURS` gives to its kind.

    Targets outside 0..num_classes - 1 (unlabelled pixels) are never errors.
    """
    faded = (picture.astype(np.float64) * _FADED).round().astype(np.uint8)
    known = (target >= 0) & (target < num_classes)
    kinds = {
        "false foreground": (target == 0) & (prediction != 0),
        "missed foreground": (target != 0) & (prediction == 0),
        "wrong class": (target != 0) & (prediction != 0) & (target != prediction),
    }
    for kind, pixels in kinds.items():
        faded[known & pixels] = _rgb(ERROR_COLOURS[kind])
    return faded


@dataclass(frozen=True)
class Ink:
    """The colours of a figure's text, lines and grid; its background is transparent, the page's shows."""

    text: str
    line: str
    second: str
    grid: str


LIGHT = Ink(text="#23262B", line="#23262B", second="#0072B2", grid="#D9DCE1")
DARK = Ink(text="#E6E8EB", line="#E6E8EB", second="#56B4E9", grid="#3A3F47")


def training_curves(history: Sequence[Mapping[str, float | None]], classes: Sequence[str], ink: Ink = LIGHT) -> Figure:
    """One panel for each kind of value in `history` over epochs: losses, each metric (a line per class), learning rate.

    Args:
        history: a row per epoch. "epoch" is its position where given; "step" and "seconds" are not drawn, nor are
            "skipped_steps" while there were none; every other key is a curve, in which None and NaN are gaps.
        classes: names by label value; a curve whose key contains a class's name has that class's colour.
    """
    panels = curve_panels(history)
    figure = Figure(figsize=(3.5 * max(len(panels), 1), 2.8), dpi=200, layout="constrained", facecolor="none")
    epochs = [float(row.get("epoch") or 0) if "epoch" in row else index for index, row in enumerate(history)]
    for position, (name, keys) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), position + 1)
        _style(axes, ink, name)
        plain = itertools.cycle((ink.line, ink.second, *_OKABE_ITO))
        for key in keys:
            points = [
                (epoch, float(value))
                for epoch, row in zip(epochs, history, strict=True)
                if (value := row.get(key)) is not None and math.isfinite(value)
            ]
            index = _class_named_in(key, classes)
            colour = next(plain) if index is None else class_colour(index)
            label = re.sub(r"[/_]+", " ", key if index is None else classes[index])
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=colour, linewidth=1.8, marker="o" if len(x) < 3 else None, label=label)
        labels = axes.get_legend_handles_labels()[1]
        if labels and labels != [name]:
            axes.legend(frameon=False, fontsize=9, labelcolor=ink.text)
    return figure


def curve_panels(history: Sequence[Mapping[str, float | None]]) -> dict[str, list[str]]:
    """The panels of `training_curves`, in order: title -> the keys drawn in it."""
    panels: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for row in history for key in row):
        untroubled = key == "skipped_steps" and not any(row.get(key) for row in history)
        if key not in ("epoch", "step", "seconds") and not untroubled:
            panels.setdefault(_panel(key), []).append(key)
    return dict(sorted(panels.items(), key=lambda item: (item[0] != "loss", item[0] == "learning rate", item[0])))


def overview(
    rows: Sequence[tuple[str, Sequence[Pixels], float]], columns: Sequence[str], legend: Mapping[str, str]
) -> Figure:
    """A sheet of pictures with titles over the columns, labels before the rows and a legend, on white: for papers.

    Args:
        rows: (label, one picture per column, height of a pixel divided by its width).
        columns: the columns' titles.
        legend: what the colours mean: text -> colour.
    """
    heights = [pictures[0].shape[0] * aspect / pictures[0].shape[1] for _, pictures, aspect in rows]
    width = 2.6
    figure = Figure(
        figsize=(width * len(columns) + 0.5, width * sum(heights) + 0.7),
        dpi=150,
        layout="constrained",
        facecolor="white",
    )
    grid = figure.subplots(len(rows), len(columns), squeeze=False, height_ratios=heights)
    for (label, pictures, aspect), line in zip(rows, grid, strict=True):
        for picture, axes in zip(pictures, line, strict=True):
            axes.imshow(picture, aspect=aspect, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(label, fontsize=10)
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(title, fontsize=10)
    # with an outline, since white is a colour of some legends
    patches = [
        Patch(facecolor=colour, edgecolor=_UNTINTED, linewidth=0.5, label=text) for text, colour in legend.items()
    ]
    inches = 0.5 + 0.075 * max((len(text) for text in legend), default=0)  # of a patch with its text
    ncols = min(8, max(1, int(width * len(columns) / inches)))
    figure.legend(handles=patches, loc="outside lower center", ncols=ncols, frameon=False, fontsize=9)
    return figure


def _panel(key: str) -> str:
    """Which panel a curve belongs to: "loss", "learning rate", or the metric named in its key."""
    words = re.split(r"[/_\s\-]+", key)
    lowered = [word.lower() for word in words]
    if "loss" in lowered:
        return "loss"
    if "lr" in lowered or "rate" in lowered:
        return "learning rate"
    for metric in ("Dice", "IoU", "NSD", "HD95"):
        if metric.lower() in lowered:
            return f"{metric} (mm)" if metric == "HD95" else metric
    return key


def _class_named_in(key: str, classes: Sequence[str]) -> int | None:
    """The label value of the class whose name a curve's key contains; the longest name where several are."""
    found = [index for index, name in enumerate(classes) if name and name.lower() in key.lower()]
    return max(found, key=lambda index: len(classes[index])) if found else None


def _style(axes: Axes, ink: Ink, title: str) -> None:
    axes.set_facecolor("none")
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=ink.text)
    axes.set_xlabel("epoch", fontsize=9, color=ink.text)
    axes.tick_params(colors=ink.text, labelsize=9, length=0)
    axes.grid(visible=True, axis="y", color=ink.grid, linewidth=0.8)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a region with a neighbour (above, below, left or right) outside of it."""
    padded = np.pad(inside, 1, constant_values=True)
    surrounded = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~surrounded


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
