"""`statefield::structure_aware_scan` and `statefield::structure_aware_scan_backward`: scan and fusion in one pass.

The contract of an implementation module (native.py, composed.py, reference.py):

    forward(u, delta, A, B, C, D, weight, alpha, delta_bias, delta_softplus, dilations, keep_states) -> y, kept
    backward(grad, kept, u, delta, A, B, C, D, weight, alpha, delta_bias, delta_softplus, dilations)
        -> the nine gradients in the order u, ..., delta_bias (None where the input is)

    u, delta [B, H, W, E]     A [E, N]     B, C [B, H, W, N]     D, delta_bias [E]     weight [K, E, 3, 3]     alpha [K]
    y, grad  [B, H, W, E]
    kept     [B, H, N, E] the states before each row if keep_states, else an empty tensor of shape [0]. With the inputs
             they are all that a backward needs, 1/W of all states, and they mean the same in every implementation.

All tensors come in one dtype, the state dtype of u (float32; float64 where u is float64), with any strides; results are
contiguous and in that dtype. op.py casts to it and back, y to u's dtype. An empty batch is answered here.

A GPU has no fused form: there, and wherever the native library is not chosen, `structure_aware_scan` calls the two
operators itself; this operator's `composed` form is for exported programs that move to such a device.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from statefield.errors import ConfigError
from statefield.kernels import _choice, _op
from statefield.kernels.state_fusion.op import distinct_taps

_HOME = "statefield.kernels.structure_aware_scan"
OPERATOR = _choice.operator(
    "structure_aware_scan",
    native=f"{_HOME}.native",
    chunked=f"{_HOME}.composed",
    reference=f"{_HOME}.reference",
)
_NAMES = ("u", "delta", "A", "B", "C", "D", "weight", "alpha", "delta_bias")


def _forward(
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
    dilations: list[int],
    keep_states: bool,
) -> tuple[Tensor, Tensor]:
    if u.shape[0] == 0:
        return _forward_fake(u, delta, A, B, C, D, weight, alpha, delta_bias, delta_softplus, dilations, keep_states)
    inputs = _in_state_dtype(u.dtype, u, delta, A, B, C, D, weight, alpha, delta_bias)
    y, kept = OPERATOR.implementation(u.device.type).forward(*inputs, delta_softplus, dilations, keep_states)
    return y.to(u.dtype), kept


def _forward_fake(
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
    dilations: list[int],
    keep_states: bool,
) -> tuple[Tensor, Tensor]:
    batch, height, _, channels = u.shape
    kept = (batch, height, A.shape[1], channels) if keep_states else (0,)
    return u.new_empty(u.shape), u.new_empty(kept, dtype=_op.state_dtype(u.dtype))


def _backward(
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
    dilations: list[int],
) -> list[Tensor]:
    inputs = (u, delta, A, B, C, D, weight, alpha, delta_bias)
    if u.shape[0] == 0:
        return [u.new_empty(0) if given is None else given.new_zeros(given.shape) for given in inputs]
    run = OPERATOR.implementation(u.device.type).backward
    grads = run(*_in_state_dtype(u.dtype, grad, kept, *inputs), delta_softplus, dilations)
    return [
        u.new_empty(0) if given is None else found.to(given.dtype).contiguous()
        for given, found in zip(inputs, grads, strict=True)
    ]


def _backward_fake(
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
    dilations: list[int],
) -> list[Tensor]:
    inputs = (u, delta, A, B, C, D, weight, alpha, delta_bias)
    return [u.new_empty(0) if given is None else given.new_empty(given.shape) for given in inputs]


def _in_state_dtype(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = _op.state_dtype(dtype)
    return tuple(t if t is None or t.dtype == wanted else t.to(wanted) for t in tensors)


def _flops(u: Any, delta: Any, A: Any, *rest: Any, **more: Any) -> int:
    """Those of the parts: 9 a state and pixel for the scan (the convention of state-spaces/mamba), and the fusion's."""
    dilations = rest[7]
    return prod(u) * A[1] * (9 + 2 * (distinct_taps(dilations) + 1)) + 2 * prod(u)


def _flops_backward(grad: Any, kept: Any, *inputs: Any, **more: Any) -> int:
    """Counted as torch counts a backward, twice the forward; states and fused states computed again add one more."""
    return 3 * _flops(*inputs)


structure_aware_scan_op = _op.define("structure_aware_scan", _forward, fake=_forward_fake, flops=_flops)
structure_aware_scan_backward_op = _op.define(
    "structure_aware_scan_backward", _backward, fake=_backward_fake, flops=_flops_backward, autocast=False
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus, ctx.dilations, ctx.keep_states = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *inputs, kept = ctx.saved_tensors
    if not ctx.keep_states:  # the caller expected no backward: run the forward again for the states it did not keep
        kept = structure_aware_scan_op(*inputs, ctx.delta_softplus, ctx.dilations, True)[1]
    grads = structure_aware_scan_backward_op(grad, kept, *inputs, ctx.delta_softplus, ctx.dilations)
    return (*(None if given is None else found for given, found in zip(inputs, grads, strict=True)), None, None, None)


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """A mapped dimension of u, delta, B or C joins the batch; over the parameters it is refused."""
    folded = list(args)
    for place, (name, arg, dim) in enumerate(zip(_NAMES, args, in_dims, strict=False)):
        if arg is None:
            continue
        if name not in ("u", "delta", "B", "C"):
            if dim is not None:
                raise ConfigError(
                    f"torch.vmap over {name} of structure_aware_scan: only u, delta, B and C can be mapped. Call it in "
                    f"a loop over {name}, or put the copies side by side as channels."
                )
            continue
        moved = arg.unsqueeze(0).expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
        folded[place] = moved.reshape(-1, *moved.shape[2:])
    y, kept = structure_aware_scan_op(*folded)
    split = y.reshape(info.batch_size, -1, *y.shape[1:])
    if args[-1]:
        return (split, kept.reshape(info.batch_size, -1, *kept.shape[1:])), (0, 0)
    return (split, kept), (0, None)


def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    raise ConfigError(
        "torch.vmap over the backward of structure_aware_scan (per-sample gradients, batched vector-Jacobian products) "
        "is not there: take gradients outside vmap, or loop."
    )


_op.differentiate(structure_aware_scan_op, setup_context=_setup_context, backward=_gradient, vmap=_vmap)
structure_aware_scan_backward_op.register_vmap(_vmap_backward)
