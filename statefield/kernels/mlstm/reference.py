"""The definition of mLSTM, the matrix memory of xLSTM: a loop over time that reads like the paper. Gradients come from
autograd.

    m_t = max(log sigmoid(f_t) + m_{t-1}, i_t)                                  stabiliser
    f'_t = exp(log sigmoid(f_t) + m_{t-1} - m_t)    i'_t = exp(i_t - m_t)       gates, both <= 1
    C_t = f'_t C_{t-1} + i'_t v_t k_t^T             n_t = f'_t n_{t-1} + i'_t k_t
    h_t = C_t q_t / (max(|n_t . q_t|, exp(-m_t)) + eps)

with k_t / sqrt(DH) in place of k_t.

Source: Beck et al., "xLSTM", 2024, equations 19 to 27, and appendix A for the stabiliser; the sum with eps is
NX-AI/vision-lstm, parallel_stabilized_simple. Shapes: B batch, NH heads, S length, DH channels of a head.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from statefield.kernels._op import gradients_by_autograd, state_dtype

# exp(80) times any eps that is not 0 makes an output nothing, in float32 and without overflow.
LARGEST_EXPONENT = 80.0


def mlstm_reference(
    q: Tensor,  # [B, NH, S, DH]
    k: Tensor,  # [B, NH, S, DH]
    v: Tensor,  # [B, NH, S, DH]
    i: Tensor,  # [B, NH, S]
    f: Tensor,  # [B, NH, S]
    C: Tensor | None = None,  # [B, NH, DH, DH], rows are channels of v, columns channels of k
    n: Tensor | None = None,  # [B, NH, DH]
    m: Tensor | None = None,  # [B, NH]
    eps: float = 1e-6,
    stabilize_rowwise: bool = True,
    chunk_size: int = 64,
) -> tuple[Tensor, ...]:
    """The recurrence, step by step.

    Returns:
        h [B, NH, S, DH] in q's dtype; the state after the last step C, n, m; and what a backward needs: the C and n
        before steps 0, chunk_size, 2 chunk_size, ... [B, NH, M, DH, DH] and [B, NH, M, DH], and n_t . q_t and m_t of
        every step, both [B, NH, S]. All but h are float32 (float64 for float64 inputs).
    """
    dtype = state_dtype(q.dtype)
    batch, heads, _, channels = q.shape
    keys = k.to(dtype) / math.sqrt(channels)
    log_forget = torch.nn.functional.logsigmoid(f.to(dtype))
    steps = zip(*(x.unbind(2) for x in (q.to(dtype), keys, v.to(dtype), i.to(dtype), log_forget)), strict=True)

    C = keys.new_zeros(batch, heads, channels, channels) if C is None else C.to(dtype)
    n = keys.new_zeros(batch, heads, channels) if n is None else n.to(dtype)
    m = keys.new_full((batch, heads), -torch.inf) if m is None else m.to(dtype)
    readings, sums, stabilizers, kept_C, kept_n = [], [], [], [], []
    for t, (q_t, k_t, v_t, i_t, log_f_t) in enumerate(steps):
        if t % chunk_size == 0:
            kept_C.append(C)
            kept_n.append(n)
        before, m = m, torch.maximum(log_f_t + m, i_t)
        forget = torch.exp(log_f_t + before - m)
        take = torch.exp(i_t - m)
        C = forget[..., None, None] * C + take[..., None, None] * v_t[..., :, None] * k_t[..., None, :]
        n = forget[..., None] * n + take[..., None] * k_t
        readings.append((C @ q_t[..., None]).squeeze(-1))
        sums.append((n * q_t).sum(-1))
        stabilizers.append(m)
    sum_t, m_t = torch.stack(sums, 2), torch.stack(stabilizers, 2)
    h = normalized(torch.stack(readings, 2), sum_t, m_t, eps, stabilize_rowwise)
    return h.to(q.dtype), C, n, m, torch.stack(kept_C, 2), torch.stack(kept_n, 2), sum_t, m_t


def normalized(readings: Tensor, sums: Tensor, m: Tensor, eps: float, stabilize_rowwise: bool) -> Tensor:
    """C_t q_t / (max(|n_t . q_t|, exp(-m_t)) + eps) for all t, with readings [B, NH, S, DH], sums and m [B, NH, S].

    Above and below are multiplied by exp(m_t - max(m_t, 0)): for m_t < 0 exp(-m_t) would overflow, and its gradient be
    NaN. Without `stabilize_rowwise`, as the official code has it, one stabiliser, the largest m of a head, serves all
    rows. All of it cancels, but for eps, which becomes eps exp(largest m - m_t).
    """
    at_least_0 = m.detach().clamp(min=0)  # a constant: that it cancels is true of gradients too
    scale = torch.exp(m - at_least_0)
    stabilizer = m if stabilize_rowwise else m.max(2, keepdim=True)[0]
    eps_t = eps * torch.exp((stabilizer - at_least_0).clamp(max=LARGEST_EXPONENT))
    divisor = torch.maximum(scale * sums.abs(), torch.exp(-at_least_0)) + eps_t
    return readings * (scale / divisor)[..., None]


def mlstm_parallel(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    eps: float = 1e-6,
    stabilize_rowwise: bool = True,
) -> Tensor:
    """The same from a zero state in the paper's parallel form: all S x S weights at once. h [B, NH, S, DH].

    log D[t, s] = sum of log sigmoid(f) over the steps s + 1 ... t, plus i_s, for s <= t.
    """
    length, channels = q.shape[2:]
    total = torch.nn.functional.logsigmoid(f).cumsum(2)
    causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    log_D = (total[..., :, None] - total[..., None, :] + i[..., None, :]).masked_fill(~causal, -torch.inf)
    m = log_D.max(3, keepdim=True)[0] if stabilize_rowwise else log_D.flatten(2).max(2)[0][..., None, None]
    weights = q @ k.transpose(2, 3) / math.sqrt(channels) * torch.exp(log_D - m)
    divisor = torch.maximum(weights.sum(3, keepdim=True).abs(), torch.exp(-m)) + eps
    return weights / divisor @ v


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
    results = mlstm_reference(q, k, v, i, f, C, n, m, eps, stabilize_rowwise, chunk_size)
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
    """The operator's backward (op.py tells the contract), by autograd through the loop."""
    loop = functools.partial(mlstm_reference, eps=eps, stabilize_rowwise=stabilize_rowwise, chunk_size=chunk_size)
    return gradients_by_autograd(loop, (q, k, v, i, f, C, n, m), grads)
