"""The scores of a segmentation: Dice, IoU, HD95, ASSD and NSD, for each case and class, as a state that adds.

    metrics = SegmentationMetrics(("background", "liver"), tolerance_mm=1.0)
    state = metrics.observe(prediction, target, case="a", spacing=(2.5, 0.8, 0.8))
    state += metrics.observe(...)                        # or states of other processes, folds, ranks
    metrics.summarise(state)["metrics"]["Dice"]["classes"]["liver"]["case_mean"]

A state keeps every case's own scores, so `+` loses nothing: the summary of a sum is the summary of one run over all
cases. docs/metrics.md has the definitions and the policy for empty classes; in short, of a class that in one case is

    in neither map              no score: Dice, IoU, NSD, HD95, ASSD are NaN, and the case is not counted for the class
    in one of the maps only     Dice = IoU = NSD = 0; no distance exists, so HD95 and ASSD are NaN and not counted

How many cases each mean counts, and how often a class was missed or invented, stands in the summary beside the means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import find_objects

from statefield.errors import ConfigError, DataError, ShapeError
from statefield.tasks.common.bootstrap import bootstrap_interval, case_mean, class_mean
from statefield.tasks.common.confusion import ConfusionState
from statefield.tasks.common.confusion import observe as observe_confusion
from statefield.tasks.common.surface import SurfaceDistances, surface_distances


@dataclass(frozen=True, eq=False)
class CaseScores:
    """One case. values: metric name -> float64 [K], NaN where a class has no such score; confusion: its counts."""

    values: Mapping[str, np.ndarray]
    confusion: ConfusionState


@dataclass(frozen=True, eq=False)
class SegmentationState:
    """The scores of distinct cases, by name."""

    cases: Mapping[str, CaseScores] = field(default_factory=dict)

    def __add__(self, other: SegmentationState) -> SegmentationState:
        twice = sorted(set(self.cases) & set(other.cases))
        if twice:
            raise DataError(
                f"{len(twice)} cases are observed twice, such as {', '.join(twice[:3])}: each case counts once. Give "
                "distinct case names, or observe each case in one place."
            )
        return SegmentationState({**self.cases, **other.cases})


@dataclass(frozen=True)
class SegmentationMetrics:
    """What is measured.

    Args:
        classes: names by label value.
        tolerance_mm: how far apart surfaces may be and count as equal in NSD, in `unit`.
        unit: "mm", or "px" for pictures without a spacing (then give spacing 1.0); it rides in the metrics' names.
        distances: False leaves out HD95, ASSD and NSD, which cost most of the time.
        background: the label left out of the means over classes and of the distances; None keeps all classes in.
    """

    classes: tuple[str, ...]
    tolerance_mm: float = 1.0
    unit: Literal["mm", "px"] = "mm"
    distances: bool = True
    background: int | None = 0

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ConfigError(f"classes {self.classes} given; two or more are needed, the background among them.")
        if not (np.isfinite(self.tolerance_mm) and self.tolerance_mm >= 0):
            raise ConfigError(f"tolerance_mm is {self.tolerance_mm}; a finite distance >= 0 is needed.")
        if self.background is not None and not 0 <= self.background < len(self.classes):
            raise ConfigError(
                f"background is {self.background}; a label value of the {len(self.classes)} classes is needed."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics' names, units included: ("Dice", "IoU", "HD95_mm", "ASSD_mm", "NSD_1mm")."""
        overlap = ("Dice", "IoU")
        if not self.distances:
            return overlap
        return (*overlap, f"HD95_{self.unit}", f"ASSD_{self.unit}", f"NSD_{self.tolerance_mm:g}{self.unit}")

    @property
    def foreground(self) -> tuple[int, ...]:
        """The label values that enter the means over classes."""
        return tuple(label for label in range(len(self.classes)) if label != self.background)

    def observe(
        self, prediction: ArrayLike, target: ArrayLike, *, case: str, spacing: Sequence[float]
    ) -> SegmentationState:
        """Score one case.

        Args:
            prediction, target: label values [H, W] or [D, H, W] (CPU tensors will do). A volume of a single slice is
                scored as the picture it is: as a volume, all of a mask would be surface.
            case: its name; a state holds each name once.
            spacing: distance between pixels in the same axis order, in `unit`.

        Raises:
            ShapeError, LabelError: maps of different shapes, or labels outside the classes.
            ConfigError: a spacing that is not one positive length for each axis.
        """
        predicted, wanted = np.asarray(prediction), np.asarray(target)
        try:
            confusion = observe_confusion(predicted, wanted, num_classes=len(self.classes))
        except (ShapeError, DataError) as error:
            raise type(error)(f"case {case!r}: {error}") from error
        if predicted.ndim not in (2, 3) or len(spacing) != predicted.ndim:
            raise ConfigError(
                f"case {case!r}: label maps of shape {predicted.shape} with spacing {tuple(spacing)} given; [H, W] or "
                "[D, H, W] with one length for each axis is needed."
            )
        values = {"Dice": confusion.dice, "IoU": confusion.iou}
        if self.distances:
            thick = [axis for axis in range(predicted.ndim) if predicted.shape[axis] > 1]
            if predicted.ndim == 3 and len(thick) == 2:
                shape = tuple(predicted.shape[axis] for axis in thick)
                predicted, wanted = predicted.reshape(shape), wanted.reshape(shape)
                spacing = [spacing[axis] for axis in thick]
            values |= self._distance_scores(predicted, wanted, spacing)
        return SegmentationState({case: CaseScores(values, confusion)})

    def summarise(self, state: SegmentationState, *, intervals: bool = True) -> dict[str, Any]:
        """The scores over cases, ready for JSON; NaN stands for "no case has this score".

        Returns:
            {"num_cases": n, "unit", "tolerance", "averaging": how each number is averaged,
             "metrics": {metric: {"better": "higher" | "lower",
                                  "classes": {class: {"case_mean", "case_std", "pooled" (Dice and IoU),
                                                      "ci95": [low, high], "num_counted", "num_not_counted"}},
                                  "foreground_mean": the mean over foreground classes of case_mean, "foreground_ci95",
                                  "num_foreground_counted": how many of those classes have one,
                                  "foreground_pooled" (Dice and IoU)}},
             "classes": {class: {"num_present", "num_predicted", "num_missed", "num_invented"}}   in cases,
             "cases": {case: {metric: {class: value}}}}
        """
        if not state.cases:
            raise DataError("no case was observed, so there is nothing to summarise.")
        names = sorted(state.cases)
        pooled = sum((state.cases[name].confusion for name in names), ConfusionState.empty(len(self.classes)))
        metrics: dict[str, Any] = {}
        for metric in self.names:
            values = np.stack([state.cases[name].values[metric] for name in names])  # [cases, classes]
            pooled_values = {"Dice": pooled.dice, "IoU": pooled.iou}.get(metric)
            metrics[metric] = self._summary_of(metric, values, pooled_values, intervals)
        return {
            "num_cases": len(names),
            "unit": self.unit,
            "tolerance": self.tolerance_mm,
            "averaging": {
                "case_mean": "mean over the cases that have a score for the class (num_counted of them)",
                "pooled": "from the counts of all cases together",
                "foreground_mean": "unweighted mean over "
                + ", ".join(self.classes[k] for k in self.foreground)
                + " of their case means (num_foreground_counted of them have one)",
                "ci95": "95 % percentile bootstrap over cases",
            },
            "metrics": metrics,
            "classes": self._presence(state, names),
            "cases": {name: self.case_table(state, name) for name in names},
        }

    def case_table(self, state: SegmentationState, case: str) -> dict[str, dict[str, float]]:
        """One case's scores: {metric: {class: value}}."""
        return {
            metric: {name: float(v) for name, v in zip(self.classes, state.cases[case].values[metric], strict=True)}
            for metric in self.names
        }

    def foreground_means(self, state: SegmentationState) -> dict[str, float]:
        """{metric: mean over foreground classes of their mean over cases}, as `summarise` has it, for progress."""
        columns = list(self.foreground)
        return {
            metric: float(class_mean(np.stack([scores.values[metric][columns] for scores in state.cases.values()])))
            for metric in self.names
        }

    def _summary_of(
        self, metric: str, values: np.ndarray, pooled: np.ndarray | None, intervals: bool
    ) -> dict[str, Any]:
        means = case_mean(values)
        per_class: dict[str, Any] = {}
        for label, name in enumerate(self.classes):
            scored = values[np.isfinite(values[:, label]), label]
            entry: dict[str, Any] = {
                "case_mean": float(means[label]),
                "case_std": float(scored.std(ddof=1)) if len(scored) > 1 else float("nan"),
                "num_counted": len(scored),
                "num_not_counted": len(values) - len(scored),
            }
            if pooled is not None:
                entry["pooled"] = float(pooled[label])
            if intervals:
                entry["ci95"] = list(bootstrap_interval(values[:, [label]]))
            per_class[name] = entry
        columns = list(self.foreground)
        summary: dict[str, Any] = {
            "better": "lower" if metric.startswith(("HD95", "ASSD")) else "higher",
            "classes": per_class,
            "foreground_mean": float(class_mean(values[:, columns])),
            "num_foreground_counted": int(np.isfinite(means[columns]).sum()),
        }
        if pooled is not None:
            summary["foreground_pooled"] = float(case_mean(pooled[columns][:, None])[0])
        if intervals:
            summary["foreground_ci95"] = list(bootstrap_interval(values[:, columns]))
        return summary

    def _presence(self, state: SegmentationState, names: Sequence[str]) -> dict[str, dict[str, int]]:
        target = np.stack([state.cases[name].confusion.num_target > 0 for name in names])
        predicted = np.stack([state.cases[name].confusion.num_predicted > 0 for name in names])
        return {
            name: {
                "num_present": int(target[:, k].sum()),
                "num_predicted": int(predicted[:, k].sum()),
                "num_missed": int((target[:, k] & ~predicted[:, k]).sum()),
                "num_invented": int((~target[:, k] & predicted[:, k]).sum()),
            }
            for k, name in enumerate(self.classes)
        }

    def _distance_scores(
        self, predicted: np.ndarray, wanted: np.ndarray, spacing: Sequence[float]
    ) -> dict[str, np.ndarray]:
        _, _, hd95, assd, nsd = self.names
        scores = {name: np.full(len(self.classes), np.nan) for name in (hd95, assd, nsd)}
        for label, box in _boxes(predicted, wanted, len(self.classes)).items():
            if label == self.background:
                continue
            distances: SurfaceDistances = surface_distances(predicted[box] == label, wanted[box] == label, spacing)
            scores[hd95][label] = distances.hausdorff(95.0)
            scores[assd][label] = distances.assd()
            scores[nsd][label] = distances.nsd(self.tolerance_mm)
        return scores


def _boxes(predicted: np.ndarray, wanted: np.ndarray, num_classes: int) -> dict[int, tuple[slice, ...]]:
    """For each label in either map, the box that holds it in both: one pass over the maps for all classes."""
    found = [find_objects(labels.astype(np.int32) + 1, max_label=num_classes) for labels in (predicted, wanted)]
    boxes: dict[int, tuple[slice, ...]] = {}
    for label, (first, second) in enumerate(zip(*found, strict=True)):
        if first is None or second is None:
            box = second if first is None else first
        else:
            box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))
        if box is not None:
            boxes[label] = box
    return boxes
