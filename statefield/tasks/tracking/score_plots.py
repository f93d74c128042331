"""Curves of several trackers in one figure: success, precision, HOTA over thresholds, expected overlap over lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from statefield.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = ("-", "--", "-.", ":")
_DPI = 150
_TEXT, _QUIET, _GRID = "#23262B", "#626A75", "#D9DCE1"


@dataclass(frozen=True)
class CurvePlot:
    """One figure.

    Args:
        name: of its file, without a suffix.
        title, x_label, y_label: what stands on it.
        x: [K] values of the horizontal axis.
        lines: label -> [K] values; NaN leaves a gap.
        scores: label -> the number in the legend; lines are listed from the highest to the lowest.
        unit: after the numbers in the legend.
        y_range: of the vertical axis; None fits the lines.
        band: an interval of x to be marked.
        mark: a value of x to be marked with a line.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    x: ArrayLike
    lines: Mapping[str, ArrayLike]
    scores: Mapping[str, float] = field(default_factory=dict)
    unit: str = ""
    y_range: tuple[float, float] | None = (0.0, 1.0)
    band: tuple[float, float] | None = None
    mark: float | None = None


def draw(plot: CurvePlot) -> Figure:
    """The figure, on white. Colours are told apart without red-green vision; after seven the line style changes.

    A line's colour is that of its place in `plot.lines`, so that it is the same in all figures of an evaluation.
    """
    from matplotlib.figure import Figure  # most evaluations draw nothing, and this takes longer than they do

    from statefield.tasks.common.figures import class_colour

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    x = np.asarray(plot.x, dtype=float)
    if plot.band is not None:
        axes.axvspan(*plot.band, color="#E9F1F8", linewidth=0)
    if plot.mark is not None:
        axes.axvline(plot.mark, color=_QUIET, linewidth=0.8, linestyle=":")
    order = sorted(plot.lines, key=lambda label: -_rank(plot.scores.get(label)))
    places = {label: place for place, label in enumerate(plot.lines)}
    per_cent = plot.y_range is not None and plot.y_range[1] > 1
    for label in order:
        index = places[label]
        score = plot.scores.get(label)
        axes.plot(
            x,
            np.asarray(plot.lines[label], dtype=float),
            _STYLES[index // 7 % len(_STYLES)],
            color=class_colour(index % 7 + 1),
            linewidth=2.0,
            label=label
            if score is None
            else f"{label}  [{score:.{1 if per_cent or abs(score) >= 10 else 3}f}{plot.unit}]",
        )
    axes.set_title(plot.title, loc="left", fontsize=11, fontweight="bold", color=_TEXT)
    axes.set_xlabel(plot.x_label, color=_TEXT)
    axes.set_ylabel(plot.y_label, color=_TEXT)
    if len(x) > 1:
        axes.set_xlim(float(x[0]), float(x[-1]))
    if plot.y_range is not None:
        axes.set_ylim(*plot.y_range)
    axes.grid(visible=True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_TEXT, length=0, pad=6)
    axes.spines[:].set_visible(False)
    if len(order) <= 12:
        axes.legend(fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")
    else:  # a long legend would hide the lines
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def save_plots(folder: Path, plots: Sequence[CurvePlot]) -> list[Path]:
    """Write NAME.png and NAME.pdf (for papers) of each plot; each file appears whole or not at all."""
    written = []
    for plot in plots:
        figure = draw(plot)
        for suffix in (".png", ".pdf"):
            target = folder / f"{plot.name}{suffix}"
            with atomic_path(target) as partial:
                figure.savefig(partial, format=suffix[1:], dpi=_DPI)
            written.append(target)
    return written


def _rank(score: float | None) -> float:
    return -math.inf if score is None or math.isnan(score) else score
