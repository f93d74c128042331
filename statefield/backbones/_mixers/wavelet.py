"""MobileMamba's mixer: some channels are scanned and filtered in the wavelet domain, some convolved, some left alone.

    x = [ global | local | identity ]     y = BN(conv1x1(relu([ wavelet_scan(global) | local_conv(local) | identity ])))

Symbols   B batch · H, W map · C channels of the block · G, L channels of the global and the local part
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import MapConvNorm, leading
from statefield.backbones._mixers.cross_scan import CrossScanMixer
from statefield.errors import ConfigError

CHANNEL_STEP = 16  # the channels of the global part are a multiple of it
# Rows of the 2 x 2 Haar filters; the low-pass one first, then differences of rows, of columns, of diagonals.
HAAR = (
    ((0.5, 0.5), (0.5, 0.5)),
    ((0.5, 0.5), (-0.5, -0.5)),
    ((0.5, -0.5), (0.5, -0.5)),
    ((0.5, -0.5), (-0.5, 0.5)),
)


class RasterScanMixer(CrossScanMixer):
    """Gated selective scans of a map row by row and back, one state a channel; BatchNorm behind both projections.

    Args:
        channels: C. expand: inner channels over C. dt_rank: ceil(C / 16).

    Shape: [B, H, W, C] -> [B, H, W, C].
    Source: lewandofskee/MobileMamba, SS2D, forward type v052d.
    """

    def __init__(self, channels: int, *, expand: float = 2.0, dt_rank: int | None = None) -> None:
        super().__init__(
            channels,
            d_state=1,
            expand=expand,
            dt_rank=dt_rank,
            routes=("raster", "raster~"),
            projection=partial(MapConvNorm, kernel_size=1, act=False),
        )

    def reset_ssm_parameters(self) -> None:
        """Initial values of what drives the recurrences (VMamba's "v2")."""
        super().reset_ssm_parameters()
        nn.init.uniform_(self.dt_proj, 0, 0.1)
        nn.init.uniform_(self.dt_bias, 0, 0.1)
        nn.init.zeros_(self.A_log)


class WaveletScanMixer(nn.Module):
    """A scan of the map plus a convolution of its Haar wavelet transform (WTE-Mamba).

        y = base_scale scan(x) + IDWT(wavelet_scale conv_kxk(DWT(x)))

    One level of the transform; all four bands are convolved and scaled, the low-pass one too. Odd sides are extended by
    a row or column of zeros for the transform. The filters are frozen parameters, as in the authors' weights.

    Args:
        channels: C. kernel_size: k, odd. expand: inner channels of the scan over C.

    Shape: [B, H, W, C] -> [B, H, W, C].
    Source: MobileMamba (arXiv 2411.15941), section 3.3; lewandofskee/MobileMamba, MBWTConv2d.
    """

    def __init__(self, channels: int, kernel_size: int = 3, *, expand: float = 2.0) -> None:
        super().__init__()
        self.channels, self.padding = channels, kernel_size // 2
        filters = torch.tensor(HAAR).unsqueeze(1).repeat(channels, 1, 1, 1)  # [4 C, 1, 2, 2], the bands of a channel
        self.wt_filter = nn.Parameter(filters, requires_grad=False)
        self.iwt_filter = nn.Parameter(filters.clone(), requires_grad=False)
        self.scan = RasterScanMixer(channels, expand=expand)
        self.base_scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.wavelet_conv = nn.Conv2d(4 * channels, 4 * channels, kernel_size, groups=4 * channels, bias=False)
        self.wavelet_scale = nn.Parameter(torch.full((1, 4 * channels, 1, 1), 0.1))

    def analysis(self, x: Tensor) -> Tensor:
        """The wavelet transform, [B, H, W, C] -> [B, 4 C, ceil(H/2), ceil(W/2)]; a channel's bands are adjacent."""
        x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        return functional.conv2d(x.permute(0, 3, 1, 2), self.wt_filter, stride=2, groups=self.channels)

    def synthesis(self, bands: Tensor, height: int, width: int) -> Tensor:
        """Undo `analysis`: [B, 4 C, h, w] -> [B, height, width, C]."""
        x = functional.conv_transpose2d(bands, self.iwt_filter, stride=2, groups=self.channels)
        return leading(leading(x.permute(0, 2, 3, 1), 1, height), 2, width)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        weight = self.wavelet_conv.weight * self.wavelet_scale.reshape(-1, 1, 1, 1)  # spares a pass over the bands
        bands = functional.conv2d(self.analysis(x), weight, padding=self.padding, groups=4 * self.channels)
        return self.base_scale.flatten() * self.scan(x) + self.synthesis(bands, height, width)


class LocalConv(nn.Module):
    """Depthwise k x k convolution, BatchNorm, ReLU, a weight for each channel, BatchNorm: [B, H, W, C] -> [B, H, W, C].

    Source: MobileMamba's MK-DeConv; lewandofskee/MobileMamba, DWConv2d_BN_ReLU.
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.spatial = MapConvNorm(channels, channels, kernel_size, groups=channels)
        self.channel = MapConvNorm(channels, channels, 1, groups=channels, act=False)

    def forward(self, x: Tensor) -> Tensor:
        # A product, where torch would call a convolution for each channel: 400 calls in a forward pass of T2.
        x = self.spatial(x) * self.channel.conv.weight.flatten()
        return self.channel.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class MultiReceptiveFieldMixer(nn.Module):
    """Channels split in three: scanned with wavelets, convolved, and left alone; then mixed (MRFFI).

    Args:
        channels: C. global_ratio, local_ratio: shares of C, 0 to 1; see `split_channels`. kernel_size: of the
            convolutions of both parts, odd. expand: inner channels of the scan over G.

    Shape: [B, H, W, C] -> [B, H, W, C].
    Raises: ConfigError: as `split_channels`, or an even `kernel_size`.
    Source: MobileMamba (arXiv 2411.15941), section 3.3; lewandofskee/MobileMamba, MobileMambaModule.
    """

    def __init__(
        self,
        channels: int,
        *,
        global_ratio: float = 0.25,
        local_ratio: float = 0.25,
        kernel_size: int = 3,
        expand: float = 2.0,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size {kernel_size} would move or shrink the map: it has to be odd.")
        self.widths = split_channels(channels, global_ratio, local_ratio)
        scanned, convolved, _ = self.widths
        self.global_op = WaveletScanMixer(scanned, kernel_size, expand=expand) if scanned else nn.Identity()
        self.local_op = LocalConv(convolved, kernel_size) if convolved else nn.Identity()
        self.proj = MapConvNorm(channels, channels, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        scanned, convolved, kept = x.split(self.widths, dim=-1)
        parts = (self.global_op(scanned), self.local_op(convolved), kept)
        return self.proj(functional.relu(torch.cat(parts, dim=-1)))


def split_channels(channels: int, global_ratio: float, local_ratio: float) -> tuple[int, int, int]:
    """Channels of the global, the local and the identity part.

    The global part is the multiple of 16 nearest to its share, the larger one of two; the local part is its share,
    rounded down, or what the global one leaves.

    Raises:
        ConfigError: the global part would be wider than the map.

    >>> split_channels(144, 0.8, 0.2), split_channels(376, 0.7, 0.2)
    ((112, 28, 4), (256, 75, 45))
    """
    scanned = (int(global_ratio * channels) + CHANNEL_STEP // 2) // CHANNEL_STEP * CHANNEL_STEP
    if scanned > channels:
        raise ConfigError(
            f"a global part of {scanned} channels, the multiple of {CHANNEL_STEP} nearest to {global_ratio} of them, "
            f"does not fit into {channels}: choose more channels or a smaller global_ratio."
        )
    convolved = min(int(local_ratio * channels), channels - scanned)
    return scanned, convolved, channels - scanned - convolved
