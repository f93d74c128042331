"""`statefield::selective_scan` and `statefield::selective_scan_backward`.

The contract of an implementation module (reference.py, chunked.py, native.py, triton.py), all tensors channels-last:

    forward(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, keep_states) -> out, last, states
    backward(grad_out, grad_last, states, u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus)
        -> the nine gradients in the order u, delta, A, B, C, D, z, delta_bias, initial_state (None where the input is)

    u, delta, z [B, L, D], any strides     A [D, N]      D, delta_bias [D]      initial_state [B, D, N]
    B, C        [B, L, G, N] (channel d uses group d // (D / G)) or constant in time [D, N]
    out         [B, L, D] in u's dtype
    last        [B, D, N] the state after the last step, in the state dtype (float32; float64 where u is float64)
    states      [B, ceil(L / CHUNK), N, D] in the state dtype: the states before steps 0, CHUNK, 2 CHUNK, ... (the first
                is the initial state) if keep_states, else an empty tensor of shape [0]. They are all that the backward
                needs beside the inputs, and they mean the same in every implementation, so a backward may run in
                another implementation than its forward.
    grad_out    [B, L, D]                  grad_last [B, D, N] or None when nothing flows back through it

Gradients have their input's shape; op.py casts them to its dtype. L, D, N >= 1; an empty batch is answered here, before
an implementation is asked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statefield.errors import ConfigError
from statefield.kernels import _choice, _op
from statefield.kernels.selective_scan.reference import CHUNK

_HOME = "statefield.kernels.selective_scan"
OPERATOR = _choice.operator(
    "selective_scan",
    native=f"{_HOME}.native",
    triton=f"{_HOME}.triton",
    chunked=f"{_HOME}.chunked",
    reference=f"{_HOME}.reference",
)


def _forward(
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
    if u.shape[0] == 0:
        return _forward_fake(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, keep_states)
    run = OPERATOR.implementation(u.device.type).forward
    return run(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, keep_states)


def _forward_fake(
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
    batch, length, channels = u.shape
    dtype = _op.state_dtype(u.dtype)
    kept = (batch, (length + CHUNK - 1) // CHUNK, A.shape[1], channels) if keep_states else (0,)
    return (
        u.new_empty(batch, length, channels),
        u.new_empty(batch, channels, A.shape[1], dtype=dtype),
        u.new_empty(kept, dtype=dtype),
    )


def _backward(
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
) -> list[Tensor]:
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    if u.shape[0] == 0:
        return [u.new_empty(0) if t is None else torch.zeros_like(t).contiguous() for t in inputs]
    run = OPERATOR.implementation(u.device.type).backward
    grads = run(grad_out, grad_last, states, *inputs, delta_softplus)
    return [
        u.new_empty(0) if given is None else grad.to(given.dtype).contiguous()
        for given, grad in zip(inputs, grads, strict=True)
    ]


def _backward_fake(
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
) -> list[Tensor]:
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return [u.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs]


def _flops(u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any = None, z: Any = None, *rest: Any, **more: Any) -> int:
    """9 B L D N, and B L D each for D and for z: the convention of state-spaces/mamba."""
    batch, length, channels = u
    return batch * length * channels * (9 * A[1] + (D is not None) + (z is not None))


def _flops_backward(
    grad_out: Any, grad_last: Any, states: Any, u: Any, delta: Any, A: Any, *rest: Any, **m: Any
) -> int:
    """Counted as torch counts a backward: twice the forward; the states computed again add one more."""
    batch, length, channels = u
    return 3 * batch * length * channels * 9 * A[1]


selective_scan_op = _op.define("selective_scan", _forward, fake=_forward_fake, flops=_flops)
selective_scan_backward_op = _op.define(
    "selective_scan_backward", _backward, fake=_backward_fake, flops=_flops_backward, autocast=False
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.delta_softplus, ctx.keep_states = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad_out: Tensor | None, grad_last: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *inputs, states = ctx.saved_tensors
    if grad_out is None and grad_last is None:
        return (None,) * 11
    if grad_out is None:
        grad_out = torch.zeros_like(inputs[0])
    if not ctx.keep_states:  # the caller expected no backward: run the forward again for the states it did not keep
        states = selective_scan_op(*inputs, ctx.delta_softplus, True)[2]
    grads = selective_scan_backward_op(grad_out, grad_last, states, *inputs, ctx.delta_softplus)
    return (*(None if given is None else grad for given, grad in zip(inputs, grads, strict=True)), None, None)


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """A mapped dimension over u, delta, z, B, C, initial_state joins the batch; over parameters it is refused."""
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
    batched = {"u", "delta", "z", "initial_state"} | {
        name for name, arg, dim in zip("BC", args[3:5], in_dims[3:5], strict=True) if arg.dim() - (dim is not None) == 4
    }
    folded = list(args)
    for place, (name, arg, dim) in enumerate(zip(names, args, in_dims[:9], strict=False)):
        if arg is None:
            continue
        if name not in batched:
            if dim is not None:
                raise ConfigError(
                    f"torch.vmap over {name} of selective_scan: only u, delta, z, initial_state and time-varying B and "
                    f"C can be mapped. Call it in a loop over {name}, or put the copies side by side as channels."
                )
            continue
        moved = arg.unsqueeze(0).expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
        folded[place] = moved.reshape(-1, *moved.shape[2:])
    out, last, states = selective_scan_op(*folded)
    split = [t.reshape(info.batch_size, -1, *t.shape[1:]) for t in (out, last)]
    if args[10]:
        return (*split, states.reshape(info.batch_size, -1, *states.shape[1:])), (0, 0, 0)
    return (*split, states), (0, 0, None)


def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    raise ConfigError(
        "torch.vmap over the backward of selective_scan (per-sample gradients, batched vector-Jacobian products) is "
        "not there: take gradients outside vmap, or loop."
    )


_op.differentiate(selective_scan_op, setup_context=_setup_context, backward=_gradient, vmap=_vmap)
selective_scan_backward_op.register_vmap(_vmap_backward)
