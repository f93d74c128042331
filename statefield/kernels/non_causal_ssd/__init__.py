"""The non-causal state-space duality of VSSD: `non_causal_ssd` is what people call. The maths is in README.md here."""

from __future__ import annotations

from torch import Tensor

from statefield.errors import ShapeError
from statefield.kernels._checks import check_tensors
from statefield.kernels.non_causal_ssd.op import non_causal_ssd_op
from statefield.kernels.non_causal_ssd.reference import non_causal_ssd_reference

__all__ = ["non_causal_ssd", "non_causal_ssd_reference"]


def non_causal_ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    positive_decay: bool = True,
) -> Tensor:
    """a = |dt A|,  S_h = sum_l a_lh B_l x_lh^T,  y_lh = S_h^T C_l + D_h x_lh: every position reads every other.

    Differentiable in every tensor. Linear in L, with no mask, no exponential and no normaliser: y grows with L, so sums
    over positions are kept in float32 also for 16-bit inputs (the official code overflows in float16). A float16 output
    can still exceed 65504; bfloat16 cannot.

    Args:
        x: [B, L, H, P], L positions in any order, H heads of P channels. float64, float32, bfloat16, float16.
        dt: [B, L, H], the step size after its softplus.
        A: [H], negative: A = -exp(A_log).
        B, C: [B, L, N], or [B, L, G, N] for G groups, G dividing H. Head h reads group h mod G, as the official code
            does (the causal operators of Mamba-2 have neighbouring heads share a group instead).
        D: [H], the skip; None for no skip.
        positive_decay: a = -dt A, which is positive for a negative A (the official `ssd_positve_dA=True`, as in
            every released model). False: a = dt A.

    Returns:
        y [B, L, H, P] in x's dtype, contiguous. Under torch.autocast floating inputs are cast to float32 and y is
        float32.

    Raises:
        ShapeError: a shape, dtype or device that does not fit the others; names the argument.
        KernelUnavailable: an implementation forced by STATEFIELD_KERNELS or use_kernels cannot run here.

    Source: Shi et al. 2024 (arXiv 2407.18559); YuHengsss/VSSD `Mamba2.non_casual_linear_attn`.
    """
    _check(x, dt, A, B, C, D)
    B, C = (weights.unsqueeze(2) if weights.dim() == 3 else weights for weights in (B, C))
    return non_causal_ssd_op(x, dt, -A if positive_decay else A, B, C, D)[0]


def _check(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None) -> None:
    if x.dim() != 4 or min(x.shape[1:]) < 1:
        raise ShapeError(f"non_causal_ssd: x has shape {list(x.shape)}, it has to be [B, L, H, P] with L, H, P >= 1.")
    batch, length, heads, _ = x.shape
    if dt.shape != x.shape[:3]:
        raise ShapeError(
            f"non_causal_ssd: dt has shape {list(dt.shape)}, it has to be [B, L, H] = {list(x.shape[:3])}, a step size "
            f"for each position and head of x."
        )
    for name, tensor in (("A", A), ("D", D)):
        if tensor is not None and tensor.shape != (heads,):
            raise ShapeError(
                f"non_causal_ssd: {name} has shape {list(tensor.shape)}, it has to be [{heads}], one a head."
            )
    for name, weights in (("B", B), ("C", C)):
        shape = list(weights.shape)
        fits = weights.dim() in (3, 4) and shape[:2] == [batch, length] and min(shape[2:]) >= 1
        if not fits or (weights.dim() == 4 and heads % shape[2]):
            raise ShapeError(
                f"non_causal_ssd: {name} has shape {shape}, it has to be [B, L, N] = [{batch}, {length}, N], or "
                f"[B, L, G, N] with G dividing the {heads} heads of x."
            )
    if B.shape != C.shape:
        raise ShapeError(
            f"non_causal_ssd: C has shape {list(C.shape)} and B {list(B.shape)}: states and groups have to be equal."
        )
    check_tensors("non_causal_ssd", x=x, dt=dt, A=A, B=B, C=C, D=D)
