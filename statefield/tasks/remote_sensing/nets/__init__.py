"""Whole nets of remote sensing: of two dates, of hyperspectral windows, of scenes. All give raw logits.

Nets of two dates are called as net(before, after). ChangeMamba's decoders stand behind any encoder:
`MambaBCD(encoder="spatial_mamba_tiny")`. The controls are `FCSiamDiff`, a convolutional encoder before the same decoder
(`MambaBCD(encoder="resnet18")`), and `statefield.backbones.without_scan` of any net that scans.
"""

from statefield.registry import Registry
from statefield.tasks.remote_sensing.nets.change_decoders import ChangeDecoder, SemanticDecoder
from statefield.tasks.remote_sensing.nets.change_mamba import (
    BuildingDamage,
    MambaBCD,
    MambaBDA,
    MambaSCD,
    SemanticChange,
)
from statefield.tasks.remote_sensing.nets.fc_siam import FCSiamDiff
from statefield.tasks.remote_sensing.nets.morpmamba import MorpMamba
from statefield.tasks.remote_sensing.nets.rsmamba import RSMamba
from statefield.tasks.remote_sensing.nets.spectral_spatial import SpectralSpatialCNN, SpectralSpatialMamba

__all__ = [
    "CHANGE_NETS",
    "BuildingDamage",
    "ChangeDecoder",
    "FCSiamDiff",
    "MambaBCD",
    "MambaBDA",
    "MambaSCD",
    "MorpMamba",
    "RSMamba",
    "SemanticChange",
    "SemanticDecoder",
    "SpectralSpatialCNN",
    "SpectralSpatialMamba",
]

CHANGE_NETS: Registry[type] = Registry("net of two dates")  # by the names that recipes have for them
for _name, _net in {
    "fc_siam_diff": FCSiamDiff,
    "mamba_bcd": MambaBCD,
    "mamba_bda": MambaBDA,
    "mamba_scd": MambaSCD,
}.items():
    CHANGE_NETS.register(_name)(_net)
