"""U-Mamba (arXiv 2401.04722; bowang-lab/U-Mamba at commit 28459e3): nnU-Net's residual U-Net with Mamba behind stages.

The layer is a LayerNorm and Mamba's mixer over the voxels in raster order, without a residual. The authors train it
without AMP, which gives them NaN; here the recurrence runs in float32 whatever the rest does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from statefield.backbones import lightm
from statefield.backbones._mixers import OrientedMixer
from statefield.tasks.medical.nets import residual_unet
from statefield.tasks.medical.nets.residual_unet import REPEATED_ENTRIES, ResidualUNet, Size, TokenLayer

__all__ = ["REPEATED_ENTRIES", "SequenceMamba", "UMamba"]


class SequenceMamba(nn.Module):
    """LayerNorm and Mamba's mixer, without a residual: [B, L, D] -> [B, L, D]."""

    def __init__(self, dim: int, *, d_state: int = 16, d_conv: int = 4, expand: float = 2.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = OrientedMixer(dim, d_state=d_state, d_conv=d_conv, expand=expand)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(self.norm(x))


class UMamba(ResidualUNet):
    """U-Mamba: [B, in_channels, *S] -> raw logits [B, out_channels, *S].

    Args:
        place: "bottom", one layer behind the last stage (the authors' Bot); "encoder", their Enc: layers behind every
            stage in 3-D, behind every second one in 2-D, the last included. "encoder" needs `image_size`: where a map
            has no more voxels than channels, channels are the tokens, and the layer fits this size only.
        others: as for `ResidualUNet`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        place: Literal["bottom", "encoder"] = "bottom",
        features: Sequence[int] | None = None,
        strides: Sequence[Size] | None = None,
        kernel_sizes: Sequence[Size] | None = None,
        depths: Sequence[int] | None = None,
        decoder_depths: Sequence[int] | None = None,
        deep_supervision: bool = False,
        image_size: Sequence[int] | None = None,
    ) -> None:
        residual_unet.check_place("UMamba", place, image_size)
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            features=features,
            strides=strides,
            kernel_sizes=kernel_sizes,
            depths=depths,
            decoder_depths=decoder_depths,
            deep_supervision=deep_supervision,
            image_size=image_size if place == "encoder" else None,
        )

    def layer(
        self, stage: int, stages: int, channels: int, kernel_size: Size, sides: tuple[int, ...] | None
    ) -> nn.Module:
        if sides is None:  # "bottom"
            last = stage == stages - 1
            return TokenLayer(SequenceMamba(channels), by_channel=False) if last else nn.Identity()
        if len(sides) == 2 and stage % 2 == stages % 2:
            return nn.Identity()
        voxels = math.prod(sides)
        by_channel = voxels <= channels
        return TokenLayer(SequenceMamba(voxels if by_channel else channels), by_channel=by_channel)


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
