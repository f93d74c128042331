"""Nets of tracking: one object followed through frames or events, video detection with a memory, motion of boxes."""

from statefield.tasks.tracking.nets.center_head import CenterHead, CenterMaps
from statefield.tasks.tracking.nets.mamba_evt import MambaEVT
from statefield.tasks.tracking.nets.memory_aggregation import MemoryAggregation, MemoryBank, PixelAggregation
from statefield.tasks.tracking.nets.motion_predictor import MotionPredictor
from statefield.tasks.tracking.nets.template_memory import TemplateMemory

__all__ = [
    "CenterHead",
    "CenterMaps",
    "MambaEVT",
    "MemoryAggregation",
    "MemoryBank",
    "MotionPredictor",
    "PixelAggregation",
    "TemplateMemory",
]
