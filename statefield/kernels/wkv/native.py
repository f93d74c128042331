"""Bidirectional WKV in C++: hands tensors to native/wkv.cpp and native/wkv_backward.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import torch
from torch import Tensor

from statefield.kernels import native
from statefield.kernels._op import state_dtype
from statefield.kernels.wkv.reference import chunk_length

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


class _Strided(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("batch_stride", c_int64), ("row_stride", c_int64))


class _Problem(ctypes.Structure):
    """`struct sf_wkv` of native/wkv.h, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "tokens", "channels", "chunk", "official", "threads")),
        *((name, _Strided) for name in ("k", "v", "grad")),
        *((name, c_void_p) for name in ("w", "u", "y", "grad_w", "grad_u", "grad_k", "grad_v")),
    )


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, mode: str, splits: int) -> Tensor:
    """The operator's forward (op.py tells the contract)."""
    dtype = state_dtype(k.dtype)
    w, u = w.to(dtype).contiguous(), u.to(dtype).contiguous()
    rows = {name: _dense_rows(x, dtype) for name, x in (("k", k), ("v", v))}
    y = native.new_empty(k, k.shape, dtype)
    _call("forward", w, u, rows, mode, splits, y=y.data_ptr())
    return y.to(k.dtype)


def backward(
    grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, mode: str, splits: int, gradient: str
) -> Sequence[Tensor]:
    """The operator's backward (op.py tells the contract)."""
    dtype = state_dtype(k.dtype)
    w, u = w.to(dtype).contiguous(), u.to(dtype).contiguous()
    rows = {name: _dense_rows(x, dtype) for name, x in (("k", k), ("v", v), ("grad", grad))}
    grad_k, grad_v = (native.new_empty(k, k.shape, dtype) for _ in range(2))
    grad_w, grad_u = (native.new_empty(k, (k.shape[0], k.shape[2]), dtype) for _ in range(2))
    addresses = {"grad_w": grad_w.data_ptr(), "grad_u": grad_u.data_ptr(), "grad_k": grad_k.data_ptr()}
    _call(
        "backward", w, u, rows, mode, splits,
        official=int(gradient == "official"), grad_v=grad_v.data_ptr(), **addresses,
    )  # fmt: skip
    return grad_w.sum(0), grad_u.sum(0), grad_k, grad_v


def _dense_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    x = x.to(dtype)
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def _call(name: str, w: Tensor, u: Tensor, rows: dict[str, Tensor], mode: str, splits: int, **more: int) -> None:
    batch, tokens, channels = rows["k"].shape
    problem = _Problem(
        batch=batch,
        tokens=tokens,
        channels=channels,
        chunk=chunk_length(tokens, splits) if mode == "kernel" else 0,
        threads=native.threads(),
        w=w.data_ptr(),
        u=u.data_ptr(),
        **{key: _Strided(x.data_ptr(), x.stride(0), x.stride(1)) for key, x in rows.items()},
        **more,
    )
    entry = f"wkv_{name}_{_SUFFIX[w.dtype]}"
    native.check(native.function(entry, c_void_p)(ctypes.byref(problem)), entry)
