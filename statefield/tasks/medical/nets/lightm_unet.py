"""LightM-UNet (arXiv 2403.05246): a U-Net of depthwise convolutions whose encoder runs Mamba over the voxels in a row.

    image -> conv -> blocks -> widen, pool -> blocks -> widen, pool -> blocks -> widen, pool -> blocks
                        |                        |                         |                      |
    logits <- conv <-- + <- x2 <- block <------- + <- x2 <- block <------- + <- x2, narrow <------+

Facts were taken from MrBlankness/LightM-UNet at commit 6b72e27, as released: 5.0 M parameters with 32 filters, where
the paper says 1.09 M (2-D) and 1.87 M (3-D), which no released version has. The tests compare with numbers that the
authors' code computes. Two differences between paper and code are the code's here: the scan is Mamba's own, along the
voxels in raster order, not a 2-D cross-scan; and one LayerNorm stands both before and behind it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones import lightm
from statefield.backbones._blocks import channels_first, channels_last
from statefield.backbones.lightm import ResidualMambaBlock, ResidualMambaLayer
from statefield.errors import ConfigError
from statefield.tasks.medical.nets._shapes import check_dims, check_image, convolution, max_pool, upsampling

__all__ = ["LightMUNet", "UpBlock"]

_GROUPS = 8  # of every GroupNorm


class SeparableConv(nn.Sequential):
    """A depthwise and a pointwise convolution that keep the size; [B, C, *S] -> [B, C', *S]."""

    def __init__(
        self, spatial_dims: int, channels: int, out_channels: int, kernel_size: int = 3, *, bias: bool = False
    ) -> None:
        super().__init__()
        conv = convolution(spatial_dims)
        padding = kernel_size // 2
        self.depthwise = conv(channels, channels, kernel_size, padding=padding, groups=channels, bias=bias)
        self.pointwise = conv(channels, out_channels, 1, bias=bias)


class UpBlock(nn.Module):
    """relu(norm(conv(relu(norm(x))) + skip_scale x)), [B, C, *S] -> [B, C, *S]."""

    def __init__(self, spatial_dims: int, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, channels)
        self.conv = SeparableConv(spatial_dims, channels, channels)
        self.norm2 = nn.GroupNorm(_GROUPS, channels)
        self.skip_scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm2(self.conv(functional.relu(self.norm1(x))) + self.skip_scale * x))


class EncoderStage(nn.Module):
    """Widen and halve (not in the first stage), then blocks; [B, C, *S] -> [B, C', *S / 2]."""

    def __init__(self, spatial_dims: int, channels: int, blocks: int, *, first: bool) -> None:
        super().__init__()
        self.widen: nn.Module = nn.Identity()
        self.pool: nn.Module = nn.Identity()
        if not first:
            self.widen = ResidualMambaLayer(channels // 2, channels, spatial_dims=spatial_dims)
            self.pool = max_pool(spatial_dims)(2, 2)
        self.blocks = nn.Sequential(
            *(ResidualMambaBlock(channels, groups=_GROUPS, spatial_dims=spatial_dims) for _ in range(blocks))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(channels_first(self.widen(channels_last(x))))
        return channels_first(self.blocks(channels_last(x)))


class DecoderStage(nn.Module):
    """Narrow and double the size, add the encoder's map, then blocks."""

    def __init__(self, spatial_dims: int, channels: int, blocks: int) -> None:
        super().__init__()
        self.narrow = convolution(spatial_dims)(2 * channels, channels, 1, bias=False)
        self.enlarge = upsampling(spatial_dims)
        self.blocks = nn.Sequential(*(UpBlock(spatial_dims, channels) for _ in range(blocks)))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.blocks(self.enlarge(self.narrow(x)) + skip)


class LightMUNet(nn.Module):
    """LightM-UNet: [B, in_channels, *S] -> raw logits [B, out_channels, *S].

    Args:
        spatial_dims: 2 or 3. in_channels, out_channels: any numbers.
        filters: channels of the first stage, a multiple of 8; each further stage has twice as many.
        depths, decoder_depths: blocks of each stage, from the image down and from the bottom up; the decoder has a
            stage less.
        dropout: behind the first convolution.

    Sides are multiples of `multiple` (8 for four stages).

    Raises:
        ConfigError: dimensions, filters or depths that cannot be had.
        ShapeError (forward): an image of other channels, or of sides that are no multiples.
    """

    dimensions: ClassVar[tuple[int, ...]] = (2, 3)

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        filters: int = 32,
        depths: Sequence[int] = (1, 2, 2, 4),
        decoder_depths: Sequence[int] = (1, 1, 1),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_dims("LightMUNet", spatial_dims, self.dimensions)
        if len(decoder_depths) != len(depths) - 1:
            raise ConfigError(
                f"LightMUNet: depths {tuple(depths)} need one decoder stage less, and decoder_depths is "
                f"{tuple(decoder_depths)}."
            )
        if filters % _GROUPS:
            raise ConfigError(f"LightMUNet: filters {filters} is no multiple of {_GROUPS}, the groups of its norms.")
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        self.multiple = 2 ** (len(depths) - 1)
        widths = [filters * 2**index for index in range(len(depths))]
        self.stem = SeparableConv(spatial_dims, in_channels, filters)
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.ModuleList(
            EncoderStage(spatial_dims, width, depth, first=index == 0)
            for index, (width, depth) in enumerate(zip(widths, depths, strict=True))
        )
        self.decoder = nn.ModuleList(
            DecoderStage(spatial_dims, width, depth)
            for width, depth in zip(reversed(widths[:-1]), decoder_depths, strict=True)
        )
        self.final_norm = nn.GroupNorm(_GROUPS, filters)
        self.final_conv = SeparableConv(spatial_dims, filters, out_channels, 1, bias=True)

    def forward(self, image: Tensor) -> Tensor:
        check_image("LightMUNet", image, self.spatial_dims, self.in_channels, self.multiple)
        x = self.dropout(self.stem(image))
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        for stage, skip in zip(self.decoder, reversed(skips[:-1]), strict=True):
            x = stage(x, skip)
        return self.final_conv(functional.relu(self.final_norm(x)))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that drive the recurrences."""
        return {name for name, _ in self.named_parameters() if name.endswith((".A_log", ".D"))}


_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^convInit\.", "stem."),
        (r"^down_layers\.(\d+)\.0\.0\.", r"encoder.\1.widen."),
        (r"^up_samples\.(\d+)\.0\.conv\.", r"decoder.\1.narrow."),
        (r"^up_layers\.(\d+)\.(\d+)\.", r"decoder.\1.blocks.\2."),
        (r"^conv_final\.0\.", "final_norm."),
        (r"^conv_final\.2\.", "final_conv."),
        (r"(^|\.)0\.conv\.(weight|bias)$", r"\1depthwise.\2"),
        (r"(^|\.)1\.conv\.(weight|bias)$", r"\1pointwise.\2"),
    )
]
_OFFICIAL_BLOCK = re.compile(r"^down_layers\.(\d+)\.(\d+)\.")


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("down_layers.1.2.conv1.mamba.A_log")
    'encoder.1.blocks.1.conv1.mixer.forwards.A_log'
    >>> rename_official_key("conv_final.2.1.conv.bias")
    'final_conv.pointwise.bias'
    """
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    key = _OFFICIAL_BLOCK.sub(lambda block: f"encoder.{block[1]}.blocks.{int(block[2]) - 1}.", key)
    return lightm.rename_official_key(key)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict (net, or any module of it) under our names."""
    return {rename_official_key(key): value for key, value in state_dict.items()}
