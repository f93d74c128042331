"""Bidirectional WKV in standard operations, for files that run without statefield (see `kernels/_standard.py`).

As chunked.py by segments, all of one length: tokens that fill one up exist for nobody. So no place is looked up by a
mask, and the lengths may be unknown when the file is written.

Legend: B batch, S segments, L tokens of a segment, C channels; i the token that looks, j the one that is seen.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from statefield.kernels._op import state_dtype
from statefield.kernels.wkv.chunked import _LONGEST, _NOTHING, _entering, _seen, _total


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, mode: str, splits: int, gradient: str = "exact") -> Tensor:
    """The operator's forward (op.py tells the contract)."""
    dtype, kernel = state_dtype(k.dtype), mode == "kernel"
    w, u = w.to(dtype), u.to(dtype)
    batch, tokens, channels = k.shape
    length = (tokens + splits - 1) // splits if kernel else tokens  # of a chunk, which segments do not cross
    chunks = (tokens + length - 1) // length
    pieces = (length + _LONGEST - 1) // _LONGEST
    size = (length + pieces - 1) // pieces  # L

    def segments(x: Tensor) -> Tensor:  # [B, T, C] -> [B, S, L, C]
        x = functional.pad(x.to(dtype), [0, 0, 0, chunks * length - tokens]).reshape(batch, chunks, length, channels)
        x = functional.pad(x, [0, 0, 0, pieces * size - length])
        return x.reshape(batch, chunks * pieces, size, channels)

    number = torch.arange(chunks * pieces, device=k.device)
    chunk = number // pieces  # [S]
    start = chunk * length  # [S], the first token of its chunk
    within_chunk = (number % pieces * size)[:, None] + torch.arange(size, device=k.device)  # [S, L]
    at = start[:, None] + within_chunk
    exists = (within_chunk < length) & (at < tokens)
    at = at.clamp(max=tokens - 1)
    first, last = at[:, 0], torch.where(exists, at, 0).amax(1)  # [S]; of a segment without tokens nothing counts
    keys = torch.where(exists[..., None], segments(k), _NOTHING)  # [B, S, L, C]
    values = segments(v)

    def steps(count: Tensor) -> Tensor:
        return count.to(dtype)[..., None] * w

    # Pairs of tokens within a segment: [S, L, L], and their exponents [B, S, L, L, C].
    i, j = at[:, :, None], at[:, None, :]
    distance = (i - j).abs() - (j < i).to(torch.int64) if kernel else (i - j).abs() - 1
    own = torch.eye(size, dtype=torch.bool, device=k.device)[..., None]
    pairs = torch.where(own, (u + keys)[:, :, None], keys[:, :, None] - steps(distance))
    parts = [_total(pairs, 3, values[:, :, None])]

    # Pairs of segments: [S, S], the looking one first.
    same = chunk[:, None] == chunk[None, :]
    before = number[:, None] > number[None, :]
    left = _total(keys - steps(last[:, None] - at), 2, values)
    apart = (first[:, None] - last[None, :]) - (same.to(torch.int64) if kernel else 1)
    parts.append(_seen(_entering(left, steps(-apart), before), steps(first[:, None] - at)))
    right = _total(keys - steps(at - first[:, None]), 2, values)
    apart = (first[None, :] - last[:, None]) - (0 if kernel else 1)
    parts.append(_seen(_entering(right, steps(-apart), before.t()), steps(at - last[:, None])))

    factors: list[Tensor | None] = [None, None, None]
    if kernel:
        inner = (at > start[:, None])[..., None]  # all tokens of a chunk but its first
        grown = torch.where(inner, keys, _NOTHING)
        passed = torch.ones(size, size, dtype=torch.bool, device=k.device).tril()[..., None]  # j <= i
        parts.append(_total(torch.where(passed, grown[:, :, None] + steps(i - j), _NOTHING), 3, values[:, :, None]))
        second = _total(grown + steps(last[:, None] - at), 2, values)
        entering = _entering(second, steps(first[:, None] - last[None, :]), before & same)
        parts.append(_seen(entering, steps(at - first[:, None])))
        factors += [-torch.expm1(w)] * 2

    top = torch.stack([part[0] for part in parts]).amax(0)
    n, d = torch.zeros_like(top), torch.zeros_like(top)
    for factor, (exponent, part_n, part_d) in zip(factors, parts, strict=True):
        weight = torch.exp(exponent - top)
        if factor is not None:
            weight = factor * weight
        n, d = n + weight * part_n, d + weight * part_d
    y = (n / d).reshape(batch, chunks, pieces * size, channels)[:, :, :length]
    return y.flatten(1, 2)[:, :tokens].to(k.dtype)
