"""The page that a training of MTP ends with: the comparison, and the overlap on each test sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from statefield.tasks.common.outcome import TestResult, write_metrics
from statefield.tasks.common.report import ComparisonRow, Table, Value, write_report
from statefield.tasks.common.run_folder import RunFolder, read_history
from statefield.tasks.tracking.motion.accuracy import NextBox
from statefield.tasks.tracking.motion.recipe import MotionRecipe

__all__ = ["write_results"]

_NOTES = (
    "IoU is that of the predicted box and the one that came, the mean over all boxes of all test sequences together. "
    "Counted is a box whose track was there in the two frames before.",
    "IoU_moved is that of boxes which overlap their last place by less than 0.8.",
    "Annotations are smoother than what a detector finds: a filter that is tuned to smooth a detector's noise lags "
    "behind them, and constant velocity does not. Which model tracks better is for `statefield mot track` and "
    "`statefield mot evaluate` to say.",
)


def write_results(
    folder: RunFolder,
    recipe: MotionRecipe,
    comparison: Sequence[ComparisonRow],
    by_sequence: Mapping[str, Mapping[str, NextBox]],
) -> TestResult:
    """Write metrics.json and report.html.

    Args:
        comparison: the model, its control and the baselines, over all test sequences.
        by_sequence: sequence -> name of the model -> its state.
    """
    write_metrics(
        folder,
        recipe,
        model=comparison[0].values,
        controls=[row.values for row in comparison if row.role == "control"],
        comparison=comparison,
        extra={
            "sequences": {
                name: {model: state.summarise() for model, state in states.items()}
                for name, states in by_sequence.items()
            }
        },
    )
    rows: list[dict[str, Value]] = [
        {"sequence": name, **{model: state.summarise()["IoU"] for model, state in states.items()}}
        for name, states in by_sequence.items()
    ]
    report = write_report(
        folder.root,
        title=f"{recipe.model.name}: where a box will be",
        summary={"mean IoU of the next box": comparison[0].values["IoU"], "boxes": comparison[0].values["boxes"]},
        cases=[],
        history=read_history(folder.history),
        classes=(),
        comparison=comparison,
        tables=[Table("Each test sequence", "Mean IoU of the predicted and the next box.", rows)],
        notes=_NOTES,
        reproduce=(f"statefield mot train --config {folder.config}",),
    )
    return TestResult(folder, comparison[0].values, comparison, report)
