"""State fusion in C++: hands tensors to native/state_fusion*.cpp, those of volumes to native/state_fusion_3d*.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from statefield.kernels import native

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def forward(
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    u: Tensor | None,
    dilations: Sequence[int],
) -> Tensor:
    """The operator's forward (op.py tells the contract)."""
    inputs = _contiguous(h, weight, alpha, C, D, u)
    out = native.new_empty(h, h.shape if C is None else (*h.shape[:-2], h.shape[-1]))
    _call("forward", h, [*inputs, out], dilations)
    return out


def backward(
    grad: Tensor,
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    u: Tensor | None,
    dilations: Sequence[int],
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract)."""
    inputs = _contiguous(h, weight, alpha, C, D, u)
    grads = [None if given is None else native.new_empty(given, given.shape) for given in inputs]
    _call("backward", h, [grad.contiguous(), *inputs, *grads], dilations)
    return tuple(grads)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _call(name: str, h: Tensor, tensors: Sequence[Tensor | None], dilations: Sequence[int]) -> None:
    entry = f"state_fusion_{'3d_' if h.dim() == 6 else ''}{name}_{_SUFFIX[h.dtype]}"
    function = native.function(entry, *[c_void_p] * (len(tensors) + 2), c_int64, c_int64)
    sizes, steps = (c_int64 * h.dim())(*h.shape), (c_int64 * len(dilations))(*dilations)
    native.check(function(*map(native.pointer, tensors), sizes, steps, len(dilations), native.threads()), entry)
