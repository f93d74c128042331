"""State fusion in standard operations, for files that run without statefield: one depthwise convolution a dilation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from statefield.kernels._op import state_dtype


def forward(
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    u: Tensor | None,
    dilations: Sequence[int],
) -> Tensor:
    """The operator's forward (op.py tells the contract), on maps and volumes, in any floating dtype."""
    dtype = state_dtype(h.dtype)
    fused = _fused(h.to(dtype), weight.to(dtype), alpha.to(dtype), dilations)
    if C is None:
        return fused.to(h.dtype)
    y = (C.to(dtype).unsqueeze(-1) * fused).sum(dim=-2)
    if D is not None and u is not None:
        y = y + D.to(dtype) * u.to(dtype)
    return y.to(h.dtype)


def _fused(h: Tensor, weight: Tensor, alpha: Tensor, dilations: Sequence[int]) -> Tensor:
    """The fused states [B, *S, N, E] of h in that shape."""
    dims = h.dim() - 3
    channels = h.shape[-1]
    convolve = {2: functional.conv2d, 3: functional.conv3d}[dims]
    maps = h.permute(0, dims + 1, dims + 2, *range(1, dims + 1))  # [B, N, E, *S]
    flat = maps.flatten(0, 1)
    parts = []
    for k, dilation in enumerate(dilations):
        padded, apart = flat, [_apart(dilation, side) for side in flat.shape[2:]]
        for axis, by in enumerate(apart, start=2):
            padded = _replicated(padded, axis, by)
        parts.append(convolve(padded, (alpha[k] * weight[k]).unsqueeze(1), dilation=apart, groups=channels))
    fused = torch.stack(parts).sum(0).reshape(maps.shape)
    return fused.permute(0, *range(3, dims + 3), 1, 2)


def _apart(dilation: int, side: int) -> int:
    """How far the taps of an axis lie apart: farther than a side that is known is the same as exactly that far."""
    return max(1, min(dilation, side - 1)) if isinstance(side, int) else dilation


def _replicated(x: Tensor, axis: int, by: int) -> Tensor:
    """x with its first and last entry along an axis repeated `by` times; `by` may be more than there are entries."""
    sizes = [-1] * x.dim()
    sizes[axis] = by
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
    return torch.cat((first.expand(sizes), x, last.expand(sizes)), dim=axis)
