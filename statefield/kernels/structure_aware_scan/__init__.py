"""Spatial-Mamba's structure-aware scan: `structure_aware_scan` is what people call. README.md here has the maths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from statefield.errors import ConfigError, ShapeError
from statefield.kernels import native as native_library  # `native` is this package's own module
from statefield.kernels._checks import check_tensors
from statefield.kernels._choice import forced_implementation
from statefield.kernels.structure_aware_scan.composed import composed, scan_states
from statefield.kernels.structure_aware_scan.op import structure_aware_scan_op
from statefield.kernels.structure_aware_scan.reference import structure_aware_scan_reference

__all__ = ["scan_states", "structure_aware_scan", "structure_aware_scan_reference"]


def structure_aware_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    weight: Tensor,
    alpha: Tensor,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = True,
    dilations: Sequence[int] = (1, 3, 5),
) -> Tensor:
    """Scan a map in raster order, let its states exchange with their neighbours, then read them out.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t row by row;  y = sum_n C_n fusion(h)_n + D u  (see `state_fusion`).
    With kernels of 3 x 3 x 3 over a volume, slice by slice, S = (D, H, W), else S = (H, W). Differentiable in every
    tensor.

    Args:
        u, delta: [B, *S, E], floating; sizes >= 1.
        A: [E, N], N >= 1; negative for a state that decays.
        B, C: [B, *S, N].
        D: [E]. delta_bias: [E].
        weight: [K, E, 3, 3] or [K, E, 3, 3, 3]; alpha: [K]: the fusion's kernels, one a dilation, and their weights.
        delta_softplus: dt = softplus(delta + delta_bias) instead of delta + delta_bias.
        dilations: K integers >= 1.

    Returns:
        y [B, *S, E] in u's dtype; states are float32 (float64 for float64). Under torch.autocast floating inputs are
        cast to float32 and so is y.

    Raises:
        ShapeError: a shape, dtype or device that does not fit the others; names the argument.
        ConfigError: a dilation below 1. KernelUnavailable: a forced implementation cannot run here.

    Source: Xiao et al., "Spatial-Mamba", 2024 (arXiv 2410.15091), section 3.2; volumes are ours.
    """
    dilations = [int(dilation) for dilation in dilations]
    _check(u, delta, A, B, C, D, weight, alpha, delta_bias, dilations)
    tensors = (u, delta, A, B, C, D, weight, alpha, delta_bias)
    if weight.dim() == 4 and _runs_fused(u.device.type):  # no operator does both in a volume
        keep_states = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        return structure_aware_scan_op(*tensors, delta_softplus, dilations, keep_states)[0]
    y = composed(*tensors, delta_softplus, dilations)
    return y if torch.is_autocast_enabled(u.device.type) else y.to(u.dtype)


@torch.compiler.assume_constant_result  # asked while tracing, not traced: which kernels there are is no tensor's matter
def _runs_fused(device: str) -> bool:
    """Whether one operator does both on tensors of this device type: only the native kernels have it."""
    if device == "meta":  # shapes alone, for which one operator is as good as two
        return True
    if device != "cpu" or native_library.unavailable():
        return False
    return forced_implementation() in (None, "native")


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    weight: Tensor,
    alpha: Tensor,
    delta_bias: Tensor | None,
    dilations: list[int],
) -> None:
    dims = 3 if weight.dim() == 5 else 2
    axes = "H, W" if dims == 2 else "D, H, W"
    if u.dim() != dims + 2 or min(u.shape[1:]) < 1:
        raise ShapeError(
            f"structure_aware_scan: u has shape {list(u.shape)}, it has to be [B, {axes}, E] with {axes}, E >= 1 for a "
            f"weight {list(weight.shape)}."
        )
    if not dilations or min(dilations) < 1:
        raise ConfigError(
            f"structure_aware_scan: dilations are {dilations}, at least one is needed and each has to be >= 1."
        )
    *grid, channels = u.shape  # B with S
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] < 1:
        raise ShapeError(
            f"structure_aware_scan: A has shape {list(A.shape)}, it has to be [E, N] with E = {channels}, the channels "
            f"of u {list(u.shape)}, and N >= 1."
        )
    kernels, states = len(dilations), A.shape[1]
    wanted = {
        "delta": (delta, (*grid, channels), f"[B, {axes}, E]"),
        "B": (B, (*grid, states), f"[B, {axes}, N]"),
        "C": (C, (*grid, states), f"[B, {axes}, N]"),
        "D": (D, (channels,), "[E]"),
        "weight": (weight, (kernels, channels, *[3] * dims), f"[K, E{', 3' * dims}]"),
        "alpha": (alpha, (kernels,), "[K]"),
        "delta_bias": (delta_bias, (channels,), "[E]"),
    }
    for name, (tensor, shape, said) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeError(
                f"structure_aware_scan: {name} has shape {list(tensor.shape)}, it has to be {said} = {list(shape)} for "
                f"u {list(u.shape)}, A {list(A.shape)} and {kernels} dilations."
            )
    check_tensors(
        "structure_aware_scan", u=u, delta=delta, A=A, B=B, C=C, D=D, weight=weight, alpha=alpha, delta_bias=delta_bias
    )
