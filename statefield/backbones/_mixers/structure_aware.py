"""Spatial-Mamba's mixer: one raster scan whose states are fused along the image's structure.

Symbols   B batch · *S map (H, W) or volume (D, H, W) · C channels of the block · E = expand C inner channels
          N states a channel · R rank of the step size · K dilations of the fusion
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import check_spatial_dims, depthwise
from statefield.backbones._mixers.initial import decay_rates, log_of_counting_, step_bias_, step_weight_
from statefield.backbones._mixers.scanning import Scanning
from statefield.kernels import state_fusion, structure_aware_scan


class StateFusion(nn.Module):
    """The weights of Spatial-Mamba's fusion: three depthwise 3 x 3 kernels at dilations 1, 3, 5, weighted by alpha.

    Of volumes 3 x 3 x 3, and then each tap is 1/3 at the start in place of 1, so that the fusion of a constant is what
    it is on a map.

    It holds parameters and computes nothing: `StructureAwareMixer` hands them to the operator afresh at every call,
    so no merged kernel can go stale when the weights change.
    """

    DILATIONS = (1, 3, 5)

    def __init__(self, channels: int, spatial_dims: int = 2) -> None:
        super().__init__()
        shape, value = (channels, 1, *[3] * spatial_dims), 3.0 ** (2 - spatial_dims)
        self.kernel_d1 = nn.Parameter(torch.full(shape, value))
        self.kernel_d3 = nn.Parameter(torch.full(shape, value))
        self.kernel_d5 = nn.Parameter(torch.full(shape, value))
        self.alpha = nn.Parameter(torch.ones(len(self.DILATIONS)))

    def weight(self) -> Tensor:
        """The kernels as the operator takes them, [K, E, 3, 3], of volumes [K, E, 3, 3, 3]."""
        return torch.stack((self.kernel_d1, self.kernel_d3, self.kernel_d5)).squeeze(2)


class ScanInputs(NamedTuple):
    """What the selective scan of one map takes, beside the parameters of the mixer."""

    u: Tensor  # [B, *S, E]
    delta: Tensor  # [B, *S, E], before bias and softplus
    B: Tensor  # [B, *S, N]
    C: Tensor  # [B, *S, N]


class StructureAwareMixer(Scanning):
    """Spatial-Mamba's mixer: one raster scan whose states exchange with their neighbours before they are read out.

        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t      row by row, left to right
        f   = sum_k alpha_k DW(h; kernel_k, dilation_k)     replicate padding
        y   = sum_n C_n f_n + D u

    Args:
        channels: C. d_state: N, any number from 1. expand: E / C. dt_rank: R, by default ceil(C / 16).
        spatial_dims: 2, or 3 for volumes, which are scanned slice by slice and fused in all three directions.

    Without its scan the fusion stays, as the convolution that it is: y = f + D u, with u in place of the states.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W; [B, D, H, W, C] with `spatial_dims=3`.
    Source: Spatial-Mamba (arXiv 2410.15091), section 4; volumes are ours.
    """

    scan_parameters = ("x_proj", "dt_proj", "dt_bias", "A_log")

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 1,
        expand: float = 2.0,
        d_conv: int = 3,
        dt_rank: int | None = None,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        check_spatial_dims(spatial_dims)
        inner = int(expand * channels)
        self.d_state = d_state
        self.dt_rank = math.ceil(channels / 16) if dt_rank is None else dt_rank
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = depthwise(spatial_dims, inner, d_conv)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(inner))
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        self.D = nn.Parameter(torch.ones(inner))
        self.fusion = StateFusion(inner, spatial_dims)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.reset_ssm_parameters()

    def reset_ssm_parameters(self) -> None:
        """Initial values of what drives the recurrence; the other layers follow the model's rule."""
        nn.init.kaiming_uniform_(self.x_proj.weight, a=math.sqrt(5))
        step_weight_(self.dt_proj.weight)
        step_bias_(self.dt_bias)
        log_of_counting_(self.A_log)

    def scan_inputs(self, x: Tensor) -> ScanInputs:
        """From the map's own half of the inner projection, [B, *S, E], to what is scanned."""
        u = functional.silu(self.conv(x), inplace=True)
        step, B, C = self.x_proj(u).split((self.dt_rank, self.d_state, self.d_state), dim=-1)
        return ScanInputs(u, self.dt_proj(step), B, C)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        kernels, dilations = (self.fusion.weight(), self.fusion.alpha), StateFusion.DILATIONS
        if self.scans:
            u, delta, B, C = self.scan_inputs(x)
            y = structure_aware_scan(u, delta, self.decay(), B, C, self.D, *kernels, self.dt_bias, dilations=dilations)
        else:
            u = functional.silu(self.conv(x), inplace=True)
            y = state_fusion(u, *kernels, dilations=dilations) + self.D * u
        return self.out_proj(self.out_norm(y) * functional.silu(gate))

    def decay(self) -> Tensor:
        """A = -exp(A_log), [E, N], always float32."""
        return decay_rates(self.A_log)
