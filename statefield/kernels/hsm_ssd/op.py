"""`statefield::hsm_ssd` and `statefield::hsm_ssd_backward`.

The contract of an implementation module (reference.py, chunked.py, native.py, triton.py):

    forward(u, dt, A, B) -> h, softmax
    backward(grad, h, softmax, u, dt, A, B) -> the gradients of u, dt and B

    u [B, D, L]     dt, B [B, N, L]     A [N], any strides
    h, grad    [B, D, N] in the state dtype (float32; float64 where u is float64)
    softmax    [B, 2, N] in the state dtype: the largest dt over positions, and sum_l exp(dt_l - largest). The backward
               makes the softmax from them again; their logarithm in one number would lose digits where dt is large.

A is the same at every position, so it cancels in the softmax: only the reference adds it, and its gradient is zero,
which is said here and not by an implementation. Gradients have their input's shape; op.py casts them to its dtype.
L, D, N >= 1; an empty batch is answered here, before an implementation is asked.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from statefield.errors import ConfigError
from statefield.kernels import _choice, _op

_HOME = "statefield.kernels.hsm_ssd"
OPERATOR = _choice.operator(
    "hsm_ssd",
    native=f"{_HOME}.native",
    triton=f"{_HOME}.triton",
    chunked=f"{_HOME}.chunked",
    reference=f"{_HOME}.reference",
)


def _forward(u: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    if u.shape[0] == 0:
        return _forward_fake(u, dt, A, B)
    return OPERATOR.implementation(u.device.type).forward(u, dt, A, B)


def _forward_fake(u: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    batch, channels, _ = u.shape
    dtype = _op.state_dtype(u.dtype)
    return u.new_empty(batch, channels, dt.shape[1], dtype=dtype), u.new_empty(batch, 2, dt.shape[1], dtype=dtype)


def _backward(
    grad: Tensor, h: Tensor, softmax: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_A = A.new_zeros(A.shape)
    if u.shape[0] == 0:
        return u.new_empty(u.shape), dt.new_empty(dt.shape), grad_A, B.new_empty(B.shape)
    grads = OPERATOR.implementation(u.device.type).backward(grad, h, softmax, u, dt, A, B)
    grad_u, grad_dt, grad_B = (
        found.to(given.dtype).contiguous() for given, found in zip((u, dt, B), grads, strict=True)
    )
    return grad_u, grad_dt, grad_A, grad_B


def _backward_fake(
    grad: Tensor, h: Tensor, softmax: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return u.new_empty(u.shape), dt.new_empty(dt.shape), A.new_empty(A.shape), B.new_empty(B.shape)


def _flops(u: Any, dt: Any, *rest: Any, **more: Any) -> int:
    """The matrix product, and three operations an entry of the softmax and its product with B."""
    batch, channels, length = u
    return batch * length * dt[1] * (2 * channels + 4)


def _flops_backward(grad: Any, h: Any, softmax: Any, u: Any, dt: Any, *rest: Any, **more: Any) -> int:
    """Counted as torch counts a backward: there are two products of the same size."""
    return 2 * _flops(u, dt)


hsm_ssd_op = _op.define("hsm_ssd", _forward, fake=_forward_fake, flops=_flops)
hsm_ssd_backward_op = _op.define(
    "hsm_ssd_backward", _backward, fake=_backward_fake, flops=_flops_backward, autocast=False
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 4
    *inputs, h, softmax = ctx.saved_tensors
    return tuple(hsm_ssd_backward_op(grad, h, softmax, *inputs))


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    """A mapped dimension of u, dt or B joins the batch; over A it is refused."""
    folded = list(args)
    for place, (name, arg, dim) in enumerate(zip(("u", "dt", "A", "B"), args, in_dims, strict=True)):
        if name == "A":
            if dim is not None:
                raise ConfigError(
                    "torch.vmap over A of hsm_ssd: only u, dt and B can be mapped. A has no effect on the states, so "
                    "any one of its copies will do."
                )
            continue
        moved = arg.unsqueeze(0).expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
        folded[place] = moved.reshape(-1, *moved.shape[2:])
    outputs = hsm_ssd_op(*folded)
    return tuple(out.reshape(info.batch_size, -1, *out.shape[1:]) for out in outputs), (0, 0)


def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    raise ConfigError(
        "torch.vmap over the backward of hsm_ssd (per-sample gradients, batched vector-Jacobian products) is not "
        "there: take gradients outside vmap, or loop."
    )


_op.differentiate(hsm_ssd_op, setup_context=_setup_context, backward=_gradient, vmap=_vmap)
hsm_ssd_backward_op.register_vmap(_vmap_backward)
