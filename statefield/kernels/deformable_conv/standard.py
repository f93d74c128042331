"""The deformable convolution in standard operations, for files that run without statefield: one grid sampling.

Sampling is bilinear with zeros outside, as the definition's X is. The places are given in shares of the map, whose
rounding moves a point by less than 1e-6 of the map's side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from statefield.kernels._op import state_dtype


def forward(x: Tensor, offset: Tensor, mask: Tensor, kernel_size: int, dilation: float) -> Tensor:
    """The operator's forward (op.py tells the contract)."""
    dtype = state_dtype(x.dtype)
    batch, height, width, channels = x.shape
    groups, points = mask.shape[3:]
    place = torch.arange(kernel_size, device=x.device).to(dtype) - (kernel_size - 1) / 2
    along_width = (dilation * place).repeat_interleave(kernel_size)  # [P], p = i k + j with i along the width
    along_height = (dilation * place).repeat(kernel_size)
    column = torch.arange(width, device=x.device).to(dtype).reshape(1, 1, width, 1, 1)
    row = torch.arange(height, device=x.device).to(dtype).reshape(1, height, 1, 1, 1)
    offset = offset.to(dtype)
    # Pixel centres of W pixels lie at (2 j + 1) / W - 1; farther outside than two maps is as far as any.
    across = ((2 * (column + along_width + offset[..., 0]) + 1) / width - 1).clamp(-5, 5)  # [B, H, W, G, P]
    down = ((2 * (row + along_height + offset[..., 1]) + 1) / height - 1).clamp(-5, 5)
    grid = torch.stack((across, down), dim=-1).permute(0, 3, 1, 2, 4, 5)  # [B, G, H, W, P, 2]
    maps = x.to(dtype).unflatten(3, (groups, -1)).permute(0, 3, 4, 1, 2)  # [B, G, D, H, W]
    sampled = functional.grid_sample(
        maps.flatten(0, 1), grid.flatten(0, 1).flatten(2, 3), mode="bilinear", padding_mode="zeros", align_corners=False
    )  # [B G, D, H, W P]
    sampled = sampled.reshape(batch, groups, channels // groups, height, width, points)
    weights = mask.to(dtype).permute(0, 3, 1, 2, 4).unsqueeze(2)  # [B, G, 1, H, W, P]
    y = (sampled * weights).sum(-1)  # [B, G, D, H, W]
    return y.permute(0, 3, 4, 1, 2).flatten(3).to(x.dtype)
