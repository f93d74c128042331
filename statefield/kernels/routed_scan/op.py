"""`statefield::routed_scan` and `statefield::routed_scan_backward`.

The contract of an implementation module (reference.py, chunked.py, native.py, triton.py), all tensors channels-last and
at the token's place in the image, never in the order of a route:

    forward(x, delta, A, B, C, D, delta_bias, order, delta_softplus, merge, keep_states) -> y, states
    backward(grad_y, states, x, delta, A, B, C, D, delta_bias, order, delta_softplus, merge)
        -> the seven gradients in the order x, delta, A, B, C, D, delta_bias (None where the input is)

    x           [b, L, E] shared by the routes, or [b, L, K, E] with an input for each; any strides
    delta       [b, L, K, E], any strides
    A           [K, E, N]                  D, delta_bias [K, E] or None
    B, C        [b, L, K, G, N], any strides; channel e uses group e // (E / G)
    order       int64 [K, T], contiguous, 1 <= T <= L: the token that route k visits at step t. No token twice in a
                route. With T < L some tokens are not visited: they get nothing from that route and give it nothing.
    y, grad_y   merge: [b, L, E], the sum over the routes (in the order of k); otherwise [b, L, K, E]. In x's dtype.
                Zero where no route passes. grad_y may have any strides.
    states      [b, K, ceil(T / CHUNK), N, E] in the state dtype (float32; float64 where x is float64): the states
                before steps 0, CHUNK, 2 CHUNK, ... of each route (the first is zero) if keep_states, else an empty
                tensor of shape [0]. They are all that the backward needs beside the inputs, and they mean the same in
                every implementation, so a backward may run in another implementation than its forward.

Gradients have their input's shape (zero at tokens that are not visited); op.py casts them to its dtype. L, E, N, K
>= 1; an empty batch is answered here, before an implementation is asked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statefield.errors import ConfigError
from statefield.kernels import _choice, _op
from statefield.kernels.routed_scan.reference import CHUNK

_HOME = "statefield.kernels.routed_scan"
OPERATOR = _choice.operator(
    "routed_scan",
    native=f"{_HOME}.native",
    triton=f"{_HOME}.triton",
    chunked=f"{_HOME}.chunked",
    reference=f"{_HOME}.reference",
)


def _forward(
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
    if x.shape[0] == 0:
        return _forward_fake(x, delta, A, B, C, D, delta_bias, order, delta_softplus, merge, keep_states)
    run = OPERATOR.implementation(x.device.type).forward
    return run(x, delta, A, B, C, D, delta_bias, order, delta_softplus, merge, keep_states)


def _forward_fake(
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
    batch, length, routes, channels = delta.shape
    y = (batch, length, channels) if merge else (batch, length, routes, channels)
    chunks = (order.shape[1] + CHUNK - 1) // CHUNK
    kept = (batch, routes, chunks, A.shape[2], channels) if keep_states else (0,)
    return x.new_empty(y), x.new_empty(kept, dtype=_op.state_dtype(x.dtype))


def _backward(
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
) -> list[Tensor]:
    inputs = (x, delta, A, B, C, D, delta_bias)
    if x.shape[0] == 0:
        return [x.new_empty(0) if t is None else torch.zeros_like(t).contiguous() for t in inputs]
    run = OPERATOR.implementation(x.device.type).backward
    grads = run(grad_y, states, *inputs, order, delta_softplus, merge)
    return [
        x.new_empty(0) if given is None else grad.to(given.dtype).contiguous()
        for given, grad in zip(inputs, grads, strict=True)
    ]


def _backward_fake(
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
) -> list[Tensor]:
    inputs = (x, delta, A, B, C, D, delta_bias)
    return [x.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs]


def _flops(
    x: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, delta_bias: Any, order: Any, *rest: Any, **more: Any
) -> int:
    """9 b T K E N, and b T K E for D: the convention of state-spaces/mamba for each route."""
    routes, channels, states = A
    return x[0] * order[1] * routes * channels * (9 * states + (D is not None))


def _flops_backward(
    grad_y: Any,
    states: Any,
    x: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any,
    bias: Any,
    order: Any,
    *r: Any,
    **m: Any,
) -> int:
    """Counted as torch counts a backward: twice the forward; the states computed again add one more."""
    routes, channels, num_states = A
    return 3 * x[0] * order[1] * routes * channels * 9 * num_states


routed_scan_op = _op.define("routed_scan", _forward, fake=_forward_fake, flops=_flops)
routed_scan_backward_op = _op.define(
    "routed_scan_backward", _backward, fake=_backward_fake, flops=_flops_backward, autocast=False
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.delta_softplus, ctx.merge, ctx.keep_states = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad_y: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *inputs, order, states = ctx.saved_tensors
    if grad_y is None:
        return (None,) * 11
    if not ctx.keep_states:  # the caller expected no backward: run the forward again for the states it did not keep
        states = routed_scan_op(*inputs, order, ctx.delta_softplus, ctx.merge, True)[1]
    grads = routed_scan_backward_op(grad_y, states, *inputs, order, ctx.delta_softplus, ctx.merge)
    return (*(None if given is None else grad for given, grad in zip(inputs, grads, strict=True)), *(None,) * 4)


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """A mapped dimension over x, delta, B, C joins the batch; over parameters and orders it is refused."""
    names = ("x", "delta", "A", "B", "C", "D", "delta_bias", "order")
    folded = list(args)
    for place, (name, arg, dim) in enumerate(zip(names, args, in_dims, strict=False)):
        if arg is None:
            continue
        if name not in ("x", "delta", "B", "C"):
            if dim is not None:
                raise ConfigError(
                    f"torch.vmap over {name} of routed_scan: only x, delta, B and C can be mapped. Call it in a loop "
                    f"over {name}."
                )
            continue
        moved = arg.unsqueeze(0).expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
        folded[place] = moved.reshape(-1, *moved.shape[2:])
    y, states = routed_scan_op(*folded)
    y = y.reshape(info.batch_size, -1, *y.shape[1:])
    if args[10]:
        return (y, states.reshape(info.batch_size, -1, *states.shape[1:])), (0, 0)
    return (y, states), (0, None)


def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    raise ConfigError(
        "torch.vmap over the backward of routed_scan (per-sample gradients, batched vector-Jacobian products) is not "
        "there: take gradients outside vmap, or loop."
    )


_op.differentiate(routed_scan_op, setup_context=_setup_context, backward=_gradient, vmap=_vmap)
routed_scan_backward_op.register_vmap(_vmap_backward)
