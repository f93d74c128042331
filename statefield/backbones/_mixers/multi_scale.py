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
from statefield.backbones._mixers.initial import decay_rates, log_of_counting_, step_bias_, step_weight_
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


class MultiScaleMixer(nn.Module):
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
        super().__init__()
        inner = int(expand * channels)
        self.d_state = d_state
        self.dt_rank = math.ceil(channels / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = DepthwiseConv(inner)
        self.half_conv = nn.Conv2d(inner, inner, 7, stride=2, padding=3, groups=inner)
        # Entry 0 of each belongs to the half-sized map, entry 1 to the whole one.
        self.x_proj = nn.Parameter(torch.empty(2, self.dt_rank + 2 * d_state, inner))
        self.dt_proj = nn.Parameter(torch.empty(2, inner, self.dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(2, inner))
        self.A_log = nn.Parameter(torch.empty(2 * inner, d_state))
        self.D = nn.Parameter(torch.ones(2 * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.se = SqueezeExcite(inner, inner // 8)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.reset_ssm_parameters()

    def reset_ssm_parameters(self) -> None:
        """Initial values of what drives the recurrences, as Mamba has them."""
        for projection in self.x_proj:
            nn.init.kaiming_uniform_(projection, a=math.sqrt(5))
        step_weight_(self.dt_proj)
        step_bias_(self.dt_bias)
        log_of_counting_(self.A_log)
        nn.init.ones_(self.D)

    def scan(self, u: Tensor, which: int, visits: Tensor | None = None) -> Tensor:
        """Tokens u [B, L, E] scanned by one set of parameters, in the order of `visits` int64 [T] where given."""
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
