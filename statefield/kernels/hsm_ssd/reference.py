"""The definition of the hidden states of HSM-SSD: loops over positions. Gradients come from autograd.

    w_l = exp(dt_l + A) / sum_k exp(dt_k + A)          h = sum_l u_l (w_l B_l)^T

Source: Lee et al., "EfficientViM", 2024 (arXiv 2411.15241), as `HSMSSD` of mlvlab/EfficientViM computes it.
Shapes: B batch, L positions, D channels, N states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from statefield.kernels._op import gradients_by_autograd, state_dtype


def hsm_ssd_states_reference(
    u: Tensor,  # [B, D, L]
    dt: Tensor,  # [B, N, L]
    A: Tensor,  # [N]
    B: Tensor,  # [B, N, L]
) -> tuple[Tensor, Tensor]:
    """The normaliser position by position, then the states position by position.

    Returns:
        h [B, D, N]; the largest dt and sum_l exp(dt_l - largest) as [B, 2, N]; float32 (float64 for float64 inputs).
    """
    dtype = state_dtype(u.dtype)
    score = dt.to(dtype) + A.to(dtype)[:, None]
    largest = score.detach().amax(-1)  # keeps exp in range, and cancels
    raised = [torch.exp(score_l - largest) for score_l in score.unbind(-1)]
    total = torch.zeros_like(largest)
    for raised_l in raised:
        total = total + raised_l
    h = u.new_zeros(*u.shape[:2], dt.shape[1], dtype=dtype)
    for u_l, raised_l, B_l in zip(u.to(dtype).unbind(-1), raised, B.to(dtype).unbind(-1), strict=True):
        h = h + u_l[:, :, None] * (raised_l / total * B_l)[:, None, :]
    return h, torch.stack((dt.to(dtype).amax(-1), total), dim=1)


def forward(u: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    return hsm_ssd_states_reference(u, dt, A, B)


def backward(
    grad: Tensor, h: Tensor, softmax: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's backward (op.py tells the contract), by autograd through the loops."""
    grad_u, grad_dt, _, grad_B = gradients_by_autograd(hsm_ssd_states_reference, (u, dt, A, B), (grad,))
    assert grad_u is not None and grad_dt is not None and grad_B is not None
    return grad_u, grad_dt, grad_B
