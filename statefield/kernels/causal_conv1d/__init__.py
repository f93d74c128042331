"""The causal depthwise convolution of Mamba, with SiLU in the same pass: `causal_conv1d` is what people call."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from statefield.errors import ConfigError, ShapeError
from statefield.kernels._checks import check_tensors
from statefield.kernels.causal_conv1d.op import causal_conv1d_op
from statefield.kernels.causal_conv1d.reference import causal_conv1d_reference

__all__ = ["causal_conv1d", "causal_conv1d_reference"]


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Literal["silu"] | None = None,
    *,
    reverse: bool = False,
    layout: Literal["bdl", "bld"] = "bdl",
) -> Tensor:
    """a_t = bias + sum_i weight_i x_{t - (K - 1 - i)} for each channel on its own, and SiLU of that where asked for.

    The argument order is that of `causal_conv1d_fn`, so existing code drops in. Differentiable in every tensor.

    Args:
        x: floating, [B, D, L] ("bdl") or [B, L, D] ("bld"), L, D >= 1. float64, float32, bfloat16, float16.
        weight: [D, K], K >= 1; the last tap is that of the step itself. nn.Conv1d's weight is [D, 1, K]: squeeze it.
        bias: [D].
        activation: "silu", or None for a itself.
        reverse: the taps reach into the future instead: the same as turning the sequence round before and after, as the
            backward branch of Vim has it, without the two turns.
        layout: the layout of x and of the output. "bld" runs without transposing anything.

    Returns:
        y in x's dtype and layout, contiguous. Arithmetic is float32, float64 for float64 x. Under torch.autocast
        floating inputs are cast to float32 and y is float32.

    Raises:
        ShapeError: a shape, dtype or device that does not fit the others; names the argument.
        ConfigError: an unknown activation or layout.
        KernelUnavailable: an implementation forced by STATEFIELD_KERNELS or use_kernels cannot run here.

    Source: Gu and Dao 2023, figure 3; Dao-AILab/causal-conv1d causal_conv1d_fn.

    >>> import torch
    >>> causal_conv1d(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[10.0, 1.0]]))
    tensor([[[ 1., 12., 23.]]])
    """
    if layout not in ("bdl", "bld"):
        raise ConfigError(f"causal_conv1d: layout is {layout!r}, it has to be 'bdl' or 'bld'.")
    if activation not in ("silu", None):
        raise ConfigError(f"causal_conv1d: activation is {activation!r}, it has to be 'silu' or None.")
    _check(x, weight, bias, layout)
    if layout == "bld":
        return causal_conv1d_op(x, weight, bias, activation == "silu", reverse)
    y = causal_conv1d_op(x.transpose(1, 2), weight, bias, activation == "silu", reverse)
    return y.transpose(1, 2).contiguous()


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, layout: str) -> None:
    axes = "[B, D, L]" if layout == "bdl" else "[B, L, D]"
    if x.dim() != 3 or min(x.shape[1:]) < 1:
        raise ShapeError(
            f"causal_conv1d: x has shape {list(x.shape)}, it has to be {axes} with L, D >= 1 (layout={layout!r})."
        )
    channels = x.shape[1 if layout == "bdl" else 2]
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] < 1:
        raise ShapeError(
            f"causal_conv1d: weight has shape {list(weight.shape)}, it has to be [D, K] with D = {channels}, the "
            f"channels of x {list(x.shape)} in layout {layout!r}. The weight of an nn.Conv1d is [D, 1, K]: squeeze(1)."
        )
    if bias is not None and bias.shape != (channels,):
        raise ShapeError(f"causal_conv1d: bias has shape {list(bias.shape)}, it has to be [{channels}], one a channel.")
    check_tensors("causal_conv1d", x=x, weight=weight, bias=bias)
