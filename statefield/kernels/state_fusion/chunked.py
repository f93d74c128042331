"""State fusion of volumes as torch's depthwise convolutions, one a dilation, over padding written out.

What runs on a GPU, and on a CPU without the native library. Shapes: B batch, (D, H, W) volume, N states, E channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from statefield.kernels._op import gradients_by_autograd


def fused_by_convolutions(h: Tensor, weight: Tensor, alpha: Tensor, dilations: Sequence[int]) -> Tensor:
    """The fused states [B, D, H, W, N, E] of h in that shape; arguments as `state_fusion`."""
    batch, depth, height, width, states, channels = h.shape
    volume = h.permute(0, 4, 5, 1, 2, 3).flatten(0, 1)  # [B N, E, D, H, W]
    fused = torch.zeros_like(volume)
    for k, dilation in enumerate(dilations):
        # Farther than the volume is wide is the same as exactly that far; a side of one is all padding anyway.
        steps = [max(1, min(dilation, side - 1)) for side in (depth, height, width)]
        padded = volume
        for axis, step in enumerate(steps, start=2):
            padded = _replicated(padded, axis, step)
        kernel = (alpha[k] * weight[k]).unsqueeze(1)
        fused = fused + functional.conv3d(padded, kernel, dilation=steps, groups=channels)
    return fused.unflatten(0, (batch, states)).permute(0, 3, 4, 5, 1, 2)


def forward(
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    u: Tensor | None,
    dilations: Sequence[int],
) -> Tensor:
    """The operator's forward (op.py tells the contract)."""
    # Not contiguous(), which leaves the strides of axes of size one as they are.
    return _outputs(h, weight, alpha, C, D, u, dilations).clone(memory_format=torch.contiguous_format)


def backward(
    grad: Tensor,
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    u: Tensor | None,
    dilations: Sequence[int],
) -> tuple[Tensor | None, ...]:
    """The operator's backward (op.py tells the contract)."""
    return gradients_by_autograd(
        lambda h, weight, alpha, C, D, u: (_outputs(h, weight, alpha, C, D, u, dilations),),
        (h, weight, alpha, C, D, u),
        (grad,),
    )


def _outputs(
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None,
    D: Tensor | None,
    u: Tensor | None,
    dilations: Sequence[int],
) -> Tensor:
    fused = fused_by_convolutions(h, weight, alpha, dilations)
    if C is None:
        return fused
    y = (C.unsqueeze(-1) * fused).sum(dim=-2)
    return y if D is None or u is None else y + D * u


def _replicated(x: Tensor, axis: int, by: int) -> Tensor:
    """x with its first and last entry along an axis repeated `by` times.

    Not torch's replicate padding, whose backward on GPUs adds in no fixed order.
    """
    sizes = [-1] * x.dim()
    sizes[axis] = by
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
    return torch.cat((first.expand(sizes), x, last.expand(sizes)), dim=axis)
