"""VSSD's mixer: a state that sums up the whole map, which every pixel then reads; no order, no decay, no softmax.

Symbols   B batch · H, W map · C channels of the block · E = expand C inner channels · N states · G groups of B and C
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import DepthwiseConv
from statefield.backbones._mixers.initial import decay_rates, step_bias_
from statefield.backbones._mixers.scanning import Scanning, first_outputs
from statefield.errors import ConfigError
from statefield.kernels import non_causal_ssd


class NonCausalDualityMixer(Scanning):
    """Mamba-2's duality without its causal mask: linear attention whose values are weighted by their step sizes.

        z, xBC, dt = in_proj(input)      x, B, C = silu(conv(xBC))      y = norm(duality(x, dt, B, C)) * z

    The norm is a LayerNorm (Mamba-2 has a gated RMSNorm), and the gate z passes no activation. What a head sums over
    the map is not normalised, so it grows with the number of pixels; the operator keeps it in float32 (the authors'
    code overflows in float16).

    Args:
        channels: C. d_state: N. expand: E / C. d_conv: odd side of the depthwise convolution.
        heads: dividing E. groups: G, dividing `heads`; head h reads group h mod G.
        positive_decay: weigh by dt exp(A_log), as every released model does; False for its negative.

    Shape: [B, H, W, C] -> [B, H, W, C].
    Source: VSSD (arXiv 2407.18559), section 3.3; YuHengsss/VSSD, Mamba2 with `linear_attn_duality`.
    """

    scan_parameters = ("dt_bias", "A_log", "D")

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        d_state: int = 64,
        expand: float = 2.0,
        d_conv: int = 3,
        groups: int = 1,
        positive_decay: bool = True,
    ) -> None:
        super().__init__()
        inner = int(expand * channels)
        if inner % heads or heads % groups:
            raise ConfigError(f"heads {heads} has to divide the {inner} inner channels, and groups {groups} the heads.")
        self.heads, self.groups, self.positive_decay = heads, groups, positive_decay
        self.split = (inner, groups * d_state, groups * d_state)
        self.in_proj = nn.Linear(channels, inner + sum(self.split) + heads, bias=False)
        self.conv = DepthwiseConv(sum(self.split), d_conv)
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.reset_ssm_parameters()

    def reset_ssm_parameters(self) -> None:
        """Initial values of what weighs the pixels: Mamba-2's."""
        step_bias_(self.dt_bias)
        with torch.no_grad():
            self.A_log.uniform_(1, 16).log_()
        nn.init.ones_(self.D)

    def remove_scan(self) -> None:
        """Also the rows of the projection and of the convolution that make B, C and the step sizes."""
        super().remove_scan()
        inner = self.split[0]
        self.in_proj = first_outputs(self.in_proj, 2 * inner)
        conv = DepthwiseConv(inner, self.conv.kernel_size[0]).to(self.conv.weight)
        conv.load_state_dict({name: value[:inner] for name, value in self.conv.state_dict().items()})
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        if not self.scans:
            z, u = self.in_proj(x).chunk(2, dim=-1)
            return self.out_proj(self.norm(functional.silu(self.conv(u))) * z)
        grid = (x.shape[1], x.shape[2])
        z, xBC, step = self.in_proj(x).split((self.split[0], sum(self.split), self.heads), dim=-1)
        u, B, C = functional.silu(self.conv(xBC)).flatten(1, 2).split(self.split, dim=-1)
        y = non_causal_ssd(
            u.unflatten(-1, (self.heads, -1)),
            functional.softplus(step.flatten(1, 2) + self.dt_bias),
            decay_rates(self.A_log),
            B.unflatten(-1, (self.groups, -1)),
            C.unflatten(-1, (self.groups, -1)),
            self.D,
            positive_decay=self.positive_decay,
        )
        return self.out_proj(self.norm(y.flatten(2).unflatten(1, grid)) * z)
