"""The deformable convolution's cases: small ones for every check, large ones for GPUs, sizes as HRVMamba uses them."""

from __future__ import annotations

from typing import Any

import torch

from statefield.kernels.conformance import Family, Randn, Sized, Variant
from statefield.kernels.deformable_conv import deformable_conv
from statefield.kernels.deformable_conv.op import deformable_conv_op


def arguments(
    batch: int,
    height: int,
    width: int,
    groups: int,
    channels: int,
    kernel_size: int = 3,
    *,
    reach: float = 1.0,
    **options: Any,
) -> Variant:
    """`channels` are those of a group; `reach` is the standard deviation of the offsets, in pixels."""
    points = kernel_size * kernel_size

    def make(randn: Randn) -> dict[str, Any]:
        return {
            "x": randn(batch, height, width, groups * channels),
            "offset": reach * randn(batch, height, width, groups, points, 2),
            "mask": randn(batch, height, width, groups, points),
            "kernel_size": kernel_size,
            **options,
        }

    return make


def _op_arguments(given: dict[str, Any]) -> tuple[Any, ...]:
    return given["x"], given["offset"], given["mask"], given["kernel_size"], given.get("dilation", 1.0)


FAMILY = Family(
    name="deformable_conv",
    function=deformable_conv,
    variants={
        "tiny": arguments(1, 2, 3, 1, 2, 2),
        "one_pixel": arguments(1, 1, 1, 1, 1),
        "odd": arguments(2, 5, 7, 3, 19),
        "odd_one_row": arguments(1, 1, 9, 2, 5),
        "one_column": arguments(2, 9, 1, 1, 33),
        "far_outside": arguments(1, 4, 5, 2, 16, reach=30.0),
        "on_the_pixels": arguments(1, 5, 4, 2, 16, reach=0.0),
        "one_point": arguments(2, 4, 6, 2, 8, 1),
        "dilated": arguments(1, 7, 6, 1, 40, 3, dilation=2.0),
        "even_kernel_broken_dilation": arguments(1, 5, 6, 2, 3, 4, dilation=0.7),
        "wide_groups": arguments(1, 6, 5, 1, 150),
    },
    op=deformable_conv_op,
    op_arguments=_op_arguments,
    mapped=("x", "offset", "mask"),
    large={"large": arguments(2, 33, 47, 5, 32), "large_one_group": arguments(3, 40, 21, 1, 50)},
    measured={
        "B 16, 56 x 56, G 2, D 32": Sized(arguments(16, 56, 56, 2, 32), torch.bfloat16),
        "B 16, 14 x 14, G 8, D 32": Sized(arguments(16, 14, 14, 8, 32), torch.bfloat16),
    },
)
