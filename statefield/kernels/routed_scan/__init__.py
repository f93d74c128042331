"""Selective scans along several routes over an image or volume, in one operator: `routed_scan` is what people call.

The maths is in README.md of this folder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from statefield.errors import ShapeError
from statefield.kernels._checks import check_tensors
from statefield.kernels.routed_scan.op import routed_scan_op
from statefield.kernels.routed_scan.orders import order_of
from statefield.kernels.routed_scan.reference import routed_scan_reference

__all__ = ["routed_scan", "routed_scan_reference"]


def routed_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    routes: Sequence[str] | Tensor = ("raster", "raster~", "column", "column~"),
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    merge: bool = True,
) -> Tensor:
    """Scan a map along K routes, each with its own parameters, and add the results at the tokens' places.

    The same as gathering x into K sequences, `selective_scan` on each, scattering back and adding, without any of
    those copies: x, delta, B, C stay where they are, and the kernel walks their rows in the order of each route. A
    linear projection acts on each token alone, so project before the call, in the image's own order.

    Args:
        x: [b, *S, E], floating; S is (H, W), (D, H, W) or (L,). Or [b, *S, K, E]: each route has its own input (Vim's
            two directions have each their own convolution).
        delta: [b, *S, K, E], step sizes (before softplus, with delta_softplus).
        A: [K, E, N], N >= 1, real; negative for states that decay.
        B, C: [b, *S, K, N], or [b, *S, K, G, N] with G dividing E: channel e uses group e // (E / G).
        D: [K, E], the skip of each route.
        routes: K names of `statefield.kernels.routes` ("~" reverses), or int64 [K, T]: the raster index of the token
            that route k visits at step t, no token twice in a route. T < L leaves tokens out: they get zero from
            that route.
        delta_bias: [K, E], added to delta.
        delta_softplus: dt = softplus(delta + delta_bias) instead of delta + delta_bias.
        merge: add the routes up; otherwise return each by itself.

    Returns:
        y [b, *S, E] (merge) or [b, *S, K, E], in x's dtype, contiguous. Differentiable in every floating argument.
        Under torch.autocast floating inputs are cast to float32 and y is float32.

    Raises:
        ShapeError: a shape, dtype or device that does not fit the others; names the argument.
        UnknownName: no such route. ConfigError: orders that visit a token twice or leave the map.
        KernelUnavailable: an implementation forced by STATEFIELD_KERNELS or use_kernels cannot run here.

    Source: Liu et al., "VMamba", 2024, section 4.2 (cross-scan, cross-merge), for any routes.
    """
    _check(x, delta, A, B, C, D, delta_bias)
    spatial = tuple(delta.shape[1:-2])
    order = order_of(routes, spatial, x)
    if order.shape[0] != delta.shape[-2]:
        raise ShapeError(
            f"routed_scan: {order.shape[0]} routes are given, and delta {list(delta.shape)} is for {delta.shape[-2]}: "
            f"delta is [b, *S, K, E]."
        )
    tensors = (x, delta, A, B, C, D, delta_bias)
    keep_states = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, _ = routed_scan_op(*_by_token(*tensors), order, delta_softplus, merge, keep_states)
    return y.unflatten(1, spatial)


def _by_token(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The operator's tensors from the public function's: the spatial axes as one, B and C with an axis of groups."""
    last = delta.dim() - 3  # the last spatial axis
    B, C = (weights if weights.dim() == last + 4 else weights.unsqueeze(-2) for weights in (B, C))
    return x.flatten(1, last), delta.flatten(1, last), A, B.flatten(1, last), C.flatten(1, last), D, delta_bias


def _check(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> None:
    if delta.dim() < 4 or delta.dim() > 6:
        raise ShapeError(
            f"routed_scan: delta has shape {list(delta.shape)}, it has to be [b, *S, K, E] with one, two or three "
            f"spatial axes S."
        )
    batch, *spatial, routes, channels = delta.shape
    if any(size < 1 for size in (*spatial, routes, channels)):  # min() would bind a traced graph to the smallest
        raise ShapeError(f"routed_scan: delta {list(delta.shape)} has an empty axis: all but the batch are >= 1.")
    shared, own = [batch, *spatial, channels], [batch, *spatial, routes, channels]
    if list(x.shape) not in (shared, own):
        raise ShapeError(
            f"routed_scan: x has shape {list(x.shape)}, it has to be [b, *S, E] = {shared}, or [b, *S, K, E] = "
            f"{own} with an input for each route, as delta {list(delta.shape)} says."
        )
    if A.dim() != 3 or list(A.shape[:2]) != [routes, channels] or A.shape[2] < 1:
        raise ShapeError(
            f"routed_scan: A has shape {list(A.shape)}, it has to be [K, E, N] = [{routes}, {channels}, N], N >= 1."
        )
    states = A.shape[2]
    for name, weights in (("B", B), ("C", C)):
        plain = list(weights.shape) == [batch, *spatial, routes, states]
        groups = weights.shape[-2] if weights.dim() == delta.dim() + 1 else 0
        grouped = list(weights.shape) == [batch, *spatial, routes, groups, states]
        if not (plain or (grouped and groups >= 1 and channels % groups == 0)):
            raise ShapeError(
                f"routed_scan: {name} has shape {list(weights.shape)}, it has to be [b, *S, K, N] = "
                f"{[batch, *spatial, routes, states]}, or [b, *S, K, G, N] with G dividing E = {channels}."
            )
    if B.numel() != C.numel():
        raise ShapeError(
            f"routed_scan: B {list(B.shape)} and C {list(C.shape)} have different numbers of groups: they have to be "
            f"equal."
        )
    for name, tensor in (("D", D), ("delta_bias", delta_bias)):
        if tensor is not None and list(tensor.shape) != [routes, channels]:
            raise ShapeError(
                f"routed_scan: {name} has shape {list(tensor.shape)}, it has to be [K, E] = [{routes}, {channels}]."
            )
    check_tensors("routed_scan", x=x, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias)
