"""What the standard forms of the operators share: recurrences without a loop over time.

A file that is to run without statefield cannot hold our operators. Each has therefore a `standard.py`: the forward in
operations that torch, ONNX and their runtimes know, none of them a loop. `standard_forms.py` gathers them for export.

A recurrence is cut into M chunks of Q steps. Q steps are written out, each for all chunks at once; what a chunk hands
to the next goes through log2(M) doublings. So the number of operations grows with Q + log M and not with the length.
Decays are only ever multiplied, never divided, so nothing overflows. A step keeps its axis of one, [B, M, 1, ...]:
taken out by one split and put back by one concatenation, all Q are two operations in place of 3 Q.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from statefield.errors import ExportError

STEPS = 8  # Q. Twice as many halve the tensors that a step reads, and make files of two thirds more operations.


def steps_of(length: int) -> int:
    """Q for a sequence: `STEPS`, or its length where that is less.

    Raises:
        ExportError: the length is not known while the file is written.
    """
    if not isinstance(length, int):
        raise ExportError(
            "the standard form of a selective scan is written for one number of tokens, and the file was asked for any "
            "size: give it one size (without --any-size)."
        )
    return min(STEPS, length)


def in_chunks(x: Tensor, steps: int) -> Tensor:
    """[B, L, ...] as [B, M, Q, ...], filled up with zeros."""
    length = x.shape[1]
    missing = -length % steps
    if not isinstance(missing, int) or missing:  # of an unknown length it is not known whether anything is missing
        x = functional.pad(x, [0, 0] * (x.dim() - 2) + [0, missing])
    return x.reshape(x.shape[0], (length + steps - 1) // steps, steps, *x.shape[2:])


def recurrence(
    decays: Sequence[Tensor], added: Sequence[Tensor], whole: Tensor, start: Tensor | None = None
) -> Iterator[Tensor]:
    """h_t = decay_t h_{t-1} + added_t, all chunks at once.

    Args:
        decays, added: Q tensors that broadcast to [B, M, 1, ...], of step 0, 1, ... of every chunk. added has that
            shape.
        whole: [B, M, 1, ...], the product of a chunk's decays.
        start: [B, ...], the state before the first step; zero when it is not given.

    Yields: [B, M, 1, ...], the states of step 0, 1, ... of every chunk.
    """
    start = None if start is None else start.unsqueeze(1).unsqueeze(2)  # [B, 1, 1, ...]
    h = start
    if added[0].shape[1] > 1:
        reached = added[0]
        for decay, more in zip(decays[1:], added[1:], strict=True):
            reached = decay * reached + more
        h = states_before(whole, reached, start)
    for decay, more in zip(decays, added, strict=True):
        h = more if h is None else decay * h + more
        yield h


def states_before(decay: Tensor, reached: Tensor, start: Tensor | None = None) -> Tensor:
    """The state with which each chunk begins, [B, M, ...].

    Args:
        decay: [B, M, ...], of a whole chunk. reached: [B, M, ...], where a chunk comes from zero. start: [B, 1, ...].
    """
    reached = moved(reached, 1)
    if start is not None:
        decay, reached = moved(decay, 1, fill=1.0), _with_first(reached, start)
    else:
        decay = moved(decay, 1)
    distance = 1
    while distance < reached.shape[1]:  # now the sum over `distance` chunks, then over twice as many
        reached = reached + decay * moved(reached, distance)
        if 2 * distance < reached.shape[1]:
            decay = decay * moved(decay, distance)
        distance *= 2
    return reached


def moved(x: Tensor, distance: int, fill: float = 0.0) -> Tensor:
    """x [B, M, ...] moved `distance` places to later chunks, `fill` in front."""
    return functional.pad(x, [0, 0] * (x.dim() - 2) + [distance, -distance], value=fill)


def _with_first(x: Tensor, first: Tensor) -> Tensor:
    """x [B, M, ...] with its first chunk, which is zero, replaced."""
    is_first = torch.arange(x.shape[1], device=x.device) == 0
    return torch.where(is_first.reshape(-1, *[1] * (x.dim() - 2)), first, x)
