"""MambaMixer's channel mixer: a selective scan that runs along the channels of a map, from both ends.

Symbols   B batch · H, W map · L = H W tokens · C channels of the block · E = expand C inner channels, the scan's steps
          N states · P cells of the summary · K = 2 directions
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._mixers.initial import decay_rates, log_of_counting_, step_bias_, step_weight_
from statefield.backbones._mixers.scanning import Scanning
from statefield.kernels import routed_scan

BOTH_ENDS = ("raster", "raster~")


class ChannelScanMixer(Scanning):
    """A selective scan of the transposed map: its steps are channels, and its features are tokens.

        u = silu(conv(x))      y = norm(scan(u) + scan from the last channel(u))      times silu(z)

    B and C of a channel depend on what all tokens hold in it, as everywhere in S6, and are shared by the tokens. In the
    paper's form the projections to B, C and the step sizes have a weight for every token, and so fit one image size.
    Here they read a summary, the means of `summary` x `summary` parts of the map: on a map of that many tokens B and C
    are the paper's, on every other one they are its like. What else has one value a feature (A, D, the step sizes'
    weight and bias, the convolution) has one value for all tokens.

        delta_(c, l) = softplus(w u_(c, l) + v . summary_c + b)

    Args:
        channels: C. d_state: N. expand: E / C. d_conv: odd number of taps of the convolution along the channels.
        summary: parts of the map down and across, P = summary^2.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.
    Source: MambaMixer (arXiv 2403.19888), selective channel mixer; its authors publish no code.
    """

    scan_parameters = ("x_proj", "dt_proj", "dt_bias", "A_log", "D")

    def __init__(
        self, channels: int, *, d_state: int = 16, expand: float = 0.5, d_conv: int = 3, summary: int = 7
    ) -> None:
        super().__init__()
        inner, K = int(expand * channels), len(BOTH_ENDS)
        self.d_state, self.summary = d_state, summary
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = nn.Conv2d(1, 1, (1, d_conv), padding=(0, d_conv // 2))  # over [B, 1, L, E], along E
        self.x_proj = nn.Parameter(torch.empty(K, 1 + 2 * d_state, summary * summary))
        self.dt_proj = nn.Parameter(torch.empty(K, 1))
        self.dt_bias = nn.Parameter(torch.empty(K))
        self.A_log = nn.Parameter(torch.empty(K, d_state))
        self.D = nn.Parameter(torch.ones(K))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.reset_ssm_parameters()

    def reset_ssm_parameters(self) -> None:
        """Initial values of what drives the recurrences: Mamba's."""
        for projection in self.x_proj:
            nn.init.kaiming_uniform_(projection, a=math.sqrt(5))
        step_weight_(self.dt_proj)
        step_bias_(self.dt_bias)
        log_of_counting_(self.A_log)
        nn.init.ones_(self.D)

    def scan(self, u: Tensor) -> Tensor:
        """The sum of the scans of u [B, H, W, E] along its channels, [B, H, W, E]."""
        if not self.scans:
            return len(BOTH_ENDS) * u
        K, grid, sizes = len(BOTH_ENDS), (u.shape[1], u.shape[2]), (1, self.d_state, self.d_state)
        cells = functional.adaptive_avg_pool2d(u.permute(0, 3, 1, 2), self.summary).flatten(2)  # [B, E, P]
        read = functional.linear(cells, self.x_proj.flatten(0, 1)).unflatten(-1, (K, -1))
        step, B, C = read.split(sizes, dim=-1)  # [B, E, K, 1 or N]
        x = u.flatten(1, 2).transpose(1, 2)  # [B, E, L]
        tokens = x.shape[-1]
        y = routed_scan(
            x,
            step + x.unsqueeze(2) * self.dt_proj,
            decay_rates(self.A_log).unsqueeze(1).expand(-1, tokens, -1),
            B,
            C,
            self.D.unsqueeze(1).expand(-1, tokens),
            routes=BOTH_ENDS,
            delta_bias=self.dt_bias.unsqueeze(1).expand(-1, tokens),
            delta_softplus=True,
        )
        return y.transpose(1, 2).unflatten(1, grid)

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[1], x.shape[2])
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        u = self.conv(x.flatten(1, 2).unsqueeze(1)).squeeze(1).unflatten(1, grid)
        return self.out_proj(self.out_norm(self.scan(functional.silu(u))) * functional.silu(gate))
