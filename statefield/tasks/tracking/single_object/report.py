"""The page that a training of MambaEVT ends with: scores, success curves, and frames with what was found in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from statefield.tasks.common.outcome import TestResult, write_metrics
from statefield.tasks.common.report import ComparisonRow, ReportFigure, Table, Value, write_report
from statefield.tasks.common.run_folder import RunFolder, read_history
from statefield.tasks.tracking.single_object.examples import OpenedVideos, Part
from statefield.tasks.tracking.single_object.follow import Followed, frame_errors_of, success_scores
from statefield.tasks.tracking.single_object.recipe import SotRecipe
from statefield.tasks.tracking.sot.one_pass import FrameErrors, curves, overlap_thresholds, pooled_errors
from statefield.tasks.tracking.sot.protocols import protocol_named

__all__ = ["Contender", "write_results"]

_TRUE, _FOUND = "#009E73", "#D55E00"
_LINES = ("#0072B2", "#D55E00", "#CC79A7", "#8A8F98")
_FRAMES_SHOWN, _SEQUENCES_SHOWN = 6, 4
_NOTES = (
    "Each test sequence is followed from its first box to its end, without a second chance. All scores are over the "
    "frames after the first in which the target can be seen, of all test sequences together; AUC is the mean of 21 "
    "thresholds of overlap, P is precision at 20 pixels, P_norm normalised precision at 0.2. For scores by the rules "
    "of a benchmark, track its test set with `statefield sot track` and score that with `statefield sot evaluate`.",
    '"First template alone" is the same net with its memory switched off; "the first box" is no tracker: the box stays '
    "where it was.",
)


@dataclass(frozen=True)
class Contender:
    """A net, or what it is compared with: sequence -> what it found there."""

    name: str
    role: Literal["model", "control", "baseline"]
    followed: dict[str, Followed]


def write_results(
    folder: RunFolder, recipe: SotRecipe, parts: Sequence[Part], contenders: Sequence[Contender]
) -> TestResult:
    """Write metrics.json and report.html.

    Args: parts: the test sequences. contenders: the model first.
    """
    errors = {one.name: _errors(one, parts) for one in contenders}
    comparison = [
        ComparisonRow(
            one.name,
            one.role,
            {
                **success_scores(list(errors[one.name].values())),
                "frames": sum(len(error.overlap) for error in errors[one.name].values()),
                "frames/s": _rate(one),
            },
        )
        for one in contenders
    ]
    by_sequence = {
        part.case: {
            one.name: success_scores([errors[one.name][part.case]])["AUC"] if part.case in errors[one.name] else None
            for one in contenders
        }
        for part in parts
    }
    write_metrics(
        folder,
        recipe,
        model=comparison[0].values,
        controls=[row.values for row in comparison if row.role == "control"],
        comparison=comparison,
        extra={"sequences": by_sequence},
    )
    rows: list[dict[str, Value]] = [{"sequence": case, **scores} for case, scores in by_sequence.items()]
    model = contenders[0]
    report = write_report(
        folder.root,
        title=f"{recipe.model.name}: one object, followed",
        summary={"AUC": comparison[0].values["AUC"], "P (20 px)": comparison[0].values["P"], "sequences": len(parts)},
        cases=[],
        history=read_history(folder.history),
        classes=(),
        comparison=comparison,
        tables=[Table("Each test sequence", "AUC over the frames after the first.", rows)],
        figures=[
            ReportFigure(
                "success",
                "Success",
                "The share of frames whose overlap is above a threshold; AUC is the mean of a line.",
                _success(errors),
            ),
            *_strips(parts, model),
        ],
        notes=_NOTES,
        reproduce=(f"statefield sot train --config {folder.config}",),
    )
    return TestResult(folder, comparison[0].values, comparison, report)


def _errors(one: Contender, parts: Sequence[Part]) -> dict[str, FrameErrors]:
    found = {part.case: frame_errors_of(one.followed[part.case].boxes, part.video, part.first) for part in parts}
    return {case: errors for case, errors in found.items() if errors is not None}


def _rate(one: Contender) -> float | None:
    """Frames a second of the tracker over all sequences; None for what computes nothing."""
    seconds = sum(float(each.seconds[1:].sum()) for each in one.followed.values())
    return sum(len(each.seconds) - 1 for each in one.followed.values()) / seconds if seconds else None


def _success(errors: Mapping[str, Mapping[str, FrameErrors]]) -> Figure:
    protocol = protocol_named("visible")
    figure = Figure(figsize=(6.4, 3.6), dpi=150, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for (name, by_case), colour in zip(errors.items(), _LINES, strict=False):
        if by_case:
            line = curves(protocol, pooled_errors(list(by_case.values()))).success
            axes.plot(overlap_thresholds(protocol), line, color=colour, label=f"{name}: {line.mean():.3f}")
    axes.set_xlabel("overlap with the true box")
    axes.set_ylabel("share of frames")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(0, 1)
    axes.grid(visible=True, color="#D9DCE1", linewidth=0.8)
    axes.spines[:].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _strips(parts: Sequence[Part], model: Contender) -> list[ReportFigure]:
    opened = OpenedVideos()
    return [
        ReportFigure(
            f"sequence_{number}",
            part.case,
            "Green is the true box, orange the one that was found; the number is the net's score.",
            _strip(part, model.followed[part.case], opened),
        )
        for number, part in enumerate(parts[:_SEQUENCES_SHOWN], start=1)
    ]


def _strip(part: Part, found: Followed, opened: OpenedVideos) -> Figure:
    """Frames of a sequence, evenly spread, with the true box and the one that was found."""
    frames = opened.of(part.video)
    count = len(found.boxes)
    chosen = np.unique(np.linspace(0, count - 1, min(_FRAMES_SHOWN, count)).round().astype(int))
    columns = min(3, len(chosen))
    first = frames[part.first]
    height = 2.9 * first.shape[0] / first.shape[1] + 0.3
    lines = -(-len(chosen) // columns)
    figure = Figure(figsize=(2.9 * columns, height * lines), dpi=150, layout="constrained", facecolor="white")
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, position in zip(grid.flat, chosen, strict=False):
        number = part.first + int(position)
        axes.imshow(frames[number])
        for box, colour in ((part.video.boxes[number], _TRUE), (found.boxes[position], _FOUND)):
            if np.isfinite(box).all():
                _outline(axes, box, colour)
        axes.set_title(f"frame {number + 1}: {found.scores[position]:.2f}", fontsize=8, loc="left")
    return figure


def _outline(axes: Any, box: np.ndarray, colour: str) -> None:
    axes.add_patch(Rectangle((box[0] - 0.5, box[1] - 0.5), box[2], box[3], fill=False, edgecolor=colour, linewidth=1.6))
