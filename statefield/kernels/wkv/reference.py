"""The definition of bidirectional WKV: for every token the weighted mean of all values, one row of weights at a time.

    paper    y_t = sum_j weight_tj v_j / sum_j weight_tj
             weight_tj = exp(k_j - w (|t - j| - 1)) for j != t,  exp(u + k_t) for j = t

    kernel   what the official CUDA kernels compute in place of it. They cut T tokens into 32 chunks of
             c = ceil(T / 32); with t0 = floor(t / c) c, the start of t's chunk:
             weight_tj = exp(k_j - w (t - j))      for j < t0
                         exp(k_j - w (t - 1 - j))  for t0 <= j < t
                         exp(u + k_t)              for j = t
                         exp(k_j - w (j - t))      for j > t
             and, for t0 < j <= t, a second weight exp(k_j + w (t - j)) (1 - exp(w)) beside the first one.

Source: Duan et al., "Vision-RWKV", 2024, equation 5; OpenGVLab/Vision-RWKV cuda_new/bi_wkv_kernel.cu.
Shapes: B batch, T tokens, C channels. w and u come as the models pass them, divided by T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from statefield.kernels._op import gradients_by_autograd, state_dtype


def wkv_reference(
    w: Tensor,  # [C]
    u: Tensor,  # [C]
    k: Tensor,  # [B, T, C]
    v: Tensor,  # [B, T, C]
    mode: str = "kernel",
    splits: int = 32,
) -> Tensor:
    """y [B, T, C] in k's dtype, computed in float32 (float64 for float64), token by token."""
    dtype = state_dtype(k.dtype)
    w, u, keys, values = (x.to(dtype) for x in (w, u, k, v))
    rows = (_mean(keys, values, w, u, t, mode, splits)[0] for t in range(k.shape[1]))
    return torch.stack(tuple(rows), dim=1).to(k.dtype)


def chunk_length(tokens: int, splits: int) -> int:
    """The tokens of a chunk: as few as `splits` chunks need; the last chunk may be shorter or missing."""
    return -(-tokens // splits)


def _mean(k: Tensor, v: Tensor, w: Tensor, u: Tensor, t: int, mode: str, splits: int) -> tuple[Tensor, Tensor, Tensor]:
    """y_t, the sum of its weights relative to exp(shift), and that shift; [B, C] each."""
    exponent = _exponents(k, w, u, t, mode, splits)
    shift = exponent.detach().amax(1)
    start = t // chunk_length(k.shape[1], splits) * chunk_length(k.shape[1], splits)
    second = None
    if mode == "kernel" and start < t:
        back = torch.arange(t - start - 1, -1, -1, dtype=k.dtype, device=k.device)[:, None]
        second = k[:, start + 1 : t + 1] + back * w
        shift = torch.maximum(shift, second.detach().amax(1))
    weight = torch.exp(exponent - shift[:, None])
    numerator, denominator = (weight * v).sum(1), weight.sum(1)
    if second is not None:
        weight = torch.exp(second - shift[:, None]) * -torch.expm1(w)
        numerator = numerator + (weight * v[:, start + 1 : t + 1]).sum(1)
        denominator = denominator + weight.sum(1)
    return numerator / denominator, denominator, shift


def _exponents(k: Tensor, w: Tensor, u: Tensor, t: int, mode: str, splits: int) -> Tensor:
    """log weight_tj [B, T, C] of every token j, the second weight of mode "kernel" left out."""
    tokens = k.shape[1]
    j = torch.arange(tokens, device=k.device)
    steps = (j - t).abs() - 1
    if mode == "kernel":
        c = chunk_length(tokens, splits)
        steps = torch.where((j >= t // c * c) & (j < t), steps, steps + 1)
    exponent = k - steps.to(k.dtype)[:, None] * w
    return torch.where((j == t)[:, None], u + k, exponent)


def forward(w: Tensor, u: Tensor, k: Tensor, v: Tensor, mode: str, splits: int) -> Tensor:
    """The operator's forward (op.py tells the contract)."""
    return wkv_reference(w, u, k, v, mode, splits)


def backward(
    grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, mode: str, splits: int, gradient: str
) -> Sequence[Tensor]:
    """The operator's backward (op.py tells the contract), by autograd through the rows of weights."""
    return backward_by_autograd(wkv_reference, grad, w, u, k, v, mode, splits, gradient)


def backward_by_autograd(
    function: Callable[..., Tensor],
    grad: Tensor,
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    mode: str,
    splits: int,
    gradient: str,
) -> Sequence[Tensor]:
    """The gradients of `function(w, u, k, v, mode, splits)`; with gradient="official" those of k and v replaced."""
    found = gradients_by_autograd(lambda *inputs: (function(*inputs, mode, splits),), (w, u, k, v), (grad,))
    if gradient == "official" and mode == "kernel":
        found = (*found[:2], *_official_gradients(grad, w, u, k, v, splits))
    return found  # type: ignore[return-value]  # no input is None, so no gradient is


def _official_gradients(grad: Tensor, w: Tensor, u: Tensor, k: Tensor, v: Tensor, splits: int) -> tuple[Tensor, Tensor]:
    """dk and dv as the official backward has them: the paper's weights, over the kernel's own y and denominators."""
    dtype = state_dtype(k.dtype)
    w, u, k, v, grad = (x.to(dtype) for x in (w, u, k, v, grad))
    grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
    for t in range(k.shape[1]):
        y_t, denominator, shift = _mean(k, v, w, u, t, "kernel", splits)
        weight = torch.exp(_exponents(k, w, u, t, "paper", splits) - shift[:, None])
        share = weight * (grad[:, t] / denominator)[:, None]
        grad_v += share
        grad_k += share * (v - y_t[:, None])
    return grad_k, grad_v
