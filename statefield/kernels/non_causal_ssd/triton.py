"""The non-causal state-space duality on GPUs: Triton kernels and their launchers. README.md has the maths.

`state_kernel` makes a state from its positions (and, from C and the gradient of the output, the gradient of the state);
where batch x heads are too few programs, positions are cut into segments whose states torch adds in order.
`output_kernel` reads it at each position. Backwards, `inputs_kernel` gives what has the shape of x and dt, and
`weights_kernel` what has that of B and C, walking over the heads of a group. No atomics: two runs give equal bits.

Products are tl.dot on operands in float32 (float64): a x and the state outgrow float16. For float32 inputs they are
exact products ("ieee"). For 16-bit inputs "tf32" holds x, B, C and the gradient without loss, and rounds the state and
a x, finer than a result in 16 bits is. Only the product behind the gradient of A, which is float32, takes "tf32x3".

Legend: B batch, L positions, H heads, P channels, N states, G groups. A suffix names a tensor's axes: l positions, n
states, p channels. Sizes in capitals are those of a tile. Head h reads group h mod G.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from statefield.kernels._op import state_dtype

_PROGRAMS = 256  # about two for each multiprocessor of a large GPU
_SHORTEST = 256  # positions of a segment: below it, writing states costs more than it gains


@triton.jit
def _tile(pointer, row, stride, mask_row, column, columns, ACC: tl.constexpr):
    """Rows of a matrix whose last axis is dense, zero outside."""
    mask = mask_row[:, None] & (column < columns)[None, :]
    return tl.load(pointer + row.to(tl.int64)[:, None] * stride + column[None, :], mask=mask, other=0.0).to(ACC)


@triton.jit
def _weights_of_positions(dt, A, row, stride, mask, head, ACC: tl.constexpr):
    """a = dt A of one head at some positions, and dt; zero outside."""
    dt_l = tl.load(dt + row.to(tl.int64) * stride, mask=mask, other=0.0).to(ACC)
    return dt_l * tl.load(A + head).to(ACC), dt_l


@triton.jit
def state_kernel(
    left, right, dt, A, sums, length, segment_length, heads, groups, channels, states,
    left_batch, left_row, left_group, right_batch, right_row, right_head, dt_batch, dt_row, dt_head,
    ROWS: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sums [segments, B, H, N, P] = sum over a segment of left_l (a_l right_l)^T; without dt, a is 1."""
    entry, segment, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (entry // heads).to(tl.int64), entry % heads
    blocks_p = tl.cdiv(channels, CHANNELS)
    n = block // blocks_p * STATES + tl.arange(0, STATES)
    p = block % blocks_p * CHANNELS + tl.arange(0, CHANNELS)
    left += batch * left_batch + head % groups * left_group
    right += batch * right_batch + head * right_head
    end = tl.minimum((segment + 1) * segment_length, length)
    sum_np = tl.zeros((STATES, CHANNELS), ACC)
    for begin in range(segment * segment_length, end, ROWS):
        row = begin + tl.arange(0, ROWS)
        left_ln = _tile(left, row, left_row, row < end, n, states, ACC)
        right_lp = _tile(right, row, right_row, row < end, p, channels, ACC)
        if dt is not None:
            of_head = dt + batch * dt_batch + head * dt_head
            a_l, _dt_l = _weights_of_positions(of_head, A, row, dt_row, row < end, head, ACC)
            right_lp *= a_l[:, None]
        sum_np = tl.dot(tl.trans(left_ln), right_lp, sum_np, input_precision=PRECISION, out_dtype=ACC)
    place = (segment.to(tl.int64) * tl.num_programs(0) + entry) * states * channels
    mask_np = (n < states)[:, None] & (p < channels)[None, :]
    tl.store(sums + place + n[:, None] * channels + p[None, :], sum_np, mask=mask_np)


@triton.jit
def output_kernel(
    C, state, x, D, y, length, heads, groups, channels, states,
    C_batch, C_row, C_group, x_batch, x_row, x_head,
    ROWS: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y_l = S^T C_l + D x_l."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    entry = tl.program_id(1).to(tl.int64)
    batch, head = entry // heads, entry % heads
    p = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    mask_l = row < length
    y_lp = tl.zeros((ROWS, CHANNELS), ACC)
    for first in range(0, states, STATES):
        n = first + tl.arange(0, STATES)
        C_ln = _tile(C + batch * C_batch + head % groups * C_group, row, C_row, mask_l, n, states, ACC)
        state_np = _tile(state + entry * states * channels, n, channels, n < states, p, channels, ACC)
        y_lp = tl.dot(C_ln, state_np, y_lp, input_precision=PRECISION, out_dtype=ACC)
    if D is not None:
        x_lp = _tile(x + batch * x_batch + head * x_head, row, x_row, mask_l, p, channels, ACC)
        y_lp += tl.load(D + head).to(ACC) * x_lp
    place_l = (batch * length + row) * heads + head
    mask_lp = mask_l[:, None] & (p < channels)[None, :]
    tl.store(y + place_l[:, None] * channels + p[None, :], y_lp, mask=mask_lp)


@triton.jit
def inputs_kernel(
    grad, grad_state, x, dt, A, B, D, grad_x, grad_dt, partial_A, partial_D, length, heads, groups, channels, states,
    grad_batch, grad_row, grad_head, x_batch, x_row, x_head, dt_batch, dt_row, dt_head, B_batch, B_row, B_group,
    ROWS: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx_l = a_l dS^T B_l + D dy_l; da_l = x_l . dS^T B_l, so ddt_l = A da_l; parts [row blocks, B, H] of dA and dD."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    entry = tl.program_id(1).to(tl.int64)
    batch, head = entry // heads, entry % heads
    mask_l = row < length
    place_l = (batch * length + row) * heads + head
    a_l, dt_l = _weights_of_positions(dt + batch * dt_batch + head * dt_head, A, row, dt_row, mask_l, head, ACC)
    through_a_l = tl.zeros((ROWS,), ACC)
    through_D_l = tl.zeros((ROWS,), ACC)
    for first_channel in range(0, channels, CHANNELS):
        p = first_channel + tl.arange(0, CHANNELS)
        grad_ax_lp = tl.zeros((ROWS, CHANNELS), ACC)
        for first_state in range(0, states, STATES):
            n = first_state + tl.arange(0, STATES)
            B_ln = _tile(B + batch * B_batch + head % groups * B_group, row, B_row, mask_l, n, states, ACC)
            grad_np = _tile(grad_state + entry * states * channels, n, channels, n < states, p, channels, ACC)
            grad_ax_lp = tl.dot(B_ln, grad_np, grad_ax_lp, input_precision=PRECISION, out_dtype=ACC)
        x_lp = _tile(x + batch * x_batch + head * x_head, row, x_row, mask_l, p, channels, ACC)
        through_a_l += tl.sum(x_lp * grad_ax_lp, 1)
        grad_x_lp = a_l[:, None] * grad_ax_lp
        if D is not None:
            grad_lp = _tile(grad + batch * grad_batch + head * grad_head, row, grad_row, mask_l, p, channels, ACC)
            grad_x_lp += tl.load(D + head).to(ACC) * grad_lp
            through_D_l += tl.sum(x_lp * grad_lp, 1)
        mask_lp = mask_l[:, None] & (p < channels)[None, :]
        tl.store(grad_x + place_l[:, None] * channels + p[None, :], grad_x_lp, mask=mask_lp)
    tl.store(grad_dt + place_l, through_a_l * tl.load(A + head).to(ACC), mask=mask_l)
    part = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + entry
    tl.store(partial_A + part, tl.sum(through_a_l * dt_l, 0))
    if D is not None:
        tl.store(partial_D + part, tl.sum(through_D_l, 0))


@triton.jit
def weights_kernel(
    grad, state, grad_state, x, dt, A, grad_B, grad_C, length, heads, groups, channels, states,
    grad_batch, grad_row, grad_head, x_batch, x_row, x_head, dt_batch, dt_row, dt_head,
    ROWS: tl.constexpr, STATES: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dC_l = sum over the heads of a group of S dy_l; dB_l likewise of dS a_l x_l."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    batch, group = (tl.program_id(1) // groups).to(tl.int64), tl.program_id(1) % groups
    n = tl.program_id(2) * STATES + tl.arange(0, STATES)
    mask_l = row < length
    grad_B_ln = tl.zeros((ROWS, STATES), ACC)
    grad_C_ln = tl.zeros((ROWS, STATES), ACC)
    for head in range(group, heads, groups):
        of_head = (batch * heads + head) * states * channels
        a_l, _dt_l = _weights_of_positions(dt + batch * dt_batch + head * dt_head, A, row, dt_row, mask_l, head, ACC)
        for first_channel in range(0, channels, CHANNELS):
            p = first_channel + tl.arange(0, CHANNELS)
            grad_lp = _tile(grad + batch * grad_batch + head * grad_head, row, grad_row, mask_l, p, channels, ACC)
            state_np = _tile(state + of_head, n, channels, n < states, p, channels, ACC)
            grad_C_ln = tl.dot(grad_lp, tl.trans(state_np), grad_C_ln, input_precision=PRECISION, out_dtype=ACC)
            x_lp = _tile(x + batch * x_batch + head * x_head, row, x_row, mask_l, p, channels, ACC) * a_l[:, None]
            grad_np = _tile(grad_state + of_head, n, channels, n < states, p, channels, ACC)
            grad_B_ln = tl.dot(x_lp, tl.trans(grad_np), grad_B_ln, input_precision=PRECISION, out_dtype=ACC)
    place_l = (batch * length + row) * groups + group
    mask_ln = mask_l[:, None] & (n < states)[None, :]
    tl.store(grad_B + place_l[:, None] * states + n[None, :], grad_B_ln, mask=mask_ln)
    tl.store(grad_C + place_l[:, None] * states + n[None, :], grad_C_ln, mask=mask_ln)


def forward(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> tuple[Tensor, Tensor]:
    """The operator's forward (op.py tells the contract)."""
    x, B, C = (_with_dense_rows(tensor) for tensor in (x, B, C))
    A, D = A.contiguous(), None if D is None else D.contiguous()
    batch, length, heads, channels = x.shape
    tiles = _tiles(x, B, _FORWARD)
    y = x.new_empty(x.shape)
    with _on(x.device):
        state = _state(B, x, dt, A, tiles)
        grid = (triton.cdiv(length, tiles["ROWS"]), batch * heads, triton.cdiv(channels, tiles["CHANNELS"]))
        output_kernel[grid](
            C, state, x, D, y, length, heads, B.shape[2], channels, B.shape[3],
            *C.stride()[:3], *x.stride()[:3], **tiles, PRECISION=_precision(x),
        )  # fmt: skip
    return y, state


def backward(
    grad: Tensor, state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract)."""
    grad, x, B, C = (_with_dense_rows(tensor) for tensor in (grad, x, B, C))
    state, A, D = state.contiguous(), A.contiguous(), None if D is None else D.contiguous()
    batch, length, heads, channels = x.shape
    groups, states = B.shape[2:]
    tiles = _tiles(x, B, _BACKWARD)
    blocks = triton.cdiv(length, tiles["ROWS"])
    sizes = (length, heads, groups, channels, states)
    rows = (*grad.stride()[:3], *x.stride()[:3], *dt.stride())
    grad_x, grad_dt, grad_B, grad_C = (t.new_empty(t.shape) for t in (x, dt, B, C))
    partial_A, partial_D = x.new_empty(2, blocks, batch, heads, dtype=state.dtype)
    with _on(x.device):
        grad_state = _state(C, grad, None, A, tiles)
        inputs_kernel[blocks, batch * heads](
            grad, grad_state, x, dt, A, B, D, grad_x, grad_dt, partial_A, partial_D, *sizes, *rows, *B.stride()[:3],
            **tiles, PRECISION=_precision(x, "tf32x3"),
        )  # fmt: skip
        weights_kernel[blocks, batch * groups, triton.cdiv(states, tiles["STATES"])](
            grad, state, grad_state, x, dt, A, grad_B, grad_C, *sizes, *rows, **tiles, PRECISION=_precision(x)
        )
    grad_D = None if D is None else partial_D.sum((0, 1))
    return grad_x, grad_dt, partial_A.sum((0, 1)), grad_B, grad_C, grad_D


def _state(left: Tensor, right: Tensor, dt: Tensor | None, A: Tensor, tiles: dict[str, Any]) -> Tensor:
    """sum over positions of left_l (a_l right_l)^T, [B, H, N, P] in the state dtype; without dt, a is 1."""
    batch, length, heads, channels = right.shape
    groups, states = left.shape[2:]
    blocks = triton.cdiv(states, tiles["STATES"]) * triton.cdiv(channels, tiles["CHANNELS"])
    segments = min(triton.cdiv(_PROGRAMS, batch * heads * blocks), triton.cdiv(length, _SHORTEST))
    segment_length = triton.cdiv(triton.cdiv(length, segments), tiles["ROWS"]) * tiles["ROWS"]
    segments = triton.cdiv(length, segment_length)
    sums = right.new_empty(segments, batch, heads, states, channels, dtype=state_dtype(right.dtype))
    state_kernel[batch * heads, segments, blocks](
        left, right, dt, A, sums, length, segment_length, heads, groups, channels, states,
        *left.stride()[:3], *right.stride()[:3], *((0, 0, 0) if dt is None else dt.stride()),
        **tiles, PRECISION=_precision(right),
    )  # fmt: skip
    return sums[0] if segments == 1 else sums.sum(0)


# ROWS, STATES, CHANNELS of a tile and warps, by the bytes of an input: the largest that keep products in registers when
# they are compiled (docs/kernels_gpu.md). Products without tensor cores (float32) hold more operands.
_FORWARD = {2: (64, 64, 64, 4), 4: (32, 64, 32, 4), 8: (16, 32, 32, 4)}
_BACKWARD = {2: (64, 32, 64, 8), 4: (32, 64, 32, 4), 8: (16, 32, 32, 4)}


def _tiles(x: Tensor, B: Tensor, table: dict[int, tuple[int, int, int, int]]) -> dict[str, Any]:
    """Sizes of tiles, and what every kernel takes. tl.dot needs 16 in every direction."""
    *most, num_warps = table[x.dtype.itemsize]
    sizes = zip(("ROWS", "STATES", "CHANNELS"), (x.shape[1], B.shape[3], x.shape[3]), most, strict=True)
    tiles = {name: max(16, min(limit, triton.next_power_of_2(size))) for name, size, limit in sizes}
    ACC = tl.float64 if x.dtype == torch.float64 else tl.float32
    return {**tiles, "ACC": ACC, "num_warps": num_warps, "enable_fp_fusion": True}


def _precision(x: Tensor, of_sixteen_bits: str = "tf32") -> str:
    return of_sixteen_bits if x.dtype.itemsize == 2 else "ieee"


def _with_dense_rows(tensor: Tensor) -> Tensor:
    """The kernels read along the last axis; the others may have any strides."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which has to be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
