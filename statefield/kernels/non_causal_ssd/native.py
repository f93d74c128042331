"""The non-causal state-space duality in C++: hands tensors to native/non_causal_ssd.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from statefield.kernels import native
from statefield.kernels._op import state_dtype

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


class _Rows(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("batch_stride", c_int64), ("row_stride", c_int64))


class _Duality(ctypes.Structure):
    """`struct sf_duality` of native/non_causal_ssd.h, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "length", "heads", "channels", "states", "groups", "threads")),
        *((name, _Rows) for name in ("x", "dt", "B", "C")),
        *((name, c_void_p) for name in ("A", "D", "y", "state")),
        ("grad", _Rows),
        *((f"grad_{name}", c_void_p) for name in ("x", "dt", "A", "B", "C", "D")),
    )


def forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    inputs, held = _inputs(x, dt, A, B, C, D)
    dtype = state_dtype(x.dtype)
    batch, _, heads, channels = x.shape
    y = native.new_empty(x, x.shape, dtype)
    state = native.new_empty(x, (batch, heads, B.shape[3], channels), dtype)
    inputs.y, inputs.state = y.data_ptr(), state.data_ptr()
    _call("forward", inputs, dtype)
    del held  # the structure points into it
    return y.to(x.dtype), state


def backward(
    grad: Tensor, state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract)."""
    inputs, held = _inputs(x, dt, A, B, C, D)
    dtype = state_dtype(x.dtype)
    state, grad = state.contiguous(), _dense_rows(grad, dtype)
    grads = [None if given is None else native.new_empty(x, given.shape, dtype) for given in (x, dt, A, B, C, D)]
    inputs.state, inputs.grad = state.data_ptr(), _rows(grad)
    for name, found in zip(("x", "dt", "A", "B", "C", "D"), grads, strict=True):
        setattr(inputs, f"grad_{name}", native.pointer(found))
    _call("backward", inputs, dtype)
    del held
    return tuple(grads)


def _inputs(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> tuple[_Duality, Sequence[Tensor | None]]:
    """The structure, and the tensors in the state dtype that it points to."""
    dtype = state_dtype(x.dtype)
    x, dt, B, C = (_dense_rows(tensor, dtype) for tensor in (x, dt, B, C))
    A, D = A.to(dtype).contiguous(), None if D is None else D.to(dtype).contiguous()
    batch, length, heads, channels = x.shape
    inputs = _Duality(
        batch=batch,
        length=length,
        heads=heads,
        channels=channels,
        states=B.shape[3],
        groups=B.shape[2],
        threads=native.threads(),
        x=_rows(x),
        dt=_rows(dt),
        B=_rows(B),
        C=_rows(C),
        A=native.pointer(A),
        D=native.pointer(D),
    )
    return inputs, (x, dt, A, B, C, D)


def _dense_rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`, dense behind batch and positions: slices of wider rows are read in place."""
    tensor = tensor.to(dtype)
    if tensor.is_contiguous():
        return tensor
    row = 1
    for size, stride in zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:]), strict=True):
        if size > 1 and stride != row:
            return tensor.contiguous()
        row *= size
    return tensor


def _rows(tensor: Tensor) -> _Rows:
    return _Rows(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


def _call(name: str, inputs: _Duality, dtype: torch.dtype) -> None:
    entry = f"non_causal_ssd_{name}_{_SUFFIX[dtype]}"
    native.check(native.function(entry, c_void_p)(ctypes.byref(inputs)), entry)
