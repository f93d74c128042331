"""The structure-aware scan in one C++ pass: hands tensors to native/structure_aware_scan*.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from statefield.kernels import native

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def forward(
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
    dilations: Sequence[int],
    keep_states: bool,
) -> tuple[Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    inputs = _contiguous(u, delta, A, B, C, D, weight, alpha, delta_bias)
    y = native.new_empty(u, u.shape)
    batch, height, _, channels = u.shape
    kept = native.new_empty(u, (batch, height, A.shape[1], channels) if keep_states else (0,))
    _call("forward", u, A, [*inputs, y, kept if keep_states else None], delta_softplus, dilations)
    return y, kept


def backward(
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
    dilations: Sequence[int],
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract)."""
    inputs = _contiguous(u, delta, A, B, C, D, weight, alpha, delta_bias)
    grads = [None if given is None else native.new_empty(given, given.shape) for given in inputs]
    tensors = [grad.contiguous(), kept.contiguous(), *inputs, *grads]
    _call("backward", u, A, tensors, delta_softplus, dilations)
    return tuple(grads)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _call(
    name: str, u: Tensor, A: Tensor, tensors: Sequence[Tensor | None], softplus: bool, dilations: Sequence[int]
) -> None:
    entry = f"structure_aware_scan_{name}_{_SUFFIX[u.dtype]}"
    function = native.function(entry, *[c_void_p] * (len(tensors) + 2), c_int64, c_int64, c_int64)
    batch, height, width, channels = u.shape
    sizes, steps = (c_int64 * 5)(batch, height, width, A.shape[1], channels), (c_int64 * len(dilations))(*dilations)
    pointers = map(native.pointer, tensors)
    native.check(function(*pointers, sizes, steps, len(dilations), int(softplus), native.threads()), entry)
