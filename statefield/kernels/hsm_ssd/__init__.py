"""The hidden states of EfficientViM's HSM-SSD: `hsm_ssd_states` is what people call. README.md here has the maths."""

from __future__ import annotations

import torch
from torch import Tensor

from statefield.errors import ShapeError
from statefield.kernels._checks import check_tensors
from statefield.kernels.hsm_ssd.op import hsm_ssd_op
from statefield.kernels.hsm_ssd.reference import hsm_ssd_states_reference

__all__ = ["hsm_ssd_states", "hsm_ssd_states_reference"]


def hsm_ssd_states(u: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """w = softmax over positions of dt + A,  h = sum_l u_l (w_l B_l)^T: a map summed up in N hidden states.

    The mixer then works on h alone, [B, D, N] instead of [B, D, L], and reads it out as `h @ C`, which is a plain
    matrix product and needs no operator. Channels first, as the convolutions around it have them. Differentiable in
    every tensor; the gradient of A is exactly zero, because A, equal at all positions, cancels in the softmax.

    Args:
        u: [B, D, L], L positions in any order. float64, float32, bfloat16, float16.
        dt: [B, N, L], any sign: there is no softplus.
        A: [N], kept for the sake of official weights.
        B: [B, N, L], the input weights.

    Returns:
        h [B, D, N] in u's dtype, contiguous; softmax and sums in float32 (float64 for float64). Under torch.autocast
        floating inputs are cast to float32 and h is float32.

    Raises:
        ShapeError: a shape, dtype or device that does not fit the others; names the argument.
        KernelUnavailable: an implementation forced by STATEFIELD_KERNELS or use_kernels cannot run here.

    Source: Lee et al. 2024 (arXiv 2411.15241), section 4; mlvlab/EfficientViM `HSMSSD`.
    """
    _check(u, dt, A, B)
    h = hsm_ssd_op(u, dt, A, B)[0]
    return h if h.dtype == u.dtype or _is_autocast(u) else h.to(u.dtype)


def _is_autocast(u: Tensor) -> bool:
    return torch.is_autocast_enabled(u.device.type)


def _check(u: Tensor, dt: Tensor, A: Tensor, B: Tensor) -> None:
    if u.dim() != 3 or min(u.shape[1:]) < 1:
        raise ShapeError(f"hsm_ssd_states: u has shape {list(u.shape)}, it has to be [B, D, L] with D, L >= 1.")
    batch, _, length = u.shape
    if dt.dim() != 3 or dt.shape[0] != batch or dt.shape[2] != length or dt.shape[1] < 1:
        raise ShapeError(
            f"hsm_ssd_states: dt has shape {list(dt.shape)}, it has to be [B, N, L] = [{batch}, N, {length}]."
        )
    if B.shape != dt.shape:
        raise ShapeError(f"hsm_ssd_states: B has shape {list(B.shape)}, it has to be dt's {list(dt.shape)}.")
    if A.shape != dt.shape[1:2]:
        raise ShapeError(
            f"hsm_ssd_states: A has shape {list(A.shape)}, it has to be [{dt.shape[1]}], one a state of dt."
        )
    check_tensors("hsm_ssd_states", u=u, dt=dt, A=A, B=B)
