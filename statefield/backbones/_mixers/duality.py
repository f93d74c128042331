"""Mamba-2's own mixer: a sequence read once from the first token to the last, heads sharing a decay.

Symbols   B batch · L tokens · C channels of the block · E = expand C inner channels · N states · G groups of B and C
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import CausalConv
from statefield.backbones._mixers.initial import decay_rates, step_bias_
from statefield.backbones._mixers.scanning import Scanning, first_outputs
from statefield.errors import ConfigError
from statefield.kernels import ssd


class DualityMixer(Scanning):
    """State-space duality behind a causal convolution, gated, normalised.

        z, xBC, dt = in_proj(input)      x, B, C = silu(conv(xBC))      y = RMSNorm(ssd(x, dt, B, C) * silu(z))

    Args:
        channels: C. d_state: N. expand: E / C. d_conv: taps of the causal convolution.
        head_dim: channels of a head, dividing E. groups: G, dividing the heads.

    Shape: [B, L, C] -> [B, L, C].
    Source: Dao and Gu 2024 (arXiv 2405.21060), section 7; state-spaces/mamba, Mamba2.
    """

    scan_parameters = ("dt_bias", "A_log", "D")

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 64,
        expand: float = 2.0,
        d_conv: int = 4,
        head_dim: int = 64,
        groups: int = 1,
    ) -> None:
        super().__init__()
        inner = int(expand * channels)
        heads = inner // head_dim
        if inner % head_dim or heads % groups:
            raise ConfigError(
                f"head_dim {head_dim} has to divide the {inner} inner channels, and groups {groups} the heads."
            )
        self.head_dim, self.groups = head_dim, groups
        self.split = (inner, groups * d_state, groups * d_state)
        self.in_proj = nn.Linear(channels, inner + sum(self.split) + heads, bias=False)
        self.conv1d = CausalConv(sum(self.split), d_conv, silu=True)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.reset_ssm_parameters()

    def reset_ssm_parameters(self) -> None:
        """Initial values of what drives the recurrence: Mamba-2's."""
        step_bias_(self.dt_bias)
        with torch.no_grad():
            self.A_log.uniform_(1, 16).log_()
        nn.init.ones_(self.D)

    def remove_scan(self) -> None:
        """Also the rows of the projection and of the convolution that make B, C and the step sizes."""
        super().remove_scan()
        inner = self.split[0]
        self.in_proj = first_outputs(self.in_proj, 2 * inner)
        conv = CausalConv(inner, self.conv1d.kernel_size[0], silu=True).to(self.conv1d.weight)
        conv.load_state_dict({name: value[:inner] for name, value in self.conv1d.state_dict().items()})
        self.conv1d = conv

    def forward(self, x: Tensor) -> Tensor:
        if not self.scans:
            z, u = self.in_proj(x).chunk(2, dim=-1)
            return self.out_proj(self.norm(self.conv1d(u) * functional.silu(z)))
        inner, heads = self.split[0], len(self.dt_bias)
        z, xBC, step = self.in_proj(x).split((inner, sum(self.split), heads), dim=-1)
        u, B, C = self.conv1d(xBC).split(self.split, dim=-1)
        y = ssd(
            u.unflatten(-1, (heads, self.head_dim)),
            step,
            decay_rates(self.A_log),
            B.unflatten(-1, (self.groups, -1)),
            C.unflatten(-1, (self.groups, -1)),
            self.D,
            z.unflatten(-1, (heads, self.head_dim)),
            dt_bias=self.dt_bias,
            dt_softplus=True,
        )
        return self.out_proj(self.norm(y.flatten(2)))
