"""ChangeMamba's decoders: from the maps of two dates to what changed, from the maps of one date to what is there.

Symbols   B batch · C_l channels of the maps at level l · h, w their sides · D width of the decoder
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor, cat, nn, stack

from statefield.backbones._mixers import CrossScanMixer
from statefield.backbones.vmamba import VMambaBlock
from statefield.errors import ConfigError
from statefield.tasks.remote_sensing.nets.siamese import resized

__all__ = ["ChangeDecoder", "ResidualBlock", "SemanticDecoder", "SpatioTemporalLevel"]

MakeBlock = Callable[[int], nn.Module]  # channels -> a module [B, h, w, C] -> [B, h, w, C]


def scanning_block(
    channels: int,
    *,
    d_state: int = 1,
    expand: float = 2.0,
    gated: bool = False,
    conv_bias: bool = False,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.1,
) -> VMambaBlock:
    """The block of the authors' decoders: VMamba's, in the form that their encoders have.

    Args: d_state, expand, gated, conv_bias: of `CrossScanMixer`. mlp_ratio, drop_path: of `VMambaBlock`.
    """
    mixer = CrossScanMixer(channels, d_state=d_state, expand=expand, gated=gated, conv_bias=conv_bias)
    return VMambaBlock(channels, mixer, mlp_ratio=mlp_ratio, drop_path=drop_path)


def block_maker(arguments: Mapping[str, Any] | None) -> MakeBlock:
    """`scanning_block` with these arguments; `ConfigError` for one that it does not take."""
    arguments, known = dict(arguments or {}), list(signature(scanning_block).parameters)[1:]
    if unknown := sorted(set(arguments) - set(known)):
        raise ConfigError(f"a decoder's block takes no {', '.join(unknown)}: block_args may hold {', '.join(known)}.")
    return partial(scanning_block, **arguments)


class MapBlock(nn.Module):
    """A block of channels-last maps on [B, C, h, w]; behind a 1 x 1 convolution from `in_channels` where given."""

    def __init__(self, width: int, make_block: MakeBlock, in_channels: int | None = None) -> None:
        super().__init__()
        self.conv: nn.Module = nn.Identity() if in_channels is None else nn.Conv2d(in_channels, width, 1)
        self.block = make_block(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.conv(x).permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)


def pointwise(in_channels: int, out_channels: int) -> nn.Sequential:
    """1 x 1 convolution, batch norm, ReLU."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels), nn.ReLU())


class ResidualBlock(nn.Module):
    """ResNet's: two 3 x 3 convolutions with batch norm around the identity, [B, D, h, w] -> [B, D, h, w]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


class SpatioTemporalLevel(nn.Module):
    """Three ways to let blocks see both dates of one level, and their fusion: 2 x [B, C_l, h, w] -> [B, D, h, w].

    parallel: channels of both dates at each pixel. cross: [B, C_l, h, 2w], columns of the dates in turn, the earlier
    one first. sequential: [B, C_l, h, 2w], the earlier date left of the later one. The last two are taken apart again,
    and five maps of D channels are fused: parallel; cross earlier, later; sequential earlier, later.
    """

    def __init__(self, channels: int, width: int, make_block: MakeBlock) -> None:
        super().__init__()
        self.parallel = MapBlock(width, make_block, 2 * channels)
        self.cross = MapBlock(width, make_block, channels)
        self.sequential = MapBlock(width, make_block, channels)
        self.fuse = pointwise(5 * width, width)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        parallel = self.parallel(cat([before, after], dim=1))
        cross = self.cross(stack([before, after], dim=-1).flatten(-2))
        sequential = self.sequential(cat([before, after], dim=-1))
        return self.fuse(cat([parallel, cross[..., ::2], cross[..., 1::2], *sequential.chunk(2, dim=-1)], dim=1))


class ChangeDecoder(nn.Module):
    """Maps of both dates, the finest first, -> [B, width, h, w] at the finest map's sides.

        p_L = level_L          p_l = residual(level_l + resized p_(l+1))

    Args:
        channels: C_l of each level, the finest first; any number of levels. width: D.
        make_block: the block of the three mechanisms; VMamba's unless given.

    Source: ChangeMamba (arXiv 2404.03425), section III-C; ChenHongruixuan/MambaCD, ChangeDecoder.
    """

    def __init__(self, channels: Sequence[int], width: int = 128, make_block: MakeBlock = scanning_block) -> None:
        super().__init__()
        _check_levels(channels)
        self.levels = nn.ModuleList(SpatioTemporalLevel(one, width, make_block) for one in channels)
        self.smooth = nn.ModuleList(ResidualBlock(width) for _ in channels[:-1])

    def forward(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
        *finer, x = [level(*dates) for level, *dates in zip(self.levels, before, after, strict=True)]
        for smooth, fused in zip(reversed(self.smooth), reversed(finer), strict=True):
            x = smooth(resized(x, fused) + fused)
        return x


class SemanticDecoder(nn.Module):
    """Maps of one date, the finest first, -> [B, width, h, w] at the finest map's sides.

        p_L = block_L(conv(x_L))      p_l = block_l(residual(conv(x_l) + resized p_(l+1)))      residual(p_1)

    Args: as for `ChangeDecoder`.
    Source: ChangeMamba (arXiv 2404.03425), section III-D; ChenHongruixuan/MambaCD, SemanticDecoder.
    """

    def __init__(self, channels: Sequence[int], width: int = 128, make_block: MakeBlock = scanning_block) -> None:
        super().__init__()
        _check_levels(channels)
        self.deepest = MapBlock(width, make_block, channels[-1])
        self.lateral = nn.ModuleList(pointwise(one, width) for one in channels[:-1])
        self.smooth = nn.ModuleList(ResidualBlock(width) for _ in channels[:-1])
        self.blocks = nn.ModuleList(MapBlock(width, make_block) for _ in channels[:-1])
        self.last = ResidualBlock(width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *finer, deepest = maps
        x = self.deepest(deepest)
        levels = zip(finer, self.lateral, self.smooth, self.blocks, strict=True)
        for feature_map, lateral, smooth, block in reversed(list(levels)):
            fused = lateral(feature_map)
            x = block(smooth(resized(x, fused) + fused))
        return self.last(x)


def _check_levels(channels: Sequence[int]) -> None:
    if not channels:
        raise ConfigError("a decoder needs the maps of one level at least, none were given.")
