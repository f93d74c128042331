"""Whole nets of remote sensing: of two dates, of hyperspectral windows, of scenes. All give raw logits."""

from statefield.tasks.remote_sensing.nets.change_decoders import ChangeDecoder, SemanticDecoder
from statefield.tasks.remote_sensing.nets.change_mamba import (
    BuildingDamage,
    MambaBCD,
    MambaBDA,
    MambaSCD,
    SemanticChange,
)

__all__ = [
    "BuildingDamage",
    "ChangeDecoder",
    "MambaBCD",
    "MambaBDA",
    "MambaSCD",
    "SemanticChange",
    "SemanticDecoder",
]
