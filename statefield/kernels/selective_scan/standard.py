"""The selective scan in standard operations, for files that run without statefield (see `kernels/_standard.py`).

States are laid out [B, M, Q, G, N, D / G]: channels last, so that every product runs along them. A step of all chunks
is [B, M, 1, G, N, D / G].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from statefield.kernels._op import state_dtype
from statefield.kernels._standard import in_chunks, recurrence, steps_of


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
    keep_states: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's forward (op.py tells the contract); no states are kept, as nothing is differentiated."""
    dtype = state_dtype(u.dtype)
    batch, length, channels = u.shape
    states = A.shape[1]
    x = u.to(dtype)
    steps = steps_of(length)
    groups = next((weights.shape[2] for weights in (B, C) if weights.dim() == 4), 1)
    dt = step_sizes(delta.to(dtype), delta_bias, delta_softplus)
    # Steps that fill the last chunk up have dt = 0: they decay nothing and add nothing.
    dt_c = in_chunks(dt, steps).unflatten(3, (groups, 1, -1))  # [B, M, Q, G, 1, D / G]
    dtx_at = in_chunks(dt * x, steps).unflatten(3, (groups, 1, -1)).split(1, dim=2)
    A_gnd = _by_group(A.to(dtype), groups)
    B_at, C_at = (_at_step(weights.to(dtype), groups, steps, last) for weights, last in ((B, 5), (C, 4)))

    decays = [torch.exp(dt_t * A_gnd) for dt_t in dt_c.split(1, dim=2)]  # [B, M, 1, G, N, D / G]
    added = [dtx_t * B_at(t) for t, dtx_t in enumerate(dtx_at)]
    whole = torch.exp(dt_c.sum(2, keepdim=True) * A_gnd)
    start = None if initial_state is None else _by_group_of_batch(initial_state.to(dtype), groups)
    outputs, h = [], added[0]
    for t, h in enumerate(recurrence(decays, added, whole, start)):
        outputs.append(_read(C_at(t), h))  # [B, M, 1, G, 1, D / G]
    y = torch.cat(outputs, dim=2).flatten(3).flatten(1, 2)[:, :length]
    if D is not None:
        y = y + D.to(dtype) * x
    if z is not None:
        y = y * functional.silu(z.to(dtype))
    last = h[:, -1, 0].transpose(2, 3).reshape(batch, channels, states)
    return y.to(u.dtype), last, last.new_zeros(0)


def step_sizes(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """softplus(delta + delta_bias), or their sum. One operation, where `reference.softplus` needs log1p, which ONNX
    lacks: log(1 + x) would lose the digits of small steps."""
    if delta_bias is not None:
        delta = delta + delta_bias.to(delta.dtype)
    return functional.softplus(delta) if delta_softplus else delta


def _by_group(weights: Tensor, groups: int) -> Tensor:
    """[D, N] as [G, N, D / G]."""
    return weights.unflatten(0, (groups, -1)).transpose(1, 2)


def _by_group_of_batch(state: Tensor, groups: int) -> Tensor:
    """[B, D, N] as [B, G, N, D / G]."""
    return state.unflatten(1, (groups, -1)).transpose(2, 3)


def _at_step(weights: Tensor, groups: int, steps: int, axis: int) -> Callable[[int], Tensor]:
    """t -> B or C of step t of every chunk, [B, M, 1, G, N] with an axis of one, or [G, N, D / G] constant in time."""
    if weights.dim() == 2:
        constant = _by_group(weights, groups)
        return lambda t: constant
    by_step = in_chunks(weights, steps).unsqueeze(axis).split(1, dim=2)
    return lambda t: by_step[t]


def _read(C: Tensor, h: Tensor) -> Tensor:
    """The sum over N of C times h, [B, M, 1, G, 1, D / G]; a product of matrices where C has no channels."""
    if C.dim() == 3:
        return (C * h).sum(-2, keepdim=True)
    return torch.matmul(C, h)
