"""Pictures of a classifier's test: the confusion matrix, and the scenes that it was surest and most wrong about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from statefield.tasks.common.confusion import ConfusionState
from statefield.tasks.common.figures import Pixels

_MOST_WRITTEN = 24  # classes up to which the counts are written into the matrix
_COLOURS = LinearSegmentedColormap.from_list("white to blue", ["#FFFFFF", "#0072B2"])
_DARK_ENOUGH = 0.6  # a share above which white text is read better


def confusion_figure(state: ConfusionState, classes: Sequence[str]) -> Figure:
    """A row for each class of the test, a column for each class given; shades are shares of the row, numbers scenes."""
    count = len(classes)
    shares = state.counts / np.maximum(state.num_target, 1)[:, None]
    cell = 0.42 if count <= _MOST_WRITTEN else 0.24
    side = cell * count
    longest = max(map(len, classes))
    margin = 0.075 * longest + 0.7
    figure = Figure(
        figsize=(side + margin + 1.7, side + margin + 0.2), dpi=150, layout="constrained", facecolor="white"
    )
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap=_COLOURS, vmin=0, vmax=1)
    size = 8 if count <= _MOST_WRITTEN else 7
    axes.set_xticks(range(count), classes, rotation=90, fontsize=size)
    axes.set_yticks(range(count), classes, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_color("#D9DCE1")
    axes.set_xlabel("given class", fontsize=9)
    axes.set_ylabel("class of the scene", fontsize=9)
    if count <= _MOST_WRITTEN:
        for row, column in zip(*np.nonzero(state.counts), strict=True):
            colour = "white" if shares[row, column] > _DARK_ENOUGH else "#23262B"
            text = str(int(state.counts[row, column]))
            axes.text(column, row, text, ha="center", va="center", fontsize=size - 1, color=colour)
    bar = figure.colorbar(shown, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("share of the scenes of the class", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


@dataclass(frozen=True)
class ShownScene:
    """A scene as the sheet shows it: its picture, its class, and the class it was given with what probability."""

    picture: Pixels
    wanted: str
    given: str
    probability: float


def sheet_figure(scenes: Sequence[ShownScene], columns: int = 6) -> Figure:
    """Scenes side by side, each under what it is and what it was taken for."""
    rows = -(-len(scenes) // columns)
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.05)
    figure = Figure(figsize=(1.9 * columns, 2.5 * rows), dpi=150, layout=layout, facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for scene, axes in zip(scenes, grid.flat, strict=False):
        axes.imshow(scene.picture)
        right = scene.wanted == scene.given
        text = f"{scene.wanted}\n" + ("" if right else f"given {scene.given}\n") + f"{scene.probability:.2f}"
        axes.set_title(text, fontsize=8, color="#23262B" if right else "#A84300")
    return figure
