"""Bidirectional WKV on GPUs: launches the kernels of triton_kernels.py. op.py tells the contract."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from statefield.kernels._op import state_dtype
from statefield.kernels.wkv.reference import chunk_length
from statefield.kernels.wkv.triton_kernels import chain_kernel, gradients_kernel, mean_kernel, sums_kernel

BLOCK = 32  # channels of a program: one warp, a channel a thread; more programs hide the latency of the walk better


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, mode: str, splits: int) -> Tensor:
    """The operator's forward (op.py tells the contract)."""
    w, u, k, v = w.contiguous(), u.contiguous(), _with_dense_rows(k), _with_dense_rows(v)
    length = chunk_length(k.shape[1], splits)  # chunks of mode "kernel"; they suit the paper's formula as well
    y = k.new_empty(k.shape)
    with _on(k.device):
        sums = _entering(w, k, v, mode, length, gradient=False)
        scratch = k.new_empty(3, *k.shape, dtype=state_dtype(k.dtype))
        mean_kernel[_grid(k, length)](
            w, u, k, v, sums, scratch, y, None, None, None,
            *k.shape[1:], length, *_rows_apart(k, v), 0, 0,
            KERNEL=mode == "kernel", GRADIENT=False, PARTS=3, **_options(k),
        )  # fmt: skip
    return y


def backward(
    grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, mode: str, splits: int, gradient: str
) -> Sequence[Tensor]:
    """The operator's backward (op.py tells the contract)."""
    w, u, k, v, grad = w.contiguous(), u.contiguous(), *(_with_dense_rows(x) for x in (k, v, grad))
    dtype, length = state_dtype(k.dtype), chunk_length(k.shape[1], splits)
    batch, tokens, channels = k.shape
    by_segment = (batch, triton.cdiv(tokens, length), channels)
    sums_of_a = k.new_empty(2, 3, *by_segment, dtype=dtype)
    partial_w, partial_u = k.new_empty(2, *by_segment, dtype=dtype)
    scratch = k.new_empty(5, *k.shape, dtype=dtype)
    grad_k, grad_v = k.new_empty(k.shape, dtype=dtype), k.new_empty(k.shape, dtype=dtype)
    with _on(k.device):
        sums = _entering(w, k, v, mode, length, gradient=True)
        mean_kernel[_grid(k, length)](
            w, u, k, v, sums, scratch, None, grad, sums_of_a, partial_w,
            tokens, channels, length, *_rows_apart(k, v, grad),
            KERNEL=mode == "kernel", GRADIENT=True, PARTS=5, **_options(k),
        )  # fmt: skip
        chain_kernel[_grid(k, tokens)[0], 2](
            w, sums_of_a, tokens, channels, length, by_segment[1],
            STEPS=0, GRADIENT=False, PARTS=3, **_options(k),
        )  # fmt: skip
        gradients_kernel[_grid(k, length)](
            w, u, k, v, sums_of_a, scratch, grad_k, grad_v, partial_u,
            tokens, channels, length, *_rows_apart(k, v),
            EXACT_KERNEL=mode == "kernel" and gradient == "exact", **_options(k),
        )  # fmt: skip
    return partial_w.sum((0, 1)), partial_u.sum((0, 1)), grad_k, grad_v


def _entering(w: Tensor, k: Tensor, v: Tensor, mode: str, length: int, *, gradient: bool) -> Tensor:
    """What enters each segment from the left and from the right, [2, 3 or 5, B, S, C]."""
    batch, tokens, channels = k.shape
    segments, parts = triton.cdiv(tokens, length), 5 if gradient else 3
    sums = k.new_empty(2, parts, batch, segments, channels, dtype=state_dtype(k.dtype))
    options = {"GRADIENT": gradient, "PARTS": parts, **_options(k)}
    sums_kernel[_grid(k, length)](w, k, v, sums, tokens, channels, length, *_rows_apart(k, v), **options)
    chain_kernel[_grid(k, tokens)[0], 2](
        w, sums, tokens, channels, length, segments, STEPS=int(mode == "kernel"), **options
    )
    return sums


def _grid(k: Tensor, length: int) -> tuple[int, int]:
    return k.shape[0] * triton.cdiv(k.shape[2], BLOCK), triton.cdiv(k.shape[1], length)


def _options(k: Tensor) -> dict[str, Any]:
    ACC = tl.float64 if k.dtype == torch.float64 else tl.float32
    return {"BLOCK": BLOCK, "ACC": ACC, "num_warps": 1, "enable_fp_fusion": True}


def _with_dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _rows_apart(*tensors: Tensor) -> list[int]:
    """The strides of batch and token of each."""
    return [stride for x in tensors for stride in x.stride()[:2]]


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which has to be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
