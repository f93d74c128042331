"""Spatial-Mamba's structure-aware state fusion: `state_fusion` is what people call. README.md here has the maths."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from statefield.errors import ConfigError, ShapeError
from statefield.kernels._checks import check_tensors
from statefield.kernels.state_fusion.op import OPS
from statefield.kernels.state_fusion.reference import state_fusion_reference

__all__ = ["state_fusion", "state_fusion_reference"]

_AXES = {2: "H, W", 3: "D, H, W"}  # of S


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

    Over maps, S = (H, W), or with kernels of 3 x 3 x 3 over volumes, S = (D, H, W). Differentiable in every tensor. The
    taps of all kernels are merged in each call, never cached: changed weights count at once.

    Args:
        h: the scan's states, [B, *S, E], or [B, *S, N, E] for N states a channel; sizes >= 1, also smaller than the
            dilations. float64, float32, bfloat16, float16.
        weight: [K, E, 3, 3], or [K, E, 3, 3, 3] of a volume: one depthwise kernel a dilation, shared by the N states.
        alpha: [K].
        C: [B, *S, N], the read-out of the states. Without it the fused states themselves are returned.
        D: [E], and u: [B, *S, E], the skip; both or neither, and only with C.
        dilations: K integers >= 1, of any order and size; the same along every axis.

    Returns:
        With C y [B, *S, E], else the fused states in h's shape; in h's dtype, contiguous, accumulated in float32
        (float64 for float64). Under torch.autocast floating inputs are cast to float32 and so is the result.

    Raises:
        ShapeError: a shape, dtype or device that does not fit the others; names the argument.
        ConfigError: a dilation below 1. KernelUnavailable: a forced implementation cannot run here.

    Source: Xiao et al., "Spatial-Mamba", 2024 (arXiv 2410.15091), eq. 5 and section 3.2. The paper has maps alone; the
    same sum over a volume's neighbours is ours.
    """
    dilations = [int(dilation) for dilation in dilations]
    _check(h, weight, alpha, C, D, u, dilations)
    spatial_dims = weight.dim() - 2
    flat = h.dim() == spatial_dims + 2
    out = OPS[spatial_dims](h.unsqueeze(-2) if flat else h, weight, alpha, C, D, u, dilations)
    return out.squeeze(-2) if flat and C is None else out


def _check(
    h: Tensor, weight: Tensor, alpha: Tensor, C: Tensor | None, D: Tensor | None, u: Tensor | None, dilations: list[int]
) -> None:
    dims = weight.dim() - 2
    if dims not in _AXES:
        raise ShapeError(
            f"state_fusion: weight has shape {list(weight.shape)}, it has to be [K, E, 3, 3] for maps or "
            "[K, E, 3, 3, 3] for volumes."
        )
    axes = _AXES[dims]
    if h.dim() not in (dims + 2, dims + 3) or min(h.shape[1:]) < 1:
        raise ShapeError(
            f"state_fusion: h has shape {list(h.shape)}, it has to be [B, {axes}, E] or [B, {axes}, N, E], sizes >= 1, "
            f"for a weight {list(weight.shape)}."
        )
    if not dilations or min(dilations) < 1:
        raise ConfigError(f"state_fusion: dilations are {dilations}, at least one is needed and each has to be >= 1.")
    batch, *grid, channels = *h.shape[: dims + 1], h.shape[-1]
    kernels, states = len(dilations), h.shape[-2] if h.dim() == dims + 3 else 1
    wanted = {
        "weight": (weight, (kernels, channels, *[3] * dims), f"[K, E{', 3' * dims}]"),
        "alpha": (alpha, (kernels,), "[K]"),
        "C": (C, (batch, *grid, states), f"[B, {axes}, N]"),
        "D": (D, (channels,), "[E]"),
        "u": (u, (batch, *grid, channels), f"[B, {axes}, E]"),
    }
    for name, (tensor, shape, said) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeError(
                f"state_fusion: {name} has shape {list(tensor.shape)}, it has to be {said} = {list(shape)} for h "
                f"{list(h.shape)} and {kernels} dilations."
            )
    if (D is None) != (u is None) or (D is not None and C is None):
        given = [name for name, tensor in (("C", C), ("D", D), ("u", u)) if tensor is not None]
        raise ShapeError(f"state_fusion: got {' and '.join(given)}: D and u come together, and only with C.")
    check_tensors("state_fusion", h=h, weight=weight, alpha=alpha, C=C, D=D, u=u)
