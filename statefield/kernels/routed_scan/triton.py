"""The routed scan on GPUs: how a problem is laid onto the machine. triton_kernels.py has the kernels, README.md the
maths, op.py the contract.

K routes are K times the channels of one selective scan, so tiles, blocks of channels and segments of time are planned
by the same `plan`. What is new is where routes meet, in y and in the gradient of a shared x:

- Where batch x channels alone fill the GPU, a program walks its routes one after the other and adds in place. Nothing
  of size [b, L, K, E] exists beside the inputs.
- Otherwise every route has programs of its own, and segments of time too if that is still too few. They write partial
  results [b, L, K, E], which are then added in the order of the routes.

Either way the order of additions is fixed, and two runs give equal bits. Both add in the state dtype and round once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from statefield.kernels._op import state_dtype
from statefield.kernels.routed_scan.reference import CHUNK
from statefield.kernels.routed_scan.triton_kernels import (
    routed_backward_kernel,
    routed_forward_kernel,
    routed_segment_kernel,
)
from statefield.kernels.selective_scan.triton import Plan, _dense, _on, _strides, multiprocessors, plan
from statefield.kernels.selective_scan.triton_kernels import chain_kernel

# Warps a multiprocessor that are enough to leave routes to one program: two for each of its four schedulers, one to
# compute while the other waits for its rows.
ENOUGH_WARPS = 8


@dataclass(frozen=True)
class Layout:
    """How one problem is laid onto the GPU: the plan of a scan, and who walks the routes."""

    plan: Plan
    length: int  # tokens
    routes: int
    groups: int  # of one route
    looped: bool  # a program walks all routes

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that every kernel takes, in their order; the forward and the backward take `length` before."""
        laid = self.plan
        return (self.routes, laid.length, laid.segment_length, self.groups, laid.group_channels, laid.num_states)

    @property
    def meeting(self) -> dict[str, int]:
        """How the kernels that write where routes meet are to go about it."""
        return {
            "LOOPED": self.looped,
            "ROUTES": self.routes if self.looped else 1,
            "ALL_VISITED": self.plan.length == self.length,
        }


def layout(delta: Tensor, A: Tensor, B: Tensor, order: Tensor, *, meet: bool, backwards: bool) -> Layout:
    """Lay a scan of delta [b, L, K, E] out. meet: the routes' results are added at the tokens."""
    batch, length, routes, channels = delta.shape
    groups, sms = B.shape[3], multiprocessors(delta.device)
    itemsize = state_dtype(delta.dtype).itemsize

    def planned(groups: int) -> Plan:
        sizes = (batch, order.shape[1], groups, channels // B.shape[3], A.shape[2])
        return plan(*sizes, itemsize=itemsize, backwards=backwards, sms=sms)

    laid = planned(groups)
    looped = meet and routes > 1 and laid.grid[0] * laid.num_warps >= ENOUGH_WARPS * sms
    return Layout(laid if looped else planned(routes * groups), length, routes, groups, looped)


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
    dtype = state_dtype(x.dtype)
    laid = layout(delta, A, B, order, meet=merge, backwards=False)
    batch, length, routes, channels = delta.shape
    x, delta, B, C = (_with_dense_rows(t) for t in (x, delta, B, C))
    A, D, delta_bias = _dense(A), _dense(D), _dense(delta_bias)
    y = _meeting_place(x, laid, meet=merge, dtype=dtype, shape=delta.shape)
    kept = (batch, routes, -(-order.shape[1] // CHUNK), A.shape[2], channels) if keep_states else (0,)
    states = x.new_empty(kept, dtype=dtype)
    with _on(x.device):
        start = None
        if laid.plan.segments > 1:
            start = _enter_segments(
                laid, dtype, x, delta, A, B, delta_bias, order, None, delta_softplus, backwards=False
            )
        routed_forward_kernel[laid.plan.grid](
            x, delta, A, B, C, D, delta_bias, order, start, y, states if keep_states else None,
            length, *laid.sizes, *_by_route(x), *_by_route(delta), *B.stride()[:4], *C.stride()[:4], *_by_route(y)[1:],
            *_strides(start, 4),
            SOFTPLUS=delta_softplus, TILE=laid.plan.tile, CHUNK=CHUNK, **laid.meeting, **laid.plan.options(dtype),
        )  # fmt: skip
    return _met(y, x.dtype, meet=merge), states


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
    """The operator's backward (op.py tells the contract)."""
    dtype = state_dtype(x.dtype)
    laid = layout(delta, A, B, order, meet=x.dim() == 3, backwards=True)
    batch, length, routes, channels = delta.shape
    x, delta, B, C, grad_y = (_with_dense_rows(t) for t in (x, delta, B, C, grad_y))
    A, D, delta_bias, states = _dense(A), _dense(D), _dense(delta_bias), _dense(states)
    fresh = torch.empty if laid.meeting["ALL_VISITED"] else torch.zeros  # tokens that no route visits get zero
    grad_x = _meeting_place(x, laid, meet=x.dim() == 3, dtype=dtype, shape=delta.shape)
    grad_delta = fresh(delta.shape, dtype=delta.dtype, device=x.device)

    num_states, grid = A.shape[2], laid.plan.grid
    partial_A = x.new_empty(batch, laid.plan.segments, routes, num_states, channels, dtype=dtype)
    partial_D, partial_bias = x.new_empty(2, batch, laid.plan.segments, routes, channels, dtype=dtype)
    # Sums over the channels of a program:
    partial_B, partial_C = fresh(2, laid.plan.blocks, *B.shape, dtype=dtype, device=x.device)
    scratch = x.new_empty(grid[0] * grid[1], CHUNK // laid.plan.tile, laid.plan.states, laid.plan.channels, dtype=dtype)
    with _on(x.device):
        entering = None
        if laid.plan.segments > 1:
            entering = _enter_segments(
                laid, dtype, None, delta, A, C, delta_bias, order, grad_y, delta_softplus, backwards=True
            )
        routed_backward_kernel[grid](
            x, delta, A, B, C, D, delta_bias, order, states, grad_y, entering, scratch,
            grad_x, grad_delta, partial_A, partial_B, partial_C, partial_D, partial_bias,
            batch, length, *laid.sizes, *_by_route(x), *_by_route(delta), *B.stride()[:4], *C.stride()[:4],
            *_by_route(grad_y), *_by_route(grad_x)[1:], *_strides(entering, 4),
            SOFTPLUS=delta_softplus, TILE=laid.plan.tile, CHUNK=CHUNK, **laid.meeting, **laid.plan.options(dtype),
        )  # fmt: skip
    grad_D = None if D is None else partial_D.sum((0, 1))
    grad_bias = None if delta_bias is None else partial_bias.sum((0, 1))
    grad_A = partial_A.sum((0, 1)).transpose(1, 2)
    grad_x = _met(grad_x, x.dtype, meet=x.dim() == 3)
    return grad_x, grad_delta, grad_A, partial_B.sum(0), partial_C.sum(0), grad_D, grad_bias


def _meeting_place(x: Tensor, laid: Layout, *, meet: bool, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """Memory for y or for the gradient of x: [b, L, E] where programs add up routes, otherwise [b, L, K, E].

    Args:
        meet: routes are added. Then this holds sums or addends in the state dtype, else results in x's.
        shape: of delta, [b, L, K, E].
    """
    batch, length, routes, channels = shape
    size = (batch, length, channels) if laid.looped else (batch, length, routes, channels)
    fresh = torch.empty if laid.meeting["ALL_VISITED"] else torch.zeros
    return fresh(size, dtype=dtype if meet and routes > 1 else x.dtype, device=x.device)


def _met(results: Tensor, dtype: torch.dtype, *, meet: bool) -> Tensor:
    """What was written to a meeting place, with the routes added up if they are to meet."""
    if meet and results.dim() == 4:
        results = results.squeeze(2) if results.shape[2] == 1 else results.sum(2)
    return results.to(dtype)


def _enter_segments(
    laid: Layout,
    dtype: torch.dtype,
    x: Tensor | None,
    delta: Tensor,
    A: Tensor,
    weights: Tensor,
    delta_bias: Tensor | None,
    order: Tensor,
    grad_y: Tensor | None,
    delta_softplus: bool,
    *,
    backwards: bool,
) -> Tensor:
    """What enters each segment [b, S, K E, N]: the state before it, or backwards the gradient of the state after it.

    Args:
        weights: B, or backwards C.
    """
    batch, _length, routes, channels = delta.shape
    scan = laid.plan
    entering = delta.new_empty(batch, scan.segments, scan.num_states, routes * channels, dtype=dtype)
    total_dt = delta.new_empty(batch, scan.segments, routes * channels, dtype=dtype)
    routed_segment_kernel[scan.grid](
        x, delta, A, weights, delta_bias, order, grad_y, entering, total_dt,
        *laid.sizes, *_by_route(x), *_by_route(delta), *weights.stride()[:4], *_by_route(grad_y),
        SOFTPLUS=delta_softplus, BACKWARDS=backwards, TILE=scan.tile, **scan.options(dtype),
    )  # fmt: skip
    chain_kernel[scan.grid[:1]](
        A, None, entering, total_dt, scan.segments, *scan.sizes[2:], *_strides(None, 3),
        BACKWARDS=backwards, **scan.options(dtype),
    )  # fmt: skip
    return entering.transpose(2, 3)


def _with_dense_rows(tensor: Tensor) -> Tensor:
    """The kernels read along the last axis; the others may have any strides."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _by_route(tensor: Tensor | None) -> tuple[int, int, int]:
    """The strides of batch, token and route of [b, L, K, E]; routes share the rows of [b, L, E]."""
    if tensor is None:
        return 0, 0, 0
    return tensor.stride(0), tensor.stride(1), tensor.stride(2) if tensor.dim() == 4 else 0
