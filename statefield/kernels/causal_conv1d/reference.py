"""The definition of the causal convolution: every channel with its own K taps over the past, then SiLU.

    a_t = bias + sum_{i < K} weight_i x_{t - (K - 1 - i)}        y_t = a_t / (1 + exp(-a_t))

x is zero before the first step. In reverse the taps reach into the future, x_{t + (K - 1 - i)}, which equals the same
convolution of the sequence turned round.

Source: Gu and Dao, "Mamba", 2023, figure 3; Dao-AILab/causal-conv1d causal_conv1d_ref.
Shapes: B batch, L length, D channels, K taps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from statefield.kernels._op import gradients_by_autograd, state_dtype


def causal_conv1d_reference(
    x: Tensor,  # [B, L, D]
    weight: Tensor,  # [D, K]
    bias: Tensor | None = None,  # [D]
    silu: bool = True,
    reverse: bool = False,
) -> Tensor:
    """y [B, L, D] in x's dtype, computed in float32 (float64 for float64), tap by tap."""
    dtype = state_dtype(x.dtype)
    length, taps = x.shape[1], weight.shape[1]
    signal = x.to(dtype)
    nothing = signal.new_zeros(x.shape[0], taps - 1, x.shape[2])
    padded = torch.cat((signal, nothing) if reverse else (nothing, signal), dim=1)
    a = torch.zeros_like(signal) if bias is None else bias.to(dtype).expand_as(signal)
    for i in range(taps):
        first = taps - 1 - i if reverse else i
        a = a + weight[:, i].to(dtype) * padded[:, first : first + length]
    return (torch.nn.functional.silu(a) if silu else a).to(x.dtype)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """The operator's forward (op.py tells the contract)."""
    return causal_conv1d_reference(x, weight, bias, silu, reverse)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> Sequence[Tensor | None]:
    """The operator's backward (op.py tells the contract), by autograd through the taps."""
    convolve = functools.partial(causal_conv1d_reference, silu=silu, reverse=reverse)
    return gradients_by_autograd(lambda *inputs: (convolve(*inputs),), (x, weight, bias), (grad,))
