"""The structure-aware scan in standard operations, for files without statefield: all states, then the fusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from statefield.kernels._op import state_dtype
from statefield.kernels._standard import in_chunks, recurrence, steps_of
from statefield.kernels.selective_scan.standard import step_sizes
from statefield.kernels.state_fusion import standard as state_fusion


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
    keep_states: bool = False,
) -> tuple[Tensor, Tensor]:
    """The operator's forward (op.py tells the contract); no states are kept, as nothing is differentiated."""
    dtype = state_dtype(u.dtype)
    batch, height, width, channels = u.shape
    length = height * width
    steps = steps_of(length)
    x = u.to(dtype).reshape(batch, length, channels)
    dt = step_sizes(delta.to(dtype).reshape(batch, length, channels), delta_bias, delta_softplus)
    dt_c = in_chunks(dt, steps).unsqueeze(3)  # [B, M, Q, 1, E]
    dtx_c = in_chunks(dt * x, steps).unsqueeze(3)
    B_c = in_chunks(B.to(dtype).reshape(batch, length, A.shape[1]), steps).unsqueeze(4)  # [B, M, Q, N, 1]
    A_ne = A.to(dtype).t()
    decays = [torch.exp(dt_t * A_ne) for dt_t in dt_c.split(1, dim=2)]  # [B, M, 1, N, E]
    added = [dtx_t * B_t for dtx_t, B_t in zip(dtx_c.split(1, dim=2), B_c.split(1, dim=2), strict=True)]
    whole = torch.exp(dt_c.sum(2, keepdim=True) * A_ne)
    h = torch.cat(list(recurrence(decays, added, whole)), dim=2).flatten(1, 2)[:, :length]
    h = h.reshape(batch, height, width, A.shape[1], channels)
    y = state_fusion.forward(h, weight, alpha, C.to(dtype), D.to(dtype), u.to(dtype), dilations)
    return y.to(u.dtype), y.new_zeros(0)
