"""VMamba's mixers: a map scanned along several routes, each with projections and a recurrence of its own, and summed.

Symbols   B batch · *S map (H, W) or volume (D, H, W) · C channels of the block · E = expand C inner channels · N states
          a channel · R rank of the step size, or heads · K routes
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import check_spatial_dims, depthwise
from statefield.backbones._mixers.initial import decay_rates
from statefield.backbones._mixers.recurrences import Recurrences
from statefield.backbones._mixers.scanning import Scanning
from statefield.kernels import ssd
from statefield.kernels.routed_scan.orders import order_of
from statefield.kernels.routes import inverse_order

CROSS = ("raster", "column", "raster~", "column~")  # in the order in which VMamba's weights lie
# The same of a volume: each axis is the fastest once, and every route is walked both ways.
_VOLUME = ("volume_dhw", "volume_wdh", "volume_hwd")
CROSS_VOLUME = (*_VOLUME, *(f"{route}~" for route in _VOLUME))

_LINEAR = partial(nn.Linear, bias=False)


def cross_routes(spatial_dims: int) -> tuple[str, ...]:
    """The routes of a cross-scan: four of a map, six of a volume."""
    check_spatial_dims(spatial_dims)
    return CROSS if spatial_dims == 2 else CROSS_VOLUME


class CrossScanMixer(Recurrences):
    """Selective scans along the routes of a map, added up (SS2D).

        u = silu(conv(x))      y = norm(sum_k scan(u along route k))      times silu(z) where gated

    Args:
        channels: C. d_state: N. expand: E / C. d_conv: side of the depthwise convolution. dt_rank: R, ceil(C / 16).
        routes: of `statefield.kernels.routes`, one set of parameters each; rows and columns both ways (`CROSS`), of
            a volume each of the three axes both ways (`CROSS_VOLUME`).
        gated: a second half of the inner projection gates the result (VMamba's first form; the second has none).
        conv_bias: a bias in the depthwise convolution.
        projection: makes the projections in and out, of so many channels to so many; linear without bias.
        conv: what stands before the scans in place of the depthwise convolution, [B, H, W, E] -> [B, H, W, E].

        spatial_dims: 2, or 3 for volumes.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W; [B, D, H, W, C] with `spatial_dims=3`.
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
        routes: tuple[str, ...] | None = None,
        gated: bool = True,
        conv_bias: bool = True,
        spatial_dims: int = 2,
        projection: Callable[[int, int], nn.Module] = _LINEAR,
        conv: nn.Module | None = None,
    ) -> None:
        routes = cross_routes(spatial_dims) if routes is None else routes
        inner, rank = int(expand * channels), math.ceil(channels / 16) if dt_rank is None else dt_rank
        super().__init__(inner, len(routes), d_state=d_state, dt_rank=rank)
        self.routes, self.gated = routes, gated
        self.in_proj = projection(channels, 2 * inner if gated else inner)
        self.conv = depthwise(spatial_dims, inner, d_conv, bias=conv_bias) if conv is None else conv
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = projection(inner, channels)
        self.reset_ssm_parameters()

    def scan(self, u: Tensor, *, merge: bool = True) -> Tensor:
        """The sum of the scans of u [B, *S, E] along all routes, [B, *S, E]; each by itself without `merge`."""
        return self.scan_along(self.routes, u, merge=merge)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_proj(x)
        x, gate = x.chunk(2, dim=-1) if self.gated else (x, None)
        y = self.out_norm(self.scan(functional.silu(self.conv(x))))
        return self.out_proj(y if gate is None else y * functional.silu(gate))


class CrossDualityMixer(Scanning):
    """Mamba-2 scans along the routes of a map, added up: heads share a decay, so the scan is matrix products.

    Args:
        channels: C. d_state: N. expand: E / C. d_conv: side of the depthwise convolution.
        heads: of each route, ceil(C / 16). act: behind the convolution. routes, spatial_dims: as for `CrossScanMixer`.

    Shape: [B, H, W, C] -> [B, H, W, C]; [B, D, H, W, C] with `spatial_dims=3`.
    Source: MzeroMiko/VMamba, forward type m0_noz.
    """

    scan_parameters = ("x_proj", "dt_bias", "A_log", "D")

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 64,
        expand: float = 1.0,
        d_conv: int = 3,
        heads: int | None = None,
        act: Callable[[Tensor], Tensor] = functional.gelu,
        routes: tuple[str, ...] | None = None,
        conv_bias: bool = False,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        routes = cross_routes(spatial_dims) if routes is None else routes
        inner, K = int(expand * channels), len(routes)
        self.routes, self.d_state, self.act = routes, d_state, act
        self.heads = math.ceil(channels / 16) if heads is None else heads
        self.in_proj = nn.Linear(channels, inner, bias=False)
        self.conv = depthwise(spatial_dims, inner, d_conv, bias=conv_bias)
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
        """The sum of the scans of u [B, *S, E] along all routes, [B, *S, E]."""
        if not self.scans:
            return len(self.routes) * u
        K, sizes = len(self.routes), (self.heads, self.d_state, self.d_state)
        grid = tuple(u.shape[1:-1])
        orders = order_of(self.routes, grid, u)
        tokens = u.flatten(1, -2)
        projected = functional.linear(tokens, self.x_proj.flatten(0, 1)).unflatten(-1, (K, -1))
        step, B, C = torch.stack([projected[:, order, k] for k, order in enumerate(orders)], 2).split(sizes, dim=-1)
        x = torch.stack([tokens[:, order] for order in orders], 2)  # [B, L, K, E]
        y = ssd(
            x.unflatten(-1, (self.heads, -1)).flatten(2, 3),
            step.flatten(2, 3),
            decay_rates(self.A_log).flatten(),
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
