"""Mamba-2's scan (state-space duality): `ssd` is what people call. The maths is in README.md of this folder."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from statefield.errors import ConfigError, ShapeError
from statefield.kernels._checks import check_tensors
from statefield.kernels.ssd.op import ssd_op
from statefield.kernels.ssd.reference import ssd_reference

__all__ = ["ssd", "ssd_reference"]

MOST_STEPS = 128  # of a chunk: beyond, products within it cost more than the states that they save


@overload
def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Tensor | None = None,
    return_state: Literal[False] = False,
    chunk_size: int = 64,
) -> Tensor: ...


@overload
def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Tensor | None = None,
    return_state: Literal[True],
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]: ...


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Tensor | None = None,
    return_state: bool = False,
    chunk_size: int = 64,
) -> Tensor | tuple[Tensor, Tensor]:
    """H_t = exp(dt_t A) H_{t-1} + dt_t x_t B_t^T,  y_t = H_t C_t + D x_t, gated by SiLU(z_t): one decay a head.

    The computation of mamba's `mamba_chunk_scan_combined`, in its shapes. Differentiable in every tensor, initial and
    final state included.

    Args:
        x, z: floating, [b, L, h, p]: L >= 1 steps, h heads of p channels. float64, float32, bfloat16, float16.
        dt: [b, L, h], the step sizes before bias, softplus and limits.
        A: [h]; negative for a state that decays.
        B, C: [b, L, g, n], n >= 1 states. h is divisible by g, and head j uses group j // (h / g).
        D: [h] or [h, p].
        dt_bias: [h], added to dt.
        dt_softplus: step sizes are softplus(dt + dt_bias) instead of dt + dt_bias.
        dt_limit: step sizes are clamped to this range, after softplus. With the default, as in mamba, negative step
            sizes (possible without softplus) become 0.
        initial_state: [b, h, p, n], the state before the first step; zero when it is not given.
        return_state: return the state after the last step as well.
        chunk_size: steps of a chunk, >= 1. A choice of speed that changes no result beyond rounding; a state is kept
            for the backward every so many steps. More than 128 is taken as 128.

    Returns:
        y [b, L, h, p] in x's dtype, contiguous; with return_state (y, state [b, h, p, n] float32, float64 for float64
        inputs). Under torch.autocast floating inputs are cast to float32 and y is float32.

    Raises:
        ShapeError: a shape or dtype that does not fit the others; names the argument.
        ConfigError: dt_limit or chunk_size out of range.
        KernelUnavailable: an implementation forced by STATEFIELD_KERNELS or use_kernels cannot run here.

    Source: Dao and Gu 2024, section 6; state-spaces/mamba mamba_chunk_scan_combined. README.md of this folder has the
    maths.
    """
    _check(x, dt, A, B, C, D, z, dt_bias, initial_state)
    dt_min, dt_max = (float(limit) for limit in dt_limit)
    if not dt_min <= dt_max:
        raise ConfigError(f"ssd: dt_limit is ({dt_min}, {dt_max}), the first has to be at most the second.")
    if chunk_size < 1:
        raise ConfigError(f"ssd: chunk_size is {chunk_size}, it has to be at least 1; 64 is a good choice.")
    if D is not None and D.dim() == 1:
        D = D.unsqueeze(1).expand(x.shape[2:])
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_state)
    keep_states = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, last, _ = ssd_op(*tensors, dt_softplus, dt_min, dt_max, min(chunk_size, MOST_STEPS), keep_states)
    return (y, last) if return_state else y


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    if x.dim() != 4 or min(x.shape[1:]) < 1:
        raise ShapeError(f"ssd: x has shape {list(x.shape)}, it has to be [b, L, h, p] with L, h, p >= 1.")
    batch, length, heads, channels = x.shape
    if B.dim() != 4 or B.shape[:2] != x.shape[:2] or B.shape[2] < 1 or B.shape[3] < 1 or heads % B.shape[2]:
        raise ShapeError(
            f"ssd: B has shape {list(B.shape)}, it has to be [b, L, g, n] = [{batch}, {length}, g, n] with g dividing "
            f"the {heads} heads of x."
        )
    states = B.shape[3]
    wanted: dict[str, tuple[Tensor | None, tuple[int, ...], str]] = {
        "dt": (dt, (batch, length, heads), "[b, L, h]"),
        "A": (A, (heads,), "[h]"),
        "C": (C, tuple(B.shape), "B's [b, L, g, n]"),
        "z": (z, tuple(x.shape), "x's [b, L, h, p]"),
        "dt_bias": (dt_bias, (heads,), "[h]"),
        "initial_state": (initial_state, (batch, heads, channels, states), "[b, h, p, n]"),
    }
    for name, (tensor, shape, axes) in wanted.items():
        if tensor is not None and tensor.shape != shape:
            raise ShapeError(f"ssd: {name} has shape {list(tensor.shape)}, it has to be {axes} = {list(shape)}.")
    if D is not None and D.shape != (heads,) and D.shape != (heads, channels):
        raise ShapeError(
            f"ssd: D has shape {list(D.shape)}, it has to be [h] = [{heads}] or [h, p] = [{heads}, {channels}]."
        )
    check_tensors("ssd", x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, initial_state=initial_state)
