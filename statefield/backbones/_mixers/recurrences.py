"""`Recurrences`: what every mixer that scans with parameters of its own for each route holds, and how it scans.

Symbols   B batch · *S map (H, W) or volume (D, H, W) · E inner channels · N states a channel · R rank of the step size
          K routes
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._mixers.initial import decay_rates, log_of_counting_, step_bias_, step_weight_
from statefield.backbones._mixers.scanning import Scanning
from statefield.kernels import routed_scan


class Recurrences(Scanning):
    """K selective scans, each with projections for its step sizes, B and C; parameters lie as VMamba's do.

    A mixer is a subclass that puts projections and a convolution around them, and calls `reset_ssm_parameters` when
    all its modules are there.

    Args:
        inner: E. count: K. d_state: N. dt_rank: R.
    """

    scan_parameters = ("x_proj", "dt_proj", "dt_bias", "A_log", "D")

    def __init__(self, inner: int, count: int, *, d_state: int, dt_rank: int) -> None:
        super().__init__()
        self.count, self.d_state, self.dt_rank = count, d_state, dt_rank
        self.x_proj = nn.Parameter(torch.empty(count, dt_rank + 2 * d_state, inner))
        self.dt_proj = nn.Parameter(torch.empty(count, inner, dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(count, inner))
        self.A_log = nn.Parameter(torch.empty(count * inner, d_state))
        self.D = nn.Parameter(torch.ones(count * inner))

    def reset_ssm_parameters(self) -> None:
        """Initial values of what drives the recurrences (VMamba's "v0", which is Mamba's)."""
        for projection in self.x_proj:
            nn.init.kaiming_uniform_(projection, a=math.sqrt(5))
        step_weight_(self.dt_proj)
        step_bias_(self.dt_bias)
        log_of_counting_(self.A_log)
        nn.init.ones_(self.D)

    def scan_along(self, routes: tuple[str, ...], u: Tensor, *, merge: bool, apart: bool = False) -> Tensor:
        """Scan u along K routes: added up with `merge`, [B, *S, E], else side by side, [B, *S, K, E].

        u is one for all routes, [B, *S, E], or with `apart` each has its own, [B, *S, K, E].
        """
        K = self.count
        if not self.scans:
            if not apart:
                return K * u if merge else u.unsqueeze(-2).expand(*u.shape[:-1], K, -1)
            return u.sum(-2) if merge else u
        if apart:
            projected = torch.einsum("...ke,kre->...kr", u, self.x_proj)
        else:
            projected = functional.linear(u, self.x_proj.flatten(0, 1)).unflatten(-1, (K, -1))
        step, B, C = projected.split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        return routed_scan(
            u,
            torch.einsum("...kr,ker->...ke", step, self.dt_proj),
            decay_rates(self.A_log).unflatten(0, (K, -1)),
            B,
            C,
            self.D.unflatten(0, (K, -1)),
            routes=routes,
            delta_bias=self.dt_bias,
            delta_softplus=True,
            merge=merge,
        )
