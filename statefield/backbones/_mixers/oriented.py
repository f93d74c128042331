"""Mamba's mixer over a sequence, map or volume: scanned along one or more routes, each with parameters of its own.

Symbols   B batch · *S sequence (L), map (H, W) or volume (D, H, W) · C channels of the block · E = expand C inner
          channels · N states a channel · R rank of the step size · K routes
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import CausalConv
from statefield.backbones._mixers.initial import decay_rates, log_of_counting_, step_bias_, step_weight_
from statefield.backbones._mixers.scanning import Scanning
from statefield.kernels import routed_scan
from statefield.kernels.routed_scan.orders import order_of
from statefield.kernels.routes import inverse_order

# SegMamba's three: both ways through the volume slice by slice, and each place through all slices.
TRI_ORIENTED = {"forwards": "raster", "backwards": "raster~", "slices": "volume_hwd"}


class Direction(Scanning):
    """What one route of a scan owns: causal convolution, projections, recurrence.

    Args:
        inner: E. d_state: N. d_conv: taps of the causal convolution. dt_rank: R.
        along: the route, of `statefield.kernels.routes`, that the convolution follows too.
        reverse: the route is walked from its end: the convolution looks at later tokens.
    """

    scan_parameters = ("x_proj", "dt_proj", "A_log", "D")

    def __init__(
        self, inner: int, d_state: int, d_conv: int, dt_rank: int, *, reverse: bool, along: str = "raster"
    ) -> None:
        super().__init__()
        self.split = (dt_rank, d_state, d_state)
        self.along = along
        self.conv1d = CausalConv(inner, d_conv, reverse=reverse, silu=True)
        self.x_proj = nn.Linear(inner, sum(self.split), bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        self.D = nn.Parameter(torch.ones(inner))
        self.reset_ssm_parameters()

    def reset_ssm_parameters(self) -> None:
        step_weight_(self.dt_proj.weight)
        step_bias_(self.dt_proj.bias)
        log_of_counting_(self.A_log)
        nn.init.ones_(self.D)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u, delta (before bias and softplus) [B, *S, E] and B, C [B, *S, N] from x [B, *S, E], token by token."""
        u = self.convolved(x)
        step, B, C = self.x_proj(u).split(self.split, dim=-1)
        return u, functional.linear(step, self.dt_proj.weight), B, C

    def convolved(self, x: Tensor) -> Tensor:
        """What is scanned: x [B, *S, E] behind the convolution along the route."""
        grid = tuple(x.shape[1:-1])
        tokens = x.flatten(1, -2)
        if self.along == "raster":
            tokens = self.conv1d(tokens)
        else:
            (order,) = order_of((self.along,), grid, x)
            tokens = self.conv1d(tokens[:, order])[:, inverse_order(order)]
        return tokens.unflatten(1, grid)


class OrientedMixer(Scanning):
    """Selective scans along routes, each behind a causal convolution along the same route, summed and gated together.

        y = sum_k scan_k(conv_k(x)) * silu(z)                      divided by K with `average`

    One route in raster order is Mamba's own mixer, as LightM-UNet and U-Mamba have it; both ways is Vim's;
    `TRI_ORIENTED` is SegMamba's.

    Args:
        channels: C. routes: name of the sub-module that owns its parameters -> route of `statefield.kernels.routes`.
        d_state: N. d_conv: taps of the causal convolutions. expand: E / C. dt_rank: R, ceil(C / 16).
        average: divide the sum by the number of routes.

    Shape: [B, *S, C] -> [B, *S, C]; S has the numbers of axes that the routes are defined for.
    Source: Mamba (arXiv 2312.00752), figure 3; SegMamba (arXiv 2401.13560), section 2.3; ge-xing/SegMamba,
    `bimamba_type="v3"`.
    """

    def __init__(
        self,
        channels: int,
        *,
        routes: Mapping[str, str] | None = None,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2.0,
        dt_rank: int | None = None,
        average: bool = False,
    ) -> None:
        super().__init__()
        inner = int(expand * channels)
        rank = math.ceil(channels / 16) if dt_rank is None else dt_rank
        routes = {"forwards": "raster"} if routes is None else dict(routes)
        self.names, self.routes, self.average = tuple(routes), tuple(routes.values()), average
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        for name, route in routes.items():
            reverse, along = route.endswith("~"), route.removesuffix("~")
            self.add_module(name, Direction(inner, d_state, d_conv, rank, reverse=reverse, along=along))
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def directions(self) -> list[Direction]:
        """What owns the parameters of each route, in the order of `routes`."""
        found = [self.get_submodule(name) for name in self.names]
        return [one for one in found if isinstance(one, Direction)]

    def forward(self, x: Tensor) -> Tensor:
        to_scan, to_gate = self.in_proj.weight.chunk(2)
        y = self._scanned(functional.linear(x, to_scan))
        y = y * functional.silu(functional.linear(x, to_gate))  # only now: while the scan runs, its memory is not held
        return self.out_proj(y / len(self.names) if self.average else y)

    def _scanned(self, x: Tensor) -> Tensor:
        """The scans along all routes, summed: [B, *S, E] -> [B, *S, E].

        What is not needed any more is let go: in evaluation, on a large image, this is most of what a model holds
        (Vim-tiny at 1248 x 1248: 86 MiB at most in place of 107).
        """
        if not self.scans:
            return self._convolved(x)
        owners, of_each = self.directions(), self._projected(x)
        del x
        u, delta, B, C = (torch.stack([given.pop(0) for given in of_each], dim=-2) for _ in range(4))
        return routed_scan(
            u,
            delta,
            torch.stack([decay_rates(one.A_log) for one in owners]),
            B,
            C,
            torch.stack([one.D for one in owners]),
            routes=self.routes,
            delta_bias=torch.stack([one.dt_proj.bias for one in owners]),
            delta_softplus=True,
        )

    # Methods: torch up to 2.12 does not compile the deletion of what a comprehension captures.

    def _convolved(self, x: Tensor) -> Tensor:
        return torch.stack([one.convolved(x) for one in self.directions()]).sum(0)

    def _projected(self, x: Tensor) -> list[list[Tensor]]:
        return [list(one(x)) for one in self.directions()]
