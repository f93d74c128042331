"""The selective scan on GPUs: how a problem is laid onto the machine. triton_kernels.py has the kernels, README.md the
maths, op.py the contract.

Where batch x channels are too few programs to fill the GPU, time is cut into segments that run side by side: each first
finds what it does to a zero state (`segment_kernel`), a short loop chains these (`chain_kernel`), and the main kernels
start from there. This computes every exponential twice, so it is done for small problems only.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from statefield.kernels._op import state_dtype
from statefield.kernels.selective_scan.reference import CHUNK
from statefield.kernels.selective_scan.triton_kernels import (
    chain_kernel,
    scan_backward_kernel,
    scan_forward_kernel,
    segment_kernel,
)

# The most steps of a tile, and how many tensors of a tile's shape there is room for: a step costs one register for each
# state that a thread holds and about two for u, delta, ... More hides the latency of loads better, until registers
# spill (docs/kernels.md has the table).
FORWARD_TILE, BACKWARD_TILE = (16, 96), (8, 40)


@dataclass(frozen=True)
class Plan:
    """How one problem is laid onto the GPU."""

    batch: int
    length: int
    groups: int
    group_channels: int
    num_states: int
    tile: int  # steps at once
    states: int  # num_states, rounded up to a power of two
    channels: int  # channels of a program
    lane_states: int  # of the 32 threads of a warp, how many lie along the states
    lane_channels: int  # and how many along the channels
    num_warps: int
    blocks: int  # programs that share a group's channels
    segments: int  # pieces of time that run side by side
    segment_length: int  # steps, a multiple of CHUNK

    @property
    def grid(self) -> tuple[int, int]:
        return self.batch * self.groups * self.blocks, self.segments

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """The sizes that every kernel of a scan takes, in their order."""
        return self.length, self.segment_length, self.groups, self.group_channels, self.num_states

    def options(self, dtype: torch.dtype) -> dict[str, Any]:
        """The constants and compiler options that every kernel takes. Without fused multiply-adds nothing is fast."""
        ACC = tl.float64 if dtype == torch.float64 else tl.float32
        lanes = {"LN": self.lane_states, "LD": self.lane_channels}
        return {
            "STATES": self.states, "CHANNELS": self.channels, **lanes, "ACC": ACC,
            "num_warps": self.num_warps, "enable_fp_fusion": True,
        }  # fmt: skip


def plan(
    batch: int,
    length: int,
    groups: int,
    group_channels: int,
    num_states: int,
    *,
    itemsize: int,
    backwards: bool,
    sms: int,
) -> Plan:
    """Tile and segment sizes.

    Args:
        itemsize: bytes of a state, 4 or 8.
        backwards: for the backward, which lays threads along the states too (triton_kernels.py says why) and holds
            five tensors of a tile where the forward holds two.
        sms: multiprocessors of the device. Four warps each, one a scheduler, keep the special function units busy;
            below half of that, cutting time pays for computing exponentials twice.
    """
    states = triton.next_power_of_2(num_states)
    channels = min(32, triton.next_power_of_2(group_channels))
    lane_states = min(4, states) if backwards else 1
    lane_channels = min(channels, 32 // lane_states)
    num_warps = max(1, min(8, states * channels // 512))
    held = max(1, states * channels // (32 * num_warps))  # states of one step in a thread
    most_steps, room = BACKWARD_TILE if backwards else FORWARD_TILE
    tile = 1
    while tile < min(most_steps, length) and 2 * tile * (held + 2) * itemsize <= room * 4:
        tile *= 2
    blocks = triton.cdiv(group_channels, channels)
    warps = batch * groups * blocks * num_warps
    segments = 1 if warps * 2 > sms * 4 else triton.cdiv(sms * 8, warps)
    segment_length = triton.cdiv(triton.cdiv(length, segments), CHUNK) * CHUNK
    segments = triton.cdiv(length, segment_length)
    return Plan(
        batch, length, groups, group_channels, num_states, tile, states, channels, lane_states, lane_channels,
        num_warps, blocks, segments, segment_length,
    )  # fmt: skip


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 0 for the CPU of Triton's interpreter, where cutting time gains nothing."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


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
    dtype = state_dtype(u.dtype)
    laid = _plan_of(u, A, B, C, backwards=False)
    u, delta, z, B, C = (_with_dense_rows(t) for t in (u, delta, z, B, C))
    A, D, delta_bias = _dense(A), _dense(D), _dense(delta_bias)
    out = u.new_empty(u.shape)
    last = u.new_empty(laid.batch, u.shape[2], laid.num_states, dtype=dtype)
    kept = (laid.batch, triton.cdiv(laid.length, CHUNK), laid.num_states, u.shape[2]) if keep_states else (0,)
    states = u.new_empty(kept, dtype=dtype)
    with _on(u.device):
        start = _by_segment(initial_state)
        if laid.segments > 1:
            start = _enter_segments(
                laid, dtype, initial_state, u, delta, A, B, None, delta_bias, None, delta_softplus, backwards=False
            )
        scan_forward_kernel[laid.grid](
            u, delta, A, B, C, D, z, delta_bias, start, out, last, states if keep_states else None,
            *laid.sizes, *_rows_apart(u, delta, z), *_groups_apart(B, C), *_strides(start, 4),
            B_VARIES=B.dim() == 4, C_VARIES=C.dim() == 4, SOFTPLUS=delta_softplus,
            TILE=laid.tile, CHUNK=CHUNK, **laid.options(dtype),
        )  # fmt: skip
    return out, last, states


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
    dtype = state_dtype(u.dtype)
    laid = _plan_of(u, A, B, C, backwards=True)
    u, delta, z, B, C, grad_out = (_with_dense_rows(t) for t in (u, delta, z, B, C, grad_out))
    A, D, delta_bias, states = _dense(A), _dense(D), _dense(delta_bias), _dense(states)
    grad_u, grad_delta = u.new_empty(u.shape), delta.new_empty(delta.shape)
    grad_z = None if z is None else z.new_empty(z.shape)
    grad_start = None if initial_state is None else u.new_empty(initial_state.shape, dtype=dtype)

    of_programs = (laid.batch, laid.segments, laid.num_states, u.shape[2])  # sums over the steps of a program
    of_steps = (laid.blocks, laid.batch, laid.length, laid.groups, laid.num_states)  # sums over its channels
    partial_A = u.new_empty(of_programs, dtype=dtype)
    partial_B = u.new_empty(of_steps if B.dim() == 4 else of_programs, dtype=dtype)
    partial_C = u.new_empty(of_steps if C.dim() == 4 else of_programs, dtype=dtype)
    partial_D, partial_bias = u.new_empty(2, laid.batch, laid.segments, u.shape[2], dtype=dtype)
    programs = laid.grid[0] * laid.grid[1]
    scratch = u.new_empty(programs, CHUNK // laid.tile, laid.states, laid.channels, dtype=dtype)
    with _on(u.device):
        entering = _by_segment(grad_last)
        if laid.segments > 1:
            entering = _enter_segments(
                laid, dtype, grad_last, None, delta, A, C, z, delta_bias, grad_out, delta_softplus, backwards=True
            )
        scan_backward_kernel[laid.grid](
            u, delta, A, B, C, D, z, delta_bias, states, grad_out, entering, scratch,
            grad_u, grad_delta, grad_z, partial_A, partial_B, partial_C, partial_D, partial_bias, grad_start,
            laid.batch, *laid.sizes, *_rows_apart(u, delta, z), *_groups_apart(B, C), *_rows_apart(grad_out),
            *_strides(entering, 4),
            B_VARIES=B.dim() == 4, C_VARIES=C.dim() == 4, SOFTPLUS=delta_softplus,
            TILE=laid.tile, CHUNK=CHUNK, **laid.options(dtype),
        )  # fmt: skip
    grad_B, grad_C = (p.sum(0) if p.dim() == 5 else p.sum((0, 1)).T for p in (partial_B, partial_C))
    grad_D = None if D is None else partial_D.sum((0, 1))
    grad_bias = None if delta_bias is None else partial_bias.sum((0, 1))
    return grad_u, grad_delta, partial_A.sum((0, 1)).T, grad_B, grad_C, grad_D, grad_z, grad_bias, grad_start


def _enter_segments(
    laid: Plan,
    dtype: torch.dtype,
    start: Tensor | None,
    u: Tensor | None,
    delta: Tensor,
    A: Tensor,
    weights: Tensor,
    z: Tensor | None,
    delta_bias: Tensor | None,
    grad_out: Tensor | None,
    delta_softplus: bool,
    *,
    backwards: bool,
) -> Tensor:
    """What enters each segment [B, S, D, N]: the state before it, or backwards the gradient of the state after it.

    Args:
        start: what enters the whole sequence, [B, D, N] or None for zero.
        weights: B, or backwards C.
    """
    channels = delta.shape[2]
    entering = delta.new_empty(laid.batch, laid.segments, laid.num_states, channels, dtype=dtype)
    total_dt = delta.new_empty(laid.batch, laid.segments, channels, dtype=dtype)
    segment_kernel[laid.grid](
        u, delta, A, weights, z, delta_bias, grad_out, entering, total_dt,
        *laid.sizes, *_rows_apart(u, delta, z), *_groups_apart(weights), *_rows_apart(grad_out),
        VARIES=weights.dim() == 4, SOFTPLUS=delta_softplus, BACKWARDS=backwards,
        TILE=laid.tile, **laid.options(dtype),
    )  # fmt: skip
    chain_kernel[laid.grid[:1]](
        A, start, entering, total_dt, laid.segments, *laid.sizes[2:], *_strides(start, 3),
        BACKWARDS=backwards, **laid.options(dtype),
    )  # fmt: skip
    return entering.transpose(2, 3)


def _plan_of(u: Tensor, A: Tensor, B: Tensor, C: Tensor, *, backwards: bool) -> Plan:
    batch, length, channels = u.shape
    groups = next((w.shape[2] for w in (B, C) if w.dim() == 4), 1)
    sizes = (batch, length, groups, channels // groups, A.shape[1])
    itemsize = state_dtype(u.dtype).itemsize
    return plan(*sizes, itemsize=itemsize, backwards=backwards, sms=multiprocessors(u.device))


def _dense(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.contiguous()


def _with_dense_rows(tensor: Tensor | None) -> Any:
    """The kernels read along the last axis; the others may have any strides. Weights constant in time are dense."""
    if tensor is None or (tensor.stride(-1) == 1 and tensor.dim() > 2):
        return tensor
    return tensor.contiguous()


def _by_segment(state: Tensor | None) -> Tensor | None:
    """A state [B, D, N] of the whole sequence as [B, 1, D, N]."""
    return None if state is None else state.unsqueeze(1)


def _strides(tensor: Tensor | None, axes: int) -> tuple[int, ...]:
    return (0,) * axes if tensor is None else tensor.stride()[:axes]


def _rows_apart(*tensors: Tensor | None) -> list[int]:
    """The strides of batch and time of each [B, L, D]."""
    return [stride for tensor in tensors for stride in _strides(tensor, 2)]


def _groups_apart(*weights: Tensor) -> list[int]:
    """The strides of batch, time and group of each [B, L, G, N]; zeros for weights [D, N] constant in time."""
    return [stride for w in weights for stride in _strides(w if w.dim() == 4 else None, 3)]


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which has to be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
