"""Vim's mixer: a sequence scanned forwards and backwards, each direction with parameters of its own.

Symbols   B batch · L tokens · C channels of the block · E = expand C inner channels · N states a channel
          R rank of the step size · K = 2 directions
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import CausalConv
from statefield.backbones._mixers.initial import log_of_counting_, step_bias_, step_weight_
from statefield.kernels import routed_scan


class Direction(nn.Module):
    """What one direction of a bidirectional scan owns: convolution, projections, recurrence.

    Args:
        inner: E. d_state: N. d_conv: taps of the causal convolution. dt_rank: R.
        reverse: the convolution looks at later tokens, as a causal one of the reversed sequence does.
    """

    def __init__(self, inner: int, d_state: int, d_conv: int, dt_rank: int, *, reverse: bool) -> None:
        super().__init__()
        self.split = (dt_rank, d_state, d_state)
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
        """u, delta (before bias and softplus) [B, L, E] and B, C [B, L, N] from x [B, L, E]."""
        u = self.conv1d(x)
        step, B, C = self.x_proj(u).split(self.split, dim=-1)
        return u, functional.linear(step, self.dt_proj.weight), B, C


class BidirectionalMixer(nn.Module):
    """Two selective scans over a sequence, one from either end, gated together.

        y = (scan(conv_f(x)) + reverse(scan(reverse(conv_b(x))))) * silu(z)      halved with `halve`

    Args:
        channels: C. d_state: N. d_conv: taps of the causal convolutions. expand: E / C. dt_rank: R, ceil(C / 16).
        halve: divide the sum of the two directions by two, as every released Vim does.

    Shape: [B, L, C] -> [B, L, C].
    Source: Vim (arXiv 2401.09417), algorithm 1; hustvl/Vim, `bimamba_type="v2"`.
    """

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2.0,
        dt_rank: int | None = None,
        halve: bool = True,
    ) -> None:
        super().__init__()
        inner = int(expand * channels)
        rank = math.ceil(channels / 16) if dt_rank is None else dt_rank
        self.halve = halve
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.forwards = Direction(inner, d_state, d_conv, rank, reverse=False)
        self.backwards = Direction(inner, d_state, d_conv, rank, reverse=True)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        both = (self.forwards, self.backwards)
        u, delta, B, C = (torch.stack(pair, dim=2) for pair in zip(*(one(x) for one in both), strict=True))
        y = routed_scan(
            u,
            delta,
            torch.stack([-torch.exp(one.A_log.float()) for one in both]),
            B,
            C,
            torch.stack([one.D for one in both]),
            routes=("raster", "raster~"),
            delta_bias=torch.stack([one.dt_proj.bias for one in both]),
            delta_softplus=True,
        )
        y = y * functional.silu(gate)
        return self.out_proj(y / 2 if self.halve else y)
