"""The structure-aware scan composed of the two operators that it fuses: `selective_scan`, then `state_fusion`.

What runs on a GPU, on a CPU without the native library, and over volumes. The states pass through memory in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from statefield.kernels._op import gradients_by_autograd, state_dtype
from statefield.kernels.selective_scan import selective_scan
from statefield.kernels.state_fusion import state_fusion


def scan_states(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, delta_bias: Tensor | None, delta_softplus: bool
) -> Tensor:
    """All states of the raster scan, [B, *S, N, E], in the state dtype. Arguments as `structure_aware_scan`.

    `selective_scan` gives what C reads out; with C = 1 and every state a channel of its own, that is the states.
    """
    dtype = state_dtype(u.dtype)
    *grid, channels = u.shape  # B with S
    states = A.shape[1]

    def per_state(x: Tensor) -> Tensor:  # [B, *S, E] -> [B, L, N * E]
        tokens = x.to(dtype).flatten(1, -2)
        return tokens if states == 1 else tokens.repeat(1, 1, states)

    h = selective_scan(
        per_state(u),
        per_state(delta),
        A.T.reshape(-1, 1),
        B.flatten(1, -2).unsqueeze(3),  # [B, L, G = N, 1]: state n of every channel reads B_n
        torch.ones(states * channels, 1, dtype=dtype, device=u.device),  # u.new_ones would be mapped under vmap
        delta_bias=None if delta_bias is None else delta_bias.repeat(states),
        delta_softplus=delta_softplus,
        layout="bld",
    )
    return h.reshape(*grid, states, channels)


def composed(
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
) -> Tensor:
    """y [B, *S, E] in the state dtype, differentiable. Arguments as `structure_aware_scan`."""
    h = scan_states(u, delta, A, B, delta_bias, delta_softplus)
    return state_fusion(h, weight, alpha, C, D, u, dilations=dilations)


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
    keep_states: bool,
) -> tuple[Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    y = composed(u, delta, A, B, C, D, weight, alpha, delta_bias, delta_softplus, dilations)
    if not keep_states:
        return y, y.new_empty(0)
    after = scan_states(u, delta, A, B, delta_bias, delta_softplus)[:, :, -1]  # the states after each row
    return y, torch.cat((torch.zeros_like(after[:, :1]), after[:, :-1]), dim=1)


def backward(
    grad: Tensor,
    kept: Tensor,
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
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract): the composition is differentiated, `kept` is not needed."""
    options: tuple[Any, ...] = (delta_softplus, dilations)
    return gradients_by_autograd(
        lambda *inputs: (composed(*inputs, *options),), (u, delta, A, B, C, D, weight, alpha, delta_bias), (grad,)
    )
