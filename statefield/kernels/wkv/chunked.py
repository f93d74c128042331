"""Bidirectional WKV in plain PyTorch, without a loop over time: what serves where no native library was built.

The tokens are cut into segments of up to 32, none across a chunk of the official kernel. Within a segment every pair of
tokens has its weight; a segment as a whole is three sums (as its last token sees it from the right, as its first token
sees it from the left, and the second weights of mode "kernel"), and every pair of segments has its distance. Exponents
are taken relative to the largest of each sum, so nothing overflows. Gradients come from autograd.

Legend: B batch, S segments, L tokens of a segment, C channels; i the token that looks, j the one that is seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from statefield.kernels._op import state_dtype
from statefield.kernels.wkv.reference import backward_by_autograd, chunk_length

_LONGEST = 32
_NOTHING = -1e30  # an exponent whose weight is 0; finite, so that differences of two are no NaN


def wkv_by_segments(w: Tensor, u: Tensor, k: Tensor, v: Tensor, mode: str = "kernel", splits: int = 32) -> Tensor:
    """The same as `wkv_reference`."""
    dtype, kernel = state_dtype(k.dtype), mode == "kernel"
    w, u, keys, values = (x.to(dtype) for x in (w, u, k, v))
    tokens = k.shape[1]
    at, exists, chunk = _segments(tokens, chunk_length(tokens, splits) if kernel else tokens, k.device)
    keys = torch.where(exists[..., None], keys[:, at], _NOTHING)  # [B, S, L, C]
    values = values[:, at]
    first, last = at[:, 0], torch.where(exists, at, 0).amax(1)  # [S]
    start = chunk * chunk_length(tokens, splits) if kernel else torch.zeros_like(chunk)  # [S]

    def steps(count: Tensor) -> Tensor:
        return count.to(dtype)[..., None] * w

    # Pairs of tokens within a segment: [S, L, L], and their exponents [B, S, L, L, C].
    i, j = at[:, :, None], at[:, None, :]
    distance = (i - j).abs() - (j < i).int() if kernel else (i - j).abs() - 1
    own = (i == j)[..., None]
    pairs = torch.where(own, (u + keys)[:, :, None], keys[:, :, None] - steps(distance))
    parts = [_total(pairs, 3, values[:, :, None])]

    # Pairs of segments: [S, S], the looking one first.
    same = chunk[:, None] == chunk[None, :]
    before = first[:, None] > first[None, :]
    left = _total(keys - steps(last[:, None] - at), 2, values)
    apart = (first[:, None] - last[None, :]) - (same.int() if kernel else 1)
    entering = _entering(left, steps(-apart), before)
    parts.append(_seen(entering, steps(first[:, None] - at)))
    right = _total(keys - steps(at - first[:, None]), 2, values)
    apart = (first[None, :] - last[:, None]) - (0 if kernel else 1)
    entering = _entering(right, steps(-apart), before.T)
    parts.append(_seen(entering, steps(at - last[:, None])))

    factors: list[Tensor | float] = [1.0, 1.0, 1.0]
    if kernel:
        inner = (at > start[:, None])[..., None]  # all tokens of a chunk but its first
        grown = torch.where(inner, keys, _NOTHING)
        passed = (j <= i)[..., None]
        parts.append(_total(torch.where(passed, grown[:, :, None] + steps(i - j), _NOTHING), 3, values[:, :, None]))
        second = _total(grown + steps(last[:, None] - at), 2, values)
        entering = _entering(second, steps(first[:, None] - last[None, :]), before & same)
        parts.append(_seen(entering, steps(at - first[:, None])))
        factors += [-torch.expm1(w)] * 2

    top = torch.stack([part[0].detach() for part in parts]).amax(0)
    weights = [factor * torch.exp(part[0] - top) for factor, part in zip(factors, parts, strict=True)]
    n = torch.stack([weight * part[1] for weight, part in zip(weights, parts, strict=True)]).sum(0)
    d = torch.stack([weight * part[2] for weight, part in zip(weights, parts, strict=True)]).sum(0)
    return (n / d)[:, exists].to(k.dtype)


def _segments(tokens: int, length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The token at each place [S, L], which of these exist, and the chunk of `length` tokens of each segment [S]."""
    pieces = -(-length // _LONGEST)
    size = -(-length // pieces)
    chunks = torch.arange(-(-tokens // length), device=device)
    within = torch.arange(pieces * size, device=device).view(1, pieces, size)
    at = chunks[:, None, None] * length + within
    exists = (within < length) & (at < tokens)
    used = exists.any(2)
    return at.clamp(max=tokens - 1)[used], exists[used], chunks[:, None].expand(-1, pieces)[used]


_Sums = tuple[
    Tensor, Tensor, Tensor
]  # exponent, n, d: the sums of weight * value and of weight are n and d times exp(it)


def _total(exponent: Tensor, axis: int, n: Tensor, d: Tensor | None = None) -> _Sums:
    """The sums over an axis of exp(exponent), times n, and times d (1 when it is not given)."""
    top = exponent.detach().amax(axis)
    weight = torch.exp(exponent - top.unsqueeze(axis))
    return top, (weight * n).sum(axis), (weight if d is None else weight * d).sum(axis)


def _entering(sums: _Sums, change: Tensor, there: Tensor) -> _Sums:
    """What enters each segment: the sums of the segments that are `there` [S, S], their exponents changed [S, S, C]."""
    exponent, n, d = (x[:, None] for x in sums)  # [B, 1, S, C]
    return _total(torch.where(there[..., None], exponent + change, _NOTHING), 2, n, d)


def _seen(sums: _Sums, change: Tensor) -> _Sums:
    """What has entered a segment as each of its tokens sees it: exponents changed by [S, L, C]."""
    exponent, n, d = (x[:, :, None] for x in sums)
    return exponent + change, n, d


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, mode: str, splits: int) -> Tensor:
    """The operator's forward (op.py tells the contract)."""
    return wkv_by_segments(w, u, k, v, mode, splits)


def backward(
    grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, mode: str, splits: int, gradient: str
) -> Sequence[Tensor]:
    """The operator's backward (op.py tells the contract), by autograd."""
    return backward_by_autograd(wkv_by_segments, grad, w, u, k, v, mode, splits, gradient)
