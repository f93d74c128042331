"""The definition of state fusion: a loop over kernels and taps that reads like the formula. Slow, for any device.

    fused[i, j] = sum_k alpha_k sum_ab weight_k[a, b] h[clamp(i + (a - 1) d_k), clamp(j + (b - 1) d_k)]
    y[i, j]     = sum_n C_n[i, j] fused_n[i, j] + D u[i, j]

In a volume there is one more coordinate and one more axis of taps.

Source: Xiao et al., "Spatial-Mamba", 2024 (arXiv 2410.15091), section 3.2; the training branch of the authors' code.
Shapes: B batch, *S a map (H, W) or a volume (D, H, W), N states, E channels, K kernels of dilation d_k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

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
    """The fused states [B, *S, N, E], or with C the output y [B, *S, E]. Gradients by autograd.

    Args:
        h: [B, *S, N, E]. weight: [K, E, 3, 3], in a volume [K, E, 3, 3, 3]. alpha: [K]. C: [B, *S, N]. D: [E] and
        u: [B, *S, E]. dilations: K integers >= 1.
    """
    fused = torch.zeros_like(h)
    for k, tap, coordinates in _taps(h, dilations):
        fused = fused + alpha[k] * weight[tap] * _read(h, coordinates)  # [E] * [B, *S, N, E]
    if C is None:
        return fused
    y = (C[..., None] * fused).sum(dim=-2)
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
    fused_grad = grad if C is None else C[..., None] * grad.unsqueeze(-2)  # [B, *S, N, E]
    h_grad = torch.zeros_like(h)
    weight_grad = torch.zeros_like(weight)
    for k, tap, coordinates in _taps(h, dilations):
        collected = alpha[k] * weight[tap] * fused_grad
        # Clamped coordinates repeat: along each axis h collects from every place that read it.
        for axis, read in enumerate(coordinates, start=1):
            collected = torch.zeros_like(h).index_add_(axis, read, collected)
        h_grad += collected
        weight_grad[tap] = (fused_grad * _read(h, coordinates)).flatten(0, -2).sum(dim=0)
    alpha_grad = (weight * weight_grad).flatten(1).sum(dim=1)
    weight_grad = weight_grad * alpha.reshape(-1, *[1] * (weight.dim() - 1))
    if C is None:
        return h_grad, weight_grad, alpha_grad, None, None, None
    fused = state_fusion_reference(h, weight, alpha, dilations=dilations)
    C_grad = (fused * grad.unsqueeze(-2)).sum(dim=-1)
    if D is None or u is None:
        return h_grad, weight_grad, alpha_grad, C_grad, None, None
    return h_grad, weight_grad, alpha_grad, C_grad, (grad * u).flatten(0, -2).sum(dim=0), D * grad


def _taps(h: Tensor, dilations: Sequence[int]) -> Iterator[tuple[int, tuple[int | slice, ...], list[Tensor]]]:
    """Each tap: its kernel, where it lies in `weight`, and the coordinates that it reads along each axis, clamped."""
    sides = h.shape[1:-2]
    every = [torch.arange(side, device=h.device) for side in sides]
    for k, dilation in enumerate(dilations):
        for place in product(range(3), repeat=len(sides)):
            coordinates = [
                (each + (a - 1) * dilation).clamp(0, side - 1)
                for each, a, side in zip(every, place, sides, strict=True)
            ]
            yield k, (k, slice(None), *place), coordinates


def _read(h: Tensor, coordinates: Sequence[Tensor]) -> Tensor:
    """h at the given coordinates of each axis of S, [B, *S, N, E]."""
    for axis, read in enumerate(coordinates, start=1):
        h = h.index_select(axis, read)
    return h
