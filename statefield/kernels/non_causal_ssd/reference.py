"""The definition of the non-causal state-space duality: two loops over positions. Gradients come from autograd.

    a_l = dt_l A          S = sum_l a_l B_l x_l^T          y_l = S^T C_l + D x_l

Every position writes into one state and every position reads the whole of it, so no position comes before another.

Source: Shi et al., "VSSD", 2024 (arXiv 2407.18559), as `Mamba2.non_casual_linear_attn` of
YuHengsss/VSSD computes it.
Shapes: B batch, L positions, H heads, P channels of a head, N states, G groups of heads that share B and C.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statefield.kernels._op import gradients_by_autograd, state_dtype


def non_causal_ssd_reference(
    x: Tensor,  # [B, L, H, P]
    dt: Tensor,  # [B, L, H]
    A: Tensor,  # [H]
    B: Tensor,  # [B, L, G, N]
    C: Tensor,  # [B, L, G, N]
    D: Tensor | None = None,  # [H]
) -> tuple[Tensor, Tensor]:
    """The state position by position, then the outputs position by position.

    Returns:
        y [B, L, H, P] in x's dtype; the state S [B, H, N, P] in float32 (float64 for float64 inputs).
    """
    dtype = state_dtype(x.dtype)
    heads = x.shape[2]
    x_, A, B, C = x.to(dtype), A.to(dtype), B.to(dtype), C.to(dtype)
    a = dt.to(dtype) * A
    # unbind, because the gradient of x[:, l] is as large as x: the backward of L of them would take L^2 steps.
    rows = list(zip(x_.unbind(1), a.unbind(1), _per_head(B, heads), _per_head(C, heads), strict=True))

    state = x_.new_zeros(x.shape[0], heads, B.shape[3], x.shape[3])
    for x_l, a_l, B_l, _ in rows:
        state = state + (a_l[..., None] * B_l)[..., None] * x_l[:, :, None, :]
    outputs = []
    for x_l, _, _, C_l in rows:
        y_l = (C_l[..., None] * state).sum(2)
        outputs.append(y_l if D is None else y_l + D.to(dtype)[:, None] * x_l)
    return torch.stack(outputs, dim=1).to(x.dtype), state


def _per_head(weights: Tensor, heads: int) -> tuple[Tensor, ...]:
    """B or C of each position, one row a head: L tensors [B, H, N] from [B, L, G, N]. Head h reads group h mod G."""
    return weights.repeat(1, 1, heads // weights.shape[2], 1).unbind(1)


def forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    return non_causal_ssd_reference(x, dt, A, B, C, D)


def backward(
    grad: Tensor, state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract), by autograd through the loops."""
    return gradients_by_autograd(non_causal_ssd_reference, (x, dt, A, B, C, D), (grad,))
