"""The selective scan in plain PyTorch, in about sqrt(L) steps instead of L: serves where no native library was built.

The sequence is cut into M chunks of CHUNK steps. Three loops, none longer than max(CHUNK, M):

    1. all chunks at once, step by step: the state that each chunk reaches from zero, and how far it decays one
    2. chunk by chunk: the state with which each really starts
    3. all chunks at once, step by step, from those starts: the outputs

The recurrence is only ever multiplied by exp(dt A), never divided, so it is as stable as the loop.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from statefield.kernels._op import gradients_by_autograd, state_dtype
from statefield.kernels.selective_scan.reference import CHUNK, softplus


def selective_scan_chunked(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    initial_state: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `selective_scan_reference`: out [B, L, D], last state [B, D, N], kept states [B, ceil(L / CHUNK), N, D]."""
    dtype = state_dtype(u.dtype)
    batch, length, channels = u.shape
    states = A.shape[1]
    x, A = u.to(dtype), A.to(dtype)
    dt = delta.to(dtype) if delta_bias is None else delta.to(dtype) + delta_bias.to(dtype)
    if delta_softplus:
        dt = softplus(dt)
    chunks = -(-length // CHUNK)
    # Padded steps have dt = 0: they decay nothing and add nothing, so the last state is not touched by them.
    dt_bmtd, dtx_bmtd = (_in_chunks(t, chunks) for t in (dt, dt * x))
    B_at, C_at = (_at_step(weights.to(dtype), chunks, channels) for weights in (B, C))

    def advance(h: Tensor, t: int) -> Tensor:  # [B, M, D, N]
        decay = torch.exp(dt_bmtd[:, :, t, :, None] * A)
        return decay * h + dtx_bmtd[:, :, t, :, None] * B_at(t)

    reached = x.new_zeros(batch, chunks, channels, states)
    for t in range(CHUNK if chunks > 1 else 0):
        reached = advance(reached, t)
    decay = torch.exp(dt_bmtd.sum(2)[..., None] * A)  # of a whole chunk
    start = x.new_zeros(batch, channels, states) if initial_state is None else initial_state.to(dtype)
    starts = [start]
    for m in range(chunks - 1):
        start = decay[:, m] * start + reached[:, m]
        starts.append(start)

    kept = h = torch.stack(starts, dim=1)  # [B, M, D, N]
    outputs = []
    for t in range(min(CHUNK, length)):
        h = advance(h, t)
        outputs.append((h * C_at(t)).sum(-1))
    for _ in range(len(outputs), CHUNK):  # a sequence shorter than a chunk
        outputs.append(torch.zeros_like(outputs[0]))
    y = torch.stack(outputs, dim=2).reshape(batch, chunks * CHUNK, channels)[:, :length]
    if D is not None:
        y = y + D.to(dtype) * x
    if z is not None:
        y = y * torch.nn.functional.silu(z.to(dtype))
    return y.to(u.dtype), h[:, -1].contiguous(), kept.transpose(2, 3).contiguous()


def _in_chunks(x: Tensor, chunks: int) -> Tensor:
    """[B, L, ...] -> [B, M, CHUNK, ...], padded with zeros."""
    missing = chunks * CHUNK - x.shape[1]
    if missing:
        x = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1)
    return x.reshape(x.shape[0], chunks, CHUNK, *x.shape[2:])


def _at_step(weights: Tensor, chunks: int, channels: int):  # type: ignore[no-untyped-def]
    """t -> the weights of step t of every chunk, [B, M, D, N], or [D, N] where constant in time."""
    if weights.dim() == 2:
        return lambda t: weights
    share = channels // weights.shape[2]
    weights_bmtgn = _in_chunks(weights, chunks)
    return lambda t: weights_bmtgn[:, :, t].repeat_interleave(share, dim=2)


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
    out, last, kept = selective_scan_chunked(
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
    """The operator's backward (op.py tells the contract), by autograd through the chunks."""
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    scan = functools.partial(selective_scan_chunked, delta_softplus=delta_softplus)
    return gradients_by_autograd(scan, inputs, (grad_out, grad_last))
