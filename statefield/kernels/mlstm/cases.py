"""mLSTM's cases: small ones for every check, large ones for GPUs, and sizes as Vision-LSTM uses them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from statefield.kernels.conformance import Family, Randn, Sized, Variant
from statefield.kernels.mlstm import mlstm
from statefield.kernels.mlstm.op import mlstm_op, product_flops

_STATE = ("C", "n", "m")


def arguments(
    batch: int,
    heads: int,
    length: int,
    channels: int,
    *,
    chunk: int = 16,
    state: bool = True,
    gates: tuple[float, float, float] = (1.0, 1.0, 0.0),
    aligned: bool = False,
    rowwise: bool = True,
    trailing_axis: bool = False,
) -> Variant:
    """A call of `mlstm_of_tensors`.

    Args:
        state: an initial state is given and the last one asked for.
        gates: the spread of i, the spread of f, and f's mean.
        aligned: q and k are positive, so that no n_t . q_t is what is left of large numbers that cancel: strong gates
            would have two right results differ by more than any tolerance.
        trailing_axis: i and f are [B, NH, S, 1].
    """

    def make(randn: Randn) -> dict[str, Any]:
        rows = (batch, heads, length, channels)
        steps = (batch, heads, length, 1) if trailing_axis else (batch, heads, length)
        of_i, of_f, mean_f = gates

        def draw() -> Tensor:
            return randn(*rows).abs() if aligned else randn(*rows)

        given: dict[str, Any] = {
            "q": draw(),
            "k": draw(),
            "v": randn(*rows),
            "i": of_i * randn(*steps),
            "f": of_f * randn(*steps) + mean_f,
            "chunk_size": chunk,
            "stabilize_rowwise": rowwise,
            "return_state": state,
        }
        if state:
            n = randn(batch, heads, channels)
            given["C"] = randn(batch, heads, channels, channels)
            given |= {"n": n.abs() if aligned else n, "m": randn(batch, heads)}
        return given

    return make


def mlstm_of_tensors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    C: Tensor | None = None,
    n: Tensor | None = None,
    m: Tensor | None = None,
    *,
    chunk_size: int,
    stabilize_rowwise: bool,
    return_state: bool,
) -> Tensor | tuple[Tensor, ...]:
    """`mlstm` with its states as tensors side by side: h, or (h, C, n, m)."""
    initial = (C, n, m) if C is not None and n is not None and m is not None else None
    if not return_state:
        return mlstm(q, k, v, i, f, initial_state=initial, chunk_size=chunk_size, stabilize_rowwise=stabilize_rowwise)
    h, last = mlstm(q, k, v, i, f, initial_state=initial, return_state=True, chunk_size=chunk_size)
    return (h, *last)


def _op_arguments(given: dict[str, Any]) -> tuple[Any, ...]:
    gates = (given[name].squeeze(3) if given[name].dim() == 4 else given[name] for name in "if")
    states = (given.get(name) for name in _STATE)
    options = (1e-6, given["stabilize_rowwise"], given["chunk_size"], True)
    return (given["q"], given["k"], given["v"], *gates, *states, *options)


def _timed(batch: int, heads: int, length: int, channels: int) -> Sized:
    """As Vision-LSTM calls it: no states, forget gates around sigmoid(4). One exponential for each pair in a chunk."""
    within, states = product_flops((batch, heads, length, channels), 64)
    return Sized(
        arguments(batch, heads, length, channels, chunk=64, state=False, gates=(0.1, 0.5, 4.0)),
        torch.bfloat16,
        exponentials=batch * heads * length * 64,
        matrix_flops=2 * within + 2 * states,
    )


FAMILY = Family(
    name="mlstm",
    function=mlstm_of_tensors,
    variants={
        "tiny": arguments(1, 1, 5, 2),
        "one_step": arguments(1, 1, 1, 1),
        "one_step_without_states": arguments(2, 1, 1, 6, state=False),
        "odd": arguments(2, 2, 37, 5),
        "odd_and_small": arguments(1, 2, 19, 5),
        "odd_without_states": arguments(1, 2, 19, 9, state=False, trailing_axis=True),
        "two_chunks": arguments(1, 2, 65, 19, chunk=64),
        "wider_than_a_tile": arguments(1, 1, 40, 70, chunk=32),
        "whole_chunks": arguments(1, 2, 64, 16, chunk=32, state=False),
        "strong_gates": arguments(1, 1, 70, 8, gates=(8.0, 8.0, 0.0), aligned=True),
        "forgetting_fast": arguments(1, 2, 45, 6, gates=(1.0, 1.0, -9.0), aligned=True),
        "remembering": arguments(1, 1, 150, 6, gates=(0.1, 0.5, 6.0), chunk=64, aligned=True),
        "weak_inputs": arguments(1, 2, 21, 6, gates=(30.0, 1.0, 2.0), aligned=True, state=False),
        "one_stabilizer_for_all_steps": arguments(1, 2, 20, 7, rowwise=False, state=False),
        "one_stabilizer_strong_gates": arguments(
            1, 2, 37, 7, gates=(6.0, 4.0, 0.0), aligned=True, rowwise=False, state=False
        ),
    },
    op=mlstm_op,
    op_arguments=_op_arguments,
    mapped=("q", "k", "v", "i", "f", *_STATE),
    data=("q", "k", "v", "i", "f"),
    interpreted=(
        "tiny",
        "one_step",
        "odd_and_small",
        "wider_than_a_tile",
        "strong_gates",
        "one_stabilizer_for_all_steps",
    ),
    large={
        "large_196": arguments(2, 4, 196, 96, chunk=64),
        "large_odd": arguments(1, 3, 1001, 100, chunk=64, gates=(1.0, 1.0, 3.0)),
        "large_heads": arguments(40, 4, 130, 32, chunk=32, state=False),
        "large_wide": arguments(1, 2, 257, 192, chunk=64),
        "large_strong_gates": arguments(1, 2, 500, 64, chunk=64, gates=(8.0, 8.0, 0.0), aligned=True),
    },
    compiled={"mlstm, DH 96": Sized(arguments(1, 4, 128, 96, chunk=64, state=False), torch.bfloat16)},
    measured={
        "B 64, NH 4, S 196, DH 96": _timed(64, 4, 196, 96),
        "B 16, NH 4, S 784, DH 192": _timed(16, 4, 784, 192),
        "B 4, NH 4, S 3136, DH 96": _timed(4, 4, 3136, 96),
    },
)
