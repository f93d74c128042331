"""The causal convolution in C++: hands tensors to native/causal_conv1d.cpp, sums its partial gradients."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from statefield.kernels import native
from statefield.kernels._op import state_dtype

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


class _Strided(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("batch_stride", c_int64), ("row_stride", c_int64))


class _Problem(ctypes.Structure):
    """`struct sf_conv` of native/causal_conv1d.cpp, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "length", "channels", "taps", "silu", "reverse", "threads")),
        *((name, _Strided) for name in ("x", "grad")),
        *((name, c_void_p) for name in ("weight", "bias", "y", "grad_x", "grad_weight", "grad_bias")),
    )


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """The operator's forward (op.py tells the contract)."""
    y = native.new_empty(x, x.shape, state_dtype(x.dtype))
    _call("forward", {"x": x}, weight, bias, silu, reverse, y=y)
    return y.to(x.dtype)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> Sequence[Tensor | None]:
    """The operator's backward (op.py tells the contract)."""
    dtype = state_dtype(x.dtype)
    batch, _, channels = x.shape
    grad_x = native.new_empty(x, x.shape, dtype)
    grad_weight = x.new_empty(batch, weight.shape[1], channels, dtype=dtype)
    grad_bias = x.new_empty(batch, channels, dtype=dtype)
    outputs = {"grad_x": grad_x, "grad_weight": grad_weight, "grad_bias": grad_bias}
    _call("backward", {"x": x, "grad": grad}, weight, bias, silu, reverse, **outputs)
    return grad_x, grad_weight.sum(0).T, None if bias is None else grad_bias.sum(0)


def _call(
    name: str,
    given: dict[str, Tensor],
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    reverse: bool,
    **outputs: Tensor,
) -> None:
    batch, length, channels = given["x"].shape
    dtype = state_dtype(given["x"].dtype)
    rows = {key: _dense_rows(x.to(dtype)) for key, x in given.items()}
    taps = weight.to(dtype).T.contiguous()  # [K, D]
    bias = None if bias is None else bias.to(dtype).contiguous()
    problem = _Problem(
        batch=batch,
        length=length,
        channels=channels,
        taps=weight.shape[1],
        silu=int(silu),
        reverse=int(reverse),
        threads=native.threads(),
        weight=native.pointer(taps),
        bias=native.pointer(bias),
        **{key: _Strided(x.data_ptr(), x.stride(0), x.stride(1)) for key, x in rows.items()},
        **{key: native.pointer(x) for key, x in outputs.items()},
    )
    entry = f"causal_conv1d_{name}_{_SUFFIX[dtype]}"
    native.check(native.function(entry, c_void_p)(ctypes.byref(problem)), entry)


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()
