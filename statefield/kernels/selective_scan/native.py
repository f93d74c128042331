"""The selective scan in C++: hands tensors to native/selective_scan*.cpp and sums the partial gradients they return."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from statefield.kernels import native
from statefield.kernels._op import state_dtype
from statefield.kernels.selective_scan.reference import CHUNK

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


class _Strided(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("batch_stride", c_int64), ("row_stride", c_int64))


class _Scan(ctypes.Structure):
    """`struct sf_scan` of native/selective_scan.h, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "length", "channels", "states", "groups", "chunk", "softplus")),
        *((name, c_int64) for name in ("b_constant", "c_constant", "slots", "threads")),
        *((name, _Strided) for name in ("u", "delta", "z", "B", "C")),
        *((name, c_void_p) for name in ("A", "D", "delta_bias", "initial", "out", "last", "kept")),
        ("grad_out", _Strided),
        ("grad_last", c_void_p),
        *((f"grad_{name}", c_void_p) for name in ("u", "delta", "A", "B", "C", "D", "z", "bias", "initial")),
    )


def _dense_rows(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The tensor in `dtype` with dense rows: [B, L, D] dense in D, [B, L, G, N] dense in G and N, [D, N] wholly."""
    if tensor is None:
        return None
    tensor = tensor.to(dtype)
    row = 1
    for size, stride in zip(reversed(tensor.shape[2:]), reversed(tensor.stride()[2:]), strict=True):
        if size > 1 and stride != row:
            return tensor.contiguous()
        row *= size
    return tensor.contiguous() if tensor.dim() == 2 else tensor


def _strided(tensor: Tensor | None) -> _Strided:
    if tensor is None:
        return _Strided(None, 0, 0)
    if tensor.dim() == 2:
        return _Strided(tensor.data_ptr(), 0, 0)
    return _Strided(tensor.data_ptr(), tensor.stride(0), tensor.stride(1))


class _Inputs:
    """The inputs of one call in the state dtype and with dense rows, and the structure that points to them."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        initial_state: Tensor | None,
        delta_softplus: bool,
    ) -> None:
        self.dtype = state_dtype(u.dtype)
        self.rows = {
            name: _dense_rows(tensor, self.dtype)
            for name, tensor in (("u", u), ("delta", delta), ("z", z), ("B", B), ("C", C))
        }
        self.whole = {
            name: None if tensor is None else tensor.to(self.dtype).contiguous()
            for name, tensor in (("A", A), ("D", D), ("delta_bias", delta_bias), ("initial", initial_state))
        }
        batch, length, channels = u.shape
        grouped = next((weights for weights in (B, C) if weights.dim() == 4), None)
        self.groups = 1 if grouped is None else grouped.shape[2]
        self.scan = _Scan(
            batch=batch,
            length=length,
            channels=channels,
            states=A.shape[1],
            groups=self.groups,
            chunk=CHUNK,
            softplus=int(delta_softplus),
            b_constant=int(B.dim() == 2),
            c_constant=int(C.dim() == 2),
            slots=1,
            threads=native.threads(),
            **{name: _strided(tensor) for name, tensor in self.rows.items()},
            **{name: native.pointer(tensor) for name, tensor in self.whole.items()},
        )

    def call(self, name: str) -> None:
        entry = f"selective_scan_{name}_{_SUFFIX[self.dtype]}"
        native.check(native.function(entry, c_void_p)(ctypes.byref(self.scan)), entry)


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
    keep_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    inputs = _Inputs(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus)
    batch, length, channels = u.shape
    states, dtype = A.shape[1], inputs.dtype
    out = native.new_empty(u, (batch, length, channels), dtype)
    last = native.new_empty(u, (batch, channels, states), dtype)
    kept = native.new_empty(u, (batch, -(-length // CHUNK), states, channels) if keep_states else (0,), dtype)
    inputs.scan.out, inputs.scan.last = out.data_ptr(), last.data_ptr()
    inputs.scan.kept = kept.data_ptr() if keep_states else None
    inputs.call("forward")
    return out.to(u.dtype), last, kept


def backward(
    grad_out: Tensor,
    grad_last: Tensor | None,
    states: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract)."""
    inputs = _Inputs(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus)
    scan, dtype = inputs.scan, inputs.dtype
    slots = scan.slots = _slots(u.shape[0] * inputs.groups, u.shape[2] // inputs.groups)
    batch, channels = u.shape[0], u.shape[2]

    def partial(*shape: int) -> Tensor:
        return native.new_empty(u, shape, dtype)

    grads: dict[str, Tensor] = {"u": partial(*u.shape), "delta": partial(*u.shape), "A": partial(batch, *A.shape)}
    for name, weights in (("B", B), ("C", C)):
        grads[name] = partial(slots if weights.dim() == 4 else batch, *weights.shape)
    if z is not None:
        grads["z"] = partial(*u.shape)
    if initial_state is not None:
        grads["initial"] = partial(*initial_state.shape)
    for name, given in (("D", D), ("bias", delta_bias)):
        if given is not None:
            grads[name] = partial(batch, channels)
    for name, grad in grads.items():
        setattr(scan, f"grad_{name}", grad.data_ptr())
    grad_out_rows = _dense_rows(grad_out, dtype)
    grad_last_whole = None if grad_last is None else grad_last.to(dtype).contiguous()
    kept = states.contiguous()
    scan.grad_out, scan.grad_last = _strided(grad_out_rows), native.pointer(grad_last_whole)
    scan.kept = kept.data_ptr()
    inputs.call("backward")

    for name in {"A", "B", "C", "D", "bias"} & grads.keys():
        parts = grads[name]
        grads[name] = parts[0] if parts.shape[0] == 1 else parts.sum(0)
    return tuple(grads.get(name) for name in ("u", "delta", "A", "B", "C", "D", "z", "bias", "initial"))


def _slots(sequences: int, group_channels: int) -> int:
    """Into how many parts the channels of a group are dealt: enough to occupy the threads, each with 16 channels."""
    threads = native.threads()
    return max(1, min(-(-threads // sequences), group_channels // 16))
