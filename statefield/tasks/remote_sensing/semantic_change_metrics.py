"""Scores of semantic change: where something has changed, and from which class to which.

    metrics = SemanticChangeMetrics(num_classes=6)                       # SECOND: classes 1..6, 0 is unchanged
    state = metrics.observe(prediction, target, case="0001")             # a `ChangeMaps` each
    state += metrics.observe(...)                                        # tiles of one image bear one case name
    metrics.summarise(state).values["SeK (pooled)"]

A pixel's transition is 0 where unchanged and (before - 1) * K + after where changed from class `before` to class
`after` of K. With the counts n[t, p] of transitions (target t, predicted p) over all pixels together:

    Q       n without n[0, 0], which would drown the rest
    kappa   Cohen's kappa of Q
    IoU_fg  of change, whatever its classes; IoU_bg of unchanged; mIoU their mean
    SeK     kappa * exp(IoU_fg) / e
    Fscd    harmonic mean of h / (predicted changed) and h / (changed), h the changed pixels of the right transition
    OA      share of pixels of the right transition: pooled, and as the official code has it, a mean over images

OA, IoU, mIoU and Fscd lie in [0, 1], kappa in [-1, 1], SeK in (-1, 1]. A score that is 0 / 0 is given as 0.0 with a
note, as the official code has it for kappa.

The official code has a trap. Where a net's change map says changed and a semantic map says 0 (unchanged), the code is
below 0 and an assertion stops the evaluation; or, for some pairs, it is the code of another transition, and nothing is
said. Here such a pixel counts as change (in IoU and Fscd) of no right class, and a note counts them. Nets avoid it by
an argmax over the classes 1..K alone.

Source: Yang et al., Asymmetric Siamese networks for semantic change detection (SECOND), 2022; `SCDD_eval_all` of
ChenHongruixuan/MambaCD, which equals that of Bi-SRNet (Ding et al. 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, fsum

import numpy as np
from numpy.typing import ArrayLike

from statefield.errors import ConfigError, LabelError, ShapeError
from statefield.labels import UNLABELLED
from statefield.tasks.common import confusion
from statefield.tasks.common.confusion import ConfusionState
from statefield.tasks.remote_sensing.change_metrics import Scores, cohen_kappa, or_undefined


@dataclass(frozen=True, eq=False)
class ChangeMaps:
    """change: [H, W] of 0 and 1; before, after: [H, W] of 0 (unchanged) .. K. Targets also hold `UNLABELLED`."""

    change: ArrayLike
    before: ArrayLike
    after: ArrayLike


@dataclass(frozen=True, eq=False)
class SemanticChangeState:
    """transitions: counts of K * K + 2 codes, the last of them "changed, without a class".

    images: pixels of the right transition, and pixels counted, by case: those of a case's tiles add.
    """

    transitions: ConfusionState
    images: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __add__(self, other: SemanticChangeState) -> SemanticChangeState:
        images = dict(self.images)
        for case, (hits, total) in other.images.items():
            before = images.get(case, (0, 0))
            images[case] = (before[0] + hits, before[1] + total)
        return SemanticChangeState(self.transitions + other.transitions, images)


@dataclass(frozen=True)
class SemanticChangeMetrics:
    """num_classes: K, the classes that a pixel changes from and to; "unchanged" is none of them."""

    num_classes: int = 6

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ConfigError(f"num_classes = {self.num_classes}: one class or more besides 'unchanged' is needed.")

    @property
    def empty(self) -> SemanticChangeState:
        """The state before anything was observed: the zero of `+`."""
        return SemanticChangeState(ConfusionState.empty(self.num_classes**2 + 2))

    def observe(self, prediction: ChangeMaps, target: ChangeMaps, *, case: str) -> SemanticChangeState:
        """Count one image, or one tile of it.

        Raises:
            ShapeError: maps of different shapes.
            LabelError: values outside the classes, or a target that is changed where a date has no class.
        """
        predicted = self._transitions(prediction, case, "prediction")
        wanted = self._transitions(target, case, "target")
        counts = confusion.observe(predicted, wanted, num_classes=self.num_classes**2 + 2)
        hits = int(np.trace(counts.counts))
        return SemanticChangeState(counts, {case: (hits, int(counts.counts.sum()))})

    def summarise(self, state: SemanticChangeState) -> Scores:
        """The scores of everything observed."""
        counts = state.transitions.counts
        if len(counts) != self.num_classes**2 + 2:
            raise ShapeError(
                f"counts of {len(counts)} transition codes given; {self.num_classes} classes have "
                f"{self.num_classes**2 + 2}: summarise with the metrics that observed."
            )
        notes: list[str] = []
        unchanged, changed = int(counts[0, 0]), int(counts[1:, 1:].sum())
        missed, invented = int(counts[1:, 0].sum()), int(counts[0, 1:].sum())
        right = int(np.trace(counts[1:, 1:]))
        without_class = int(counts[:, -1].sum())
        if without_class:
            notes.append(
                f"{without_class} pixels are predicted as changed without a class at one of the dates: they count as "
                "change of no right class. Take the argmax over the classes 1.. alone."
            )
        of_change = counts.copy()
        of_change[0, 0] = 0
        nowhere = "no pixel is changed in the target or the prediction"
        iou_changed = or_undefined(_ratio(changed, changed + missed + invented), "IoU/change", nowhere, notes)
        iou_unchanged = or_undefined(
            _ratio(unchanged, unchanged + missed + invented),
            "IoU/unchanged",
            "every pixel is changed in the target and in the prediction",
            notes,
        )
        why = nowhere if not of_change.sum() else "one transition fills the changed pixels of target and prediction"
        kappa = or_undefined(cohen_kappa(of_change), "kappa (and with it SeK)", why, notes)
        # the harmonic mean of h / predicted and h / changed, in one division
        fscd = _ratio(2 * right, 2 * changed + missed + invented)
        shares = [hits / total for hits, total in state.images.values() if total]
        empty = "no pixel is counted"
        return Scores(
            {
                "OA/transitions (pooled)": or_undefined(state.transitions.accuracy, "OA/transitions", empty, notes),
                "OA/transitions (mean over images, official)": or_undefined(
                    fsum(shares) / len(shares) if shares else float("nan"), "OA/transitions over images", empty, notes
                ),
                "Fscd/transitions (pooled)": or_undefined(fscd, "Fscd/transitions", nowhere, notes),
                "IoU/change (pooled)": iou_changed,
                "IoU/unchanged (pooled)": iou_unchanged,
                "mIoU (mean of unchanged and change, pooled)": (iou_unchanged + iou_changed) / 2,
                "kappa/transitions without unchanged (pooled)": kappa,
                "SeK (pooled)": kappa * exp(iou_changed - 1),
            },
            tuple(notes),
        )

    def _transitions(self, maps: ChangeMaps, case: str, name: str) -> np.ndarray:
        """int64 transition codes; `UNLABELLED` where a target has no label in one of its maps."""
        change, before, after = (np.asarray(labels) for labels in (maps.change, maps.before, maps.after))
        if not change.shape == before.shape == after.shape:
            raise ShapeError(
                f"case {case!r}: the {name}'s maps have the shapes {change.shape}, {before.shape} and {after.shape}; "
                "one shape is needed."
            )
        least = UNLABELLED if name == "target" else 0
        for part, labels, most in (
            ("change", change, 1),
            ("before", before, self.num_classes),
            ("after", after, self.num_classes),
        ):
            found = int(labels.min(initial=0)), int(labels.max(initial=0))
            if labels.dtype.kind not in "biu" or found[0] < least or found[1] > most:
                raise LabelError(
                    f"case {case!r}: the {name}'s map {part!r} of type {labels.dtype} holds {found[0]} to {found[1]}; "
                    f"integers {least} to {most} are needed."
                )
        changed = change == 1
        classless = changed & ((before == 0) | (after == 0))
        if name == "target" and classless.any():
            raise LabelError(
                f"case {case!r}: {int(classless.sum())} pixels of the target are changed but have class 0 at one of "
                "the dates; give both classes, or UNLABELLED."
            )
        codes = np.where(changed, (before.astype(np.int64) - 1) * self.num_classes + after, 0)
        codes[classless] = self.num_classes**2 + 1
        unknown = (change == UNLABELLED) | (changed & ((before == UNLABELLED) | (after == UNLABELLED)))
        codes[unknown] = UNLABELLED
        return codes


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else float("nan")
