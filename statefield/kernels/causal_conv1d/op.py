"""`statefield::causal_conv1d` and `statefield::causal_conv1d_backward`.

The contract of an implementation module (reference.py, native.py, triton.py):

    forward(x, weight, bias, silu, reverse) -> y
    backward(grad, x, weight, bias, silu, reverse) -> the three gradients in the order x, weight, bias (None without)

    x, y, grad [B, L, D]     weight [D, K]     bias [D] or None

Inputs have any strides and floating dtypes; y comes in x's dtype, gradients in any, which op.py casts. The arithmetic
is float32, float64 where x is float64. Nothing is kept for the backward but the inputs. L, D, K >= 1; an empty batch is
answered here, before an implementation is asked.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from statefield.errors import ConfigError
from statefield.kernels import _choice, _op

_HOME = "statefield.kernels.causal_conv1d"
OPERATOR = _choice.operator(
    "causal_conv1d",
    native=f"{_HOME}.native",
    triton=f"{_HOME}.triton",
    reference=f"{_HOME}.reference",
)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    if x.shape[0] == 0:
        return x.new_empty(x.shape)
    return OPERATOR.implementation(x.device.type).forward(x, weight, bias, silu, reverse)


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    return x.new_empty(x.shape)


def _backward(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> list[Tensor]:
    inputs = (x, weight, bias)
    if x.shape[0] == 0:
        return [x.new_empty(0) if given is None else given.new_zeros(given.shape) for given in inputs]
    grads = OPERATOR.implementation(x.device.type).backward(grad, *inputs, silu, reverse)
    return [
        x.new_empty(0) if given is None else found.to(given.dtype).contiguous()
        for given, found in zip(inputs, grads, strict=True)
    ]


def _backward_fake(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> list[Tensor]:
    return [x.new_empty(0) if given is None else given.new_empty(given.shape) for given in (x, weight, bias)]


def _flops(x: Any, weight: Any, *rest: Any, **more: Any) -> int:
    """A multiplication and an addition for each tap."""
    batch, length, channels = x
    return 2 * batch * length * channels * weight[1]


def _flops_backward(grad: Any, x: Any, weight: Any, *rest: Any, **more: Any) -> int:
    """Counted as torch counts a backward, twice the forward; the convolution computed again adds one more."""
    return 3 * _flops(x, weight)


causal_conv1d_op = _op.define("causal_conv1d", _forward, fake=_forward_fake, flops=_flops)
causal_conv1d_backward_op = _op.define(
    "causal_conv1d_backward", _backward, fake=_backward_fake, flops=_flops_backward, autocast=False
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    grads = causal_conv1d_backward_op(grad, *inputs, ctx.silu, ctx.reverse)
    return (*(None if given is None else found for given, found in zip(inputs, grads, strict=True)), None, None)


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    """A mapped dimension of x joins the batch; over weight and bias it is refused."""
    for name, dim in zip(("weight", "bias"), in_dims[1:3], strict=True):
        if dim is not None:
            raise ConfigError(
                f"torch.vmap over {name} of causal_conv1d: only x can be mapped. Call it in a loop over {name}, or put "
                f"the copies side by side as channels."
            )
    x = args[0].movedim(in_dims[0], 0)
    y = causal_conv1d_op(x.reshape(-1, *x.shape[2:]), *args[1:])
    return y.reshape(x.shape), 0


def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    raise ConfigError(
        "torch.vmap over the backward of causal_conv1d (per-sample gradients, batched vector-Jacobian products) is not "
        "there: take gradients outside vmap, or loop."
    )


_op.differentiate(causal_conv1d_op, setup_context=_setup_context, backward=_gradient, vmap=_vmap)
causal_conv1d_backward_op.register_vmap(_vmap_backward)
