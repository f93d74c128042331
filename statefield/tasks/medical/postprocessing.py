"""Largest-component post-processing: which classes are one connected piece is learnt from held-out predictions.

A net sometimes finds a second liver. Where the organ is one piece, all but the largest component of its class can be
dropped; where a class comes in many pieces (lesions, vessels), that would do harm. The choice is made on cases that the
net was not trained on: the validation cases of a run, or the out-of-fold predictions of a cross-validated one.

The rule is nnU-Net's (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z, Methods, "Postprocessing"):

1. Keep only the largest component of the whole foreground, if that raises the mean Dice over the foreground classes and
   lowers the mean Dice of none of them.
2. Then, class by class on top of that, keep only the class's largest component if that raises its mean Dice.

Means are over cases; a case in which a class is neither present nor predicted has no Dice for it and is not counted.
Components touch by faces, edges or corners; of several that are equally large all are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import find_objects, label

from statefield.errors import CheckpointError, DataError
from statefield.files import write_json
from statefield.tasks.common.bootstrap import case_mean
from statefield.tasks.common.confusion import observe as observe_confusion

FILE_NAME = "postprocessing.json"
_Labels = TypeVar("_Labels", bound=NDArray[Any])
_RULE = (
    "the largest component of the foreground is kept alone if that raises the mean Dice over the foreground classes "
    "and lowers none of theirs; then that of each class, if that raises its mean Dice"
)


@dataclass(frozen=True)
class Postprocessing:
    """What is done to every predicted label map.

    Args:
        foreground: keep only the largest component of all labels above 0 together.
        classes: label values of which only the largest component is kept, after that.
    """

    foreground: bool = False
    classes: tuple[int, ...] = ()

    def __call__(self, labels: _Labels) -> _Labels:
        """`labels` (any integer dtype, 2 or 3 axes, a memory-mapped file too) changed in place, and returned.

        What is dropped becomes 0. Memory holds five bytes for each voxel beside it: of the map for the foreground, of
        the box around it for a class.
        """
        if self.foreground:
            _keep_largest(labels, labels > 0)
        if self.classes:
            boxes = find_objects(labels, max_label=max(self.classes))
            for value in self.classes:
                if (box := boxes[value - 1]) is not None:
                    _keep_largest(labels[box], labels[box] == value)
        return labels


def _keep_largest(labels: NDArray[Any], mask: NDArray[np.bool_]) -> None:
    """Set the voxels of `mask` outside its largest component to 0, in the array that `labels` is or views."""
    components, number = label(mask, structure=np.ones((3,) * mask.ndim, dtype=bool))
    if number < 2:
        return
    sizes = np.zeros(number + 1, dtype=np.int64)
    for part in components:  # a slice at a time: bincount makes eight bytes of each voxel
        sizes += np.bincount(part.ravel(), minlength=number + 1)
    dropped = sizes < sizes[1:].max()
    dropped[0] = False
    for part, below in zip(components, labels, strict=True):
        below[dropped[part]] = 0


@dataclass(frozen=True, eq=False)
class TrialState:
    """Dice of distinct cases under each candidate; states of folds and processes add.

    cases: name -> float64 [4, K]: the Dice of each class as predicted, with the largest component of the foreground,
    with that of each class, and with both.
    """

    cases: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __add__(self, other: TrialState) -> TrialState:
        twice = sorted(set(self.cases) & set(other.cases))
        if twice:
            raise DataError(f"cases are tried twice, such as {', '.join(twice[:3])}: each case counts once.")
        return TrialState({**self.cases, **other.cases})


def try_candidates(labels: NDArray[Any], target: ArrayLike, *, case: str, num_classes: int) -> TrialState:
    """The Dice of one case under each candidate. `labels` and `target` are integers of one shape and stay as they are.

    A class's largest component leaves every other class's Dice as it is, so one map serves all classes.
    """
    every_class = tuple(range(1, num_classes))
    rows = [
        observe_confusion(candidate(np.array(labels)), target, num_classes=num_classes).dice
        for candidate in (
            Postprocessing(),
            Postprocessing(foreground=True),
            Postprocessing(classes=every_class),
            Postprocessing(foreground=True, classes=every_class),
        )
    ]
    return TrialState({case: np.stack(rows)})


@dataclass(frozen=True)
class Choice:
    """A chosen post-processing, and what it rests on. before, after: mean Dice of each foreground class over cases."""

    chosen: Postprocessing
    before: tuple[float, ...]
    after: tuple[float, ...]
    cases: tuple[str, ...]

    def about(self, classes: Sequence[str]) -> str:
        """What was chosen, in one sentence."""
        kept = ["the whole foreground"] if self.chosen.foreground else []
        kept += [classes[value] for value in self.chosen.classes]
        if not kept:
            return "No post-processing, as keeping a largest component alone raised the mean Dice of no class."
        return f"Post-processing keeps the largest component of {', '.join(kept)} alone."

    def write(self, folder: Path, classes: Sequence[str], *, source: str) -> Path:
        """Write RUN/postprocessing.json; `source` says which predictions the choice was made on."""
        path = folder / FILE_NAME
        foreground = list(classes[1:])
        write_json(
            path,
            {
                "largest_component_of_foreground": self.chosen.foreground,
                "largest_component_of": [classes[value] for value in self.chosen.classes],
                "classes": list(classes),
                "rule": _RULE,
                "chosen_on": source,
                "cases": list(self.cases),
                "mean_dice_before": dict(zip(foreground, self.before, strict=True)),
                "mean_dice_after": dict(zip(foreground, self.after, strict=True)),
            },
        )
        return path


def choose(state: TrialState) -> Choice:
    """The post-processing that nnU-Net's rule finds best on the tried cases. Raises `DataError` when there are none."""
    if not state.cases:
        raise DataError("no prediction of a held-out case was given, so no post-processing can be chosen on them.")
    names = sorted(state.cases)
    dice = np.stack([state.cases[name] for name in names])[:, :, 1:]  # [cases, 4, foreground classes]
    raw, whole, single, both = (case_mean(dice[:, row]) for row in range(4))
    scored = np.isfinite(raw) & np.isfinite(whole)
    foreground = bool(scored.any() and whole[scored].mean() > raw[scored].mean() and (whole >= raw)[scored].all())
    base, alone = (whole, both) if foreground else (raw, single)
    better = (alone > base) if len(base) > 1 else np.zeros(len(base), dtype=bool)  # one class is the foreground
    chosen = Postprocessing(foreground, tuple(int(index) + 1 for index in np.flatnonzero(better)))
    after = np.where(better, alone, base)
    return Choice(chosen, tuple(map(float, raw)), tuple(map(float, after)), tuple(names))


def load_postprocessing(folder: str | Path) -> Postprocessing:
    """The post-processing of a run folder; where none was chosen, one that changes nothing.

    Raises:
        CheckpointError: RUN/postprocessing.json is there and cannot be read.
    """
    path = Path(folder) / FILE_NAME
    if not path.exists():
        return Postprocessing()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        values = tuple(stored["classes"].index(name) for name in stored["largest_component_of"])
        return Postprocessing(bool(stored["largest_component_of_foreground"]), values)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); it says which components of a prediction are kept. Restore the file, or "
            "delete it to predict without post-processing."
        ) from error
