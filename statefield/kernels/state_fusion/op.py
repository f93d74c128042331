"""`statefield::state_fusion` over maps, `statefield::state_fusion_3d` over volumes, and the backward of each.

The contract of an implementation module (reference.py, chunked.py, native.py, triton.py), for S = (H, W) or (D, H, W):

    forward(h, weight, alpha, C, D, u, dilations) -> out
    backward(grad, h, weight, alpha, C, D, u, dilations)
        -> the six gradients in the order h, weight, alpha, C, D, u (None where the input is)

    h [B, *S, N, E]     weight [K, E, 3, 3] or [K, E, 3, 3, 3]     alpha [K]     dilations: K integers >= 1
    C [B, *S, N] or None     D [E] and u [B, *S, E], both or neither, only with C
    out, grad: the fused states [B, *S, N, E] without C, else y [B, *S, E]

All tensors come in one dtype, the state dtype of h (float32; float64 where h is float64), with any strides; results are
contiguous and in that dtype. op.py casts to it and back, out to h's dtype. All sizes but B are >= 1; an empty batch is
answered here, before an implementation is asked.
"""

from __future__ import annotations

import itertools
from math import prod
from typing import Any

import torch
from torch import Tensor

from statefield.errors import ConfigError
from statefield.kernels import _choice, _op

_HOME = "statefield.kernels.state_fusion"
OPERATORS = {  # by the axes of S
    2: _choice.operator(
        "state_fusion",
        native=f"{_HOME}.native",
        triton=f"{_HOME}.triton",
        reference=f"{_HOME}.reference",
    ),
    3: _choice.operator(
        "state_fusion_3d",
        native=f"{_HOME}.native",
        chunked=f"{_HOME}.chunked",
        reference=f"{_HOME}.reference",
    ),
}


def _forward(
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    u: Tensor | None,
    dilations: list[int],
) -> Tensor:
    if h.shape[0] == 0:
        return _forward_fake(h, weight, alpha, C, D, u, dilations)
    inputs = _in_state_dtype(h.dtype, h, weight, alpha, C, D, u)
    return _operator(h).implementation(h.device.type).forward(*inputs, dilations).to(h.dtype)


def _forward_fake(
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    u: Tensor | None,
    dilations: list[int],
) -> Tensor:
    return h.new_empty(h.shape if C is None else (*h.shape[:-2], h.shape[-1]))


def _backward(
    grad: Tensor,
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    u: Tensor | None,
    dilations: list[int],
) -> list[Tensor]:
    inputs = (h, weight, alpha, C, D, u)
    if h.shape[0] == 0:
        return [h.new_empty(0) if given is None else given.new_zeros(given.shape) for given in inputs]
    run = _operator(h).implementation(h.device.type).backward
    grads = run(*_in_state_dtype(h.dtype, grad, *inputs), dilations)
    return [
        h.new_empty(0) if given is None else found.to(given.dtype).contiguous()
        for given, found in zip(inputs, grads, strict=True)
    ]


def _backward_fake(
    grad: Tensor,
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    u: Tensor | None,
    dilations: list[int],
) -> list[Tensor]:
    return [h.new_empty(0) if given is None else given.new_empty(given.shape) for given in (h, weight, alpha, C, D, u)]


def _operator(h: Tensor) -> _choice.Operator:
    return OPERATORS[h.dim() - 3]


def _in_state_dtype(dtype: torch.dtype, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    wanted = _op.state_dtype(dtype)
    return tuple(t if t is None or t.dtype == wanted else t.to(wanted) for t in tensors)


def distinct_taps(dilations: tuple[int, ...] | list[int], spatial_dims: int = 2) -> int:
    """How many different neighbours the taps of all kernels read.

    For (1, 3, 5) there are 25 on a map and 79 in a volume: three centres are one.
    """
    offsets = itertools.product((-1, 0, 1), repeat=spatial_dims)
    return len({tuple(d * offset for offset in place) for place in offsets for d in dilations})


def _flops(h: Any, weight: Any, alpha: Any, C: Any, D: Any, u: Any, dilations: Any, **more: Any) -> int:
    """A multiplication and an addition for each distinct tap, and for C and D * u."""
    pixels, values = prod(h[:-2]), prod(h)
    taps = distinct_taps(dilations, len(h) - 3)
    return 2 * (taps * values + (C is not None) * values + (D is not None) * pixels * h[-1])


def _flops_backward(grad: Any, h: Any, *rest: Any, **more: Any) -> int:
    """Counted as torch counts a backward, twice the forward; the fused states computed again add one more."""
    weight, alpha, C, D, u, dilations = rest
    return (3 if C is not None else 2) * _flops(h, weight, alpha, C, D, u, dilations)


OPS, BACKWARD_OPS = {}, {}  # by the axes of S, and with them the operators' own names
for _dims, _operator_of in OPERATORS.items():
    OPS[_dims] = _op.define(_operator_of.name, _forward, fake=_forward_fake, flops=_flops)
    BACKWARD_OPS[_dims] = _op.define(
        f"{_operator_of.name}_backward", _backward, fake=_backward_fake, flops=_flops_backward, autocast=False
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.dilations = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    grads = BACKWARD_OPS[inputs[0].dim() - 3](grad, *inputs, ctx.dilations)
    return (*(None if given is None else found for given, found in zip(inputs, grads, strict=True)), None)


def _vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
    """A mapped dimension of h, C or u joins the batch; over the parameters it is refused."""
    folded = list(args)
    for place, (name, arg, dim) in enumerate(zip(("h", "weight", "alpha", "C", "D", "u"), args, in_dims, strict=False)):
        if arg is None:
            continue
        if name in ("weight", "alpha", "D"):
            if dim is not None:
                raise ConfigError(
                    f"torch.vmap over {name} of state_fusion: only h, C and u can be mapped. Call it in a loop over "
                    f"{name}, or put the copies side by side as channels."
                )
            continue
        moved = arg.unsqueeze(0).expand(info.batch_size, *arg.shape) if dim is None else arg.movedim(dim, 0)
        folded[place] = moved.reshape(-1, *moved.shape[2:])
    out = OPS[folded[0].dim() - 3](*folded)
    return out.reshape(info.batch_size, -1, *out.shape[1:]), 0


def _vmap_backward(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
    raise ConfigError(
        "torch.vmap over the backward of state_fusion (per-sample gradients, batched vector-Jacobian products) is not "
        "there: take gradients outside vmap, or loop."
    )


for _dims in OPERATORS:
    _op.differentiate(OPS[_dims], setup_context=_setup_context, backward=_gradient, vmap=_vmap)
    BACKWARD_OPS[_dims].register_vmap(_vmap_backward)
