"""mLSTM in C++: hands tensors to native/mlstm.cpp and native/mlstm_backward.cpp."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_int64, c_void_p

import torch
from torch import Tensor

from statefield.kernels import native
from statefield.kernels._op import state_dtype

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
_LEAST_VALUES = 32  # channels of v that pay for computing a head's weights once more


class _Rows(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        ("batch_stride", c_int64),
        ("head_stride", c_int64),
        ("row_stride", c_int64),
    )


class _MLSTM(ctypes.Structure):
    """`struct sf_mlstm` of native/mlstm.h, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("batch", "heads", "length", "channels", "chunk", "rowwise", "slots", "threads")),
        ("eps", c_double),
        *((name, _Rows) for name in ("q", "k", "v")),
        *((name, c_void_p) for name in ("i", "f", "C", "n", "m")),
        *((name, c_void_p) for name in ("h", "last_C", "last_n", "last_m")),
        *((name, c_void_p) for name in ("states_C", "states_n", "sums", "stabilizers")),
        ("grad_h", _Rows),
        *((f"grad_last_{name}", c_void_p) for name in ("C", "n", "m")),
        *((f"grad_{name}", c_void_p) for name in ("q", "k", "v", "i", "f", "C", "n", "m")),
    )


class _Call:
    """The inputs of one call in the state dtype, and the structure that points to them."""

    def __init__(
        self,
        inputs: tuple[Tensor | None, ...],
        eps: float,
        stabilize_rowwise: bool,
        chunk_size: int,
    ) -> None:
        q = inputs[0]
        assert q is not None
        batch, heads, length, channels = q.shape
        self.dtype = state_dtype(q.dtype)
        self._held: list[Tensor] = []
        self.problem = _MLSTM(
            batch=batch,
            heads=heads,
            length=length,
            channels=channels,
            chunk=min(chunk_size, length),
            rowwise=int(stabilize_rowwise),
            slots=1,
            threads=native.threads(),
            eps=eps,
        )
        for name, tensor in zip(("q", "k", "v"), inputs[:3], strict=True):
            self.give_rows(name, tensor)
        for name, tensor in zip(("i", "f", "C", "n", "m"), inputs[3:], strict=True):
            self.give(name, tensor)

    def give_rows(self, name: str, tensor: Tensor | None) -> None:
        """[B, NH, S, DH], as it lies where its last axis is dense."""
        assert tensor is not None
        tensor = tensor.to(self.dtype)
        if tensor.stride(3) != 1 and tensor.shape[3] > 1:
            tensor = tensor.contiguous()
        self._held.append(tensor)
        setattr(self.problem, name, _Rows(tensor.data_ptr(), *tensor.stride()[:3]))

    def give(self, name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            tensor = tensor.to(self.dtype).contiguous()
            self._held.append(tensor)
            setattr(self.problem, name, native.pointer(tensor))

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """A new tensor that the kernel fills."""
        tensor = native.new_empty(like, shape, self.dtype)
        setattr(self.problem, name, native.pointer(tensor))
        return tensor

    def run(self, name: str) -> None:
        entry = f"mlstm_{name}_{_SUFFIX[self.dtype]}"
        native.check(native.function(entry, c_void_p)(ctypes.byref(self.problem)), entry)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    eps: float,
    stabilize_rowwise: bool,
    chunk_size: int,
    keep_states: bool,
) -> tuple[Tensor, ...]:
    """The operator's forward (op.py tells the contract)."""
    call = _Call((q, k, v, i, f, C, n, m), eps, stabilize_rowwise, chunk_size)
    batch, heads, length, channels = q.shape
    call.problem.slots = _slots(batch * heads, channels)
    h = call.take("h", q, batch, heads, length, channels)
    last = (
        call.take("last_C", q, batch, heads, channels, channels),
        call.take("last_n", q, batch, heads, channels),
        call.take("last_m", q, batch, heads),
    )
    kept = tuple(q.new_empty(0, dtype=call.dtype) for _ in range(4))
    if keep_states:
        chunks = -(-length // chunk_size)
        kept = (
            call.take("states_C", q, batch, heads, chunks, channels, channels),
            call.take("states_n", q, batch, heads, chunks, channels),
            call.take("sums", q, batch, heads, length),
            call.take("stabilizers", q, batch, heads, length),
        )
    call.run("forward")
    return (h.to(q.dtype), *last, *kept)


def backward(
    grads: tuple[Tensor | None, ...],
    results: tuple[Tensor, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor | None,
    n: Tensor | None,
    m: Tensor | None,
    eps: float,
    stabilize_rowwise: bool,
    chunk_size: int,
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract)."""
    inputs = (q, k, v, i, f, C, n, m)
    call = _Call(inputs, eps, stabilize_rowwise, chunk_size)
    names = ("last_C", "last_n", "last_m", "states_C", "states_n", "sums", "stabilizers")
    for name, tensor in zip(names, results[1:], strict=True):
        call.give(name, tensor)
    call.give_rows("grad_h", grads[0])
    for name, grad in zip(names[:3], grads[1:], strict=True):
        call.give(f"grad_{name}", grad)
    found = tuple(
        None if tensor is None else call.take(f"grad_{name}", tensor, *tensor.shape)
        for name, tensor in zip(("q", "k", "v", "i", "f", "C", "n", "m"), inputs, strict=True)
    )
    call.run("backward")
    return found


def _slots(sequences: int, channels: int) -> int:
    """Into how many parts the value channels of a head are dealt: enough to occupy the threads, each wide enough."""
    return max(1, min(-(-native.threads() // sequences), channels // _LEAST_VALUES))
