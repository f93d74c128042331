"""HRVMamba's mixer: VMamba's four scans behind a convolution that chooses where it reads.

Symbols   B batch · H, W map · C channels of the block · E = expand C inner channels · G groups · P = 9 points
          R rank of the step size, and number of groups
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import DepthwiseConv
from statefield.backbones._mixers.cross_scan import CROSS, CrossScanMixer
from statefield.backbones._mixers.multi_scale import SqueezeExcite
from statefield.errors import ConfigError
from statefield.kernels import deformable_conv


class DeformableConv(nn.Module):
    """The fourth deformable convolution (DCNv4): offsets and weights of the points come from the pixel itself.

    Args:
        channels: of the map. groups: G, divides them; each has points of its own.
        kernel_size: k, points along each side, odd. dilation: how far they lie apart.
        offset_scale: multiplies the points' places round the pixel.
        depthwise: side of a depthwise convolution before the projection to offsets and weights; None for none.
        pointwise: a linear layer before and one behind, as the published operator has them; HRVMamba's has none.

    New, all offsets and weights are 0, and so is the output.

    Shape: [B, H, W, C] -> [B, H, W, C].
    Raises: ConfigError for groups that do not divide the channels, or an even kernel_size.
    Source: DCNv4 (arXiv 2401.06197), section 3.1; OpenGVLab/DCNv4.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        *,
        kernel_size: int = 3,
        dilation: int = 1,
        offset_scale: float = 1.0,
        depthwise: int | None = None,
        pointwise: bool = False,
    ) -> None:
        super().__init__()
        if channels % groups:
            raise ConfigError(f"a deformable convolution of {channels} channels cannot have {groups} equal groups.")
        if kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size {kernel_size} of a deformable convolution has to be odd.")
        self.groups, self.kernel_size, self.dilation = groups, kernel_size, dilation
        self.offset_scale = offset_scale
        self.numbers = 3 * kernel_size**2  # of a group: two offsets and a weight for each point
        self.value_proj: nn.Module = nn.Linear(channels, channels) if pointwise else nn.Identity()
        self.offset_mask_dw: nn.Module = DepthwiseConv(channels, depthwise) if depthwise else nn.Identity()
        self.offset_mask = nn.Linear(channels, -(-groups * self.numbers // 8) * 8)  # rounded up to whole eights
        self.output_proj: nn.Module = nn.Linear(channels, channels) if pointwise else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Neither offsets nor weights yet."""
        nn.init.zeros_(self.offset_mask.weight)
        nn.init.zeros_(self.offset_mask.bias)

    def forward(self, x: Tensor) -> Tensor:
        points = self.kernel_size**2
        numbers = self.offset_mask(self.offset_mask_dw(x))[..., : self.groups * self.numbers]
        offset, mask = numbers.unflatten(-1, (self.groups, self.numbers)).split((2 * points, points), dim=-1)
        offset = offset.unflatten(-1, (points, 2))
        y = deformable_conv(
            self.value_proj(x),
            offset if self.offset_scale == 1 else offset * self.offset_scale,
            mask,
            kernel_size=self.kernel_size,
            dilation=self.dilation * self.offset_scale,
        )
        return self.output_proj(y)


class DeformableScanMixer(CrossScanMixer):
    """Selective scans along the rows and columns of a map behind a deformable convolution (DSS2D).

    Args:
        channels: C. d_state: N. expand: E / C. dt_rank: R, ceil(C / 16); also the groups of the convolution.
        routes: as for `CrossScanMixer`.
        squeeze: weigh channels by their means behind the scans, as the two smallest published models do.
        pointwise: see `DeformableConv`.

    The convolution's offsets come through a depthwise 3 x 3 convolution where 80 divides C (the base model).

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.
    Source: HRVMamba (arXiv 2410.03174), section 3.2; zhanghao5201/HRVMamba, SS2D with forward type v05_noz.
    """

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 1,
        expand: float = 2.0,
        dt_rank: int | None = None,
        routes: tuple[str, ...] = CROSS,
        squeeze: bool = False,
        pointwise: bool = False,
    ) -> None:
        inner, rank = int(expand * channels), math.ceil(channels / 16) if dt_rank is None else dt_rank
        conv = DeformableConv(inner, rank, depthwise=3 if channels % 80 == 0 else None, pointwise=pointwise)
        super().__init__(channels, d_state=d_state, expand=expand, dt_rank=rank, routes=routes, gated=False, conv=conv)
        self.se = SqueezeExcite(inner, inner // 8) if squeeze else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.out_norm(self.scan(functional.silu(self.conv(self.in_proj(x)))))
        return self.out_proj(y if self.se is None else self.se(y))
