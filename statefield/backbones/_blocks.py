"""Parts that several backbones share. Between blocks, maps are channels-last: [B, H, W, C]."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Literal

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.nn import functional

from statefield.errors import ConfigError
from statefield.kernels import causal_conv1d

# By the number of spatial axes: images [B, C, H, W], volumes [B, C, D, H, W].
CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}


def check_spatial_dims(spatial_dims: int) -> None:
    """`ConfigError` unless `spatial_dims` is 2 (images) or 3 (volumes)."""
    if spatial_dims not in CONVOLUTIONS:
        raise ConfigError(f"spatial_dims {spatial_dims!r} is neither 2 (images) nor 3 (volumes).")


def channels_first(x: Tensor) -> Tensor:
    """[B, *S, C] -> [B, C, *S], a view."""
    return x.movedim(-1, 1)


def channels_last(x: Tensor) -> Tensor:
    """[B, C, *S] -> [B, *S, C], a view."""
    return x.movedim(1, -1)


def padded_behind(x: Tensor, by: tuple[int, ...]) -> Tensor:
    """[B, C, *S] extended by zeros: `by[i]` of them behind the last cell of axis i of S."""
    return functional.pad(x, [cells for behind in reversed(by) for cells in (0, behind)])


class ConvNorm(nn.Sequential):
    """A convolution over [B, C, H, W], then BatchNorm and ReLU where asked; sub-modules `conv`, `norm`, `act`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        norm: bool = True,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=bias,
        )
        if norm:
            self.norm = nn.BatchNorm2d(out_channels)
        if act:
            self.act = nn.ReLU(inplace=True)  # neither BatchNorm nor a convolution needs its output afterwards


class MapConvNorm(ConvNorm):
    """`ConvNorm` on channels-last maps, [B, H, W, C] -> [B, H, W, C']; the permutations are views."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DepthwiseConv(nn.Conv2d):
    """A depthwise convolution with zero padding, [B, H, W, C] -> [B, H, W, C].

    The permutations are views: a channels-last map is what torch calls the channels_last memory format.
    """

    def __init__(self, channels: int, kernel_size: int = 3, *, bias: bool = True) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class VolumeDepthwiseConv(nn.Conv3d):
    """`DepthwiseConv` for volumes, [B, D, H, W, C] -> [B, D, H, W, C]."""

    def __init__(self, channels: int, kernel_size: int = 3, *, bias: bool = True) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return channels_last(super().forward(channels_first(x)))


def depthwise(spatial_dims: int, channels: int, kernel_size: int = 3, *, bias: bool = True) -> nn.Module:
    """The depthwise convolution of channels-last maps or volumes."""
    convolution = DepthwiseConv if spatial_dims == 2 else VolumeDepthwiseConv
    return convolution(channels, kernel_size, bias=bias)


class PatchStem(nn.Module):
    """One convolution of 4 x 4 patches and LayerNorm: [B, in_chans, H, W] -> [B, ceil(H/4), ceil(W/4), C].

    With `spatial_dims=3`: 4 x 4 x 4 patches of a volume, [B, in_chans, D, H, W] -> [B, ceil(D/4), ., ., C].
    """

    def __init__(self, in_chans: int, channels: int, *, spatial_dims: int = 2) -> None:
        super().__init__()
        self.conv1 = CONVOLUTIONS[spatial_dims](in_chans, channels, 4, stride=4)
        self.norm1 = nn.LayerNorm(channels)

    def forward(self, image: Tensor) -> Tensor:
        image = padded_behind(image, tuple(-side % 4 for side in image.shape[2:]))
        return self.norm1(channels_last(self.conv1(image)))


class PatchMerging(nn.Module):
    """Halve a map and widen it: four neighbours side by side, LayerNorm, a linear layer; [B, H, W, C] -> [B, ., ., C'].

    Sides are rounded up; what lies beyond is zero. With `stride=1` the map keeps its size and the neighbours lie
    `dilation` apart, as a stage that runs à trous asks. With `spatial_dims=3` a volume, [B, D, H, W, C]: eight
    neighbours, those of the first axis before those of the next.
    Source: Swin Transformer, as VMamba has it (neighbours below before neighbours to the right).
    """

    def __init__(
        self, channels: int, out_channels: int, *, stride: int = 2, dilation: int = 1, spatial_dims: int = 2
    ) -> None:
        super().__init__()
        self.stride, self.dilation = stride, dilation
        self.norm = nn.LayerNorm(2**spatial_dims * channels)
        self.reduction = nn.Linear(2**spatial_dims * channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        sides, far, step = x.shape[1:-1], self.dilation, self.stride
        x = functional.pad(x, (0, 0) + (0, far) * len(sides))
        places = [place[::-1] for place in product((0, far), repeat=len(sides))]  # the first axis fastest
        neighbours = [
            x[(slice(None), *(slice(i, i + side, step) for i, side in zip(place, sides, strict=True)))]
            for place in places
        ]
        return self.reduction(self.norm(torch.cat(neighbours, dim=-1)))


class ConvMerging(nn.Module):
    """Halve a map and widen it by a 3 x 3 convolution, then LayerNorm: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C'].

    With `stride=1` the map keeps its size; `dilation` is the spacing of the sub-grids that it arrives with. With
    `spatial_dims=3` a volume, [B, D, H, W, C], and 3 x 3 x 3 cells. `stride` may have a number for each axis.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        stride: int | tuple[int, ...] = 2,
        dilation: int = 1,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        convolution: Callable[..., nn.Module] = CONVOLUTIONS[spatial_dims]
        self.conv = convolution(channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(channels_last(self.conv(channels_first(x))))


class ResidualStem(nn.Module):
    """Convolutions that bring an image to a quarter of its size, two of them a residual.

    [B, in_chans, H, W] -> [B, ceil(H/4), ceil(W/4), C]. Source: MLLA (Han et al. 2024); Spatial-Mamba and VSSD have it.
    """

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = ConvNorm(in_chans, half, stride=2)
        self.conv2 = nn.Sequential(ConvNorm(half, half), ConvNorm(half, half, act=False))
        self.conv3 = nn.Sequential(
            ConvNorm(half, 4 * channels, stride=2), ConvNorm(4 * channels, channels, 1, act=False)
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv1(image)
        x = self.conv3(x + self.conv2(x))
        return x.permute(0, 2, 3, 1).contiguous()  # once: every later addition keeps the layout of its first operand


class InvertedMerging(nn.Module):
    """Halve the map and widen it, [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C'], by an inverted bottleneck of 4 C'.

    With `stride=1` the map keeps its size and the following stage runs à trous; `dilation` is the spacing of the
    sub-grids that the map arrives with. Source: as of `ResidualStem`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 2, dilation: int = 1) -> None:
        super().__init__()
        hidden = 4 * out_channels
        self.conv = nn.Sequential(
            ConvNorm(in_channels, hidden, 1, bias=True, norm=False),
            ConvNorm(hidden, hidden, 3, stride=stride, dilation=dilation, groups=hidden, bias=True, norm=False),
            ConvNorm(hidden, out_channels, 1, bias=True, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class PositionalBlock(nn.Module):
    """Positional convolution, mixer, positional convolution, MLP; each a residual, [B, H, W, C].

    Mixer and MLP stand behind LayerNorm, and they alone are subject to stochastic depth (`drop_path`, a probability).
    With `spatial_dims=3` the convolutions are of volumes, [B, D, H, W, C].
    """

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        *,
        mlp_ratio: float = 4.0,
        proj_drop_rate: float = 0.0,
        drop_path: float = 0.0,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        self.cpe1 = depthwise(spatial_dims, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.mixer = mixer
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.cpe2 = depthwise(spatial_dims, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(mlp_ratio * channels), drop=proj_drop_rate)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.cpe1(x)
        x = x + self.drop_path1(self.mixer(self.norm1(x)))
        x = x + self.cpe2(x)
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class CausalConv(nn.Conv1d):
    """A depthwise convolution over the tokens before each token and itself, [B, L, C] -> [B, L, C].

    With `reverse` it looks at the tokens behind: a causal convolution of the reversed sequence, reversed again. With
    `silu` the result goes through SiLU in the same pass.
    """

    def __init__(self, channels: int, taps: int = 4, *, reverse: bool = False, silu: bool = False) -> None:
        super().__init__(channels, channels, taps, groups=channels)
        self.reverse = reverse
        self.activation: Literal["silu"] | None = "silu" if silu else None

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.squeeze(1)
        return causal_conv1d(x, weight, self.bias, self.activation, reverse=self.reverse, layout="bld")


def leading(x: Tensor, axis: int, count: int) -> Tensor:
    """The first `count` entries along an axis; by index where sizes are symbols: a slice would fix them."""
    if isinstance(count, int):
        return x.narrow(axis, 0, count)
    return x.index_select(axis, torch.arange(count, device=x.device))


def split_phases(x: Tensor, dilation: int) -> Tensor:
    """Deal a map out to its `dilation`^2 interleaved sub-grids: [B, H, W, C] -> [B d d, ceil(H/d), ceil(W/d), C].

    A stage that runs on the sub-grids computes on each what it would compute after subsampling by `dilation`: the
    algorithme à trous, for scans and padding as well as for convolutions. Sides that `dilation` does not divide are
    extended by their last row or column; sub-grid 0 never holds an extended row or column.

    >>> split_phases(torch.arange(5.0).reshape(1, 1, 5, 1), 2)[:, 0, :, 0]
    tensor([[0., 2., 4.],
            [1., 3., 4.],
            [0., 2., 4.],
            [1., 3., 4.]])
    """
    batch, height, width, channels = x.shape
    below, right = -height % dilation, -width % dilation
    x = functional.pad(x.permute(0, 3, 1, 2), (0, right, 0, below), mode="replicate").permute(0, 2, 3, 1)
    rows, columns = (height + below) // dilation, (width + right) // dilation
    x = x.reshape(batch, rows, dilation, columns, dilation, channels).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(batch * dilation * dilation, rows, columns, channels)


def merge_phases(x: Tensor, dilation: int, height: int, width: int) -> Tensor:
    """Undo `split_phases`: [B d d, h, w, C] -> [B, height, width, C]; what was extended is cut off again."""
    _, rows, columns, channels = x.shape
    x = x.reshape(-1, dilation, dilation, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, rows * dilation, columns * dilation, channels)[:, :height, :width].contiguous()


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Stochastic depth per block, rising linearly from 0 at the first block of all to `rate` at the last one."""
    total = sum(depths)
    rising = iter([rate * index / max(total - 1, 1) for index in range(total)])
    return [[next(rising) for _ in range(depth)] for depth in depths]


def inverse_softplus(x: Tensor) -> Tensor:
    """y with softplus(y) = x, for x > 0."""
    return x + torch.log(-torch.expm1(-x))
