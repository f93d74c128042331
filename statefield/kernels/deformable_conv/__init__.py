"""The deformable convolution of DCNv4: `deformable_conv` is what people call. README.md here has the maths."""

from __future__ import annotations

from torch import Tensor

from statefield.errors import ConfigError, ShapeError
from statefield.kernels._checks import check_tensors
from statefield.kernels.deformable_conv.op import deformable_conv_op
from statefield.kernels.deformable_conv.reference import deformable_conv_reference

__all__ = ["deformable_conv", "deformable_conv_reference"]


def deformable_conv(x: Tensor, offset: Tensor, mask: Tensor, *, kernel_size: int = 3, dilation: float = 1.0) -> Tensor:
    """y(q)_g = sum_p mask(q)_gp X_g(q + r_p + offset(q)_gp): each pixel weighs points of the map that it places itself.

    X is bilinear between pixels and 0 outside the map. r_p is a regular grid round the pixel, its columns from left to
    right, each from top to bottom. The map keeps its size. Differentiable in every tensor.

    Args:
        x: [B, H, W, C], floating, H, W >= 1; C = G D, the D channels of each group side by side.
        offset: [B, H, W, G, P, 2], P = kernel_size^2: how far each point is moved, in pixels, first along the width,
            then along the height.
        mask: [B, H, W, G, P]: the weight of each point, any real number.
        kernel_size: k, the grid's points along each side.
        dilation: how far the grid's points lie apart, in pixels; need not be whole.

    Returns:
        y [B, H, W, C] in x's dtype, contiguous. Arithmetic is float32, float64 for float64 x. Under torch.autocast
        floating inputs are cast to float32 and y is float32.

    Raises:
        ShapeError: a shape, dtype or device that does not fit the others; names the argument.
        ConfigError: a kernel_size below 1.
        KernelUnavailable: an implementation forced by STATEFIELD_KERNELS or use_kernels cannot run here.

    Source: Xiong et al., DCNv4, 2024 (arXiv 2401.06197), equation 1; OpenGVLab/DCNv4 without softmax.

    >>> import torch
    >>> x = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 1, 3, 1)
    >>> half_a_pixel_to_the_right = torch.tensor([0.5, 0.0]).expand(1, 1, 3, 1, 1, 2)
    >>> deformable_conv(x, half_a_pixel_to_the_right, torch.ones(1, 1, 3, 1, 1), kernel_size=1).flatten()
    tensor([1.5000, 3.0000, 2.0000])
    """
    if kernel_size < 1:
        raise ConfigError(f"deformable_conv: kernel_size is {kernel_size}, it has to be at least 1.")
    _check(x, offset, mask, kernel_size)
    return deformable_conv_op(x, offset, mask, kernel_size, float(dilation))


def _check(x: Tensor, offset: Tensor, mask: Tensor, kernel_size: int) -> None:
    if x.dim() != 4 or min(x.shape[1:]) < 1:
        raise ShapeError(f"deformable_conv: x has shape {list(x.shape)}, it has to be [B, H, W, C] with H, W, C >= 1.")
    points = kernel_size * kernel_size
    fits = mask.dim() == 5 and mask.shape[:3] == x.shape[:3] and mask.shape[3] >= 1 and mask.shape[4] == points
    if not fits or x.shape[3] % mask.shape[3]:
        raise ShapeError(
            f"deformable_conv: mask has shape {list(mask.shape)}, it has to be [B, H, W, G, P] = "
            f"{[*x.shape[:3], 'G', points]} for x {list(x.shape)} and kernel_size {kernel_size}, with a number of "
            f"groups G that divides the {x.shape[3]} channels."
        )
    if offset.shape != (*mask.shape, 2):
        raise ShapeError(
            f"deformable_conv: offset has shape {list(offset.shape)}, it has to be [B, H, W, G, P, 2] = "
            f"{[*mask.shape, 2]}, a pair for each number of mask {list(mask.shape)}."
        )
    check_tensors("deformable_conv", x=x, offset=offset, mask=mask)
