"""VMamba's mixers: a map scanned along several routes, each with projections and a recurrence of its own, and summed.

Symbols   B batch · H, W map · C channels of the block · E = expand C inner channels · N states a channel
          R rank of the step size, or heads · K routes
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import DepthwiseConv
from statefield.backbones._mixers.initial import log_of_counting_, step_bias_, step_weight_
from statefield.kernels import routed_scan, ssd
from statefield.kernels.routed_scan.orders import order_of
from statefield.kernels.routes import inverse_order

CROSS = ("raster", "column", "raster~", "column~")  # in the order in which VMamba's weights lie


class CrossScanMixer(nn.Module):
    """Selective scans along the routes of a map, added up (SS2D).

        u = silu(conv(x))      y = norm(sum_k scan(u along route k))      times silu(z) where gated

    Args:
        channels: C. d_state: N. expand: E / C. d_conv: side of the depthwise convolution. dt_rank: R, ceil(C / 16).
        routes: of `statefield.kernels.routes`, one set of parameters each.
        gated: a second half of the inner projection gates the result (VMamba's first form; the second has none).
        conv_bias: a bias in the depthwise convolution.
        conv: what stands before the scans in place of the depthwise convolution, [B, H, W, E] -> [B, H, W, E].

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.
    Source: VMamba (arXiv 2401.10166), section 4; MzeroMiko/VMamba, SS2D, forward types v0 and v05_noz.
    """

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 16,
        expand: float = 2.0,
        d_conv: int = 3,
        dt_rank: int | None = None,
        routes: tuple[str, ...] = CROSS,
        gated: bool = True,
        conv_bias: bool = True,
        conv: nn.Module | None = None,
    ) -> None:
        super().__init__()
        inner, K = int(expand * channels), len(routes)
        self.routes, self.gated, self.d_state = routes, gated, d_state
        self.dt_rank = math.ceil(channels / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(channels, 2 * inner if gated else inner, bias=False)
        self.conv = DepthwiseConv(inner, d_conv, bias=conv_bias) if conv is None else conv
        self.x_proj = nn.Parameter(torch.empty(K, self.dt_rank + 2 * d_state, inner))
        self.dt_proj = nn.Parameter(torch.empty(K, inner, self.dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(K, inner))
        self.A_log = nn.Parameter(torch.empty(K * inner, d_state))
        self.D = nn.Parameter(torch.ones(K * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.reset_ssm_parameters()

    def reset_ssm_parameters(self) -> None:
        """Initial values of what drives the recurrences (the authors' "v0", which is Mamba's)."""
        for projection in self.x_proj:
            nn.init.kaiming_uniform_(projection, a=math.sqrt(5))
        step_weight_(self.dt_proj)
        step_bias_(self.dt_bias)
        log_of_counting_(self.A_log)
        nn.init.ones_(self.D)

    def scan(self, u: Tensor) -> Tensor:
        """The sum of the scans of u [B, H, W, E] along all routes, [B, H, W, E]."""
        K, sizes = len(self.routes), (self.dt_rank, self.d_state, self.d_state)
        step, B, C = functional.linear(u, self.x_proj.flatten(0, 1)).unflatten(-1, (K, -1)).split(sizes, dim=-1)
        return routed_scan(
            u,
            torch.einsum("bhwkr,ker->bhwke", step, self.dt_proj),
            -torch.exp(self.A_log.float()).unflatten(0, (K, -1)),
            B,
            C,
            self.D.unflatten(0, (K, -1)),
            routes=self.routes,
            delta_bias=self.dt_bias,
            delta_softplus=True,
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_proj(x)
        x, gate = x.chunk(2, dim=-1) if self.gated else (x, None)
        y = self.out_norm(self.scan(functional.silu(self.conv(x))))
        return self.out_proj(y if gate is None else y * functional.silu(gate))


class CrossDualityMixer(nn.Module):
    """Mamba-2 scans along the routes of a map, added up: heads share a decay, so the scan is matrix products.

    Args:
        channels: C. d_state: N. expand: E / C. d_conv: side of the depthwise convolution.
        heads: of each route, ceil(C / 16). act: behind the convolution. routes: as for `CrossScanMixer`.

    Shape: [B, H, W, C] -> [B, H, W, C].
    Source: MzeroMiko/VMamba, forward type m0_noz.
    """

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 64,
        expand: float = 1.0,
        d_conv: int = 3,
        heads: int | None = None,
        act: Callable[[Tensor], Tensor] = functional.gelu,
        routes: tuple[str, ...] = CROSS,
        conv_bias: bool = False,
    ) -> None:
        super().__init__()
        inner, K = int(expand * channels), len(routes)
        self.routes, self.d_state, self.act = routes, d_state, act
        self.heads = math.ceil(channels / 16) if heads is None else heads
        self.in_proj = nn.Linear(channels, inner, bias=False)
        self.conv = DepthwiseConv(inner, d_conv, bias=conv_bias)
        self.x_proj = nn.Parameter(torch.empty(K, self.heads + 2 * d_state, inner))
        self.dt_bias = nn.Parameter(torch.empty(K, self.heads))
        self.A_log = nn.Parameter(torch.empty(K, self.heads))
        self.D = nn.Parameter(torch.empty(K, self.heads, inner // self.heads))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.reset_ssm_parameters()

    def reset_ssm_parameters(self) -> None:
        """Initial values of what drives the recurrences (the authors' "v2")."""
        for projection in self.x_proj:
            nn.init.kaiming_uniform_(projection, a=math.sqrt(5))
        nn.init.uniform_(self.dt_bias, 0, 0.1)
        nn.init.zeros_(self.A_log)
        nn.init.ones_(self.D)

    def scan(self, u: Tensor) -> Tensor:
        """The sum of the scans of u [B, H, W, E] along all routes, [B, H, W, E]."""
        K, sizes = len(self.routes), (self.heads, self.d_state, self.d_state)
        grid = (u.shape[1], u.shape[2])
        orders = order_of(self.routes, grid, u)
        tokens = u.flatten(1, 2)
        projected = functional.linear(tokens, self.x_proj.flatten(0, 1)).unflatten(-1, (K, -1))
        step, B, C = torch.stack([projected[:, order, k] for k, order in enumerate(orders)], 2).split(sizes, dim=-1)
        x = torch.stack([tokens[:, order] for order in orders], 2)  # [B, L, K, E]
        y = ssd(
            x.unflatten(-1, (self.heads, -1)).flatten(2, 3),
            step.flatten(2, 3),
            -torch.exp(self.A_log.float()).flatten(),
            B,
            C,
            self.D.flatten(0, 1),
            dt_bias=self.dt_bias.flatten(),
            dt_softplus=True,
        ).unflatten(2, (K, self.heads))
        merged = sum(y[:, inverse_order(order), k] for k, order in enumerate(orders))
        assert isinstance(merged, Tensor)
        return merged.flatten(2).unflatten(1, grid)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(self.out_norm(self.scan(self.act(self.conv(self.in_proj(x))))))
