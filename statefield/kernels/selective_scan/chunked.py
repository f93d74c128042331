"""The selective scan in plain PyTorch, in about sqrt(L) steps instead of L: serves where no native library was built.

The sequence is cut into M chunks of CHUNK steps. Three loops, none longer than max(CHUNK, M):

    1. all chunks at once, step by step: the state that each chunk reaches from zero, and how far it decays one
    2. chunk by chunk: the state with which each really starts
    3. all chunks at once, step by step, from those starts: the outputs

The recurrence is only ever multiplied by exp(dt A), never divided, so it is as stable as the loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

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
    groups = next((weights.shape[2] for weights in (B, C) if weights.dim() == 4), 1)
    # Channels as [G, D / G], so that the weights of a group broadcast over its channels.
    A_gdn = A.reshape(groups, -1, states)
    # Padded steps have dt = 0: they decay nothing and add nothing, so the last state is not touched by them.
    dt_at, dtx_at = (_at_step(t.reshape(batch, length, groups, -1, 1), chunks) for t in (dt, dt * x))
    B_at, C_at = (_weights_at_step(weights.to(dtype), groups, chunks) for weights in (B, C))

    def advance(h: Tensor, t: int) -> Tensor:  # [B, M, G, D / G, N]
        return torch.addcmul(dtx_at(t) * B_at(t), torch.exp(dt_at(t) * A_gdn), h)

    reached = x.new_zeros(batch, chunks, *A_gdn.shape)
    for t in range(CHUNK if chunks > 1 else 0):
        reached = advance(reached, t)
    whole_dt = sum(dt_at(t) for t in range(CHUNK))
    decay = torch.exp(whole_dt * A_gdn)  # of a whole chunk
    start = x.new_zeros(batch, channels, states) if initial_state is None else initial_state.to(dtype)
    start = start.reshape(batch, *A_gdn.shape)
    starts = [start]
    for m in range(chunks - 1):
        start = torch.addcmul(reached[:, m], decay[:, m], start)
        starts.append(start)

    kept = h = torch.stack(starts, dim=1)  # [B, M, G, D / G, N]
    outputs = []
    for t in range(min(CHUNK, length)):
        h = advance(h, t)
        outputs.append((h * C_at(t)).sum(-1).flatten(2))
    for _ in range(len(outputs), CHUNK):  # a sequence shorter than a chunk
        outputs.append(torch.zeros_like(outputs[0]))
    y = torch.stack(outputs, dim=2).reshape(batch, chunks * CHUNK, channels)[:, :length]
    if D is not None:
        y = y + D.to(dtype) * x
    if z is not None:
        y = y * torch.nn.functional.silu(z.to(dtype))
    return y.to(u.dtype), h[:, -1].flatten(1, 2).contiguous(), kept.flatten(2, 3).transpose(2, 3).contiguous()


def _at_step(x: Tensor, chunks: int) -> Callable[[int], Tensor]:
    """t -> step t of every chunk, [B, M, ...], of x [B, L, ...] padded with zeros."""
    missing = chunks * CHUNK - x.shape[1]
    if missing:
        x = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1)
    steps = x.reshape(x.shape[0], chunks, CHUNK, *x.shape[2:]).unbind(2)
    return lambda t: steps[t]


def _weights_at_step(weights: Tensor, groups: int, chunks: int) -> Callable[[int], Tensor]:
    """t -> B or C of step t of every chunk, ready to be multiplied with [B, M, G, D / G, N]."""
    if weights.dim() == 4:
        return _at_step(weights.unsqueeze(3), chunks)
    constant = weights.reshape(groups, -1, weights.shape[1])
    return lambda t: constant


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
