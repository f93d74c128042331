"""Softmax attention over all pixels of a map, as state-space backbones have it in their last stages."""

from __future__ import annotations

from timm.layers import Attention
from torch import Tensor


class MapAttention(Attention):
    """timm's multi-head attention between all pixels of a map, [B, H, W, C] -> [B, H, W, C]; its arguments."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # maps have no mask
        return super().forward(x.flatten(1, 2)).unflatten(1, (x.shape[1], x.shape[2]))
