"""What the operators are compared with: the same results by the means that others use."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def scan_by_mambas_loop(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
) -> Tensor:
    """The selective scan as a plain Python loop in the form of mamba's reference function.

    All decays and inputs are formed at once as [B, D, L, N] tensors; the loop over time multiplies, adds and reads out.

    Args: u, delta [B, D, L]; A [D, N]; B, C [B, N, L]; D, delta_bias [D]. Returns: [B, D, L].
    """
    dt = functional.softplus(delta + delta_bias[:, None])
    decays = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
    entries = torch.einsum("bdl,bnl,bdl->bdln", dt, B, u)
    h = A.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for t in range(u.shape[2]):
        h = decays[:, :, t] * h + entries[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    return torch.stack(outputs, dim=2) + u * D[:, None]


def fusion_by_convolutions(h: Tensor, weight: Tensor, alpha: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """State fusion as torch's depthwise convolutions, one a dilation, replicate-padded.

    Args: h [B, E, H, W] or [B, E, D, H, W]; others as `state_fusion`.
    """
    axes = h.dim() - 2
    convolution = {2: functional.conv2d, 3: functional.conv3d}[axes]
    fused = torch.zeros_like(h)
    for kernel, share, dilation in zip(weight, alpha, dilations, strict=True):
        padded = functional.pad(h, (dilation,) * (2 * axes), mode="replicate")
        fused += share * convolution(padded, kernel[:, None], dilation=dilation, groups=h.shape[1])
    return fused


def wkv_by_cumulative_sums(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Bidirectional WKV by the paper's formula as four cumulative sums over the whole sequence.

    exp(k_j - w (t - 1 - j)) = exp(k_j + w j) exp(-w (t - 1)): right as long as w T and the spread of k stay small.

    Args: w, u [C]; k, v [B, T, C]. Returns: [B, T, C].
    """
    steps = torch.arange(k.shape[1], dtype=k.dtype)[:, None] * w
    top = k.amax(1, keepdim=True)
    left, right = torch.exp(k - top + steps), torch.exp(k - top - steps)
    fall, rise, own = torch.exp(w - steps), torch.exp(w + steps), torch.exp(u + k - top)

    def before(x: Tensor) -> Tensor:
        return (x.cumsum(1) - x) * fall

    def behind(x: Tensor) -> Tensor:
        return (x.sum(1, keepdim=True) - x.cumsum(1)) * rise

    return (before(left * v) + behind(right * v) + own * v) / (before(left) + behind(right) + own)


def causal_convolution(x_bdl: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Mamba's convolution as models call torch: padded on both sides and cut, then SiLU. x [B, D, L]; weight [D, K]."""
    length, (channels, taps) = x_bdl.shape[2], weight.shape
    y = functional.conv1d(x_bdl, weight[:, None], bias, padding=taps - 1, groups=channels)
    return functional.silu(y[..., :length])


def causal_convolution_in_rows(x_bld: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same on [B, L, D] without moving memory: as a picture of one row in torch's channels-last order."""
    length, (channels, taps) = x_bld.shape[1], weight.shape
    picture = x_bld.transpose(1, 2)[:, :, None]  # [B, D, 1, L]
    y = functional.conv2d(picture, weight[:, None, None], bias, padding=(0, taps - 1), groups=channels)
    return functional.silu(y[..., :length])[:, :, 0].transpose(1, 2)


def deformable_by_grid_sampling(x: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    """The deformable 3 x 3 convolution as nine calls of torch's grid sampling, groups in the batch.

    Args: x [B, H, W, G D]; offset [B, H, W, G, 9, 2]; mask [B, H, W, G, 9]. Returns: [B, H, W, G D].
    """
    batch, height, width, channels = x.shape
    groups = mask.shape[3]
    planes = x.unflatten(-1, (groups, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)  # [B G, D, H, W]
    column, row = torch.arange(width, dtype=x.dtype), torch.arange(height, dtype=x.dtype)[:, None]
    total = torch.zeros_like(planes)
    for point in range(9):
        place = offset[..., point, :].permute(0, 3, 1, 2, 4).flatten(0, 1)  # [B G, H, W, 2]
        u = (2 * (column + point // 3 - 1 + place[..., 0]) + 1) / width - 1
        v = (2 * (row + point % 3 - 1 + place[..., 1]) + 1) / height - 1
        taken = functional.grid_sample(planes, torch.stack((u, v), -1), align_corners=False)
        total = total + mask[..., point].permute(0, 3, 1, 2).flatten(0, 1).unsqueeze(1) * taken
    return total.unflatten(0, (batch, groups)).permute(0, 3, 4, 1, 2).reshape(batch, height, width, channels)
