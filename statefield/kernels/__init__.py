"""State-space operators on tensors: floor 0 of the house. Imports torch and numpy, triton only when it is used."""

from statefield.kernels._choice import KernelRow, implementations, use_kernels
from statefield.kernels.selective_scan import selective_scan

__all__ = ["KernelRow", "implementations", "selective_scan", "use_kernels"]
