"""U-Mamba (arXiv 2401.04722; bowang-lab/U-Mamba at commit 28459e3): nnU-Net's residual U-Net with Mamba behind stages.

The layer is a LayerNorm and Mamba's mixer over the voxels in raster order, without a residual. The authors train it
without AMP, which gives them NaN; here the recurrence runs in float32 whatever the rest does.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from statefield.backbones import lightm
from statefield.backbones._mixers import OrientedMixer
from statefield.tasks.medical.nets import residual_unet
from statefield.tasks.medical.nets.residual_unet import REPEATED_ENTRIES, ResidualUNet, SequenceUNet, Size

__all__ = ["REPEATED_ENTRIES", "SequenceMamba", "UMamba"]


class SequenceMamba(nn.Module):
    """LayerNorm and Mamba's mixer, without a residual: [B, L, D] -> [B, L, D]."""

    def __init__(self, dim: int, *, d_state: int = 16, d_conv: int = 4, expand: float = 2.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = OrientedMixer(dim, d_state=d_state, d_conv=d_conv, expand=expand)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(self.norm(x))


class UMamba(SequenceUNet):
    """U-Mamba: [B, in_channels, *S] -> raw logits [B, out_channels, *S].

    Args: as for `SequenceUNet`. With `place="encoder"` a layer stands behind every stage in 3-D, behind every second
    one in 2-D, the last included.
    """

    def sequence_module(self, features: int) -> nn.Module:
        return SequenceMamba(features)

    def along_encoder(self, stage: int, stages: int, channels: int, kernel_size: Size) -> nn.Module | None:
        return nn.Identity() if self.spatial_dims == 2 and stage % 2 == stages % 2 else None


_LAYER = re.compile(r"^(layers\.\d+\.)(?!module\.)")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict (net or layer) under our names."""
    if not isinstance(model, ResidualUNet):
        return lightm.checkpoint_filter_fn(state_dict, model)
    bottom = f"layers.{len(model.layers) - 1}."

    def ours(key: str) -> str:
        key = residual_unet.rename_official_key(re.sub(r"^mamba_layer\.", bottom, key))
        return lightm.rename_official_key(_LAYER.sub(r"\1module.", key)) if key.startswith("layers.") else key

    return {ours(key): value for key, value in state_dict.items()}
