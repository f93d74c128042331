"""From the scores of each case to what is printed and written: means, intervals, pooled scores, who was missed.

The summary is plain dicts and floats, ready for JSON; NaN stands for "no case has this score".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from statefield.errors import DataError
from statefield.tasks.common.bootstrap import bootstrap_interval, case_mean, class_mean
from statefield.tasks.common.confusion import ConfusionState
from statefield.tasks.common.lesions import LesionState

if TYPE_CHECKING:
    from statefield.tasks.common.segmentation_metrics import SegmentationMetrics, SegmentationState

_LOWER_IS_BETTER = ("HD95", "ASSD", "lesion_FP")


def summarise(metrics: SegmentationMetrics, state: SegmentationState, *, intervals: bool = True) -> dict[str, Any]:
    """The scores over cases.

    Returns:
        {"num_cases": n, "unit", "tolerance", "averaging": how each number is averaged,
         "metrics": {metric: {"better": "higher" | "lower",
                              "classes": {class: {"case_mean", "case_std", "pooled" (scores made from counts),
                                                  "ci95": [low, high], "num_counted", "num_not_counted"}},
                              "foreground_mean": the mean over foreground classes of case_mean, "foreground_ci95",
                              "num_foreground_counted": how many of those classes have one,
                              "foreground_pooled" (scores made from counts)}},
         "accuracy": {"case_mean", "case_std", "ci95", "pooled", "num_counted", "num_not_counted",
                      "cases": {case: value}},
         "classes": {class: {"num_present", "num_predicted", "num_missed", "num_invented"}}   in cases,
         "lesions": {class: {"num_true", "num_detected", "num_predicted", "num_false_positive"}}   where counted,
         "cases": {case: {metric: {class: value}}}}
    """
    if not state.cases:
        raise DataError("no case was observed, so there is nothing to summarise.")
    names = sorted(state.cases)
    num_classes = len(metrics.classes)
    pooled_counts = sum((state.cases[name].confusion for name in names), ConfusionState.empty(num_classes))
    pooled_lesions = sum((state.cases[name].lesions for name in names), LesionState.empty(num_classes))
    pooled = metrics.overlap_scores(pooled_counts) | metrics.lesion_scores(pooled_lesions)
    table = {
        metric: _summary_of(
            metrics,
            metric,
            np.stack([state.cases[name].values[metric] for name in names]),
            pooled.get(metric),
            intervals,
        )
        for metric in metrics.names
    }
    summary: dict[str, Any] = {
        "num_cases": len(names),
        "unit": metrics.unit,
        "tolerance": metrics.tolerance_mm,
        "averaging": {
            "case_mean": "mean over the cases that have a score for the class (num_counted of them)",
            "pooled": "from the counts of all cases together",
            "foreground_mean": "unweighted mean over "
            + ", ".join(metrics.classes[k] for k in metrics.foreground)
            + " of their case means (num_foreground_counted of them have one)",
            "ci95": "95 % percentile bootstrap over cases",
        },
        "metrics": table,
        "accuracy": _accuracy(state, names, pooled_counts, intervals),
        "classes": _presence(metrics, state, names),
    }
    if metrics.lesion_labels:
        summary["lesions"] = _lesion_counts(metrics, pooled_lesions)
    return summary | {"cases": {name: metrics.case_table(state, name) for name in names}}


def _summary_of(
    metrics: SegmentationMetrics, metric: str, values: np.ndarray, pooled: np.ndarray | None, intervals: bool
) -> dict[str, Any]:
    """One metric; values: float64 [cases, classes], NaN where there is no score."""
    per_class: dict[str, Any] = {}
    for label, name in enumerate(metrics.classes):
        entry = _over_cases(values[:, label], intervals)
        if pooled is not None:
            entry["pooled"] = float(pooled[label])
        per_class[name] = entry
    columns = list(metrics.foreground)
    summary: dict[str, Any] = {
        "better": "lower" if metric.startswith(_LOWER_IS_BETTER) else "higher",
        "classes": per_class,
        "foreground_mean": float(class_mean(values[:, columns])),
        "num_foreground_counted": int(np.isfinite(case_mean(values)[columns]).sum()),
    }
    if pooled is not None:
        summary["foreground_pooled"] = float(case_mean(pooled[columns][:, None])[0])
    if intervals:
        summary["foreground_ci95"] = list(bootstrap_interval(values[:, columns]))
    return summary


def _over_cases(values: np.ndarray, intervals: bool) -> dict[str, Any]:
    """Mean, spread and interval of one score over the cases that have it; values: float64 [cases]."""
    scored = values[np.isfinite(values)]
    entry: dict[str, Any] = {
        "case_mean": float(case_mean(values[:, None])[0]),
        "case_std": float(scored.std(ddof=1)) if len(scored) > 1 else float("nan"),
        "num_counted": len(scored),
        "num_not_counted": len(values) - len(scored),
    }
    if intervals:
        entry["ci95"] = list(bootstrap_interval(values[:, None]))
    return entry


def _accuracy(
    state: SegmentationState, names: Sequence[str], pooled: ConfusionState, intervals: bool
) -> dict[str, Any]:
    by_case = {name: state.cases[name].confusion.accuracy for name in names}
    values = np.array(list(by_case.values()))
    return _over_cases(values, intervals) | {"pooled": pooled.accuracy, "cases": by_case}


def _presence(
    metrics: SegmentationMetrics, state: SegmentationState, names: Sequence[str]
) -> dict[str, dict[str, int]]:
    target = np.stack([state.cases[name].confusion.num_target > 0 for name in names])
    predicted = np.stack([state.cases[name].confusion.num_predicted > 0 for name in names])
    return {
        name: {
            "num_present": int(target[:, k].sum()),
            "num_predicted": int(predicted[:, k].sum()),
            "num_missed": int((target[:, k] & ~predicted[:, k]).sum()),
            "num_invented": int((~target[:, k] & predicted[:, k]).sum()),
        }
        for k, name in enumerate(metrics.classes)
    }


def _lesion_counts(metrics: SegmentationMetrics, pooled: LesionState) -> dict[str, dict[str, int]]:
    keys = ("num_true", "num_detected", "num_predicted", "num_false_positive")
    return {
        metrics.classes[k]: dict(zip(keys, (int(n) for n in pooled.counts[k]), strict=True))
        for k in metrics.lesion_labels
    }
