"""What the operators are compared with: the same results by the means that others use."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def scan_by_mambas_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """The selective scan as a plain Python loop in the form of mamba's reference function.

    All decays and inputs are formed at once as [B, D, L, N] tensors; the loop over time multiplies, adds and reads out.

    Args: u, delta [B, D, L]; A [D, N]; B, C [B, N, L]; D, delta_bias [D]. Returns: [B, D, L].
    """
    dt = functional.softplus(delta + delta_bias[:, None])
    decays = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
    entries = torch.einsum("bdl,bnl,bdl->bdln", dt, B, u)
    h = A.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for t in range(u.shape[2]):
        h = decays[:, :, t] * h + entries[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    return torch.stack(outputs, dim=2) + u * D[:, None]


def fusion_by_convolutions(h_bchw: Tensor, weight: Tensor, alpha: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """State fusion as torch's depthwise convolutions, one a dilation, replicate-padded. h_bchw [B, E, H, W]."""
    channels = h_bchw.shape[1]
    fused = torch.zeros_like(h_bchw)
    for kernel, share, dilation in zip(weight, alpha, dilations, strict=True):
        padded = functional.pad(h_bchw, (dilation,) * 4, mode="replicate")
        fused += share * functional.conv2d(padded, kernel[:, None], dilation=dilation, groups=channels)
    return fused
