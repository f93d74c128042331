"""The deformable convolution in C++: hands tensors to native/deformable_conv.cpp, sums its partial gradients."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_double, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from statefield.kernels import native
from statefield.kernels._op import state_dtype

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


class _Map(ctypes.Structure):
    _fields_ = (("data", c_void_p), *((name, c_int64) for name in ("batch", "row", "pixel", "group")))


class _Problem(ctypes.Structure):
    """`struct sf_deformable` of native/deformable_conv.cpp, field by field."""

    _fields_ = (
        *((n, c_int64) for n in ("batch", "height", "width", "groups", "channels", "side", "parts", "threads")),
        ("dilation", c_double),
        *((name, _Map) for name in ("x", "grad", "offset", "mask")),
        *((name, c_void_p) for name in ("y", "grad_x", "grad_offset", "grad_mask")),
    )


def forward(x: Tensor, offset: Tensor, mask: Tensor, kernel_size: int, dilation: float) -> Tensor:
    """The operator's forward (op.py tells the contract)."""
    dtype = state_dtype(x.dtype)
    y = native.new_empty(x, x.shape, dtype)
    given = {name: tensor.to(dtype) for name, tensor in (("x", x), ("offset", offset), ("mask", mask))}
    _call("forward", dtype, _maps(given), **_sizes(x, mask, kernel_size, dilation), y=native.pointer(y))
    return y.to(x.dtype)


def backward(
    grad: Tensor, x: Tensor, offset: Tensor, mask: Tensor, kernel_size: int, dilation: float
) -> Sequence[Tensor]:
    """The operator's backward (op.py tells the contract)."""
    dtype = state_dtype(x.dtype)
    tensors = {"grad": grad, "x": x, "offset": offset, "mask": mask}
    maps = _maps({name: tensor.to(dtype) for name, tensor in tensors.items()})
    sizes = _sizes(x, mask, kernel_size, dilation)
    count = native.function(f"deformable_conv_parts_{_SUFFIX[dtype]}", c_void_p)
    parts = count(ctypes.byref(_Problem(**sizes)))
    grad_x = native.new_empty(x, x.shape, dtype)
    grad_offset = native.new_empty(x, (parts, *offset.shape), dtype)
    grad_mask = native.new_empty(x, (parts, *mask.shape), dtype)
    _call(
        "backward",
        dtype,
        maps,
        **sizes,
        parts=parts,
        grad_x=native.pointer(grad_x),
        grad_offset=native.pointer(grad_offset),
        grad_mask=native.pointer(grad_mask),
    )
    return grad_x, *((part[0] if parts == 1 else part.sum(0)) for part in (grad_offset, grad_mask))


def _call(name: str, dtype: torch.dtype, maps: dict[str, Tensor], **fields: Any) -> None:
    strided = {key: _Map(tensor.data_ptr(), *_strides(tensor)) for key, tensor in maps.items()}
    entry = f"deformable_conv_{name}_{_SUFFIX[dtype]}"
    native.check(native.function(entry, c_void_p)(ctypes.byref(_Problem(**strided, **fields))), entry)


def _sizes(x: Tensor, mask: Tensor, kernel_size: int, dilation: float) -> dict[str, int | float]:
    batch, height, width, channels = x.shape
    groups = mask.shape[3]
    names = ("batch", "height", "width", "groups", "channels", "side", "threads")
    counts = (batch, height, width, groups, channels // groups, kernel_size, native.threads())
    return {**dict(zip(names, counts, strict=True)), "dilation": dilation}


def _maps(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Views that the kernel can walk: what belongs to one pixel (and group) lies side by side."""
    return {name: x if _dense_from(x, min(x.dim() - 1, 4)) else x.contiguous() for name, x in tensors.items()}


def _dense_from(x: Tensor, axis: int) -> bool:
    """Whether the axes from `axis` on lie side by side in memory."""
    expected = 1
    for size, stride in zip(reversed(x.shape[axis:]), reversed(x.stride()[axis:]), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _strides(x: Tensor) -> tuple[int, int, int, int]:
    """Elements from one batch entry, row, pixel and group to the next."""
    batch, row, pixel, *inner = x.stride()
    return batch, row, pixel, inner[0] if x.dim() > 4 else 0
