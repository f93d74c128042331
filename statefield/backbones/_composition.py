"""The structure-aware scan spelt out in plain PyTorch, until `statefield.kernels` has the operator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def structure_aware_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    weight: Tensor,
    alpha: Tensor,
    delta_bias: Tensor,
    *,
    dilations: tuple[int, ...] = (1, 3, 5),
) -> Tensor:
    batch, height, width, inner = u.shape
    step = functional.softplus(delta.float() + delta_bias)
    decay = torch.exp(step.unsqueeze(-1) * A).flatten(1, 2)  # [B, L, E, N]
    drive = ((step * u.float()).unsqueeze(-1) * B.float().unsqueeze(-2)).flatten(1, 2)
    h = torch.zeros_like(drive[:, 0])
    states = []
    for t in range(height * width):
        h = decay[:, t] * h + drive[:, t]
        states.append(h)
    y = D * u.float()
    all_states = torch.stack(states, 1).reshape(batch, height, width, inner, -1)
    for n in range(all_states.shape[-1]):
        map_bchw = all_states[..., n].permute(0, 3, 1, 2)
        fused = torch.zeros_like(map_bchw)
        for kernel, scale, dilation in zip(weight, alpha, dilations, strict=True):
            padded = functional.pad(map_bchw, (dilation,) * 4, mode="replicate")
            fused = fused + scale * functional.conv2d(padded, kernel.unsqueeze(1), dilation=dilation, groups=inner)
        y = y + C[..., n : n + 1].float() * fused.permute(0, 2, 3, 1)
    return y.to(u.dtype)
