"""PlainMamba's mixer: a map scanned along four continuous routes by one recurrence that knows each step's direction.

Symbols   B batch · H, W map · L = H W tokens · C channels of the block · E = expand C inner channels
          N states a channel · R rank of the step size · K = 4 routes
"""

from __future__ import annotations

import math

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import DepthwiseConv
from statefield.backbones._mixers.initial import decay_rates, log_of_counting_, step_bias_, step_weight_
from statefield.backbones._mixers.scanning import Scanning
from statefield.kernels import routed_scan
from statefield.kernels.routed_scan.orders import order_of

CONTINUOUS = ("snake", "snake~", "column_snake", "column_snake~")
START, RIGHT, LEFT, UP, DOWN = range(5)  # the move that leads into a token; rows of `direction_Bs`


def steps_and_directions(order: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """When each route reaches each token, and by which move, both int64 [L, K], by the token's raster place.

    Args:
        order: int64 [K, L], the token that route k visits at step t; every step goes to a neighbour.
        width: W of the map.

    >>> order = torch.tensor([[0, 1, 2, 5, 4, 3]])
    >>> steps, directions = steps_and_directions(order, 3)
    >>> steps.T.tolist(), directions.T.tolist()
    ([[0, 1, 2, 5, 4, 3]], [[0, 1, 1, 2, 2, 4]])
    """
    row = order.div(width, rounding_mode="floor")
    down = row[:, 1:] - row[:, :-1]
    right = order[:, 1:] - order[:, :-1] - width * down
    moves = (right > 0) * RIGHT + (right < 0) * LEFT + (down < 0) * UP + (down > 0) * DOWN
    moves = functional.pad(moves, (1, 0), value=START)
    steps = order.argsort(dim=1)  # the inverse of a permutation
    return steps.T.contiguous(), moves.gather(1, steps).T.contiguous()


class DirectionAwareMixer(Scanning):
    """Selective scans along continuous routes, added up and gated; B of a step depends on the direction of its move.

        u = silu(conv(x))      y = sum_k scan_k(u), B_k = B + direction_Bs[move]      out = y * silu(z)

    Two habits of the authors' code are kept, because their weights were trained with them. Tokens are taken in the
    order of the route, but step t of every route has the step size, B and C of raster token t, whichever token the
    route visits then. And the bias of the step size counts twice.

    Args:
        channels: C. d_state: N. expand: E / C. d_conv: odd side of the depthwise convolution. dt_rank: R, ceil(C / 16).
        bias: of the projections in and out. conv_bias: of the convolution.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.
    Source: PlainMamba (arXiv 2403.17695), section 3.3; ChenhongyiYang/PlainMamba, PlainMamba2D.
    """

    scan_parameters = ("x_proj", "dt_proj", "A_log", "D", "direction_Bs")

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 16,
        expand: float = 2.0,
        d_conv: int = 7,
        dt_rank: int | None = None,
        bias: bool = True,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        inner = int(expand * channels)
        self.d_state = d_state
        self.dt_rank = math.ceil(channels / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(channels, 2 * inner, bias=bias)
        self.conv = DepthwiseConv(inner, d_conv, bias=conv_bias)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        self.D = nn.Parameter(torch.ones(inner))
        self.direction_Bs = nn.Parameter(torch.empty(5, d_state))
        self.out_proj = nn.Linear(inner, channels, bias=bias)
        self.reset_ssm_parameters()

    def reset_ssm_parameters(self) -> None:
        """Initial values of what drives the recurrence: Mamba's, and a small direction."""
        step_weight_(self.dt_proj.weight)
        step_bias_(self.dt_proj.bias)
        log_of_counting_(self.A_log)
        nn.init.ones_(self.D)
        trunc_normal_(self.direction_Bs, std=0.02)

    def scan(self, u: Tensor) -> Tensor:
        """The sum of the scans of u [B, H, W, E] along all routes, [B, H, W, E]."""
        if not self.scans:
            return len(CONTINUOUS) * u
        grid = (u.shape[1], u.shape[2])
        steps, directions = steps_and_directions(order_of(CONTINUOUS, grid, u), grid[1])
        # What a route meets at a token is raster token number `step`'s. Gathered before the rank is widened to E.
        met = self.x_proj(u).flatten(1, 2)[:, steps].unflatten(1, grid)  # [B, H, W, K, R + 2 N]
        step, B, C = met.split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        K = len(CONTINUOUS)
        return routed_scan(
            u,
            functional.linear(step, self.dt_proj.weight),
            decay_rates(self.A_log).expand(K, -1, -1),
            B + self.direction_Bs[directions].unflatten(0, grid),
            C,
            self.D.expand(K, -1),
            routes=CONTINUOUS,
            delta_bias=(2 * self.dt_proj.bias).expand(K, -1),
            delta_softplus=True,
        )

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        y = self.scan(functional.silu(self.conv(x)))
        return self.out_proj(y * functional.silu(gate))
