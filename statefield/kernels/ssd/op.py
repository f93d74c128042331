"""`statefield::ssd` and `statefield::ssd_backward`.

The contract of an implementation module (reference.py, chunked.py, native.py, triton.py):

    forward(x, dt, A, B, C, D, z, dt_bias, initial_state, dt_softplus, dt_min, dt_max, chunk, keep_states)
        -> y, last, states
    backward(grad_y, grad_last, states, x, dt, A, B, C, D, z, dt_bias, initial_state, dt_softplus, dt_min, dt_max,
        chunk) -> the nine gradients in the order x, dt, A, B, C, D, z, dt_bias, initial_state (None where the input is)

    x, z     [b, L, h, p], any strides     dt   [b, L, h]          A, dt_bias [h]      D [h, p]
    B, C     [b, L, g, n] (head j uses group j // (h / g))         initial_state [b, h, p, n]
    y        [b, L, h, p] in x's dtype
    last     [b, h, p, n] the state after the last step, in the state dtype (float32; float64 where x is float64)
    states   [b, ceil(L / chunk), h, n, p] in the state dtype: the states before steps 0, chunk, 2 chunk, ... (the first
             is the initial state) if keep_states, else an empty tensor of shape [0]. They are all that the backward
             needs beside the inputs, and they mean the same in every implementation, so a backward may run in another
             implementation than its forward. n stands before p: so they are what products over n take.
    grad_y   [b, L, h, p]                  grad_last [b, h, p, n] or None when nothing flows back through it

Gradients have their input's shape; here they are cast to its dtype. L, h, p, n >= 1; an empty batch is answered here,
before an implementation is asked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statefield.errors import ConfigError
from statefield.kernels import _choice, _op

_HOME = "statefield.kernels.ssd"
OPERATOR = _choice.operator(
    "ssd",
    native=f"{_HOME}.native",
    triton=f"{_HOME}.triton",
    chunked=f"{_HOME}.chunked",
    reference=f"{_HOME}.reference",
)
_TENSORS = 9  # x, dt, A, B, C, D, z, dt_bias, initial_state come first among the operator's arguments


def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    chunk: int,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    given = (x, dt, A, B, C, D, z, dt_bias, initial_state, dt_softplus, dt_min, dt_max, chunk, keep_states)
    if x.shape[0] == 0:
        return _forward_fake(*given)
    return OPERATOR.implementation(x.device.type).forward(*given)


def _forward_fake(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    chunk: int,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, channels = x.shape
    states = B.shape[3]
    dtype = _op.state_dtype(x.dtype)
    kept = (batch, (length + chunk - 1) // chunk, heads, states, channels) if keep_states else (0,)
    return (
        x.new_empty(x.shape),
        x.new_empty(batch, heads, channels, states, dtype=dtype),
        x.new_empty(kept, dtype=dtype),
    )


def _backward(
    grad_y: Tensor,
    grad_last: Tensor | None,
    states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    chunk: int,
) -> list[Tensor]:
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    if x.shape[0] == 0:
        return [x.new_empty(0) if t is None else torch.zeros_like(t).contiguous() for t in inputs]
    run = OPERATOR.implementation(x.device.type).backward
    grads = run(grad_y, grad_last, states, *inputs, dt_softplus, dt_min, dt_max, chunk)
    return [
        x.new_empty(0) if given is None else grad.to(given.dtype).contiguous()
        for given, grad in zip(inputs, grads, strict=True)
    ]


def _backward_fake(
    grad_y: Tensor,
    grad_last: Tensor | None,
    states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    chunk: int,
) -> list[Tensor]:
    inputs = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    return [x.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs]


def matrix_product_flops(x: Any, B: Any, chunk: int) -> int:
    """Floating point operations of the products that a forward contains, as whole matrices: for each chunk of Q steps
    C B^T (Q Q n, once a group), scores times x (Q Q p), B^T x and C H (n Q p each), two operations a multiply-add."""
    batch, length, heads, channels = x
    groups, states = B[2], B[3]
    steps = batch * -(-length // chunk) * chunk
    return 2 * steps * (chunk * states * groups + heads * channels * (chunk + 2 * states))


def _flops(x: Any, dt: Any, A: Any, B: Any, C: Any, *rest: Any, **more: Any) -> int:
    """The matrix products; the decays and scalings between them are left out, as torch leaves out activations."""
    chunk = more["chunk"] if "chunk" in more else rest[7]
    return matrix_product_flops(x, B, chunk)


def _flops_backward(
    grad_y: Any, grad_last: Any, states: Any, x: Any, dt: Any, A: Any, B: Any, *rest: Any, **more: Any
) -> int:
    """Counted as torch counts a backward: two products for every one of the forward."""
    chunk = more["chunk"] if "chunk" in more else rest[8]
    return 2 * matrix_product_flops(x, B, chunk)


ssd_op = _op.define("ssd", _forward, fake=_forward_fake, flops=_flops)
ssd_backward_op = _op.define("ssd_backward", _backward, fake=_backward_fake, flops=_flops_backward, autocast=False)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, (*ctx.options, ctx.keep_states) = inputs[:_TENSORS], inputs[_TENSORS:]
    ctx.save_for_backward(*tensors, output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *inputs, states = ctx.saved_tensors
    no_options = (None,) * (len(ctx.options) + 1)
    if grad_y is None and grad_last is None:
        return (None,) * _TENSORS + no_options
    if grad_y is None:
        grad_y = torch.zeros_like(inputs[0])
    if not ctx.keep_states:  # the caller expected no backward: run the forward again for the states it did not keep
        states = ssd_op(*inputs, *ctx.options, True)[2]
    grads = ssd_backward_op(grad_y, grad_last, states, *inputs, *ctx.options)
    return (*(None if given is None else grad for given, grad in zip(inputs, grads, strict=True)), *no_options)


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """A mapped dimension over x, dt, B, C, z, initial_state joins the batch; over parameters it is refused."""
    names = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
    folded = list(args)
    for place, (name, arg, dim) in enumerate(zip(names, args, in_dims, strict=False)):
        if arg is None:
            continue
        if name in ("A", "D", "dt_bias"):
            if dim is not None:
                raise ConfigError(
                    f"torch.vmap over {name} of ssd: only x, dt, B, C, z and initial_state can be mapped. Call it in a "
                    f"loop over {name}, or put the copies side by side as heads."
                )
            continue
        moved = arg.unsqueeze(0).expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
        folded[place] = moved.reshape(-1, *moved.shape[2:])
    y, last, states = ssd_op(*folded)
    split = [t.reshape(info.batch_size, -1, *t.shape[1:]) for t in (y, last)]
    if args[-1]:
        return (*split, states.reshape(info.batch_size, -1, *states.shape[1:])), (0, 0, 0)
    return (*split, states), (0, 0, None)


def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    raise ConfigError(
        "torch.vmap over the backward of ssd (per-sample gradients, batched vector-Jacobian products) is not there: "
        "take gradients outside vmap, or loop."
    )


_op.differentiate(ssd_op, setup_context=_setup_context, backward=_gradient, vmap=_vmap)
ssd_backward_op.register_vmap(_vmap_backward)
