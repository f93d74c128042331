"""Mamba-2's scan in standard operations, for files that run without statefield (see `kernels/_standard.py`).

As chunked.py, but for the loop over chunks: the state before chunk m is the sum over the chunks j before it of what j
made, times exp of the decay in between, one product with an [M, M] matrix. All exponents are differences, none positive
for A < 0. Running sums are float64: late in a sequence they are thousands, and the decay over one step would be lost.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from statefield.kernels._op import state_dtype
from statefield.kernels._standard import in_chunks
from statefield.kernels.selective_scan.standard import step_sizes


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
    keep_states: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's forward (op.py tells the contract); no states are kept, as nothing is differentiated."""
    dtype = state_dtype(x.dtype)
    length, channels = x.shape[1], x.shape[3]
    groups, states = B.shape[2:]
    wide = x.to(dtype)
    steps = min(chunk, length) if isinstance(length, int) else chunk
    dt = step_sizes(dt.to(dtype), dt_bias, dt_softplus)
    dt = dt.clamp(min=dt_min)
    if dt_max < float("inf"):
        dt = dt.clamp(max=dt_max)

    # Steps that fill the last chunk up have dt = 0: they decay nothing and add nothing.
    step = in_chunks(dt, steps)  # [b, M, Q, h]
    dtx = step[..., None] * in_chunks(wide, steps)  # [b, M, Q, h, p]
    B_mgqn, C_mgqn = (in_chunks(weights.to(dtype), steps).transpose(2, 3) for weights in (B, C))  # [b, M, g, Q, n]
    cum = (step * A.to(dtype)).double().cumsum(2)  # [b, M, Q, h]

    by_head = cum.transpose(2, 3)  # [b, M, h, Q]
    within = _decay(by_head[..., :, None] - by_head[..., None, :], dtype, strictly=False)  # [b, M, h, Q, Q]
    scores = torch.matmul(C_mgqn, B_mgqn.transpose(3, 4)).unsqueeze(3)  # [b, M, g, 1, Q, Q]
    scores = (scores * within.unflatten(2, (groups, -1))).flatten(2, 3)  # [b, M, h, Q, Q]
    y = torch.matmul(scores, dtx.transpose(2, 3))  # [b, M, h, Q, p]

    to_end = torch.exp((cum[:, :, -1:] - cum).to(dtype))  # [b, M, Q, h]
    weighted = (to_end[..., None] * dtx).transpose(2, 3).unflatten(2, (groups, -1))  # [b, M, g, h / g, Q, p]
    made = torch.matmul(B_mgqn.transpose(3, 4).unsqueeze(3), weighted).flatten(2, 3)  # [b, M, h, n, p]

    whole = cum[:, :, -1].transpose(1, 2).cumsum(2)  # [b, h, M], from the first step to the end of each chunk
    before = functional.pad(whole, [1, 0])[..., :-1]  # ... to its start
    between = _decay(before[..., :, None] - whole[..., None, :], dtype, strictly=True)  # [b, h, M, M]
    H = torch.matmul(between, made.flatten(3).transpose(1, 2))  # [b, h, M, n p]
    if initial_state is not None:
        H = H + torch.exp(before.to(dtype))[..., None] * initial_state.to(dtype).mT.flatten(2).unsqueeze(2)
    H = H.transpose(1, 2).unflatten(3, (states, channels))  # [b, M, h, n, p]
    entering = torch.matmul(C_mgqn.unsqueeze(3), H.unflatten(2, (groups, -1))).flatten(2, 3)  # [b, M, h, Q, p]
    y = y + torch.exp(by_head.to(dtype))[..., None] * entering
    y = y.transpose(2, 3).flatten(1, 2)[:, :length]  # [b, L, h, p]
    if D is not None:
        y = y + D.to(dtype) * wide
    if z is not None:
        y = y * functional.silu(z.to(dtype))
    decay = torch.exp(cum[:, -1, -1].to(dtype))[..., None, None]
    last = (decay * H[:, -1] + made[:, -1]).mT
    return y.to(x.dtype), last.contiguous(), last.new_zeros(0)


def _decay(exponents: Tensor, dtype: torch.dtype, *, strictly: bool) -> Tensor:
    """exp of [..., to, from] where `from` is not later than `to` (strictly: is earlier), else 0.

    The rest is taken out before exp: it may be far above 0 there.
    """
    to = torch.arange(exponents.shape[-2], device=exponents.device)[:, None]
    since = torch.arange(exponents.shape[-1], device=exponents.device)
    holds = since < to if strictly else since <= to
    return torch.where(holds, torch.exp(torch.where(holds, exponents, 0.0).to(dtype)), 0.0)
