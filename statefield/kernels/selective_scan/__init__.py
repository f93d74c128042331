"""The selective scan of Mamba: `selective_scan` is what people call. The maths is in README.md of this folder."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from statefield.errors import ConfigError, ShapeError
from statefield.kernels._checks import check_tensors
from statefield.kernels.selective_scan.op import selective_scan_op
from statefield.kernels.selective_scan.reference import selective_scan_reference

__all__ = ["selective_scan", "selective_scan_reference"]


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    initial_state: Tensor | None = None,
    return_state: Literal[False] = False,
    layout: Literal["bdl", "bld"] = "bdl",
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    initial_state: Tensor | None = None,
    return_state: Literal[True],
    layout: Literal["bdl", "bld"] = "bdl",
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    initial_state: Tensor | None = None,
    return_state: bool = False,
    layout: Literal["bdl", "bld"] = "bdl",
) -> Tensor | tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t,  y_t = sum_n C_t h_t + D u_t, gated by SiLU(z_t).

    The argument order is mamba's `selective_scan_fn`, so existing code drops in. Differentiable in every tensor,
    initial and final state included.

    Args:
        u, delta, z: floating, [B, D, L] ("bdl") or [B, L, D] ("bld"), L, D >= 1. float64, float32, bfloat16, float16.
        A: [D, N], N >= 1; negative for a state that decays. Real.
        B, C: "bdl": [B, N, L], [B, G, N, L]; "bld": [B, L, N], [B, L, G, N]; or constant in time [D, N]. D is divisible
            by G, and channel d uses group d // (D / G).
        D, delta_bias: [D].
        delta_softplus: dt = softplus(delta + delta_bias) instead of delta + delta_bias.
        initial_state: [B, D, N], the state before the first step; zero when it is not given.
        return_state: return the state after the last step as well.
        layout: the layout of u, delta, z, B, C and of the output. "bld" runs without transposing anything.

    Returns:
        y in u's dtype and layout, contiguous; with return_state (y, state [B, D, N] float32, float64 for float64
        inputs). Under torch.autocast floating inputs are cast to float32 and y is float32.

    Raises:
        ShapeError: a shape or dtype that does not fit the others; names the argument.
        KernelUnavailable: an implementation forced by STATEFIELD_KERNELS or use_kernels cannot run here.

    Source: Gu and Dao 2023, algorithm 2; state-spaces/mamba selective_scan_fn. README.md of this folder has the maths.
    """
    if layout not in ("bdl", "bld"):
        raise ConfigError(f"selective_scan: layout is {layout!r}, it has to be 'bdl' or 'bld'.")
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state, layout)
    if layout == "bdl":
        u, delta = u.transpose(1, 2), delta.transpose(1, 2)
        z = None if z is None else z.transpose(1, 2)
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    keep_states = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, last, _ = selective_scan_op(
        u,
        delta,
        A,
        _channels_last(B, layout),
        _channels_last(C, layout),
        D,
        z,
        delta_bias,
        initial_state,
        delta_softplus,
        keep_states,
    )
    if layout == "bdl":
        y = y.transpose(1, 2).contiguous()
    return (y, last) if return_state else y


def _channels_last(weights: Tensor, layout: str) -> Tensor:
    """B or C in the operator's layout: [B, L, G, N], or [D, N] as it is."""
    if weights.dim() == 2:
        return weights
    if layout == "bdl":
        weights = weights.movedim(-1, 1)  # [B, L, N] or [B, L, G, N]
    return weights if weights.dim() == 4 else weights.unsqueeze(2)


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    layout: str,
) -> None:
    axes = "[B, D, L]" if layout == "bdl" else "[B, L, D]"
    if u.dim() != 3:
        raise ShapeError(f"selective_scan: u has shape {list(u.shape)}, it has to be {axes} (layout={layout!r}).")
    batch = u.shape[0]
    channels, length = (u.shape[1], u.shape[2]) if layout == "bdl" else (u.shape[2], u.shape[1])
    if A.dim() != 2 or A.shape[0] != channels:
        raise ShapeError(
            f"selective_scan: A has shape {list(A.shape)}, it has to be [D, N] with D = {channels}, the channels of u "
            f"{list(u.shape)} in layout {layout!r}."
        )
    states = A.shape[1]
    if min(length, channels, states) < 1:
        raise ShapeError(
            f"selective_scan: u {list(u.shape)} and A {list(A.shape)}: length, channels and states are >= 1."
        )
    for name, tensor in (("delta", delta), ("z", z)):
        if tensor is not None and tensor.shape != u.shape:
            raise ShapeError(
                f"selective_scan: {name} has shape {list(tensor.shape)}, it has to be u's {list(u.shape)}."
            )
    for name, tensor in (("B", B), ("C", C)):
        _check_weights(name, tensor, batch, length, channels, states, layout)
    if B.dim() == 4 and C.dim() == 4:
        axis = 1 if layout == "bdl" else 2
        if B.shape[axis] != C.shape[axis]:
            raise ShapeError(
                f"selective_scan: B has {B.shape[axis]} groups and C {C.shape[axis]}: they have to be equal."
            )
    elif B.dim() > 2 and C.dim() > 2 and B.dim() != C.dim() and B.numel() != C.numel():
        raise ShapeError("selective_scan: B and C have different numbers of groups: they have to be equal.")
    for name, tensor in (("D", D), ("delta_bias", delta_bias)):
        if tensor is not None and tensor.shape != (channels,):
            raise ShapeError(
                f"selective_scan: {name} has shape {list(tensor.shape)}, it has to be [{channels}], one a channel."
            )
    if initial_state is not None and initial_state.shape != (batch, channels, states):
        raise ShapeError(
            f"selective_scan: initial_state has shape {list(initial_state.shape)}, it has to be [B, D, N] = "
            f"[{batch}, {channels}, {states}]."
        )
    check_tensors(
        "selective_scan", u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias, initial_state=initial_state
    )


def _check_weights(
    name: str, weights: Tensor, batch: int, length: int, channels: int, states: int, layout: str
) -> None:
    shape = list(weights.shape)
    if weights.dim() == 2:
        fits, wanted = shape == [channels, states], f"[D, N] = [{channels}, {states}]"
    elif layout == "bdl":
        fits = weights.dim() in (3, 4) and [shape[0], *shape[-2:]] == [batch, states, length]
        wanted = f"[B, N, L] = [{batch}, {states}, {length}], [B, G, N, L], or [D, N] constant in time"
    else:
        fits = weights.dim() in (3, 4) and [*shape[:2], shape[-1]] == [batch, length, states]
        wanted = f"[B, L, N] = [{batch}, {length}, {states}], [B, L, G, N], or [D, N] constant in time"
    if fits and weights.dim() == 4:
        groups = shape[1 if layout == "bdl" else 2]
        fits = groups >= 1 and channels % groups == 0
        wanted += f" with G dividing {channels}"
    if not fits:
        raise ShapeError(f"selective_scan: {name} has shape {shape}, it has to be {wanted} (layout={layout!r}).")
