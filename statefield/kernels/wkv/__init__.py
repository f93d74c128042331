"""Bidirectional WKV of Vision-RWKV: `wkv` is what people call. The maths is in README.md of this folder."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from statefield.errors import ConfigError, ShapeError
from statefield.kernels._checks import check_tensors
from statefield.kernels.wkv.op import wkv_op
from statefield.kernels.wkv.reference import wkv_reference

__all__ = ["wkv", "wkv_reference"]


def wkv(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mode: Literal["kernel", "paper"] = "kernel",
    gradient: Literal["exact", "official"] = "exact",
    splits: int = 32,
) -> Tensor:
    """For every token the mean of all values, weighted by exp(key) and by a decay with the distance in tokens.

    Args:
        w: [C], the decay a step (Vision-RWKV passes spatial_decay / T). Positive for a weight that falls with distance;
            |w| up to 40.
        u: [C], what the token's own key gets on top (spatial_first / T); |u| up to 20.
        k, v: [B, T, C], T, C >= 1. float64, float32, bfloat16, float16.
        mode: "kernel": the weights that the official CUDA kernels compute, with which checkpoints were trained;
            "paper": the formula of the paper. On average they differ by 1e-4 at 196 tokens (README.md).
        gradient: "exact": the derivative of what was computed. "official": for k and v what the official backward gives
            in its place, to repeat a published run; without effect in mode "paper".
        splits: chunks into which the official kernel cuts the sequence: 32, and 16 in its oldest copies. Without effect
            in mode "paper".

    Returns:
        y [B, T, C] in k's dtype, contiguous. Arithmetic is float32, float64 for float64 k. Under torch.autocast
        floating inputs are cast to float32 and y is float32.

    Raises:
        ShapeError: a shape, dtype or device that does not fit the others; names the argument.
        ConfigError: an unknown mode or gradient, splits < 1.
        KernelUnavailable: an implementation forced by STATEFIELD_KERNELS or use_kernels cannot run here.

    The official kernel adds 1e-6 to a denominator that is about 1 or more: at most 1e-6 of y, which float32 hardly
    holds. That is left out.

    Source: Duan et al. 2024, equation 5; OpenGVLab/Vision-RWKV cuda_new/bi_wkv_kernel.cu.

    >>> import torch
    >>> wkv(torch.zeros(1), torch.zeros(1), torch.zeros(1, 3, 1), torch.tensor([[[0.0], [3.0], [6.0]]])).flatten()
    tensor([3., 3., 3.])
    """
    if mode not in ("kernel", "paper"):
        raise ConfigError(f"wkv: mode is {mode!r}, it has to be 'kernel' or 'paper'.")
    if gradient not in ("exact", "official"):
        raise ConfigError(f"wkv: gradient is {gradient!r}, it has to be 'exact' or 'official'.")
    if splits < 1:
        raise ConfigError(f"wkv: splits is {splits}, it has to be 1 or more (the official kernels have 32).")
    _check(w, u, k, v)
    return wkv_op(w, u, k, v, mode, splits, gradient)


def _check(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> None:
    if k.dim() != 3 or min(k.shape[1:]) < 1:
        raise ShapeError(f"wkv: k has shape {list(k.shape)}, it has to be [B, T, C] with T, C >= 1.")
    if v.shape != k.shape:
        raise ShapeError(f"wkv: v has shape {list(v.shape)}, it has to be k's {list(k.shape)}.")
    channels = k.shape[2]
    for name, tensor in (("w", w), ("u", u)):
        if tensor.shape != (channels,):
            raise ShapeError(
                f"wkv: {name} has shape {list(tensor.shape)}, it has to be [{channels}], one a channel of k "
                f"{list(k.shape)}."
            )
    check_tensors("wkv", k=k, v=v, w=w, u=u)
