"""Spatial-Mamba's structure-aware state fusion: `state_fusion` is what people call. README.md here has the maths."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from statefield.errors import ConfigError, ShapeError
from statefield.kernels.state_fusion.op import state_fusion_op
from statefield.kernels.state_fusion.reference import state_fusion_reference

__all__ = ["state_fusion", "state_fusion_reference"]


def state_fusion(
    h: Tensor,
    weight: Tensor,
    alpha: Tensor,
    C: Tensor | None = None,
    D: Tensor | None = None,
    u: Tensor | None = None,
    *,
    dilations: Sequence[int] = (1, 3, 5),
) -> Tensor:
    """fused = sum_k alpha_k * depthwise3x3(h, weight_k, dilation_k), replicate-padded;  y = sum_n C_n fused_n + D u.

    Differentiable in every tensor. The taps of all kernels are merged in each call, never cached: changed weights
    count at once.

    Args:
        h: the scan's states as a map, [B, H, W, E], or [B, H, W, N, E] for N states a channel; H, W, N, E >= 1, also
            smaller than the dilations. float64, float32, bfloat16, float16.
        weight: [K, E, 3, 3], one depthwise kernel a dilation, shared by the N states. alpha: [K].
        C: [B, H, W, N], the read-out of the states. Without it the fused states themselves are returned.
        D: [E], and u: [B, H, W, E], the skip; both or neither, and only with C.
        dilations: K integers >= 1, of any order and size.

    Returns:
        With C y [B, H, W, E], else the fused states in h's shape; in h's dtype, contiguous, accumulated in float32
        (float64 for float64). Under torch.autocast floating inputs are cast to float32 and so is the result.

    Raises:
        ShapeError: a shape, dtype or device that does not fit the others; names the argument.
        ConfigError: a dilation below 1. KernelUnavailable: a forced implementation cannot run here.

    Source: Xiao et al., "Spatial-Mamba", 2024 (arXiv 2410.15091), eq. 5 and section 3.2.
    """
    dilations = [int(dilation) for dilation in dilations]
    _check(h, weight, alpha, C, D, u, dilations)
    flat = h.dim() == 4
    out = state_fusion_op(h.unsqueeze(3) if flat else h, weight, alpha, C, D, u, dilations)
    return out.squeeze(3) if flat and C is None else out


def _check(
    h: Tensor, weight: Tensor, alpha: Tensor, C: Tensor | None, D: Tensor | None, u: Tensor | None, dilations: list[int]
) -> None:
    if h.dim() not in (4, 5) or min(h.shape[1:]) < 1:
        raise ShapeError(
            f"state_fusion: h has shape {list(h.shape)}, it has to be [B, H, W, E] or [B, H, W, N, E], sizes >= 1."
        )
    if not dilations or min(dilations) < 1:
        raise ConfigError(f"state_fusion: dilations are {dilations}, at least one is needed and each has to be >= 1.")
    batch, height, width, channels = *h.shape[:3], h.shape[-1]
    kernels, states = len(dilations), h.shape[3] if h.dim() == 5 else 1
    wanted = {
        "weight": (weight, (kernels, channels, 3, 3), "[K, E, 3, 3]"),
        "alpha": (alpha, (kernels,), "[K]"),
        "C": (C, (batch, height, width, states), "[B, H, W, N]"),
        "D": (D, (channels,), "[E]"),
        "u": (u, (batch, height, width, channels), "[B, H, W, E]"),
    }
    for name, (tensor, shape, axes) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeError(
                f"state_fusion: {name} has shape {list(tensor.shape)}, it has to be {axes} = {list(shape)} for h "
                f"{list(h.shape)} and {kernels} dilations."
            )
    if (D is None) != (u is None) or (D is not None and C is None):
        given = [name for name, tensor in (("C", C), ("D", D), ("u", u)) if tensor is not None]
        raise ShapeError(f"state_fusion: got {' and '.join(given)}: D and u come together, and only with C.")
    for name, tensor in {"h": h, "weight": weight, "alpha": alpha, "C": C, "D": D, "u": u}.items():
        if tensor is not None and not tensor.is_floating_point():
            raise ShapeError(f"state_fusion: {name} is {tensor.dtype}, it has to be real and floating.")
        if tensor is not None and tensor.device != h.device:
            raise ShapeError(f"state_fusion: {name} is on {tensor.device} and h on {h.device}: move them together.")
