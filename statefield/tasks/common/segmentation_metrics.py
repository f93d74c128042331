"""The scores of a segmentation, for each case and class, as a state that adds.

    metrics = SegmentationMetrics(("background", "liver"), tolerance_mm=1.0)
    state = metrics.observe(prediction, target, case="a", spacing=(2.5, 0.8, 0.8))
    state += metrics.observe(...)                        # or states of other processes, folds, ranks
    metrics.summarise(state)["metrics"]["Dice"]["classes"]["liver"]["case_mean"]

A state keeps every case's own scores, so `+` loses nothing: the summary of a sum is the summary of one run over all
cases. docs/metrics.md has the definitions and the policy for empty classes; in short, of a class that in one case is

    in neither map              Dice, IoU, NSD, HD95, ASSD, sensitivity and precision are NaN: the case is not counted
    in the target alone         Dice = IoU = NSD = sensitivity = 0; HD95, ASSD, precision are NaN and not counted
    in the prediction alone     Dice = IoU = NSD = precision = 0; HD95, ASSD, sensitivity are NaN and not counted

How many cases each mean counts, and how often a class was missed or invented, stands in the summary beside the means.
Pixels whose target is `UNLABELLED` enter no score: the prediction is cleared there, and they bound no surface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import find_objects

from statefield.errors import ConfigError, DataError, ShapeError
from statefield.labels import UNLABELLED
from statefield.tasks.common.bootstrap import class_mean
from statefield.tasks.common.confusion import ConfusionState
from statefield.tasks.common.confusion import observe as observe_confusion
from statefield.tasks.common.lesions import LesionState, count_lesions, rule_name
from statefield.tasks.common.segmentation_summary import summarise
from statefield.tasks.common.surface import SurfaceDistances, surface_distances


@dataclass(frozen=True, eq=False)
class CaseScores:
    """One case. values: metric name -> float64 [K], NaN where a class has no such score; the others: its counts."""

    values: Mapping[str, np.ndarray]
    confusion: ConfusionState
    lesions: LesionState


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
        background: the label left out of the means over classes, the distances and the lesions; None keeps all in.
        lesions: the classes whose connected components are counted as lesions, by name; True: all but the background.
        lesion_iou: the least IoU of a detected lesion with a predicted one, in (0, 1]; None: any overlap.
    """

    classes: tuple[str, ...]
    tolerance_mm: float = 1.0
    unit: Literal["mm", "px"] = "mm"
    distances: bool = True
    background: int | None = 0
    lesions: bool | tuple[str, ...] = False
    lesion_iou: float | None = None

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ConfigError(f"classes {self.classes} given; two or more are needed, the background among them.")
        if not (np.isfinite(self.tolerance_mm) and self.tolerance_mm >= 0):
            raise ConfigError(f"tolerance_mm is {self.tolerance_mm}; a finite distance >= 0 is needed.")
        if self.background is not None and not 0 <= self.background < len(self.classes):
            raise ConfigError(
                f"background is {self.background}; a label value of the {len(self.classes)} classes is needed."
            )

        rule_name(self.lesion_iou)
        if not isinstance(self.lesions, bool):
            known = [self.classes[label] for label in self.foreground]
            for name in self.lesions:
                if name not in known:
                    raise ConfigError(f"lesions names {name!r}; classes among {', '.join(known)} are needed.")

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics' names, units and rules included: ("Dice", "IoU", "HD95_mm", ..., "lesion_F1_any")."""
        surfaces = (f"HD95_{self.unit}", f"ASSD_{self.unit}", f"NSD_{self.tolerance_mm:g}{self.unit}")
        return (
            *("Dice", "IoU"),
            *(surfaces if self.distances else ()),
            *("sensitivity", "specificity", "precision"),
            *(self._lesion_names if self.lesion_labels else ()),
        )

    @property
    def lesion_labels(self) -> tuple[int, ...]:
        """The label values whose lesions are counted."""
        if isinstance(self.lesions, bool):
            return self.foreground if self.lesions else ()
        return tuple(label for label in self.foreground if self.classes[label] in self.lesions)

    @property
    def _lesion_names(self) -> tuple[str, ...]:
        rule = rule_name(self.lesion_iou)
        return tuple(f"lesion_{name}_{rule}" for name in ("sensitivity", "precision", "F1", "FP"))

    @property
    def foreground(self) -> tuple[int, ...]:
        """The label values that enter the means over classes."""
        return tuple(label for label in range(len(self.classes)) if label != self.background)

    def observe(
        self, prediction: ArrayLike, target: ArrayLike, *, case: str, spacing: Sequence[float]
    ) -> SegmentationState:
        """Score one case.

        Args:
            prediction, target: label values [H, W] or [D, H, W] (CPU tensors will do), in the target also
                `UNLABELLED`. A volume of a single slice is scored as the picture it is: as a volume, all of a mask
                would be surface.
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
        values = dict(self.overlap_scores(confusion))
        lesions = LesionState.empty(len(self.classes))
        if self.distances or self.lesion_labels:
            labelled = wanted != UNLABELLED
            known = None if labelled.all() else labelled
            if known is not None:
                predicted = np.where(labelled, predicted, np.int32(UNLABELLED))  # unsigned labels have no -1
            boxes = _boxes(predicted, wanted, len(self.classes))
            if self.distances:
                values |= self._distance_scores(predicted, wanted, known, spacing, boxes)
            if self.lesion_labels:
                lesions = self._lesions(predicted, wanted, boxes)
                values |= self.lesion_scores(lesions)
                counted = [label in self.lesion_labels for label in range(len(self.classes))]
                values[self._lesion_names[3]] = np.where(counted, lesions.false_positives, np.nan)
        return SegmentationState({case: CaseScores(values, confusion, lesions)})

    def overlap_scores(self, counts: ConfusionState) -> dict[str, np.ndarray]:
        """{metric: float64 [K]} of the scores that follow from confusion counts, of one case or of many together."""
        return {
            "Dice": counts.dice,
            "IoU": counts.iou,
            "sensitivity": counts.sensitivity,
            "specificity": counts.specificity,
            "precision": counts.precision,
        }

    def lesion_scores(self, counts: LesionState) -> dict[str, np.ndarray]:
        """{metric: float64 [K]} of the scores that follow from lesion counts, of one case or of many together."""
        if not self.lesion_labels:
            return {}
        scores = (counts.sensitivity, counts.precision, counts.f1)
        return dict(zip(self._lesion_names[:3], scores, strict=True))

    def summarise(self, state: SegmentationState, *, intervals: bool = True) -> dict[str, Any]:
        """The scores over cases, ready for JSON: `segmentation_summary.summarise` has the layout."""
        return summarise(self, state, intervals=intervals)

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

    def _distance_scores(
        self,
        predicted: np.ndarray,
        wanted: np.ndarray,
        labelled: np.ndarray | None,
        spacing: Sequence[float],
        boxes: Mapping[int, tuple[slice, ...]],
    ) -> dict[str, np.ndarray]:
        hd95, assd, nsd = self.names[2:5]
        scores = {name: np.full(len(self.classes), np.nan) for name in (hd95, assd, nsd)}
        thick = [axis for axis in range(wanted.ndim) if wanted.shape[axis] > 1]
        flat = wanted.ndim == 3 and len(thick) == 2  # a single slice
        alone = tuple(axis for axis in range(wanted.ndim) if axis not in thick)
        lengths = [spacing[axis] for axis in thick] if flat else spacing
        for label, box in boxes.items():
            if label == self.background:
                continue
            known = None if labelled is None else labelled[box]
            guess, truth = predicted[box] == label, wanted[box] == label
            if flat:
                guess, truth = guess.squeeze(alone), truth.squeeze(alone)
                known = None if known is None else known.squeeze(alone)
            distances: SurfaceDistances = surface_distances(guess, truth, lengths, labelled=known)
            scores[hd95][label] = distances.hausdorff(95.0)
            scores[assd][label] = distances.assd()
            scores[nsd][label] = distances.nsd(self.tolerance_mm)
        return scores

    def _lesions(
        self, predicted: np.ndarray, wanted: np.ndarray, boxes: Mapping[int, tuple[slice, ...]]
    ) -> LesionState:
        counts = LesionState.empty(len(self.classes)).counts
        for label in self.lesion_labels:
            if label in boxes:
                box = boxes[label]
                counts[label] = count_lesions(predicted[box] == label, wanted[box] == label, iou=self.lesion_iou)
        return LesionState(counts)


def _boxes(predicted: np.ndarray, wanted: np.ndarray, num_classes: int) -> dict[int, tuple[slice, ...]]:
    """For each label in either map, the box that holds it in both, and the pixels around it that decide on its surface:
    one pass over the maps for all classes.
    """
    found = [find_objects(labels.astype(np.int32) + 1, max_label=num_classes) for labels in (predicted, wanted)]
    boxes: dict[int, tuple[slice, ...]] = {}
    for label, (first, second) in enumerate(zip(*found, strict=True)):
        box = second if first is None else first
        if box is None:
            continue
        if first is not None and second is not None:
            box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))
        boxes[label] = tuple(
            slice(max(side.start - 1, 0), min(side.stop + 1, n)) for side, n in zip(box, wanted.shape, strict=True)
        )
    return boxes
