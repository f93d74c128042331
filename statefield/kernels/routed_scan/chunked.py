"""The routed scan in plain PyTorch, as others do it: cross-scan, one chunked scan of all routes, cross-merge.

The sequences of the K routes stand side by side as K E channels in K G groups. It serves where no native library was
built, and it is what the native kernel saves: copies of x, delta, B, C and y for every route.
"""

from __future__ import annotations

import functools

from torch import Tensor

from statefield.kernels._op import gradients_by_autograd, state_dtype
from statefield.kernels.selective_scan.chunked import selective_scan_chunked


def routed_scan_chunked(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    order: Tensor,
    delta_softplus: bool = False,
    merge: bool = True,
) -> tuple[Tensor, Tensor]:
    """As `routed_scan_reference`: y [b, L, E] or [b, L, K, E], kept states [b, K, ceil(T / CHUNK), N, E]."""
    dtype = state_dtype(x.dtype)
    batch, length, routes, channels = delta.shape
    x_wide = x.to(dtype) if x.dim() == 4 else x.to(dtype).unsqueeze(2).expand(-1, -1, routes, -1)
    sequences = [_along(order, tensor) for tensor in (x_wide, delta.to(dtype), B.to(dtype), C.to(dtype))]
    y, _, kept = selective_scan_chunked(
        sequences[0].flatten(2),
        sequences[1].flatten(2),
        A.flatten(0, 1),
        sequences[2].flatten(2, 3),
        sequences[3].flatten(2, 3),
        None if D is None else D.flatten(),
        delta_bias=None if delta_bias is None else delta_bias.flatten(),
        delta_softplus=delta_softplus,
    )
    y = y.unflatten(2, (routes, channels))
    placed = y.new_zeros(batch, length, routes, channels).scatter(1, _places(order, y), y)
    if merge:
        placed = placed.sum(dim=2)
    return placed.to(x.dtype), kept.unflatten(3, (routes, channels)).permute(0, 3, 1, 2, 4).contiguous()


def _places(order: Tensor, like: Tensor) -> Tensor:
    """`order` [K, T] as an index for gather and scatter along axis 1 of [b, T, K, ...]."""
    return (
        order.t().reshape(1, *order.t().shape, *[1] * (like.dim() - 3)).expand(like.shape[0], -1, -1, *like.shape[3:])
    )


def _along(order: Tensor, x: Tensor) -> Tensor:
    """[b, T, K, ...]: the rows of x [b, L, K, ...] in the order of each route."""
    return x.gather(1, _places(order, x))


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
    y, states = routed_scan_chunked(x, delta, A, B, C, D, delta_bias, order, delta_softplus, merge)
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
    """The operator's backward (op.py tells the contract), by autograd through the chunks."""
    scan = functools.partial(routed_scan_chunked, order=order, delta_softplus=delta_softplus, merge=merge)
    return gradients_by_autograd(scan, (x, delta, A, B, C, D, delta_bias), (grad_y,))
