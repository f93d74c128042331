"""The hidden states of HSM-SSD: softmax and weighting in C++ (native/hsm_ssd.cpp), products by torch.bmm."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from statefield.kernels import native
from statefield.kernels._op import state_dtype

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def forward(u: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    dtype = state_dtype(u.dtype)
    dt, B = dt.to(dtype).contiguous(), B.to(dtype).contiguous()
    weights = native.new_empty(dt, dt.shape)
    softmax = dt.new_empty(dt.shape[0], 2, dt.shape[1])
    _call("forward", dt, (dt, B, weights, softmax))
    return torch.bmm(u.to(dtype), weights.transpose(1, 2)), softmax


def backward(
    grad: Tensor, h: Tensor, softmax: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's backward (op.py tells the contract)."""
    dtype = state_dtype(u.dtype)
    dt, B = dt.to(dtype).contiguous(), B.to(dtype).contiguous()
    grad_weights = torch.bmm(grad.transpose(1, 2), u.to(dtype))
    mean = (grad * h).sum(1)
    weights, grad_dt, grad_B = (native.new_empty(dt, dt.shape) for _ in range(3))
    _call("backward", dt, (dt, B, softmax.contiguous(), grad_weights, mean, weights, grad_dt, grad_B))
    return torch.bmm(grad, weights), grad_dt, grad_B


def _call(name: str, dt: Tensor, tensors: Sequence[Tensor]) -> None:
    entry = f"hsm_ssd_{name}_{_SUFFIX[dt.dtype]}"
    function = native.function(entry, *[c_void_p] * len(tensors), *[c_int64] * 4)
    native.check(function(*map(native.pointer, tensors), *dt.shape, native.threads()), entry)
