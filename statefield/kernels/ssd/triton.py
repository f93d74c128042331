"""Mamba-2's scan on GPUs: how a problem is laid onto the machine. triton_kernels.py has the kernels, README.md the
maths, op.py the contract.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from statefield.kernels._op import state_dtype
from statefield.kernels.ssd.triton_kernels import (
    chain_kernel,
    inputs_kernel,
    output_kernel,
    states_kernel,
    steps_kernel,
    weights_kernel,
)

# States or channels that a program owns, and those that a product goes through at a time. With 64 and 32, registers
# spill by kilobytes: what "tf32x3" multiplies it holds in two parts (docs/kernels_gpu.md has the table).
MOST, PIECE = 32, 16
CHAIN_BLOCK = 512  # elements of a state that one program carries from chunk to chunk


class _Plan:
    """How one problem is laid onto the GPU: the tensors as the kernels read them, sizes, and constants."""

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
        dt_softplus: bool,
        dt_min: float,
        dt_max: float,
        chunk: int,
    ) -> None:
        self.x, self.B, self.C, self.z = (_with_dense_rows(t) for t in (x, B, C, z))
        self.dt, self.A, self.D, self.bias = dt, A.contiguous(), _dense(D), _dense(dt_bias)
        self.batch, self.length, self.heads, self.channels = x.shape
        self.groups, self.states = B.shape[2:]
        self.chunk = chunk
        self.num_chunks = triton.cdiv(self.length, chunk)
        self.dtype = state_dtype(x.dtype)
        self.limits = {"SOFTPLUS": dt_softplus, "DT_MIN": dt_min, "DT_MAX": dt_max}
        self.tiles = {"Q": _tile(chunk), "N": min(MOST, _tile(self.states)), "P": min(MOST, _tile(self.channels))}
        self.ACC = tl.float64 if self.dtype == torch.float64 else tl.float32
        self.options: dict[str, Any] = {
            **self.limits, **self.tiles, "K": PIECE, "ACC": self.ACC,
            "PRECISION": "tf32x3" if x.dtype.itemsize == 2 else "ieee",
            "num_warps": 8 if self.tiles["Q"] >= 64 else 4, "num_stages": 1, "enable_fp_fusion": True,
        }  # fmt: skip

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.length, self.chunk, self.heads, self.groups, self.channels, self.states

    def blocks(self, *axes: str) -> int:
        """How many tiles lie along these axes ("N", "P")."""
        count = 1
        for axis in axes:
            count *= triton.cdiv(self.states if axis == "N" else self.channels, self.tiles[axis])
        return count

    def chained(self, start: Tensor | None, end: Tensor | None, grad_y: Tensor | None = None) -> Tensor:
        """The state before each chunk, or with `grad_y` the gradient of the state after it, [b, M, h, n, p]."""
        backwards = grad_y is not None
        weights, rows = (self.C, grad_y) if backwards else (self.B, self.x)
        z = self.z if backwards else None
        shape = (self.batch, self.num_chunks, self.heads)
        states = self.x.new_empty(*shape, self.states, self.channels, dtype=self.dtype)
        exponents = self.x.new_empty(shape, dtype=self.dtype)
        sequences = self.batch * self.heads
        states_kernel[(self.num_chunks, sequences, self.blocks("N", "P"))](
            weights, rows, z, self.dt, self.bias, self.A, states, exponents,
            *self.sizes, *_strides(weights, rows, z, self.dt), BACKWARDS=backwards, **self.options,
        )  # fmt: skip
        chain_kernel[(sequences, triton.cdiv(self.states * self.channels, CHAIN_BLOCK))](
            states, exponents, start, end, self.num_chunks, self.heads, self.channels, self.states,
            *((0,) * 4 if start is None else start.stride()),
            BACKWARDS=backwards, BLOCK=CHAIN_BLOCK, ACC=self.ACC, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        return states


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
    plan = _Plan(x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_min, dt_max, chunk)
    y = x.new_empty(x.shape)
    last = x.new_empty(plan.batch, plan.heads, plan.channels, plan.states, dtype=plan.dtype)
    with _on(x.device):
        states = plan.chained(initial_state, last)
        output_kernel[(plan.num_chunks, plan.batch * plan.heads, plan.blocks("P"))](
            plan.x, plan.z, plan.dt, plan.bias, plan.A, plan.B, plan.C, plan.D, states, y,
            *plan.sizes, *_strides(plan.x, plan.z, plan.dt, plan.B, plan.C), **plan.options,
        )  # fmt: skip
    return y, last, states if keep_states else states.new_empty(0)


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
    plan = _Plan(x, dt, A, B, C, D, z, dt_bias, dt_softplus, dt_min, dt_max, chunk)
    grad_y, states = _with_dense_rows(grad_y), states.contiguous()
    grad_x, grad_dt = x.new_empty(x.shape), dt.new_empty(dt.shape)
    grad_z = None if z is None else z.new_empty(z.shape)
    grad_start = None if initial_state is None else x.new_empty(initial_state.shape, dtype=plan.dtype)
    by_chunk = (plan.batch, plan.num_chunks, plan.heads)
    partial_A, partial_bias = x.new_empty(2, *by_chunk, dtype=plan.dtype)
    partial_D = None if D is None else x.new_empty(*by_chunk, plan.channels, dtype=plan.dtype)
    partial_B, partial_C = x.new_empty(2, plan.heads // plan.groups, *B.shape, dtype=plan.dtype)
    N_blocks, P_blocks = plan.blocks("N"), plan.blocks("P")
    partial_dt = x.new_empty(P_blocks, *dt.shape, dtype=plan.dtype)
    entering, leaving = x.new_empty(2, N_blocks, *dt.shape, dtype=plan.dtype)
    across = x.new_empty(N_blocks, *by_chunk, dtype=plan.dtype)
    sizes = (plan.batch, *plan.sizes, *_strides(plan.x, plan.z, plan.dt, plan.B, plan.C, grad_y))
    grid = (plan.num_chunks, plan.batch * plan.heads)
    with _on(x.device):
        grad_states = plan.chained(grad_last, grad_start, grad_y)
        inputs_kernel[(*grid, P_blocks)](
            plan.x, plan.z, plan.dt, plan.bias, plan.A, plan.B, plan.C, plan.D, grad_y, states, grad_states,
            grad_x, grad_z, partial_dt, partial_D, *sizes, **plan.options,
        )  # fmt: skip
        weights_kernel[(*grid, N_blocks)](
            plan.x, plan.z, plan.dt, plan.bias, plan.A, plan.B, plan.C, grad_y, states, grad_states,
            partial_B, partial_C, entering, leaving, across, *sizes, **plan.options,
        )  # fmt: skip
        steps_kernel[grid](
            plan.x, plan.z, plan.dt, plan.bias, plan.A, plan.B, plan.C, grad_y, partial_dt, entering, leaving, across,
            grad_dt, partial_A, partial_bias, P_blocks, N_blocks, *sizes, **plan.options,
        )  # fmt: skip
    grad_D = None if partial_D is None else partial_D.sum((0, 1))
    grad_bias = None if dt_bias is None else partial_bias.sum((0, 1))
    grad_B, grad_C = partial_B.sum(0), partial_C.sum(0)
    return grad_x, grad_dt, partial_A.sum((0, 1)), grad_B, grad_C, grad_D, grad_z, grad_bias, grad_start


def _tile(size: int) -> int:
    """A power of two, at least 16: what tl.dot takes."""
    return max(16, triton.next_power_of_2(size))


def _dense(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.contiguous()


def _with_dense_rows(tensor: Tensor | None) -> Any:
    """The kernels read along the last axis; the others may have any strides."""
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


def _strides(*tensors: Tensor | None) -> list[int]:
    """The strides of batch, time and head (or group) of each tensor; zeros for one that is absent."""
    return [stride for t in tensors for stride in ((0,) * 3 if t is None else t.stride()[:3])]


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which has to be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
