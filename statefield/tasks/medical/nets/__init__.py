"""Whole segmentation nets of the field, with MONAI's signature: Net(spatial_dims, in_channels, out_channels, *, ...).

Each gives raw logits [B, out_channels, *S] of an image [B, in_channels, *S] and works inside MONAI's
`sliding_window_inference`. Any encoder of `statefield.backbones` with any decoder of smp is
`statefield.tasks.common.network.SegmentationNet`.
"""

from statefield.registry import Registry
from statefield.tasks.medical.nets.lightm_unet import LightMUNet
from statefield.tasks.medical.nets.monai_nets import DynamicUNet, ResidualSegNet
from statefield.tasks.medical.nets.residual_unet import ResidualUNet
from statefield.tasks.medical.nets.segmamba import SegMamba
from statefield.tasks.medical.nets.spatial_mamba_unet import SpatialMambaUNet
from statefield.tasks.medical.nets.u_mamba import UMamba
from statefield.tasks.medical.nets.vm_unet import MultiHeadScanUNet, VMUNet
from statefield.tasks.medical.nets.xlstm_unet import XLSTMUNet

__all__ = [
    "NETS",
    "DynamicUNet",
    "LightMUNet",
    "MultiHeadScanUNet",
    "ResidualSegNet",
    "ResidualUNet",
    "SegMamba",
    "SpatialMambaUNet",
    "UMamba",
    "VMUNet",
    "XLSTMUNet",
]

NETS: Registry[type] = Registry("net")  # by the names that recipes have for them
for _name, _net in {
    "dynunet": DynamicUNet,
    "lightm_unet": LightMUNet,
    "mhs_vm": MultiHeadScanUNet,
    "residual_unet": ResidualUNet,
    "segmamba": SegMamba,
    "segresnet": ResidualSegNet,
    "spatial_mamba_unet": SpatialMambaUNet,
    "u_mamba": UMamba,
    "vm_unet": VMUNet,
    "xlstm_unet": XLSTMUNet,
}.items():
    NETS.register(_name)(_net)
