"""MSVMamba's mixer: the map scanned row by row, and a half-sized copy of it in the three other directions.

Symbols   B batch · H, W map · C channels of the block · E = expand C inner channels · N states a channel
          R rank of the step size · l tokens of the half-sized map
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import DepthwiseConv
from statefield.backbones._mixers.initial import decay_rates
from statefield.backbones._mixers.recurrences import Recurrences
from statefield.kernels import selective_scan
from statefield.kernels.routed_scan.orders import order_of
from statefield.kernels.routes import inverse_order

HALF_ROUTES = ("raster~", "column", "column~")


class SqueezeExcite(nn.Module):
    """Channels weighted by what the mean over the map says: [B, H, W, E] -> [B, H, W, E]."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, hidden, bias=False)
        self.expand = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(functional.relu(self.reduce(x.mean((1, 2), keepdim=True)))))


class MultiScaleMixer(Recurrences):
    """One raster scan of the map and one scan through the half-sized map three times over, both gated together.

    The half-sized map (a 7 x 7 depthwise convolution of stride 2) is visited in reverse, column by column, and column
    by column in reverse; the state runs on from one visit to the next, as in the authors' code. Each visit is
    normalised, the three are added and enlarged bilinearly.

    Args:
        channels: C. d_state: N. expand: E / C. dt_rank: R, ceil(C / 16).

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.
    Source: MSVMamba (arXiv 2405.14174), section 4; YuHengsss/MSVMamba, `multiscale_4scan_12`.
    """

    def __init__(self, channels: int, *, d_state: int = 1, expand: float = 2.0, dt_rank: int | None = None) -> None:
        inner, rank = int(expand * channels), math.ceil(channels / 16) if dt_rank is None else dt_rank
        super().__init__(inner, 2, d_state=d_state, dt_rank=rank)  # of the half-sized map, and of the whole one
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = DepthwiseConv(inner)
        self.half_conv = nn.Conv2d(inner, inner, 7, stride=2, padding=3, groups=inner)
        self.out_norm = nn.LayerNorm(inner)
        self.se = SqueezeExcite(inner, inner // 8)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.reset_ssm_parameters()

    def scan(self, u: Tensor, which: int, visits: Tensor | None = None) -> Tensor:
        """Tokens u [B, L, E] scanned by one set of parameters, in the order of `visits` int64 [T] where given."""
        if not self.scans:
            return self.out_norm(u if visits is None else u[:, visits])
        sizes = (self.dt_rank, self.d_state, self.d_state)
        step, B, C = functional.linear(u, self.x_proj[which]).split(sizes, dim=-1)
        rows = (u, functional.linear(step, self.dt_proj[which]), B, C)
        u, delta, B, C = rows if visits is None else (x[:, visits] for x in rows)
        A = decay_rates(self.A_log).unflatten(0, (2, -1))[which]
        D, bias = self.D.unflatten(0, (2, -1))[which], self.dt_bias[which]
        return self.out_norm(selective_scan(u, delta, A, B, C, D, None, bias, True, layout="bld"))

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        y = self.scan(functional.silu(self.conv(x)).flatten(1, 2), 1).unflatten(1, (height, width))

        half = functional.silu(self.half_conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        grid = (half.shape[1], half.shape[2])
        orders = order_of(HALF_ROUTES, grid, x)
        visits = self.scan(half.flatten(1, 2), 0, orders.flatten()).chunk(len(HALF_ROUTES), dim=1)
        merged = torch.stack([visit[:, inverse_order(o)] for visit, o in zip(visits, orders, strict=True)]).sum(0)
        enlarged = functional.interpolate(
            merged.unflatten(1, grid).permute(0, 3, 1, 2), (height, width), mode="bilinear", align_corners=False
        )
        y = self.se(y + enlarged.permute(0, 2, 3, 1))
        return self.out_proj(y * functional.silu(gate))
