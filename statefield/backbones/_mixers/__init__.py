"""Token mixers: how a block exchanges information between pixels. Each is written over the operators of `kernels`."""

from statefield.backbones._mixers.attention import MapAttention
from statefield.backbones._mixers.bidirectional import BidirectionalMixer
from statefield.backbones._mixers.channel_scan import ChannelScanMixer
from statefield.backbones._mixers.cross_scan import CrossDualityMixer, CrossScanMixer
from statefield.backbones._mixers.direction_aware import DirectionAwareMixer
from statefield.backbones._mixers.duality import DualityMixer
from statefield.backbones._mixers.hidden_state import HiddenStateMixer
from statefield.backbones._mixers.matrix_memory import MatrixMemoryMixer
from statefield.backbones._mixers.multi_head_scan import MultiHeadScanMixer
from statefield.backbones._mixers.non_causal import NonCausalDualityMixer
from statefield.backbones._mixers.oriented import TRI_ORIENTED, OrientedMixer
from statefield.backbones._mixers.rwkv import ChannelMix, SpatialMix
from statefield.backbones._mixers.scanning import Scanning, without_scan
from statefield.backbones._mixers.structure_aware import StateFusion, StructureAwareMixer

__all__ = [
    "TRI_ORIENTED",
    "BidirectionalMixer",
    "ChannelMix",
    "ChannelScanMixer",
    "CrossDualityMixer",
    "CrossScanMixer",
    "DirectionAwareMixer",
    "DualityMixer",
    "HiddenStateMixer",
    "MapAttention",
    "MatrixMemoryMixer",
    "MultiHeadScanMixer",
    "NonCausalDualityMixer",
    "OrientedMixer",
    "Scanning",
    "SpatialMix",
    "StateFusion",
    "StructureAwareMixer",
    "without_scan",
]
