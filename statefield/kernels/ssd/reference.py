"""The definition of Mamba-2's scan (SSD): a loop over time that reads like the paper. Gradients come from autograd.

    dt_t = clamp(softplus(dt_t + dt_bias), dt_min, dt_max)
    H_t  = exp(dt_t A) H_{t-1} + dt_t x_t B_t^T          y_t = (H_t C_t + D x_t) * SiLU(z_t)

Source: Dao and Gu, "Transformers are SSMs", 2024, with the options of mamba_chunk_scan_combined (state-spaces/mamba).
Shapes: b batch, L length, h heads, p channels of a head, n states, g groups of heads that share B and C.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from statefield.kernels._op import gradients_by_autograd, state_dtype
from statefield.kernels.selective_scan.reference import softplus


def ssd_reference(
    x: Tensor,  # [b, L, h, p]
    dt: Tensor,  # [b, L, h]
    A: Tensor,  # [h]
    B: Tensor,  # [b, L, g, n]
    C: Tensor,  # [b, L, g, n]
    D: Tensor | None = None,  # [h, p]
    z: Tensor | None = None,  # [b, L, h, p]
    dt_bias: Tensor | None = None,  # [h]
    initial_state: Tensor | None = None,  # [b, h, p, n]
    dt_softplus: bool = False,
    dt_min: float = 0.0,
    dt_max: float = float("inf"),
    chunk: int = 64,
) -> tuple[Tensor, Tensor, Tensor]:
    """The scan, step by step.

    Returns:
        y [b, L, h, p] in x's dtype; the state after the last step [b, h, p, n]; the states before steps 0, chunk,
        2 chunk, ... as [b, ceil(L / chunk), h, n, p]. States are float32 (float64 for float64 inputs).
    """
    dtype = state_dtype(x.dtype)
    batch, _, heads, channels = x.shape
    given, x = x, x.to(dtype)
    step = step_sizes(dt.to(dtype), dt_bias, dt_softplus, dt_min, dt_max)
    decay = torch.exp(step * A.to(dtype))
    repeats = heads // B.shape[2]
    # unbind, because the gradient of x[:, t] is as large as x: the backward of L of them would take L^2 steps.
    steps = zip(
        decay.unbind(1),
        (step[..., None] * x).unbind(1),
        B.to(dtype).repeat_interleave(repeats, dim=2).unbind(1),
        C.to(dtype).repeat_interleave(repeats, dim=2).unbind(1),
        strict=True,
    )
    H = x.new_zeros(batch, heads, channels, B.shape[3]) if initial_state is None else initial_state.to(dtype)
    outputs, kept = [], []
    for t, (decay_t, dtx_t, B_t, C_t) in enumerate(steps):
        if t % chunk == 0:
            kept.append(H)
        H = decay_t[..., None, None] * H + dtx_t[..., None] * B_t[..., None, :]
        outputs.append((H * C_t[..., None, :]).sum(-1))
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + D.to(dtype) * x
    if z is not None:
        y = y * torch.nn.functional.silu(z.to(dtype))
    return y.to(given.dtype), H, torch.stack(kept, dim=1).transpose(3, 4).contiguous()


def step_sizes(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, dt_min: float, dt_max: float) -> Tensor:
    """clamp(softplus(dt + dt_bias), dt_min, dt_max). At the limits themselves the gradient passes, as torch has it."""
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    if dt_softplus:
        dt = softplus(dt)
    return dt.clamp(dt_min, dt_max)


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    chunk: int,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    y, last, kept = ssd_reference(
        x, dt, A, B, C, D, z, dt_bias, initial_state, dt_softplus, dt_min=dt_min, dt_max=dt_max, chunk=chunk
    )
    return y, last.contiguous(), kept if keep_states else kept.new_empty(0)


def backward(
    grad_y: Tensor,
    grad_last: Tensor | None,
    states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    chunk: int,
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract), by autograd through the loop."""
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    scan = functools.partial(ssd_reference, dt_softplus=dt_softplus, dt_min=dt_min, dt_max=dt_max, chunk=chunk)
    return gradients_by_autograd(scan, inputs, (grad_y, grad_last))
