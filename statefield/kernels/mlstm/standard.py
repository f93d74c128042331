"""mLSTM in standard operations, for files that run without statefield (see `kernels/_standard.py`).

As chunked.py, but for two things that ONNX has not: the running maximum is one over a triangle of differences, within
chunks and then over chunks, and the loop over chunks is a product with the [M, M] matrix of the decays in between.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from statefield.kernels._op import state_dtype
from statefield.kernels.mlstm.reference import normalized

_LEAST = -1e300  # in place of minus infinity, whose differences are NaN; its exp is 0 all the same


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    eps: float,
    stabilize_rowwise: bool,
    chunk_size: int,
    keep_states: bool = False,
) -> tuple[Tensor, ...]:
    """The operator's forward (op.py tells the contract); no states are kept, as nothing is differentiated."""
    dtype = state_dtype(q.dtype)
    length, channels = q.shape[2:]
    steps = min(chunk_size, length) if isinstance(length, int) else chunk_size
    q_c = _in_chunks(q.to(dtype), steps)  # [B, NH, M, T, DH]
    k_c = _in_chunks(k.to(dtype) / math.sqrt(channels), steps)
    v_c = _in_chunks(v.to(dtype), steps)

    # F: the sum of log sigmoid(f) up to a step; a = i - F; A: the running maximum of a and of the m given. F falls
    # without end, so all three are float64; only their differences, none positive, are rounded.
    F = functional.logsigmoid(f.double()).cumsum(2)
    a = _in_chunks(i.double() - F, steps, _LEAST)  # [B, NH, M, T]; steps that fill up weigh nothing
    start_m = torch.full_like(F[..., :1], _LEAST) if m is None else m.double()[..., None]
    until = _running_maximum(a)
    ends = torch.cat([start_m, until[..., -1]], dim=2)  # [B, NH, 1 + M]
    ends = _running_maximum(ends)
    before, after = ends[..., :-1], ends[..., 1:]  # A at the start and at the end of each chunk, [B, NH, M]
    A = torch.maximum(until, before[..., None])  # [B, NH, M, T]
    m_t = (F + A.flatten(2)[..., :length]).to(dtype)

    is_past = _triangle(steps, q, strictly=False)
    within = _weights(torch.where(is_past, a[..., None, :] - A[..., :, None], _LEAST), dtype)  # [B, NH, M, T, T]
    from_start = _weights(before[..., None] - A, dtype)  # [B, NH, M, T]
    to_end = _weights(a - after[..., None], dtype)

    taken = to_end[..., None] * k_c
    more_C, more_n = torch.matmul(v_c.transpose(3, 4), taken), taken.sum(3)  # [B, NH, M, DH, DH], [B, NH, M, DH]
    is_earlier = _triangle(more_n.shape[2], q, strictly=True)
    between = _weights(torch.where(is_earlier, after[..., None, :] - before[..., :, None], _LEAST), dtype)
    starts_C = torch.matmul(between, more_C.flatten(3)).unflatten(3, (channels, channels))
    starts_n = torch.matmul(between, more_n)
    if C is not None and n is not None:
        since = _weights(start_m - before, dtype)[..., None]  # [B, NH, M, 1]
        starts_C = starts_C + since[..., None] * C.to(dtype).unsqueeze(2)
        starts_n = starts_n + since * n.to(dtype).unsqueeze(2)

    weights = torch.matmul(q_c, k_c.transpose(3, 4)) * within
    readings = torch.matmul(weights, v_c) + from_start[..., None] * torch.matmul(q_c, starts_C.transpose(3, 4))
    sums = weights.sum(4) + from_start * torch.matmul(q_c, starts_n[..., None]).squeeze(4)
    readings, sums = readings.flatten(2, 3)[:, :, :length], sums.flatten(2, 3)[:, :, :length]
    h = normalized(readings, sums, m_t, eps, stabilize_rowwise)

    whole = _weights(before[..., -1] - after[..., -1], dtype)[..., None]  # [B, NH, 1]
    last_C = whole[..., None] * starts_C[:, :, -1] + more_C[:, :, -1]
    last_n = whole * starts_n[:, :, -1] + more_n[:, :, -1]
    return h.to(q.dtype), last_C, last_n, m_t[..., -1], *(last_n.new_zeros(0) for _ in range(4))


def _in_chunks(x: Tensor, steps: int, fill: float = 0.0) -> Tensor:
    """[B, NH, S, ...] as [B, NH, M, T, ...], filled up."""
    length = x.shape[2]
    missing = -length % steps
    if not isinstance(missing, int) or missing:
        x = functional.pad(x, [0, 0] * (x.dim() - 3) + [0, missing], value=fill)
    return x.reshape(*x.shape[:2], (length + steps - 1) // steps, steps, *x.shape[3:])


def _triangle(size: int, like: Tensor, *, strictly: bool) -> Tensor:
    """bool [to, from]: whether `from` is not later than `to` (strictly: is earlier)."""
    place = torch.arange(size, device=like.device)
    return place < place[:, None] if strictly else place <= place[:, None]


def _running_maximum(x: Tensor) -> Tensor:
    """The largest of x [..., T] up to each place."""
    return torch.where(_triangle(x.shape[-1], x, strictly=False), x[..., None, :], _LEAST).amax(-1)


def _weights(exponents: Tensor, dtype: torch.dtype) -> Tensor:
    """exp of float64 differences <= 0, in the state dtype; what lies beyond its range is 0 in both."""
    return torch.exp(exponents.clamp(min=-1e4).to(dtype))
