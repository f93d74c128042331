"""Scores of a map of classes, pooled over the test pixels of one run, and their spread over runs.

    OA = share of the pixels that have their class     AA = mean over classes of the share of its pixels that are found
    kappa = (OA - pe) / (1 - pe)                        accuracy of a class = the share of its pixels that are found

kappa lies in [-1, 1], the others in [0, 1]. A class without a test pixel has no accuracy (NaN) and is not in AA; notes
say which. Counts of tiles and machines add up (`confusion.observe` and `+`); runs of other seeds do not, since each has
a net of its own: `over_seeds` gives their mean, standard deviation and the mean's 95 % interval (Student's t).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.common.confusion import ConfusionState
from statefield.tasks.remote_sensing.change_metrics import Scores, cohen_kappa, or_undefined


def summarise(state: ConfusionState, classes: Sequence[str]) -> Scores:
    """OA, AA, kappa and the accuracy of each class; `ShapeError` when the names are not as many as the classes."""
    if len(classes) != len(state.counts):
        raise ShapeError(f"{len(classes)} class names given for counts of {len(state.counts)} classes.")
    notes: list[str] = []
    accuracy = state.sensitivity
    present = state.num_target > 0
    absent = [name for name, there in zip(classes, present, strict=True) if not there]
    if absent:
        notes.append(f"AA is over {int(present.sum())} classes: there is no test pixel of {', '.join(absent)}.")
    average = float(accuracy[present].mean()) if present.any() else float("nan")
    why = "one class fills the target and the prediction" if state.counts.sum() else "no pixel is counted"
    values = {
        "OA": or_undefined(state.accuracy, "OA", "no pixel is counted", notes),
        "AA (mean over classes)": or_undefined(average, "AA", "no pixel is counted", notes),
        "kappa": or_undefined(cohen_kappa(state.counts), "kappa", why, notes),
    }
    values |= {f"accuracy/{name}": float(value) for name, value in zip(classes, accuracy, strict=True)}
    return Scores(values, tuple(notes))


@dataclass(frozen=True)
class Spread:
    """Over runs. std: of the runs, over n - 1. ci95: half the width of the mean's interval. Both are NaN of one run."""

    mean: float
    std: float
    ci95: float
    runs: int

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def over_seeds(runs: Sequence[Scores]) -> dict[str, Spread]:
    """The spread of each score over runs of several seeds; runs in which a score is NaN are not in it."""
    if not runs:
        raise ConfigError("no run given; at least one is needed.")
    return {name: _spread([run.values[name] for run in runs]) for name in runs[0].values}


def _spread(values: Sequence[float]) -> Spread:
    known = np.array([value for value in values if not np.isnan(value)])
    if not len(known):
        return Spread(float("nan"), float("nan"), float("nan"), 0)
    if len(known) == 1:
        return Spread(float(known[0]), float("nan"), float("nan"), 1)
    std = float(known.std(ddof=1))
    half = float(stats.t.ppf(0.975, len(known) - 1) * std / np.sqrt(len(known)))
    return Spread(float(known.mean()), std, half, len(known))
