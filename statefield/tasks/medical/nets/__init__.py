"""Whole segmentation nets of the field, with MONAI's signature: Net(spatial_dims, in_channels, out_channels, *, ...).

Each gives raw logits [B, out_channels, *S] of an image [B, in_channels, *S] and works inside MONAI's
`sliding_window_inference`. Any encoder of `statefield.backbones` with any decoder of smp is
`statefield.tasks.common.network.SegmentationNet`.
"""

from statefield.tasks.medical.nets.vm_unet import MultiHeadScanUNet, VMUNet

__all__ = ["MultiHeadScanUNet", "VMUNet"]
