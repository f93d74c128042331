"""The definition of the selective scan: a loop over time that reads like the paper. Gradients come from autograd.

    dt_t = softplus(delta_t + delta_bias)          h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t
    y_t  = sum_n C_t h_t + D u_t                   out_t = y_t * SiLU(z_t)

Source: Gu and Dao, "Mamba", 2023, algorithm 2, as state-spaces/mamba computes it (B is discretised as dt B).
Shapes: B batch, L length, D channels, N states per channel, G groups of channels that share B and C.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from statefield.kernels._op import gradients_by_autograd, state_dtype

CHUNK = 32  # a state is kept every so many steps for the backward: 1/32 of all states


def selective_scan_reference(
    u: Tensor,  # [B, L, D]
    delta: Tensor,  # [B, L, D]
    A: Tensor,  # [D, N]
    B: Tensor,  # [B, L, G, N] or [D, N]
    C: Tensor,  # [B, L, G, N] or [D, N]
    D: Tensor | None = None,  # [D]
    z: Tensor | None = None,  # [B, L, D]
    delta_bias: Tensor | None = None,  # [D]
    initial_state: Tensor | None = None,  # [B, D, N]
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The scan, step by step.

    Returns:
        out [B, L, D] in u's dtype; the state after the last step [B, D, N]; the states before steps 0, CHUNK,
        2 CHUNK, ... as [B, ceil(L / CHUNK), N, D]. States are float32 (float64 for float64 inputs).
    """
    dtype = state_dtype(u.dtype)
    batch, _, channels = u.shape
    x = u.to(dtype)
    A = A.to(dtype)
    dt = delta.to(dtype)
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)
    if delta_softplus:
        dt = softplus(dt)
    # unbind, because the gradient of x[:, t] is as large as x: the backward of L of them would take L^2 steps.
    steps = zip(dt.unbind(1), x.unbind(1), _per_step(B.to(dtype), x), _per_step(C.to(dtype), x), strict=True)

    h = x.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state.to(dtype)
    outputs, kept = [], []
    for t, (dt_t, x_t, B_t, C_t) in enumerate(steps):
        if t % CHUNK == 0:
            kept.append(h)
        h = torch.exp(dt_t[..., None] * A) * h + (dt_t * x_t)[..., None] * B_t
        outputs.append((h * C_t).sum(-1))
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + D.to(dtype) * x
    if z is not None:
        y = y * torch.nn.functional.silu(z.to(dtype))
    return y.to(u.dtype), h, torch.stack(kept, dim=1).transpose(2, 3).contiguous()


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), and x itself above 20, as the official kernel has it."""
    return torch.where(x > 20, x, torch.log1p(torch.exp(x.clamp(max=20))))


def _per_step(weights: Tensor, x: Tensor) -> Sequence[Tensor]:
    """The weights of each step, one row a channel: [B, D, N] from [B, L, G, N], or [D, N] where constant in time."""
    if weights.dim() == 2:
        return [weights] * x.shape[1]
    return weights.repeat_interleave(x.shape[2] // weights.shape[2], dim=2).unbind(1)


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    out, last, kept = selective_scan_reference(
        u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus=delta_softplus
    )
    return out, last, kept if keep_states else kept.new_empty(0)


def backward(
    grad_out: Tensor,
    grad_last: Tensor | None,
    states: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract), by autograd through the loop."""
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    scan = functools.partial(selective_scan_reference, delta_softplus=delta_softplus)
    return gradients_by_autograd(scan, inputs, (grad_out, grad_last))
