"""mLSTM in plain PyTorch by chunks of time: matrix products within a chunk, a loop over the chunks' states.

With F_t the sum of log sigmoid(f) up to t, a_s = i_s - F_s and A_t = max(m_{-1}, a_0, ..., a_t), the stabiliser is
m_t = F_t + A_t and every weight of the recurrence is exp(a_s - A_t) <= 1. A only grows, so nothing overflows; F falls
without end, so it, a and A are float64 and only their differences, which matter, become the state's dtype.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from statefield.kernels._op import gradients_by_autograd, state_dtype
from statefield.kernels.mlstm.reference import normalized


def mlstm_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor | None = None,
    n: Tensor | None = None,
    m: Tensor | None = None,
    eps: float = 1e-6,
    stabilize_rowwise: bool = True,
    chunk_size: int = 64,
) -> tuple[Tensor, ...]:
    """As `mlstm_reference`, with the same results."""
    dtype = state_dtype(q.dtype)
    batch, heads, length, channels = q.shape
    q_c = _in_chunks(q.to(dtype), chunk_size)  # [B, NH, M, T, DH]
    k_c = _in_chunks(k.to(dtype) / math.sqrt(channels), chunk_size)
    v_c = _in_chunks(v.to(dtype), chunk_size)

    start_m = q_c.new_full((batch, heads), -torch.inf) if m is None else m
    F = torch.nn.functional.logsigmoid(f.double()).cumsum(2)
    a = i.double() - F
    A = torch.maximum(a.cummax(2)[0], start_m.double()[..., None])
    m_t = (F + A).to(dtype)
    a, A = _in_chunks(a, chunk_size, -torch.inf), _in_chunks(A, chunk_size, last=True)  # padded steps weigh nothing
    before = torch.cat([start_m.double()[..., None], A[:, :, :-1, -1]], 2)  # A before each chunk, [B, NH, M]
    later = torch.ones(chunk_size, chunk_size, dtype=torch.bool, device=q.device).triu(1)
    within = torch.exp((a[..., None, :] - A[..., :, None]).masked_fill(later, -torch.inf).to(dtype))  # [.., T, T]
    from_start = torch.exp((before[..., None] - A).to(dtype))  # [B, NH, M, T]
    to_end = torch.exp((a - A[..., -1:]).to(dtype))
    whole = torch.exp((before - A[..., -1]).to(dtype))  # [B, NH, M]

    taken = to_end[..., None] * k_c
    more_C, more_n = v_c.transpose(3, 4) @ taken, taken.sum(3)
    C = q_c.new_zeros(batch, heads, channels, channels) if C is None else C.to(dtype)
    n = q_c.new_zeros(batch, heads, channels) if n is None else n.to(dtype)
    kept_C, kept_n = [C], [n]
    for chunk in range(q_c.shape[2]):
        decay = whole[:, :, chunk, None]
        C = torch.addcmul(more_C[:, :, chunk], decay[..., None], C)
        n = torch.addcmul(more_n[:, :, chunk], decay, n)
        kept_C.append(C)
        kept_n.append(n)
    starts_C, starts_n = torch.stack(kept_C[:-1], 2), torch.stack(kept_n[:-1], 2)

    weights = q_c @ k_c.transpose(3, 4) * within
    readings = weights @ v_c + from_start[..., None] * (q_c @ starts_C.transpose(3, 4))
    sums = weights.sum(4) + from_start * (q_c @ starts_n[..., None]).squeeze(4)
    readings, sums = readings.flatten(2, 3)[:, :, :length], sums.flatten(2, 3)[:, :, :length]
    h = normalized(readings, sums, m_t, eps, stabilize_rowwise)
    return h.to(q.dtype).contiguous(), C, n, m_t[..., -1].clone(), starts_C, starts_n, sums.contiguous(), m_t


def _in_chunks(x: Tensor, chunk_size: int, fill: float = 0.0, *, last: bool = False) -> Tensor:
    """[B, NH, S, ...] as [B, NH, M, chunk_size, ...], filled up with `fill`, or with the last step."""
    missing = -x.shape[2] % chunk_size
    if missing:
        shape = (*x.shape[:2], missing, *x.shape[3:])
        x = torch.cat([x, x[:, :, -1:].expand(shape) if last else x.new_full(shape, fill)], 2)
    return x.unflatten(2, (-1, chunk_size))


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
    keep_states: bool,
) -> tuple[Tensor, ...]:
    """The operator's forward (op.py tells the contract)."""
    results = mlstm_chunked(q, k, v, i, f, C, n, m, eps, stabilize_rowwise, chunk_size)
    return results if keep_states else (*results[:4], *(kept.new_empty(0) for kept in results[4:]))


def backward(
    grads: tuple[Tensor | None, ...],
    results: tuple[Tensor, ...],
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
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract), by autograd through the chunks."""
    chunks = functools.partial(mlstm_chunked, eps=eps, stabilize_rowwise=stabilize_rowwise, chunk_size=chunk_size)
    return gradients_by_autograd(chunks, (q, k, v, i, f, C, n, m), grads)
