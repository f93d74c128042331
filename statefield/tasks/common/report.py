"""The report of a run: one HTML file that holds everything, pictures included, and can be mailed to a colleague.

The page is `report.html.j2`; this module gathers what it shows. Nothing is loaded from elsewhere, text from outside
(case names, classes, settings) is escaped, and every picture is also a file under `figures/`.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from statefield.errors import ShapeError
from statefield.files import atomic_path, write_text
from statefield.tasks.common.environment import describe_environment
from statefield.tasks.common.figures import (
    DARK,
    ERROR_COLOURS,
    LIGHT,
    Pixels,
    class_colour,
    curve_panels,
    displayed,
    error_map,
    overview,
    tinted,
    training_curves,
)

Value = float | int | str | None
Array = NDArray[Any]
_PANELS = ("image", "truth", "prediction", "errors")


@dataclass(frozen=True)
class CaseView:
    """One case as the report shows it.

    Args:
        case: its name.
        image: [C, H, W] or [C, D, H, W], any range, not normalised (a 3-channel image is shown in colours).
        target: true labels, integer [H, W] or [D, H, W]; values outside the classes count as not labelled.
        prediction: predicted labels, the target's shape.
        scores: metric -> value for this case. The first one ranks the cases; higher is better; NaN is not ranked.
        spacing: mm (or any one unit) between pixel centres per array axis, so that pictures keep their proportions.
        pictures: what is drawn of the case, title -> 8-bit [h, w, 3], the same titles in every case; None: the image,
            the truth, the prediction and the errors. The image is not looked at where they are given.
    """

    case: str
    image: Array
    target: Array
    prediction: Array
    scores: Mapping[str, float]
    spacing: tuple[float, ...] | None = None
    pictures: Mapping[str, Pixels] | None = None

    def __post_init__(self) -> None:
        if not (self.image.ndim in (3, 4) and self.image.shape[1:] == self.target.shape == self.prediction.shape):
            raise ShapeError(
                f"case {self.case!r}: image {self.image.shape}, target {self.target.shape} and prediction "
                f"{self.prediction.shape} do not belong together: give [C, *S], [*S] and [*S], S of 2 or 3 axes."
            )


@dataclass(frozen=True)
class MetricRow:
    """One metric over the test set: its published name, how it is averaged, a value per class, and their mean."""

    metric: str
    averaging: str  # "mean over cases", "pooled over all voxels", ...
    per_class: Mapping[str, float]
    mean: float | None = None
    unit: str = ""
    better: Literal["higher", "lower"] = "higher"


@dataclass(frozen=True)
class ComparisonRow:
    """One contender in the comparison. Rows share their columns; `role` says what kind of contender it is."""

    name: str
    role: Literal["model", "control", "baseline"]
    values: Mapping[str, Value]


@dataclass(frozen=True)
class Table:
    """A further table: a heading, a sentence that says what its numbers are, and rows that share their columns."""

    title: str
    lead: str
    rows: Sequence[Mapping[str, Value]]


@dataclass(frozen=True)
class ReportFigure:
    """A further figure: the name of its file (figures/NAME.png), a heading, a sentence that says what it shows."""

    name: str
    title: str
    lead: str
    figure: Figure


@dataclass(frozen=True)
class _Picture:
    title: str
    data: str
    alt: str


@dataclass(frozen=True)
class _Shown:
    """A slice of a case on the page."""

    rank: str
    case: str
    note: str
    scores: Mapping[str, float]
    pictures: list[_Picture] = field(default_factory=list)


def write_report(
    run: Path,
    *,
    title: str,
    summary: Mapping[str, Value],
    cases: Sequence[CaseView],
    history: Sequence[Mapping[str, float | None]],
    classes: Sequence[str],
    metrics: Sequence[MetricRow] = (),
    comparison: Sequence[ComparisonRow] | None = None,
    tables: Sequence[Table] = (),
    figures: Sequence[ReportFigure] = (),
    notes: Sequence[str] = (),
    reproduce: Sequence[str] | None = None,
    legend: Mapping[str, Mapping[str, str]] | None = None,
) -> Path:
    """Write `run/report.html` and the pictures under `run/figures/`.

    Args:
        run: the run folder; its `config.yaml`, where there is one, is shown.
        title: the page's heading.
        summary: the cards on top: label -> value, in order; the first is the headline.
        cases: the test cases; the best, the median and the worst by their first score are drawn. A single volume is
            drawn as its best, median and worst slice.
        history: a row per epoch, see `figures.training_curves`; empty where nothing was trained.
        classes: names by label value.
        metrics: the table of metrics per class.
        comparison: model, control and baselines side by side; the columns are those of the first row.
        tables: further tables, after that of the metrics. figures: further figures, after the tables.
        notes: sentences for the reader: what the data are, what a number does not mean.
        reproduce: shell commands that repeat the run. Default: train from the run's config.yaml.
        legend: what the colours of the pictures mean: heading -> text -> colour. Default: of the classes and errors.

    Returns: the path of report.html.
    """
    run = Path(run)
    shown, sheet = _draw_cases(run, cases, classes)
    curves = _draw_curves(run, history, classes)
    of_classes = {readable(name, classes): class_colour(index) for index, name in enumerate(classes) if index > 0}
    legend = legend or {"classes": of_classes, "errors": ERROR_COLOURS}
    if sheet:
        colours = {text: colour for group in legend.values() for text, colour in group.items()}
        titles = [picture.title for picture in shown[0].pictures]
        _save_figure(run / "figures" / "overview.png", overview(sheet, titles, colours))
    config = run / "config.yaml"
    page = _template(classes).render(
        title=title,
        run=run.name,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        summary=summary,
        notes=notes,
        metrics=metrics,
        tables=tables,
        figures=[(one, _save_figure(run / "figures" / f"{one.name}.png", one.figure)) for one in figures],
        classes=list(classes),
        foreground=[(class_colour(index), name) for index, name in enumerate(classes) if index > 0],
        comparison=comparison or (),
        best=_best_values(comparison or ()),
        shown=shown,
        legend=legend,
        any_volume=any(view.image.ndim == 4 for view in cases),
        columns=len(summary) if len(summary) <= 6 else math.ceil(len(summary) / 2),
        cases=sorted(cases, key=lambda view: view.case),
        curves=curves,
        curves_width=f"{min(100, 34 * len(curve_panels(history)))}%",
        config=config.read_text(encoding="utf-8") if config.exists() else None,
        environment=describe_environment(),
        reproduce=reproduce or (f"statefield medical train --config {run / 'config.yaml'}",),
    )
    write_text(run / "report.html", page)
    return run / "report.html"


def representative(scores: Sequence[float]) -> dict[str, int]:
    """Which cases to look at: "best", "median", "worst" -> index. Higher is better, NaN is never chosen.

    Fewer than three distinct cases give fewer entries.

    >>> representative([0.2, 0.9, float("nan"), 0.5])
    {'best': 1, 'median': 3, 'worst': 0}
    """
    ranked = sorted((index for index, score in enumerate(scores) if not math.isnan(score)), key=lambda i: -scores[i])
    if not ranked:
        return {}
    chosen = {"best": ranked[0]}
    if len(ranked) > 2:
        chosen["median"] = ranked[len(ranked) // 2]
    if len(ranked) > 1:
        chosen["worst"] = ranked[-1]
    return chosen


def format_value(value: Value) -> str:
    """A number as a reader wants it: three decimals below ten, fewer above, "-" where there is none.

    >>> [format_value(v) for v in (0.95341, 12.345, 3_500_000, None, float("nan"), "8 min")]
    ['0.953', '12.3', '3 500 000', '-', '-', '8 min']
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def readable(text: str, classes: Sequence[str]) -> str:
    """`text` with the names of classes spelt with spaces; other words, such as HD95_mm, stay as published.

    >>> readable("HD95_mm grey_matter", ["other", "grey_matter"])
    'HD95_mm grey matter'
    """
    for name in sorted(classes, key=len, reverse=True):
        if "_" in name:
            text = text.replace(name, name.replace("_", " "))
    return text


def _draw_cases(
    run: Path, cases: Sequence[CaseView], classes: Sequence[str]
) -> tuple[list[_Shown], list[tuple[str, list[Pixels], float]]]:
    shown: list[_Shown] = []
    sheet: list[tuple[str, list[Pixels], float]] = []
    for rank, view, slice_index, scores in _chosen(cases, len(classes)):
        titles, panels, aspect = _panels(view, slice_index, len(classes))
        volume = view.image.ndim == 4
        note = f"axial slice {slice_index} of {view.image.shape[1]} (counted from 0)" if volume else ""
        entry = _Shown(rank=rank, case=view.case, note=note, scores=scores)
        for panel, pixels in zip(titles, panels, strict=True):
            name = f"{rank}_{panel}".replace(" ", "_")
            data = _save_pixels(run / "figures" / f"{name}.png", pixels, aspect)
            entry.pictures.append(_Picture(panel, data, f"{panel}, {rank}: case {view.case} {note}".strip()))
        shown.append(entry)
        sheet.append((f"{rank}\n{view.case}" + (f", slice {slice_index}" if volume else ""), panels, aspect))
    return shown, sheet


def _chosen(cases: Sequence[CaseView], num_classes: int) -> list[tuple[str, CaseView, int, Mapping[str, float]]]:
    """(rank, case, slice, scores) of what to draw; the slice of a plain image is 0."""
    if len(cases) == 1 and cases[0].image.ndim == 4:
        view = cases[0]
        worth = _slices_worth_seeing(view, num_classes)
        dice = [_slice_dice(view.target[index], view.prediction[index], num_classes) for index in worth]
        return [
            (f"{rank} slice", view, worth[position], {"mean Dice of the classes in this slice": dice[position]})
            for rank, position in representative(dice).items()
        ]
    picks = representative([next(iter(view.scores.values()), math.nan) for view in cases])
    return [
        (f"{rank} case", cases[index], _fullest_slice(cases[index], num_classes), cases[index].scores)
        for rank, index in picks.items()
    ]


def _fullest_slice(view: CaseView, num_classes: int) -> int:
    """The slice with most true foreground."""
    return 0 if view.target.ndim == 2 else int(np.argmax(_foreground(view, num_classes)))


def _foreground(view: CaseView, num_classes: int) -> Array:
    """Pixels of true foreground in each slice of a volume; unlabelled ones are none."""
    return ((view.target > 0) & (view.target < num_classes)).sum(axis=(1, 2))


def _slices_worth_seeing(view: CaseView, num_classes: int) -> list[int]:
    """Slices with at least a quarter of the foreground of the fullest one: a score of a few pixels says little."""
    foreground = _foreground(view, num_classes)
    return [int(index) for index in np.flatnonzero(foreground >= max(foreground.max() / 4, 1))]


def _slice_dice(target: Array, prediction: Array, num_classes: int) -> float:
    """Mean Dice of the foreground classes that the slice's truth or prediction holds, among its labelled pixels."""
    labelled = (target >= 0) & (target < num_classes)
    target, prediction = target[labelled], prediction[labelled]
    classes = [int(index) for index in np.union1d(target, prediction) if index > 0]
    dice = [
        2
        * float(((target == index) & (prediction == index)).sum())
        / float((target == index).sum() + (prediction == index).sum())
        for index in classes
    ]
    return float(np.mean(dice)) if dice else math.nan


def _panels(view: CaseView, slice_index: int, num_classes: int) -> tuple[Sequence[str], list[Pixels], float]:
    """The titles and pictures of one slice (or the case's own), and the height of its pixels divided by their width."""
    aspect = view.spacing[-2] / view.spacing[-1] if view.spacing else 1.0
    if view.pictures is not None:
        return list(view.pictures), list(view.pictures.values()), aspect
    image, target, prediction = view.image, view.target, view.prediction
    if view.image.ndim == 4:
        # rows of a volume grow to the anterior: turned over, so that the front of the body is up
        image = view.image[:, slice_index, ::-1]
        target, prediction = target[slice_index, ::-1], prediction[slice_index, ::-1]
    picture = displayed(image)
    known = np.where((target >= 0) & (target < num_classes), target, 0)
    panels = [
        picture,
        tinted(picture, known),
        tinted(picture, prediction),
        error_map(picture, target, prediction, num_classes),
    ]
    return _PANELS, panels, aspect


def _draw_curves(
    run: Path, history: Sequence[Mapping[str, float | None]], classes: Sequence[str]
) -> dict[str, str] | None:
    if not curve_panels(history):
        return None
    light = _save_figure(run / "figures" / "curves.png", training_curves(history, classes, LIGHT))
    dark = _save_figure(run / "figures" / "curves_dark.png", training_curves(history, classes, DARK))
    return {"light": light, "dark": dark}


def _best_values(rows: Sequence[ComparisonRow]) -> dict[str, float]:
    """The highest number of each column that holds a score (a number in 0..1 in every row that has one)."""
    best: dict[str, float] = {}
    for column in rows[0].values if rows else ():
        numbers = [value for row in rows if isinstance(value := row.values.get(column), float) and value == value]
        if len(numbers) > 1 and all(0 <= number <= 1 for number in numbers):
            best[column] = max(numbers)
    return best


def _save_pixels(path: Path, pixels: Pixels, aspect: float) -> str:
    """Write a picture, small ones enlarged to about 320 pixels and pixels made square; returns it as base64."""
    picture = Image.fromarray(pixels)
    enlarge = max(1, round(320 / max(pixels.shape[:2])))
    size = (round(pixels.shape[1] * enlarge), max(1, round(pixels.shape[0] * enlarge * aspect)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return _save_bytes(path, buffer.getvalue())


def _save_figure(path: Path, figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor())
    return _save_bytes(path, buffer.getvalue())


def _save_bytes(path: Path, content: bytes) -> str:
    with atomic_path(path) as partial:
        partial.write_bytes(content)
    return base64.b64encode(content).decode("ascii")


def _template(classes: Sequence[str]) -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value"] = format_value
    environment.filters["readable"] = lambda text: readable(text, classes)
    return environment.get_template("report.html.j2")
