"""State fusion of volumes, beside the same sums by torch's convolutions."""

from __future__ import annotations

from statefield.bench.kernels.report import Goal, Row
from statefield.bench.kernels.state_fusion import beside_convolutions


def measure(quick: bool, seconds: float, rounds: int) -> tuple[list[Row], list[Goal]]:
    """A stage of a Spatial-Mamba over volumes (report.py tells the contract)."""
    grid, channels = ((5, 6, 7), 24) if quick else ((24, 24, 24), 64)
    return beside_convolutions("state_fusion_3d", "state fusion of volumes", grid, channels, seconds, rounds)
