"""The definition of the structure-aware scan: the selective scan's states in raster order, then state fusion.

    dt_t = softplus(delta_t + delta_bias)
    h_t  = exp(dt_t A) h_{t-1} + dt_t B_t u_t                 t runs over the map row by row, left to right
    y    = sum_n C_n fusion(h)_n + D u                        C and D come after the fusion

Source: Xiao et al., "Spatial-Mamba", 2024 (arXiv 2410.15091), section 3.2.
Shapes: B batch, H x W map, E channels, N states per channel, K kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from statefield.kernels._op import gradients_by_autograd, state_dtype
from statefield.kernels.selective_scan.reference import softplus
from statefield.kernels.state_fusion.reference import state_fusion_reference


def scan_states_reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, delta_bias: Tensor | None, delta_softplus: bool
) -> Tensor:
    """All states of the raster scan, [B, H, W, N, E], in the state dtype. Arguments as `structure_aware_scan`."""
    dtype = state_dtype(u.dtype)
    batch, height, width, channels = u.shape
    dt = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias.to(dtype)
    if delta_softplus:
        dt = softplus(dt)
    decay_rate = A.to(dtype).T  # [N, E]
    h = u.new_zeros(batch, A.shape[1], channels, dtype=dtype)
    states = []
    for i in range(height):
        for j in range(width):
            step = dt[:, i, j, None]  # [B, 1, E]
            h = torch.exp(step * decay_rate) * h + step * u[:, i, j, None].to(dtype) * B[:, i, j, :, None].to(dtype)
            states.append(h)
    return torch.stack(states, dim=1).unflatten(1, (height, width))


def structure_aware_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    weight: Tensor,
    alpha: Tensor,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = True,
    dilations: Sequence[int] = (1, 3, 5),
) -> Tensor:
    """y [B, H, W, E] in u's dtype; gradients by autograd. Arguments as `structure_aware_scan`."""
    h = scan_states_reference(u, delta, A, B, delta_bias, delta_softplus)
    parameters = [tensor.to(h.dtype) for tensor in (weight, alpha, C, D, u)]
    return state_fusion_reference(h, *parameters, dilations=dilations).to(u.dtype)


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    weight: Tensor,
    alpha: Tensor,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    dilations: Sequence[int],
    keep_states: bool,
) -> tuple[Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    h = scan_states_reference(u, delta, A, B, delta_bias, delta_softplus)
    y = state_fusion_reference(h, weight, alpha, C, D, u, dilations=dilations).contiguous()
    if not keep_states:
        return y, y.new_empty(0)
    after = h[:, :, -1]  # the states after each row
    return y, torch.cat((torch.zeros_like(after[:, :1]), after[:, :-1]), dim=1)


def backward(
    grad: Tensor,
    kept: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    weight: Tensor,
    alpha: Tensor,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    dilations: Sequence[int],
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract), by autograd through the loop; `kept` is not needed."""
    return gradients_by_autograd(
        lambda *inputs: (structure_aware_scan_reference(*inputs, delta_softplus=delta_softplus, dilations=dilations),),
        (u, delta, A, B, C, D, weight, alpha, delta_bias),
        (grad,),
    )
