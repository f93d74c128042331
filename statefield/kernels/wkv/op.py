"""`statefield::wkv` and `statefield::wkv_backward`.

The contract of an implementation module (reference.py, chunked.py, native.py, triton.py):

    forward(w, u, k, v, mode, splits) -> y
    backward(grad, w, u, k, v, mode, splits, gradient) -> the four gradients in the order w, u, k, v

    w, u [C]     k, v, y, grad [B, T, C]     mode "kernel" or "paper"     splits >= 1, of mode "kernel" alone
    gradient: "exact", or "official": in mode "kernel" the gradients of k and v are then the official backward's

Inputs have any strides and floating dtypes; y comes in k's dtype, gradients in any, which op.py casts. The arithmetic
is float32, float64 where k is float64. Nothing is kept for the backward but the inputs. T, C >= 1; an empty batch is
answered here, before an implementation is asked.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from statefield.errors import ConfigError
from statefield.kernels import _choice, _op

_HOME = "statefield.kernels.wkv"
OPERATOR = _choice.operator(
    "wkv",
    native=f"{_HOME}.native",
    triton=f"{_HOME}.triton",
    chunked=f"{_HOME}.chunked",
    reference=f"{_HOME}.reference",
)


def _forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, mode: str, splits: int, gradient: str) -> Tensor:
    if k.shape[0] == 0:
        return k.new_empty(k.shape)
    return OPERATOR.implementation(k.device.type).forward(w, u, k, v, mode, splits)


def _forward_fake(w: Tensor, u: Tensor, k: Tensor, v: Tensor, mode: str, splits: int, gradient: str) -> Tensor:
    return k.new_empty(k.shape)


def _backward(
    grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, mode: str, splits: int, gradient: str
) -> list[Tensor]:
    inputs = (w, u, k, v)
    if k.shape[0] == 0:
        return [given.new_zeros(given.shape) for given in inputs]
    grads = OPERATOR.implementation(k.device.type).backward(grad, *inputs, mode, splits, gradient)
    return [found.to(given.dtype).contiguous() for given, found in zip(inputs, grads, strict=True)]


def _backward_fake(
    grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, mode: str, splits: int, gradient: str
) -> list[Tensor]:
    return [given.new_empty(given.shape) for given in (w, u, k, v)]


def _flops(w: Any, u: Any, k: Any, v: Any, mode: str, splits: int, gradient: str, **more: Any) -> int:
    """17 a token and channel (29 in mode "kernel"): two sums in each direction, the own weight, the division."""
    batch, tokens, channels = k
    return (29 if mode == "kernel" else 17) * batch * tokens * channels


def _flops_backward(
    grad: Any, w: Any, u: Any, k: Any, v: Any, mode: str, splits: int, gradient: str, **more: Any
) -> int:
    """Counted as torch counts a backward: twice the forward; the sums computed again add one more."""
    return 3 * _flops(w, u, k, v, mode, splits, gradient)


wkv_op = _op.define("wkv", _forward, fake=_forward_fake, flops=_flops)
wkv_backward_op = _op.define("wkv_backward", _backward, fake=_backward_fake, flops=_flops_backward, autocast=False)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.mode, ctx.splits, ctx.gradient = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (*wkv_backward_op(grad, *ctx.saved_tensors, ctx.mode, ctx.splits, ctx.gradient), None, None, None)


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    """A mapped dimension of k or v joins the batch; over w and u it is refused."""
    folded = list(args)
    for place, (name, arg, dim) in enumerate(zip("wukv", args, in_dims, strict=False)):
        if name in "wu":
            if dim is not None:
                raise ConfigError(
                    f"torch.vmap over {name} of wkv: only k and v can be mapped. Call it in a loop over {name}, or put "
                    f"the copies side by side as channels."
                )
            continue
        moved = arg.unsqueeze(0).expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
        folded[place] = moved.reshape(-1, *moved.shape[2:])
    y = wkv_op(*folded)
    return y.reshape(info.batch_size, -1, *y.shape[1:]), 0


def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    raise ConfigError(
        "torch.vmap over the backward of wkv (per-sample gradients, batched vector-Jacobian products) is not there: "
        "take gradients outside vmap, or loop."
    )


_op.differentiate(wkv_op, setup_context=_setup_context, backward=_gradient, vmap=_vmap)
wkv_backward_op.register_vmap(_vmap_backward)
