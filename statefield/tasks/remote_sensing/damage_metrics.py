"""Scores of building damage: where buildings stood, and how badly each is hit (xBD: no, minor, major, destroyed).

    state = observe(buildings, damage, target_buildings, target_damage)  # int [H, W] each
    state += observe(...)
    summarise(state).values["F1/overall (0.3 building + 0.7 damage)"]

Two confusion matrices over all pixels together. Buildings: 0 none, 1 building, at every pixel. Damage: 0 none, 1..4, at
the pixels of the target's buildings alone, whatever the net says of buildings there. All scores lie in [0, 1]:

    F1/building    2 TP / (2 TP + FP + FN), of class 1
    F1/<damage>    likewise for each of the four; FP are then buildings of another damage
    F1/damage      harmonic mean of the four: 4 / sum(1 / F1), which is 0 as soon as one of them is
    F1/overall     0.3 F1/building + 0.7 F1/damage, the score of the xView2 challenge

An F1 that is 0 / 0 (a damage that is neither in the target nor predicted) is given as 0.0 with a note, as the official
code has it; it makes F1/damage 0 too. The official code adds 1e-7 to the denominators of the damage classes' F1:
`official=True` does too, which changes the seventh digit.

Source: Chen et al., ChangeMamba, 2024, arXiv 2404.03425; script/train_MambaBDA.py of ChenHongruixuan/MambaCD.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from statefield.errors import ShapeError
from statefield.tasks.common import confusion
from statefield.tasks.common.confusion import ConfusionState
from statefield.tasks.remote_sensing.change_metrics import Scores, or_undefined

DAMAGES = ("no damage", "minor damage", "major damage", "destroyed")
_EPSILON = 1e-7


@dataclass(frozen=True, eq=False)
class DamageState:
    """buildings: counts [2, 2] of every pixel. damage: counts [5, 5] of the target's buildings."""

    buildings: ConfusionState
    damage: ConfusionState

    @classmethod
    def empty(cls) -> DamageState:
        """The state before anything was observed: the zero of `+`."""
        return cls(ConfusionState.empty(2), ConfusionState.empty(len(DAMAGES) + 1))

    def __add__(self, other: DamageState) -> DamageState:
        return DamageState(self.buildings + other.buildings, self.damage + other.damage)


def observe(
    buildings: ArrayLike, damage: ArrayLike, target_buildings: ArrayLike, target_damage: ArrayLike
) -> DamageState:
    """Count one image, or one tile of it.

    Args:
        buildings, target_buildings: [H, W] of 0 and 1; in the target also `UNLABELLED`.
        damage, target_damage: [H, W] of 0..4; in the target also `UNLABELLED` (xBD's unclassified buildings).

    Raises:
        ShapeError: shapes that differ.
        LabelError: values outside the classes.
    """
    standing = np.asarray(target_buildings)
    if np.shape(target_damage) != standing.shape:
        raise ShapeError(
            f"the target's buildings have the shape {standing.shape}, its damage {np.shape(target_damage)}; one shape "
            "is needed."
        )
    return DamageState(
        confusion.observe(buildings, standing, num_classes=2),
        confusion.observe(damage, target_damage, num_classes=len(DAMAGES) + 1, valid=standing > 0),
    )


def summarise(state: DamageState, *, official: bool = False) -> Scores:
    """The scores of everything observed; `official` adds the official code's 1e-7 to denominators."""
    notes: list[str] = []
    building = or_undefined(
        state.buildings.dice[1], "F1/building", "no building is in the target or the prediction", notes
    )
    f1 = _official_f1(state.damage) if official else state.damage.dice
    each = {
        name: or_undefined(f1[label], f"F1/{name}", "no building of the target has it and none is predicted so", notes)
        for label, name in enumerate(DAMAGES, start=1)
    }
    harmonic = len(each) / sum(1 / score for score in each.values()) if all(each.values()) else 0.0
    if not all(each.values()):
        zero = ", ".join(name for name, score in each.items() if not score)
        notes.append(f"F1/damage is 0, since the F1 of {zero} is 0 and the mean is harmonic.")
    return Scores(
        {
            "F1/building (pooled)": building,
            **{f"F1/{name} (pooled, in the target's buildings)": score for name, score in each.items()},
            "F1/damage (harmonic mean of the four)": harmonic,
            "F1/overall (0.3 building + 0.7 damage)": 0.3 * building + 0.7 * harmonic,
        },
        tuple(notes),
    )


def _official_f1(counts: ConfusionState) -> np.ndarray:
    """float64 [5]; 0 where nothing is to be found, since no denominator is."""
    hits = np.diag(counts.counts)
    precision = hits / (counts.num_predicted + _EPSILON)
    recall = hits / (counts.num_target + _EPSILON)
    return 2 * precision * recall / (precision + recall + _EPSILON)
