"""LightM-UNet's blocks (arXiv 2403.05246): Mamba over all cells of a map or volume, with residuals that are scaled.

They are parts for encoders, not a backbone by name. Facts were taken from the authors' repository at commit 6b72e27;
the tests compare with numbers that their code computes. The paper calls the inner mixer a two-dimensional scan; the
code, and so this, scans the cells in raster order, from one end.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import channels_first, channels_last, check_spatial_dims
from statefield.backbones._mixers import OrientedMixer
from statefield.errors import ShapeError

__all__ = ["ResidualMambaBlock", "ResidualMambaLayer"]


class ResidualMambaLayer(nn.Module):
    """A residual vision Mamba layer (RVM): y = W norm(mamba(norm(x)) + s x) + b, with one norm in both places.

    Args:
        channels, out_channels: C and C'. spatial_dims: 2 for maps, 3 for volumes.
        d_state, d_conv, expand: the mixer's.

    Shape: [B, H, W, C] -> [B, H, W, C'], or [B, D, H, W, C] with `spatial_dims=3`.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        *,
        spatial_dims: int = 2,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2.0,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        self.spatial_dims = spatial_dims
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.norm = nn.LayerNorm(channels)
        self.mixer = OrientedMixer(channels, d_state=d_state, d_conv=d_conv, expand=expand)
        self.proj = nn.Linear(channels, channels if out_channels is None else out_channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != self.spatial_dims + 2:
            axes = "H, W" if self.spatial_dims == 2 else "D, H, W"
            raise ShapeError(f"a batch of shape {tuple(x.shape)} was given: [B, {axes}, C] is needed.")
        return self.proj(self.norm(self.mixer(self.norm(x)) + self.skip_scale * x))


class ResidualMambaBlock(nn.Module):
    """Two RVM layers, each behind GroupNorm and ReLU, and a residual around both (ResMamba).

    Args:
        channels: C. groups: of the GroupNorms, which take statistics over the whole image or volume.
        spatial_dims: 2 for maps, 3 for volumes. **mixer: of `ResidualMambaLayer`.

    Shape: [B, H, W, C] -> [B, H, W, C], or [B, D, H, W, C] with `spatial_dims=3`.
    """

    def __init__(self, channels: int, *, groups: int = 8, spatial_dims: int = 2, **mixer: Any) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = ResidualMambaLayer(channels, spatial_dims=spatial_dims, **mixer)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = ResidualMambaLayer(channels, spatial_dims=spatial_dims, **mixer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.relu(channels_last(self.norm1(channels_first(x)))))
        return x + self.conv2(functional.relu(channels_last(self.norm2(channels_first(y)))))


# The authors' names of the mixer's parameters: plain Mamba's; `_b` and `_s` are SegMamba's further directions.
_OWNERS = {"": "forwards", "_b": "backwards", "_s": "slices"}
_SUFFIXED = re.compile(r"(^|\.)(conv1d|x_proj|dt_proj|A_log|D)(_b|_s|)(?=\.|$)")


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("conv1.mamba.dt_proj.bias"), rename_official_key("mamba.A_s_log")
    ('conv1.mixer.forwards.dt_proj.bias', 'mixer.slices.A_log')
    """
    if re.search(r"(^|\.)(forwards|backwards|slices)\.", key):
        return key
    key = re.sub(r"(^|\.)mamba\.", r"\1mixer.", key)
    key = re.sub(r"(^|\.)A_(b|s)_log$", r"\1A_log_\2", key)
    return _SUFFIXED.sub(lambda found: f"{found[1]}{_OWNERS[found[3]]}.{found[2]}", key)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict of a block, a layer or the mixer alone under our names: renames only."""
    return {rename_official_key(key): value for key, value in state_dict.items()}
