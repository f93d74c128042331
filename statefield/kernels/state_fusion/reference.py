"""The definition of state fusion: a loop over kernels and taps that reads like the formula. Slow, for any device.

    fused[i, j] = sum_k alpha_k sum_ab weight_k[a, b] h[clamp(i + (a - 1) d_k), clamp(j + (b - 1) d_k)]
    y[i, j]     = sum_n C_n[i, j] fused_n[i, j] + D u[i, j]

Source: Xiao et al., "Spatial-Mamba", 2024 (arXiv 2410.15091), section 3.2; the training branch of the authors' code.
Shapes: B batch, H x W map, N states, E channels, K kernels of dilation d_k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def state_fusion_reference(
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None = None,
    D: Tensor | None = None,
    u: Tensor | None = None,
    *,
    dilations: Sequence[int] = (1, 3, 5),
) -> Tensor:
    """The fused states [B, H, W, N, E], or with C the output y [B, H, W, E]. Gradients by autograd.

    Args:
        h: [B, H, W, N, E]. weight: [K, E, 3, 3]. alpha: [K]. C: [B, H, W, N]. D: [E] and u: [B, H, W, E].
        dilations: K integers >= 1.
    """
    fused = torch.zeros_like(h)
    for k, a, b, rows, columns in _taps(h, dilations):
        fused = fused + alpha[k] * weight[k, :, a, b] * h[:, rows][:, :, columns]  # [E] * [B, H, W, N, E]
    if C is None:
        return fused
    y = (C[..., None] * fused).sum(dim=3)
    if D is not None and u is not None:
        y = y + D * u
    return y


def forward(
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    u: Tensor | None,
    dilations: Sequence[int],
) -> Tensor:
    """The operator's forward (op.py tells the contract)."""
    return state_fusion_reference(h, weight, alpha, C, D, u, dilations=dilations).contiguous()


def backward(
    grad: Tensor,
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    u: Tensor | None,
    dilations: Sequence[int],
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract), written out: what each clamped place was read for."""
    fused_grad = grad if C is None else C[..., None] * grad[:, :, :, None]  # [B, H, W, N, E]
    h_grad = torch.zeros_like(h)
    weight_grad = torch.zeros_like(weight)
    for k, a, b, rows, columns in _taps(h, dilations):
        tap = alpha[k] * weight[k, :, a, b]
        # Clamped coordinates repeat: each row and column of h collects from every place that read it.
        collected = torch.zeros_like(h).index_add_(1, rows, tap * fused_grad)
        h_grad.index_add_(2, columns, collected)
        weight_grad[k, :, a, b] = (fused_grad * h[:, rows][:, :, columns]).sum(dim=(0, 1, 2, 3))
    alpha_grad = (weight * weight_grad).sum(dim=(1, 2, 3))
    weight_grad = weight_grad * alpha[:, None, None, None]
    if C is None:
        return h_grad, weight_grad, alpha_grad, None, None, None
    fused = state_fusion_reference(h, weight, alpha, dilations=dilations)
    C_grad = (fused * grad[:, :, :, None]).sum(dim=4)
    if D is None or u is None:
        return h_grad, weight_grad, alpha_grad, C_grad, None, None
    return h_grad, weight_grad, alpha_grad, C_grad, (grad * u).sum(dim=(0, 1, 2)), D * grad


def _taps(h: Tensor, dilations: Sequence[int]) -> Iterator[tuple[int, int, int, Tensor, Tensor]]:
    """Each tap (k, a, b) with the rows and columns that it reads: replicate padding clamps them to the map."""
    height, width = h.shape[1:3]
    row, column = torch.arange(height, device=h.device), torch.arange(width, device=h.device)
    for k, dilation in enumerate(dilations):
        for a in range(3):
            for b in range(3):
                yield (
                    k,
                    a,
                    b,
                    (row + (a - 1) * dilation).clamp(0, height - 1),
                    (column + (b - 1) * dilation).clamp(0, width - 1),
                )
