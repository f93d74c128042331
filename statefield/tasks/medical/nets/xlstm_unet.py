"""xLSTM-UNet (tianrun-chen/xLSTM-UNet-PyTorch): nnU-Net's residual U-Net with Vision-LSTM blocks behind its stages.

The block is Vision-LSTM's first version (causal convolution, no biases), read from the first voxel to the last in
raster order. The authors' layer has a further norm that its forward never uses; files may hold it, ours leaves it out.
They compute the block's parallel form, whose memory grows with the square of the voxels; ours grows linearly, with the
same values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from statefield.backbones import vil
from statefield.backbones.vil import ViLBlock
from statefield.errors import ConfigError
from statefield.tasks.medical.nets import residual_unet
from statefield.tasks.medical.nets.residual_unet import (
    REPEATED_ENTRIES,
    ResidualBlock,
    ResidualUNet,
    SequenceUNet,
    Size,
)

__all__ = ["REPEATED_ENTRIES", "UNUSED_ENTRIES", "XLSTMUNet"]


class SequenceBlock(ViLBlock):
    """A Vision-LSTM block of the first version that needs no grid, [B, L, D] -> [B, L, D].

    Heads and blocks of its projections are 4, and 2 where 4 does not divide D.
    """

    def __init__(self, dim: int) -> None:
        if dim % 2:
            raise ConfigError(f"a Vision-LSTM layer over {dim} features cannot be had: an even number is needed.")
        count = 4 if dim % 4 == 0 else 2
        super().__init__(dim, conv="causal", block=count, heads=count, bias=False, norm_bias=False)

    def forward(self, x: Tensor, grid: Sequence[int] = ()) -> Tensor:
        return super().forward(x, (x.shape[1], 1))


class XLSTMUNet(SequenceUNet):
    """xLSTM-UNet: [B, in_channels, *S] -> raw logits [B, out_channels, *S].

    Args: as for `SequenceUNet`. With `place="encoder"` there are, in 2-D, a residual block behind stage 1 and layers
    behind every second later stage, the last included; in 3-D residual blocks behind the first three stages and layers
    behind the rest.
    """

    def sequence_module(self, features: int) -> nn.Module:
        return SequenceBlock(features)

    def along_encoder(self, stage: int, stages: int, channels: int, kernel_size: Size) -> nn.Module | None:
        dims = self.spatial_dims
        if (dims == 2 and stage == 1) or (dims == 3 and stage < 3):
            return ResidualBlock(dims, channels, channels, kernel_size=kernel_size)
        return nn.Identity() if dims == 2 and (stage == 0 or stage % 2 == stages % 2) else None


UNUSED_ENTRIES = re.compile(r"(^|\.)(?:xlstm|(?:xlstm_)?layers\.\d+)\.norm\.(?:weight|bias)$")
_BLOCK = re.compile(r"^(layers\.\d+)\.vil\.")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict (net or block) under our names; without the norms that nothing reads."""
    if isinstance(model, ViLBlock):
        return {vil.rename_official_key(key): value for key, value in state_dict.items()}
    found = {}
    for key, value in state_dict.items():
        if UNUSED_ENTRIES.search(key):
            continue
        if key.startswith("xlstm."):
            assert isinstance(model, ResidualUNet)
            key = f"layers.{len(model.layers) - 1}.{key.removeprefix('xlstm.')}"
        key = residual_unet.rename_official_key(key)
        block = _BLOCK.match(key)
        if block:
            key = f"{block[1]}.module.{vil.rename_official_key(key[block.end() :])}"
        found[key] = value
    return found
