"""The weights of the change losses; the defaults are those that ChangeMamba was published with.

Source: Chen et al., ChangeMamba, 2024, arXiv 2404.03425; script/train_Mamba{BCD,SCD,BDA}.py of ChenHongruixuan/MambaCD.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from math import isfinite

from statefield.errors import ConfigError


class _Weights:
    """The base of the settings below: every field is a weight."""

    def __post_init__(self) -> None:
        weights = astuple(self)  # type: ignore[call-overload]
        if not all(isfinite(weight) and weight >= 0 for weight in weights) or max(weights) == 0:
            raise ConfigError(f"{self}: finite weights are needed, none below 0 and one above.")


@dataclass(frozen=True)
class BinaryChangeLossConfig(_Weights):
    """cross_entropy + 0.75 lovasz, of the change map."""

    cross_entropy: float = 1.0
    lovasz: float = 0.75


@dataclass(frozen=True)
class SemanticChangeLossConfig(_Weights):
    """change_*: of the change map. semantic_*: of each date's class map. consistency: of both dates' class maps.

    In the paper's brackets: CE_c + 0.5 (CE_1 + CE_2 + 0.5 Sim) + 0.75 (Lov_c + 0.5 (Lov_1 + Lov_2)).
    """

    change_cross_entropy: float = 1.0
    semantic_cross_entropy: float = 0.5
    consistency: float = 0.25
    change_lovasz: float = 0.75
    semantic_lovasz: float = 0.375


@dataclass(frozen=True)
class DamageLossConfig(_Weights):
    """building_*: of the map of buildings. damage_*: of the damage map, in the buildings."""

    building_cross_entropy: float = 1.0
    damage_cross_entropy: float = 1.0
    building_lovasz: float = 0.5
    damage_lovasz: float = 0.75
