"""The causal convolution on GPUs. op.py tells the contract.

A program owns ROWS steps of BLOCK channels of one sequence and reads the tile once for each tap; all but the first come
from the cache. The backward first makes the gradient of a, the values before SiLU, and each program's sums for weight
and bias, which are added in a fixed order; the gradient of x is that gradient of a, convolved in the other direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from statefield.kernels._op import state_dtype

ROWS, BLOCK = 32, 32


@triton.jit
def _place(length, channels, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """This program's batch, rows, channels and which of these exist."""
    blocks = tl.cdiv(channels, BLOCK)
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    channel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    return batch, row, channel, (row < length)[:, None] & (channel < channels)[None, :]


@triton.jit
def _looking_back(x, row, stride, channel, steps, length, mask, REVERSE: tl.constexpr, ACC: tl.constexpr):
    """The tile of values `steps` ago, zero before the first."""
    from_row = row + steps if REVERSE else row - steps
    there = mask & ((from_row >= 0) & (from_row < length))[:, None]
    return tl.load(x + from_row[:, None] * stride + channel[None, :], mask=there, other=0.0).to(ACC)


@triton.jit
def _convolved(
    x, weight, bias, row, stride, channel, length, channels, mask,
    TAPS: tl.constexpr, REVERSE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    a = tl.zeros(mask.shape, ACC)
    if bias is not None:
        a += tl.load(bias + channel, mask=channel < channels, other=0.0).to(ACC)[None, :]
    for i in tl.static_range(TAPS):
        w = tl.load(weight + channel * TAPS + i, mask=channel < channels, other=0.0).to(ACC)
        a += w[None, :] * _looking_back(x, row, stride, channel, TAPS - 1 - i, length, mask, REVERSE, ACC)
    return a


@triton.jit
def convolve_kernel(
    x, weight, bias, y, length, channels, x_batch, x_row,
    TAPS: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    batch, row, channel, mask = _place(length, channels, ROWS, BLOCK)
    a = _convolved(x + batch * x_batch, weight, bias, row, x_row, channel, length, channels, mask, TAPS, REVERSE, ACC)
    if SILU:
        a = a / (1 + tl.exp(-a))
    tl.store(y + (batch * length + row)[:, None] * channels + channel[None, :], a, mask=mask)


@triton.jit
def gradient_kernel(
    grad, x, weight, bias, of_a, partial, length, channels, x_batch, x_row, grad_batch, grad_row,
    TAPS: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """of_a [B, L, D]: the gradient of a. partial [B, R, TAPS + 1, D]: of the weights and, last, of the bias."""
    batch, row, channel, mask = _place(length, channels, ROWS, BLOCK)
    of_batch = x + batch * x_batch
    place = (batch * length + row)[:, None] * channels + channel[None, :]
    grad_a = tl.load(grad + batch * grad_batch + row[:, None] * grad_row + channel[None, :], mask=mask, other=0.0)
    grad_a = grad_a.to(ACC)
    if SILU:
        a = _convolved(of_batch, weight, bias, row, x_row, channel, length, channels, mask, TAPS, REVERSE, ACC)
        sigmoid = 1 / (1 + tl.exp(-a))
        grad_a *= sigmoid * (1 + a * (1 - sigmoid))
    tl.store(of_a + place, grad_a, mask=mask)
    at = partial + (batch * tl.num_programs(1) + tl.program_id(1)) * (TAPS + 1) * channels + channel
    for i in tl.static_range(TAPS):
        earlier = _looking_back(of_batch, row, x_row, channel, TAPS - 1 - i, length, mask, REVERSE, ACC)
        tl.store(at + i * channels, tl.sum(grad_a * earlier, 0), mask=channel < channels)
    tl.store(at + TAPS * channels, tl.sum(grad_a, 0), mask=channel < channels)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """The operator's forward (op.py tells the contract)."""
    y = x.new_empty(x.shape)
    with _on(x.device):
        _convolve(_with_dense_rows(x), weight, bias, y, silu=silu, reverse=reverse)
    return y


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> Sequence[Tensor | None]:
    """The operator's backward (op.py tells the contract)."""
    dtype, taps = state_dtype(x.dtype), weight.shape[1]
    grad, x = _with_dense_rows(grad), _with_dense_rows(x)
    of_a, grad_x = (x.new_empty(x.shape, dtype=dtype) for _ in range(2))
    grid = _grid(x)
    partial = x.new_empty(x.shape[0], grid[1], taps + 1, x.shape[2], dtype=dtype)
    with _on(x.device):
        gradient_kernel[grid](
            grad, x, weight.contiguous(), None if bias is None else bias.contiguous(), of_a, partial,
            *x.shape[1:], *x.stride()[:2], *grad.stride()[:2],
            TAPS=taps, SILU=silu, REVERSE=reverse, **_options(x),
        )  # fmt: skip
        _convolve(of_a, weight, None, grad_x, silu=False, reverse=not reverse)
    grad_bias = None if bias is None else partial[:, :, taps].sum((0, 1))
    return grad_x, partial[:, :, :taps].sum((0, 1)).T, grad_bias


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, *, silu: bool, reverse: bool) -> None:
    convolve_kernel[_grid(x)](
        x, weight.contiguous(), None if bias is None else bias.contiguous(), y, *x.shape[1:], *x.stride()[:2],
        TAPS=weight.shape[1], SILU=silu, REVERSE=reverse, **_options(x),
    )  # fmt: skip


def _grid(x: Tensor) -> tuple[int, int]:
    return x.shape[0] * triton.cdiv(x.shape[2], BLOCK), triton.cdiv(x.shape[1], ROWS)


def _options(x: Tensor) -> dict[str, Any]:
    ACC = tl.float64 if x.dtype == torch.float64 else tl.float32
    return {"ROWS": ROWS, "BLOCK": BLOCK, "ACC": ACC, "num_warps": 2, "enable_fp_fusion": True}


def _with_dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which has to be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
