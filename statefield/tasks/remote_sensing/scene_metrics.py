"""Scores of a scene classifier: one confusion matrix over the test scenes.

    OA = share of the scenes that get their class           Precision of a class = TP / (TP + FP)
    AA = mean over classes of the recall                    Recall of a class    = TP / (TP + FN)
    kappa = (OA - pe) / (1 - pe)                             F1 of a class        = 2 TP / (2 TP + FP + FN)

Precision, Recall and F1 "/macro" are means over the classes that have a test scene; macro Recall is AA. A class that is
never predicted has Precision and F1 0 (as scikit-learn's `zero_division=0` and mmpretrain count it), and a note says
so. A class without a test scene has no score (NaN). kappa lies in [-1, 1], the others in [0, 1].

Source: Chen et al., RSMamba, 2024, arXiv 2403.19654, table I (P, R, F1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from statefield.errors import ShapeError
from statefield.tasks.common.confusion import ConfusionState
from statefield.tasks.remote_sensing.change_metrics import Scores, cohen_kappa, or_undefined

HEADLINES = ("OA", "AA", "kappa", "Precision/macro", "Recall/macro", "F1/macro")


def summarise(state: ConfusionState, classes: Sequence[str]) -> Scores:
    """The scores over all scenes (`HEADLINES`), then Precision, Recall and F1 of each class as "F1/harbor".

    Raises: ShapeError: the names are not as many as the classes.
    """
    if len(classes) != len(state.counts):
        raise ShapeError(f"{len(classes)} class names given for counts of {len(state.counts)} classes.")
    notes: list[str] = []
    present = state.num_target > 0
    absent = [name for name, there in zip(classes, present, strict=True) if not there]
    if absent:
        notes.append(f"Means are over {int(present.sum())} classes: there is no test scene of {', '.join(absent)}.")
    never = present & (state.num_predicted == 0)
    if never.any():
        names = ", ".join(name for name, out in zip(classes, never, strict=True) if out)
        notes.append(f"No scene was given the class {names}: its Precision and F1 count as 0.")
    of_class = {
        "Precision": np.where(never, 0.0, state.precision),
        "Recall": state.sensitivity,
        "F1": np.where(never, 0.0, state.dice),
    }
    for scores in of_class.values():
        scores[~present] = np.nan
    means = {
        metric: float(scores[present].mean()) if present.any() else float("nan") for metric, scores in of_class.items()
    }
    why = "no scene is counted" if not state.counts.sum() else "all scenes are of one class, and were given it"
    values = {
        "OA": or_undefined(state.accuracy, "OA", "no scene is counted", notes),
        "AA": or_undefined(means["Recall"], "AA", "no scene is counted", notes),
        "kappa": or_undefined(cohen_kappa(state.counts), "kappa", why, notes),
    }
    values |= {
        f"{metric}/macro": or_undefined(mean, f"{metric}/macro", "no scene is counted", notes)
        for metric, mean in means.items()
    }
    for metric, scores in of_class.items():
        values |= {f"{metric}/{name}": float(score) for name, score in zip(classes, scores, strict=True)}
    return Scores(values, tuple(notes))
