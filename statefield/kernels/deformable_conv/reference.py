"""The definition of the deformable convolution: every pixel weighs P points of the map that it places itself.

    y(q)_g = sum_{p < P} mask(q)_gp X_g(q + r_p + offset(q)_gp)

X is bilinear between pixels and 0 outside the map; r_p are the points of a regular k x k grid, p = i k + j with i along
the width and j along the height.

Source: Xiong et al., DCNv4, 2024 (arXiv 2401.06197), equation 1; OpenGVLab/DCNv4, forward kernel without softmax.
Shapes: B batch, H x W map, C = G D channels in G groups, P = k^2 points.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from statefield.kernels._op import gradients_by_autograd, state_dtype


def deformable_conv_reference(
    x: Tensor,  # [B, H, W, C]
    offset: Tensor,  # [B, H, W, G, P, 2]: along the width, along the height
    mask: Tensor,  # [B, H, W, G, P]
    kernel_size: int = 3,
    dilation: float = 1.0,
) -> Tensor:
    """y [B, H, W, C] in x's dtype, computed in float32 (float64 for float64), point by point."""
    dtype = state_dtype(x.dtype)
    signal, offset, mask = (tensor.to(dtype) for tensor in (x, offset, mask))
    signal = signal.unflatten(-1, (mask.shape[3], -1))  # [B, H, W, G, D]
    y = torch.zeros_like(signal)
    for i in range(kernel_size):
        for j in range(kernel_size):
            p = i * kernel_size + j
            along_width = dilation * (i - (kernel_size - 1) / 2) + offset[..., p, 0]  # [B, H, W, G]
            along_height = dilation * (j - (kernel_size - 1) / 2) + offset[..., p, 1]
            y = y + mask[..., p, None] * _moved(signal, along_width, along_height)
    return y.flatten(-2).to(x.dtype)


def _moved(signal: Tensor, along_width: Tensor, along_height: Tensor) -> Tensor:
    """For each pixel and group the value at that distance from the pixel, [B, H, W, G, D]."""
    _, height, width, _, _ = signal.shape
    column = torch.arange(width, device=signal.device).reshape(1, 1, width, 1)
    row = torch.arange(height, device=signal.device).reshape(1, height, 1, 1)
    left, fx, reaches_columns = _place(column, along_width, width)
    top, fy, reaches_rows = _place(row, along_height, height)
    fx, fy = fx.unsqueeze(-1), fy.unsqueeze(-1)
    upper = (1 - fx) * _pixel(signal, top, left) + fx * _pixel(signal, top, left + 1)
    lower = (1 - fx) * _pixel(signal, top + 1, left) + fx * _pixel(signal, top + 1, left + 1)
    return torch.where((reaches_columns & reaches_rows).unsqueeze(-1), (1 - fy) * upper + fy * lower, 0.0)


def _place(pixel: Tensor, distance: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixel before a place along one axis, the place's share of the way to the next, whether it reaches the map."""
    distance = distance.clamp(-size - 1, size + 1)  # as far outside as any
    whole = distance.detach().floor()
    share = distance - whole
    before = pixel + whole.nan_to_num().long()  # a NaN stays in the share
    beyond = (before < -1) | ((before == -1) & (share == 0)) | (before >= size)
    return before, share, ~beyond


def _pixel(signal: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Each group's own pixel [B, H, W, G, D] of the map, 0 where it is outside."""
    batch, height, width, groups, _ = signal.shape
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    image = torch.arange(batch, device=signal.device).reshape(batch, 1, 1, 1)
    group = torch.arange(groups, device=signal.device)
    taken = signal[image, row.clamp(0, height - 1), column.clamp(0, width - 1), group]
    return torch.where(inside.unsqueeze(-1), taken, 0.0)


def forward(x: Tensor, offset: Tensor, mask: Tensor, kernel_size: int, dilation: float) -> Tensor:
    """The operator's forward (op.py tells the contract)."""
    return deformable_conv_reference(x, offset, mask, kernel_size, dilation)


def backward(
    grad: Tensor, x: Tensor, offset: Tensor, mask: Tensor, kernel_size: int, dilation: float
) -> Sequence[Tensor | None]:
    """The operator's backward (op.py tells the contract), by autograd through the points."""
    convolve = functools.partial(deformable_conv_reference, kernel_size=kernel_size, dilation=dilation)
    return gradients_by_autograd(lambda *inputs: (convolve(*inputs),), (x, offset, mask), (grad,))
