"""mLSTM on GPUs: how a problem is laid onto the machine. triton_kernels.py has the kernels, README.md the maths, op.py
the contract.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from statefield.kernels._op import state_dtype
from statefield.kernels.mlstm.triton_kernels import (
    gates_kernel,
    grad_gates_kernel,
    grad_inputs_kernel,
    grad_states_kernel,
    output_kernel,
    rows_kernel,
    states_kernel,
)


@dataclass(frozen=True)
class Plan:
    """How one problem is laid onto the GPU."""

    batch: int
    heads: int
    length: int
    channels: int
    chunk: int
    block: int  # channels of a program that has one chunk
    side: int  # channels of v, and of k, of a program that has a tile of the state

    @property
    def sequences(self) -> int:
        return self.batch * self.heads

    @property
    def chunks(self) -> int:
        return triton.cdiv(self.length, self.chunk)

    @property
    def blocks(self) -> int:
        return triton.cdiv(self.channels, self.block)

    @property
    def tiles(self) -> int:
        return triton.cdiv(self.channels, self.side) ** 2

    @property
    def steps(self) -> int:
        """Steps of a chunk that a state takes up at once; the depth of a product costs registers."""
        return min(32, self.chunk)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.heads, self.length, self.channels

    @property
    def of_chunks(self) -> tuple[int, int]:
        """The grid of kernels in which a program has one chunk and one block of channels."""
        return self.sequences * self.chunks, self.blocks

    @property
    def of_tiles(self) -> tuple[int, int]:
        """The grid of kernels in which a program has one tile of the state of one head."""
        return self.sequences, self.tiles

    def gate_options(self, dtype: torch.dtype) -> dict[str, Any]:
        return {"L": self.chunk, "ACC": _acc(dtype), "num_warps": 4, "enable_fp_fusion": True}

    def options(self, q: Tensor, block: int) -> dict[str, Any]:
        """The constants and compiler options of the kernels with products, of blocks of so many channels."""
        return {
            "ROOT": 1 / math.sqrt(self.channels),
            "L": self.chunk,
            "BLOCK": block,
            "ACC": _acc(q.dtype),
            "PRECISION": "ieee" if q.dtype == torch.float64 else "tf32x3",
            "num_warps": 8 if self.chunk * block > 1024 else 4,
            "num_stages": 1,  # loads ahead of their use cost registers that are not there
            "enable_fp_fusion": True,
        }


def plan(q: Tensor, chunk_size: int) -> Plan:
    """Blocks of 32 channels, and tiles of the state of 64 x 64: the largest that stay in registers."""
    batch, heads, length, channels = q.shape
    most = max(16, triton.next_power_of_2(channels))
    block, side = (16, 16) if q.dtype == torch.float64 else (min(32, most), min(64, most))
    return Plan(batch, heads, length, channels, chunk_size, block, side)


@dataclass(frozen=True)
class Gates:
    """What `gates_kernel` makes, each [B, NH, S] in the state dtype."""

    a_high: Tensor
    a_low: Tensor
    A_high: Tensor
    A_low: Tensor
    from_start: Tensor
    to_end: Tensor
    m: Tensor
    decays: Tensor
    last_m: Tensor  # [B, NH]
    largest: Tensor | None  # [B, NH], of all m, where one stabiliser serves all steps

    @property
    def weights(self) -> tuple[Tensor, ...]:
        return self.a_high, self.a_low, self.A_high, self.A_low


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
    laid, dtype = plan(q, chunk_size), state_dtype(q.dtype)
    q, k, v = (_with_dense_rows(x) for x in (q, k, v))
    C, n = _dense(C), _dense(n)
    batch, heads, length, channels = q.shape

    def empty(*shape: int) -> Tensor:
        return q.new_empty(shape, dtype=dtype)

    h = q.new_empty(q.shape)
    last_C, last_n = empty(batch, heads, channels, channels), empty(batch, heads, channels)
    states_C = empty(batch, heads, laid.chunks, channels, channels)
    states_n = empty(batch, heads, laid.chunks, channels)
    sums = empty(batch, heads, length)
    with _on(q.device):
        gates = _gates(laid, dtype, i, f, m, stabilize_rowwise)
        states_kernel[laid.of_tiles](
            k, v, C, n, gates.from_start, gates.to_end, states_C, states_n, last_C, last_n,
            *laid.sizes, *_strides(k, v), STEPS=laid.steps, **laid.options(q, laid.side),
        )  # fmt: skip
        output_kernel[laid.of_chunks](
            q, k, v, *gates.weights, gates.from_start, gates.m, gates.largest, states_C, states_n, h, sums,
            *laid.sizes, *_strides(q, k, v), EPS=eps, **laid.options(q, laid.block),
        )  # fmt: skip
    kept = (states_C, states_n, sums, gates.m) if keep_states else tuple(empty(0) for _ in range(4))
    return (h, last_C, last_n, gates.last_m, *kept)


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
    laid, dtype = plan(q, chunk_size), state_dtype(q.dtype)
    grad_h, grad_last_C, grad_last_n, _ = grads
    assert grad_h is not None
    _, last_C, last_n, _, states_C, states_n, sums, _ = (x.contiguous() for x in results)
    q, k, v, grad_h = (_with_dense_rows(x) for x in (q, k, v, grad_h))
    grad_last_C, grad_last_n = _dense(grad_last_C), _dense(grad_last_n)
    batch, heads, length = q.shape[:3]

    def empty(*shape: int) -> Tensor:
        return q.new_empty(shape, dtype=dtype)

    def of_steps() -> Tensor:
        return empty(batch, heads, length)

    weights, grad_scores = (empty(*laid.of_chunks[:1], laid.chunk, laid.chunk) for _ in range(2))
    by, grad_sums, grad_m, moved_within, moved_by_step = (of_steps() for _ in range(5))
    grad_states_C, grad_states_n = torch.empty_like(states_C), torch.empty_like(states_n)
    through = empty(batch, heads, laid.chunks, laid.tiles)
    moved_from_before, moved_to_behind = (empty(batch, heads, length, laid.blocks) for _ in range(2))
    grad_q, grad_k, grad_v = (x.new_empty(x.shape) for x in (q, k, v))
    grad_i, grad_f = of_steps(), of_steps()
    grad_C, grad_n, grad_start_m = (
        None if x is None else empty(*shape) for x, shape in ((C, last_C.shape), (n, last_n.shape), (m, (batch, heads)))
    )
    options, strides = laid.options(q, laid.block), _strides(q, k, v, grad_h)
    with _on(q.device):
        gates = _gates(laid, dtype, i, f, m, stabilize_rowwise)
        rows_kernel[laid.of_chunks[:1]](
            q, k, v, grad_h, *gates.weights, gates.from_start, gates.m, sums, gates.largest, states_C,
            weights, grad_scores, by, grad_sums, grad_m, moved_within, moved_by_step,
            *laid.sizes, *strides, EPS=eps, **options,
        )  # fmt: skip
        grad_states_kernel[laid.of_tiles](
            q, grad_h, by, grad_sums, gates.from_start, states_C, states_n, grad_last_C, grad_last_n,
            grad_states_C, grad_states_n, through, grad_C, grad_n,
            *laid.sizes, *_strides(q, grad_h), STEPS=laid.steps, **laid.options(q, laid.side),
        )  # fmt: skip
        grad_inputs_kernel[laid.of_chunks](
            q, k, v, grad_h, by, grad_sums, gates.from_start, gates.to_end, weights, grad_scores,
            states_C, states_n, grad_states_C, grad_states_n, grad_q, grad_k, grad_v, moved_from_before,
            moved_to_behind, *laid.sizes, *strides, **options,
        )  # fmt: skip
        if gates.largest is not None:  # all that eps passes on goes to the one m that stands for all
            where = gates.m.argmax(2, keepdim=True)
            grad_m = torch.zeros_like(grad_m).scatter_(2, where, grad_m.sum(2, keepdim=True))
        grad_gates_kernel[(laid.sequences,)](
            f.contiguous(), gates.decays, grad_m, _of_last_m(grads, last_C, last_n), moved_within, moved_by_step,
            moved_from_before, moved_to_behind, through, grad_i, grad_f, grad_start_m,
            length, laid.blocks, laid.tiles, **laid.gate_options(dtype),
        )  # fmt: skip
    if C is not None and n is not None and grad_C is not None and grad_n is not None and grad_start_m is not None:
        grad_start_m = grad_start_m + (grad_C * C).sum((2, 3)) + (grad_n * n).sum(2)  # exp(m) C is what counts
    return grad_q, grad_k, grad_v, grad_i, grad_f, grad_C, grad_n, grad_start_m


def _gates(
    laid: Plan, dtype: torch.dtype, i: Tensor, f: Tensor, start_m: Tensor | None, stabilize_rowwise: bool
) -> Gates:
    a_high, a_low, A_high, A_low, from_start, to_end, m, decays = (i.new_empty(i.shape, dtype=dtype) for _ in range(8))
    last_m = i.new_empty(i.shape[:2], dtype=dtype)
    gates_kernel[(laid.sequences,)](
        i.contiguous(), f.contiguous(), _dense(start_m), a_high, a_low, A_high, A_low, from_start, to_end, m, decays,
        last_m, laid.length, **laid.gate_options(dtype),
    )  # fmt: skip
    largest = None if stabilize_rowwise else m.amax(2)
    return Gates(a_high, a_low, A_high, A_low, from_start, to_end, m, decays, last_m, largest)


def _of_last_m(grads: tuple[Tensor | None, ...], last_C: Tensor, last_n: Tensor) -> Tensor | None:
    """What flows into the last m, [B, NH]: its gradient, less what C and n, which are divided by exp(m), pass on."""
    _, grad_C, grad_n, grad_m = grads
    parts = [] if grad_m is None else [grad_m]
    if grad_C is not None:
        parts.append(-(grad_C * last_C).sum((2, 3)))
    if grad_n is not None:
        parts.append(-(grad_n * last_n).sum(2))
    return sum(parts[1:], parts[0]).contiguous() if parts else None


def _acc(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


def _dense(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.contiguous()


def _with_dense_rows(tensor: Tensor) -> Tensor:
    """The kernels read along the last axis; the others may have any strides."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    """The strides of batch, head and step of each [B, NH, S, DH]."""
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which has to be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
