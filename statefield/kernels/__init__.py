"""State-space operators on tensors: floor 0 of the house. Imports torch and numpy, triton only when it is used."""

from statefield.kernels._choice import KernelRow, implementations, use_kernels
from statefield.kernels.causal_conv1d import causal_conv1d
from statefield.kernels.deformable_conv import deformable_conv
from statefield.kernels.hsm_ssd import hsm_ssd_states
from statefield.kernels.mlstm import mlstm
from statefield.kernels.non_causal_ssd import non_causal_ssd
from statefield.kernels.routed_scan import routed_scan
from statefield.kernels.selective_scan import selective_scan
from statefield.kernels.ssd import ssd
from statefield.kernels.state_fusion import state_fusion
from statefield.kernels.structure_aware_scan import structure_aware_scan
from statefield.kernels.wkv import wkv

__all__ = [
    "KernelRow",
    "causal_conv1d",
    "deformable_conv",
    "hsm_ssd_states",
    "implementations",
    "mlstm",
    "non_causal_ssd",
    "routed_scan",
    "selective_scan",
    "ssd",
    "state_fusion",
    "structure_aware_scan",
    "use_kernels",
    "wkv",
]
