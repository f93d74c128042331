"""State-space operators on tensors: floor 0 of the house. Imports torch and numpy, triton only when it is used."""

from statefield.kernels._choice import KernelRow, implementations, use_kernels
from statefield.kernels.selective_scan import selective_scan
from statefield.kernels.state_fusion import state_fusion
from statefield.kernels.structure_aware_scan import structure_aware_scan

__all__ = ["KernelRow", "implementations", "selective_scan", "state_fusion", "structure_aware_scan", "use_kernels"]
