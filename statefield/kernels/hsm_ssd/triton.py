"""The hidden states of HSM-SSD on GPUs: Triton kernels and their launchers. README.md has the maths.

`softmax_kernel` finds the largest dt and the sum of exponentials of each state. `states_kernel` walks over positions,
makes the weights of a tile from them, and multiplies: the weights never lie in memory. Backwards `weights_kernel` gives
the gradients of dt and B, `input_kernel` that of u, both from weights made again. Every result is one program's, with
no sums between programs, so two runs give equal bits.

Products are tl.dot on operands in float32 (float64): exact ("ieee") for float32 inputs, "tf32" for 16-bit ones, which
holds u without loss and rounds the weights finer than a result in 16 bits.

Legend: B batch, L positions, D channels, N states. A suffix names a tensor's axes: l positions, d channels, n states.
Sizes in capitals are those of a tile.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from statefield.kernels._op import state_dtype

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _tile(pointer, row, stride, rows, column, columns, ACC: tl.constexpr):
    """A tile of a matrix whose last axis is dense, zero outside."""
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(pointer + row.to(tl.int64)[:, None] * stride + column[None, :], mask=mask, other=0.0).to(ACC)


@triton.jit
def _shares(dt, softmax, n, states, at, length, dt_state, ACC: tl.constexpr):
    """The softmax over positions [n, l] from its largest entry and total, zero outside."""
    largest_n = tl.load(softmax + n, mask=n < states, other=0.0)
    total_n = tl.load(softmax + states + n, mask=n < states, other=1.0)
    dt_nl = _tile(dt, n, dt_state, states, at, length, ACC)
    share_nl = tl.exp2((dt_nl - largest_n[:, None]) * _LOG2_E) / total_n[:, None]
    return tl.where((n < states)[:, None] & (at < length)[None, :], share_nl, 0.0)


@triton.jit
def softmax_kernel(
    dt, softmax, length, states, dt_batch, dt_state,
    STATES: tl.constexpr, LENGTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """softmax [B, 2, N]: the largest dt over positions, and the sum of exp(dt - largest)."""
    batch = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * STATES + tl.arange(0, STATES)
    largest_nl = tl.full((STATES, LENGTH), float("-inf"), ACC)
    for first in range(0, length, LENGTH):
        at = first + tl.arange(0, LENGTH)
        mask_nl = (n < states)[:, None] & (at < length)[None, :]
        dt_nl = _tile(dt + batch * dt_batch, n, dt_state, states, at, length, ACC)
        largest_nl = tl.maximum(largest_nl, tl.where(mask_nl, dt_nl, float("-inf")))
    largest_n = tl.max(largest_nl, 1)
    total_nl = tl.zeros((STATES, LENGTH), ACC)
    for first in range(0, length, LENGTH):
        at = first + tl.arange(0, LENGTH)
        dt_nl = _tile(dt + batch * dt_batch, n, dt_state, states, at, length, ACC)
        raised_nl = tl.exp2((dt_nl - largest_n[:, None]) * _LOG2_E)
        total_nl += tl.where((at < length)[None, :], raised_nl, 0.0)
    place_n = softmax + batch * 2 * states + n
    tl.store(place_n, largest_n, mask=n < states)
    tl.store(place_n + states, tl.sum(total_nl, 1), mask=n < states)


@triton.jit
def states_kernel(
    u, dt, B, softmax, h, length, channels, states,
    u_batch, u_channel, dt_batch, dt_state, B_batch, B_state,
    CHANNELS: tl.constexpr, STATES: tl.constexpr, LENGTH: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """h = u (softmax * B)^T."""
    batch = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.program_id(2) * STATES + tl.arange(0, STATES)
    softmax += batch * 2 * states
    h_dn = tl.zeros((CHANNELS, STATES), ACC)
    for first in range(0, length, LENGTH):
        at = first + tl.arange(0, LENGTH)
        weights_nl = _shares(dt + batch * dt_batch, softmax, n, states, at, length, dt_state, ACC)
        weights_nl *= _tile(B + batch * B_batch, n, B_state, states, at, length, ACC)
        u_dl = _tile(u + batch * u_batch, d, u_channel, channels, at, length, ACC)
        h_dn = tl.dot(u_dl, tl.trans(weights_nl), h_dn, input_precision=PRECISION, out_dtype=ACC)
    mask_dn = (d < channels)[:, None] & (n < states)[None, :]
    tl.store(h + (batch * channels + d)[:, None] * states + n[None, :], h_dn, mask=mask_dn)


@triton.jit
def weights_kernel(
    grad, h, u, dt, B, softmax, grad_dt, grad_B, length, channels, states,
    u_batch, u_channel, dt_batch, dt_state, B_batch, B_state,
    CHANNELS: tl.constexpr, STATES: tl.constexpr, LENGTH: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """With v = dh^T u: dB = share v, ddt = share (B v - mean), where mean is the sum over channels of h dh."""
    batch = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * LENGTH + tl.arange(0, LENGTH)
    n = tl.program_id(2) * STATES + tl.arange(0, STATES)
    through_nl = tl.zeros((STATES, LENGTH), ACC)
    mean_n = tl.zeros((STATES,), ACC)
    of_batch = batch * channels * states
    for first in range(0, channels, CHANNELS):
        d = first + tl.arange(0, CHANNELS)
        grad_dn = _tile(grad + of_batch, d, states, channels, n, states, ACC)
        mean_n += tl.sum(grad_dn * _tile(h + of_batch, d, states, channels, n, states, ACC), 0)
        u_dl = _tile(u + batch * u_batch, d, u_channel, channels, at, length, ACC)
        through_nl = tl.dot(tl.trans(grad_dn), u_dl, through_nl, input_precision=PRECISION, out_dtype=ACC)
    softmax += batch * 2 * states
    share_nl = _shares(dt + batch * dt_batch, softmax, n, states, at, length, dt_state, ACC)
    B_nl = _tile(B + batch * B_batch, n, B_state, states, at, length, ACC)
    place_nl = (batch * states + n)[:, None] * length + at[None, :]
    mask_nl = (n < states)[:, None] & (at < length)[None, :]
    tl.store(grad_B + place_nl, share_nl * through_nl, mask=mask_nl)
    tl.store(grad_dt + place_nl, share_nl * (B_nl * through_nl - mean_n[:, None]), mask=mask_nl)


@triton.jit
def input_kernel(
    grad, dt, B, softmax, grad_u, length, channels, states,
    dt_batch, dt_state, B_batch, B_state,
    CHANNELS: tl.constexpr, STATES: tl.constexpr, LENGTH: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """du = dh (softmax * B)."""
    batch = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * LENGTH + tl.arange(0, LENGTH)
    d = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    softmax += batch * 2 * states
    grad_u_dl = tl.zeros((CHANNELS, LENGTH), ACC)
    for first in range(0, states, STATES):
        n = first + tl.arange(0, STATES)
        weights_nl = _shares(dt + batch * dt_batch, softmax, n, states, at, length, dt_state, ACC)
        weights_nl *= _tile(B + batch * B_batch, n, B_state, states, at, length, ACC)
        grad_dn = _tile(grad + batch * channels * states, d, states, channels, n, states, ACC)
        grad_u_dl = tl.dot(grad_dn, weights_nl, grad_u_dl, input_precision=PRECISION, out_dtype=ACC)
    mask_dl = (d < channels)[:, None] & (at < length)[None, :]
    tl.store(grad_u + (batch * channels + d)[:, None] * length + at[None, :], grad_u_dl, mask=mask_dl)


def forward(u: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    u, dt, B = (_with_dense_rows(tensor) for tensor in (u, dt, B))
    batch, channels, length = u.shape
    states = dt.shape[1]
    tiles = _tiles(u, dt)
    ACC, blocks = tiles["ACC"], triton.cdiv(states, tiles["STATES"])
    h = u.new_empty(batch, channels, states, dtype=state_dtype(u.dtype))
    softmax = u.new_empty(batch, 2, states, dtype=state_dtype(u.dtype))
    with _on(u.device):
        softmax_kernel[batch, triton.cdiv(states, 4)](
            dt, softmax, length, states, *_apart(dt), STATES=4, LENGTH=256, ACC=ACC, num_warps=4, enable_fp_fusion=True
        )
        states_kernel[batch, triton.cdiv(channels, tiles["CHANNELS"]), blocks](
            u, dt, B, softmax, h, length, channels, states, *_apart(u, dt, B), **tiles
        )
    return h, softmax


def backward(
    grad: Tensor, h: Tensor, softmax: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator's backward (op.py tells the contract)."""
    u, dt, B = (_with_dense_rows(tensor) for tensor in (u, dt, B))
    batch, channels, length = u.shape
    states = dt.shape[1]
    tiles = _tiles(u, dt)
    grad, h, softmax = grad.contiguous(), h.contiguous(), softmax.contiguous()
    grad_u, grad_dt, grad_B = (tensor.new_empty(tensor.shape) for tensor in (u, dt, B))
    sizes, blocks = (length, channels, states), triton.cdiv(length, tiles["LENGTH"])
    with _on(u.device):
        weights_kernel[batch, blocks, triton.cdiv(states, tiles["STATES"])](
            grad, h, u, dt, B, softmax, grad_dt, grad_B, *sizes, *_apart(u, dt, B), **tiles
        )
        input_kernel[batch, blocks, triton.cdiv(channels, tiles["CHANNELS"])](
            grad, dt, B, softmax, grad_u, *sizes, *_apart(dt, B), **tiles
        )
    return grad_u, grad_dt, grad_B


# CHANNELS, STATES, LENGTH of a tile and warps, by the bytes of an input: what keeps products in registers.
_LARGEST = {2: (64, 64, 32, 8), 4: (32, 32, 16, 4), 8: (16, 32, 32, 4)}


def _tiles(u: Tensor, dt: Tensor) -> dict[str, Any]:
    """Sizes of tiles, and what the kernels with products take. tl.dot needs 16 in every direction."""
    *most, num_warps = _LARGEST[u.dtype.itemsize]
    sizes = zip(("CHANNELS", "STATES", "LENGTH"), (u.shape[1], dt.shape[1], u.shape[2]), most, strict=True)
    tiles = {name: max(16, min(limit, triton.next_power_of_2(size))) for name, size, limit in sizes}
    ACC = tl.float64 if u.dtype == torch.float64 else tl.float32
    precision = "tf32" if u.dtype.itemsize == 2 else "ieee"
    return {**tiles, "ACC": ACC, "PRECISION": precision, "num_warps": num_warps, "enable_fp_fusion": True}


def _with_dense_rows(tensor: Tensor) -> Tensor:
    """The kernels read along positions; the other axes may have any strides."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _apart(*tensors: Tensor) -> list[int]:
    """The strides of batch and rows of each."""
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which has to be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
