"""`statefield::deformable_conv` and `statefield::deformable_conv_backward`.

The contract of an implementation module (reference.py, native.py):

    forward(x, offset, mask, kernel_size, dilation) -> y
    backward(grad, x, offset, mask, kernel_size, dilation) -> the three gradients in the order x, offset, mask

    x, y, grad [B, H, W, C]     offset [B, H, W, G, P, 2]     mask [B, H, W, G, P], P = kernel_size^2

Inputs have any strides and floating dtypes; y comes in x's dtype, gradients in any, which op.py casts. The arithmetic
is float32, float64 where x is float64. Nothing is kept for the backward but the inputs. H, W, G, P >= 1 and G divides
C; an empty batch is answered here, before an implementation is asked.
"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import Tensor

from statefield.errors import ConfigError
from statefield.kernels import _choice, _op

_HOME = "statefield.kernels.deformable_conv"
OPERATOR = _choice.operator("deformable_conv", native=f"{_HOME}.native", reference=f"{_HOME}.reference")


def _forward(x: Tensor, offset: Tensor, mask: Tensor, kernel_size: int, dilation: float) -> Tensor:
    if x.shape[0] == 0:
        return x.new_empty(x.shape)
    return OPERATOR.implementation(x.device.type).forward(x, offset, mask, kernel_size, dilation)


def _forward_fake(x: Tensor, offset: Tensor, mask: Tensor, kernel_size: int, dilation: float) -> Tensor:
    return x.new_empty(x.shape)


def _backward(grad: Tensor, x: Tensor, offset: Tensor, mask: Tensor, kernel_size: int, dilation: float) -> list[Tensor]:
    inputs = (x, offset, mask)
    if x.shape[0] == 0:
        return [given.new_zeros(given.shape) for given in inputs]
    grads = OPERATOR.implementation(x.device.type).backward(grad, *inputs, kernel_size, dilation)
    return [found.to(given.dtype).contiguous() for given, found in zip(inputs, grads, strict=True)]


def _backward_fake(
    grad: Tensor, x: Tensor, offset: Tensor, mask: Tensor, kernel_size: int, dilation: float
) -> list[Tensor]:
    return [given.new_empty(given.shape) for given in (x, offset, mask)]


def _flops(x: Any, offset: Any, mask: Any, *rest: Any, **more: Any) -> int:
    """Four pixels a point, each with a weight of its own: a multiplication and an addition for each."""
    return 2 * 4 * prod(x) * mask[-1]


def _flops_backward(grad: Any, x: Any, offset: Any, mask: Any, *rest: Any, **more: Any) -> int:
    """Four products for the weights and places, four for the pixels: twice the forward."""
    return 2 * _flops(x, offset, mask)


deformable_conv_op = _op.define("deformable_conv", _forward, fake=_forward_fake, flops=_flops)
deformable_conv_backward_op = _op.define(
    "deformable_conv_backward", _backward, fake=_backward_fake, flops=_flops_backward, autocast=False
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.kernel_size, ctx.dilation = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*deformable_conv_backward_op(grad, *ctx.saved_tensors, ctx.kernel_size, ctx.dilation), None, None)


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    """A mapped dimension joins the batch."""
    folded = []
    for tensor, dim in zip(args[:3], in_dims, strict=False):
        moved = tensor.unsqueeze(0).expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        folded.append(moved.flatten(0, 1))
    y = deformable_conv_op(*folded, *args[3:])
    return y.unflatten(0, (info.batch_size, -1)), 0


def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    raise ConfigError(
        "torch.vmap over the backward of deformable_conv (per-sample gradients, batched vector-Jacobian products) is "
        "not there: take gradients outside vmap, or loop."
    )


_op.differentiate(deformable_conv_op, setup_context=_setup_context, backward=_gradient, vmap=_vmap)
deformable_conv_backward_op.register_vmap(_vmap_backward)
