"""`statefield::non_causal_ssd` and `statefield::non_causal_ssd_backward`.

The contract of an implementation module (reference.py, chunked.py, native.py, triton.py):

    forward(x, dt, A, B, C, D) -> y, state
    backward(grad, state, x, dt, A, B, C, D) -> the six gradients in the order x, dt, A, B, C, D (None where D is)

    x, grad [B, L, H, P]     dt [B, L, H]     A, D [H], D may be None     B, C [B, L, G, N], any strides
    Head h reads group h mod G. The weight of a position is a = dt A: a sign is a matter of the caller.
    y       [B, L, H, P] in x's dtype
    state   [B, H, N, P] in the state dtype (float32; float64 where x is float64): sum over positions of B_l a_l x_l. It
            is kept for the backward, and means the same in every implementation.

Gradients have their input's shape; op.py casts them to its dtype. L, H, P, N, G >= 1; an empty batch is answered here,
before an implementation is asked.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from statefield.errors import ConfigError
from statefield.kernels import _choice, _op

_HOME = "statefield.kernels.non_causal_ssd"
OPERATOR = _choice.operator(
    "non_causal_ssd",
    native=f"{_HOME}.native",
    triton=f"{_HOME}.triton",
    chunked=f"{_HOME}.chunked",
    reference=f"{_HOME}.reference",
)


def _forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    if x.shape[0] == 0:
        return _forward_fake(x, dt, A, B, C, D)
    return OPERATOR.implementation(x.device.type).forward(x, dt, A, B, C, D)


def _forward_fake(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, _, heads, channels = x.shape
    dtype = _op.state_dtype(x.dtype)
    return x.new_empty(x.shape), x.new_empty(batch, heads, B.shape[3], channels, dtype=dtype)


def _backward(
    grad: Tensor, state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> list[Tensor]:
    inputs = (x, dt, A, B, C, D)
    if x.shape[0] == 0:
        return [x.new_empty(0) if t is None else t.new_zeros(t.shape) for t in inputs]
    grads = OPERATOR.implementation(x.device.type).backward(grad, state, *inputs)
    return [
        x.new_empty(0) if given is None else found.to(given.dtype).contiguous()
        for given, found in zip(inputs, grads, strict=True)
    ]


def _backward_fake(
    grad: Tensor, state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> list[Tensor]:
    return [x.new_empty(0) if t is None else t.new_empty(t.shape) for t in (x, dt, A, B, C, D)]


def _flops(x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any = None, **more: Any) -> int:
    """The two matrix products, the scaling a x, and D x."""
    batch, length, heads, channels = x
    values = batch * length * heads * channels
    return values * (4 * B[3] + 1) + batch * length * heads + (D is not None) * 2 * values


def _flops_backward(grad: Any, state: Any, *inputs: Any, **more: Any) -> int:
    """Counted as torch counts a backward, twice the forward: there are four products of the same size."""
    return 2 * _flops(*inputs)


non_causal_ssd_op = _op.define("non_causal_ssd", _forward, fake=_forward_fake, flops=_flops)
non_causal_ssd_backward_op = _op.define(
    "non_causal_ssd_backward", _backward, fake=_backward_fake, flops=_flops_backward, autocast=False
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    *inputs, state = ctx.saved_tensors
    if grad is None:
        return (None,) * 6
    grads = non_causal_ssd_backward_op(grad, state, *inputs)
    return tuple(None if given is None else found for given, found in zip(inputs, grads, strict=True))


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """A mapped dimension of x, dt, B or C joins the batch; over the parameters it is refused."""
    folded = list(args)
    for place, (name, arg, dim) in enumerate(zip(("x", "dt", "A", "B", "C", "D"), args, in_dims, strict=True)):
        if arg is None:
            continue
        if name in ("A", "D"):
            if dim is not None:
                raise ConfigError(
                    f"torch.vmap over {name} of non_causal_ssd: only x, dt, B and C can be mapped. Call it in a loop "
                    f"over {name}, or put the copies side by side as heads."
                )
            continue
        moved = arg.unsqueeze(0).expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
        folded[place] = moved.reshape(-1, *moved.shape[2:])
    outputs = non_causal_ssd_op(*folded)
    return tuple(out.reshape(info.batch_size, -1, *out.shape[1:]) for out in outputs), (0, 0)


def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    raise ConfigError(
        "torch.vmap over the backward of non_causal_ssd (per-sample gradients, batched vector-Jacobian products) is "
        "not there: take gradients outside vmap, or loop."
    )


_op.differentiate(non_causal_ssd_op, setup_context=_setup_context, backward=_gradient, vmap=_vmap)
non_causal_ssd_backward_op.register_vmap(_vmap_backward)
