"""Mamba-2's scan in C++: hands tensors to native/ssd*.cpp and sums the partial gradients they return."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from statefield.kernels import native
from statefield.kernels._op import state_dtype

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


class _Heads(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("batch_stride", c_int64), ("row_stride", c_int64), ("head_stride", c_int64))


class _Scan(ctypes.Structure):
    """`struct sf_ssd` of native/ssd.h, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "length", "heads", "channels", "states", "groups")),
        *((name, c_int64) for name in ("chunk", "softplus", "slots", "threads")),
        ("dt_min", c_double),
        ("dt_max", c_double),
        *((name, _Heads) for name in ("x", "dt", "B", "C", "z")),
        *((name, c_void_p) for name in ("A", "D", "bias", "initial", "out", "last", "kept")),
        ("grad_out", _Heads),
        ("grad_last", c_void_p),
        *((f"grad_{name}", c_void_p) for name in ("x", "dt", "A", "B", "C", "D", "z", "bias", "initial")),
    )


def _dense_last(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The tensor in `dtype`, [b, L, h, p] with a dense last axis; other strides may be any."""
    if tensor is None:
        return None
    tensor = tensor.to(dtype)
    return tensor if tensor.dim() == 3 or tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def _by_head(tensor: Tensor | None) -> _Heads:
    return _Heads(None, 0, 0, 0) if tensor is None else _Heads(tensor.data_ptr(), *tensor.stride()[:3])


class _Inputs:
    """The inputs of one call in the state dtype, and the structure that points to them."""

    def __init__(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        dt_bias: Tensor | None,
        initial_state: Tensor | None,
        dt_softplus: bool,
        dt_min: float,
        dt_max: float,
        chunk: int,
    ) -> None:
        self.dtype = state_dtype(x.dtype)
        self.rows = {
            name: _dense_last(tensor, self.dtype)
            for name, tensor in (("x", x), ("dt", dt), ("B", B), ("C", C), ("z", z))
        }
        self.whole = {
            name: None if tensor is None else tensor.to(self.dtype).contiguous()
            for name, tensor in (("A", A), ("D", D), ("bias", dt_bias), ("initial", initial_state))
        }
        batch, length, heads, channels = x.shape
        groups, states = B.shape[2:]
        self.slots = _slots(batch * groups, heads // groups)
        self.scan = _Scan(
            batch=batch,
            length=length,
            heads=heads,
            channels=channels,
            states=states,
            groups=groups,
            chunk=chunk,
            softplus=int(dt_softplus),
            slots=self.slots,
            threads=native.threads(),
            dt_min=dt_min,
            dt_max=dt_max,
            **{name: _by_head(tensor) for name, tensor in self.rows.items()},
            **{name: native.pointer(tensor) for name, tensor in self.whole.items()},
        )

    def call(self, name: str) -> None:
        entry = f"ssd_{name}_{_SUFFIX[self.dtype]}"
        native.check(native.function(entry, c_void_p)(ctypes.byref(self.scan)), entry)


def _slots(sequences: int, group_heads: int) -> int:
    """Into how many parts the heads of a group are dealt: as few as occupy the threads, because each part computes the
    products of B and C again."""
    return max(1, min(-(-native.threads() // sequences), group_heads))


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    chunk: int,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    inputs = _Inputs(x, dt, A, B, C, D, z, dt_bias, initial_state, dt_softplus, dt_min, dt_max, chunk)
    batch, length, heads, channels = x.shape
    states, dtype = B.shape[3], inputs.dtype
    y = native.new_empty(x, x.shape, dtype)
    last = native.new_empty(x, (batch, heads, channels, states), dtype)
    kept = native.new_empty(x, (batch, -(-length // chunk), heads, states, channels) if keep_states else (0,), dtype)
    scan = inputs.scan
    scan.out, scan.last, scan.kept = y.data_ptr(), last.data_ptr(), kept.data_ptr() if keep_states else None
    inputs.call("forward")
    return y.to(x.dtype), last, kept


def backward(
    grad_y: Tensor,
    grad_last: Tensor | None,
    states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
    dt_softplus: bool,
    dt_min: float,
    dt_max: float,
    chunk: int,
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract)."""
    inputs = _Inputs(x, dt, A, B, C, D, z, dt_bias, initial_state, dt_softplus, dt_min, dt_max, chunk)
    scan, dtype = inputs.scan, inputs.dtype
    batch, _, heads, channels = x.shape
    shapes: dict[str, Any] = {
        "x": x.shape,
        "dt": dt.shape,
        "A": (batch, heads),
        "B": (inputs.slots, *B.shape),
        "C": (inputs.slots, *C.shape),
        "D": None if D is None else (batch, heads, channels),
        "z": None if z is None else z.shape,
        "bias": None if dt_bias is None else (batch, heads),
        "initial": None if initial_state is None else initial_state.shape,
    }
    grads = {name: native.new_empty(x, shape, dtype) for name, shape in shapes.items() if shape is not None}
    for name, grad in grads.items():
        setattr(scan, f"grad_{name}", grad.data_ptr())
    grad_y_rows = _dense_last(grad_y, dtype)
    grad_last_whole = None if grad_last is None else grad_last.to(dtype).contiguous()
    kept = states.contiguous()
    scan.grad_out, scan.grad_last, scan.kept = _by_head(grad_y_rows), native.pointer(grad_last_whole), kept.data_ptr()
    inputs.call("backward")

    for name in {"A", "B", "C", "D", "bias"} & grads.keys():
        parts = grads[name]
        grads[name] = parts[0] if parts.shape[0] == 1 else parts.sum(0)
    return tuple(grads.get(name) for name in shapes)
