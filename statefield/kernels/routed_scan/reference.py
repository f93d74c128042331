"""The definition of the routed scan: route by route, fetch, scan, put back, add. Gradients come from autograd.

    y[order_k[t]] += selective_scan(x[order_k], delta[order_k, k], A_k, B[order_k, k], C[order_k, k], D_k)[t]

Source: the cross-scan and cross-merge of Liu et al., "VMamba", 2024, section 4.2, for any routes; the scan itself is
the one of `selective_scan/reference.py`.
Shapes: b batch, L tokens, K routes, T steps of a route, E channels, N states a channel, G groups of channels.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from statefield.kernels._op import gradients_by_autograd, state_dtype
from statefield.kernels.selective_scan.reference import CHUNK, selective_scan_reference

__all__ = ["CHUNK", "routed_scan_reference"]


def routed_scan_reference(
    x: Tensor,  # [b, L, E], or [b, L, K, E] where each route has its own input
    delta: Tensor,  # [b, L, K, E]
    A: Tensor,  # [K, E, N]
    B: Tensor,  # [b, L, K, G, N]
    C: Tensor,  # [b, L, K, G, N]
    D: Tensor | None,  # [K, E]
    delta_bias: Tensor | None,  # [K, E]
    order: Tensor,  # int64 [K, T]: the token at each step
    delta_softplus: bool = False,
    merge: bool = True,
) -> tuple[Tensor, Tensor]:
    """The scans, one route after the other.

    Returns:
        y [b, L, E], the sum over the routes, or [b, L, K, E] unmerged, in x's dtype; zero where no route passes. The
        states before steps 0, CHUNK, 2 CHUNK, ... as [b, K, ceil(T / CHUNK), N, E], float32 (float64 for float64).
    """
    dtype = state_dtype(x.dtype)
    x_wide, delta, B, C = (tensor.to(dtype) for tensor in (x, delta, B, C))
    outputs, kept = [], []
    for k, tokens in enumerate(order):
        x_k = x_wide[:, :, k] if x.dim() == 4 else x_wide
        y_k, _, states = selective_scan_reference(
            x_k[:, tokens],
            delta[:, tokens, k],
            A[k],
            B[:, tokens, k],
            C[:, tokens, k],
            None if D is None else D[k],
            delta_bias=None if delta_bias is None else delta_bias[k],
            delta_softplus=delta_softplus,
        )
        outputs.append(torch.zeros_like(x_k).index_copy(1, tokens, y_k))
        kept.append(states)
    y = torch.stack(outputs, dim=2)
    if merge:
        y = y.sum(dim=2)
    return y.to(x.dtype), torch.stack(kept, dim=1)


def forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    order: Tensor,
    delta_softplus: bool,
    merge: bool,
    keep_states: bool,
) -> tuple[Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    y, states = routed_scan_reference(x, delta, A, B, C, D, delta_bias, order, delta_softplus, merge)
    return y, states if keep_states else states.new_empty(0)


def backward(
    grad_y: Tensor,
    states: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    order: Tensor,
    delta_softplus: bool,
    merge: bool,
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract), by autograd through the loop."""
    scan = functools.partial(routed_scan_reference, order=order, delta_softplus=delta_softplus, merge=merge)
    return gradients_by_autograd(scan, (x, delta, A, B, C, D, delta_bias), (grad_y,))
