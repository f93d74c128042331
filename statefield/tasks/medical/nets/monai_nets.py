"""Convolutional nets of MONAI under the signature of the nets here: what a net that scans is compared with.

They are MONAI's classes, unchanged; only arguments are named, sides checked, and deep supervision given as a list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from monai.networks import nets
from torch import Tensor, nn

from statefield.errors import ConfigError
from statefield.tasks.medical.nets._shapes import check_dims, check_image
from statefield.tasks.medical.nets.residual_unet import Size

__all__ = ["DynamicUNet", "ResidualSegNet"]


class DynamicUNet(nn.Module):
    """MONAI's DynUNet, nnU-Net's plain U-Net: [B, in_channels, *S] -> raw logits [B, out_channels, *S].

    Args:
        spatial_dims: 2 or 3. in_channels, out_channels: any numbers.
        features: channels of each stage, at least three; by default six of 32, 64, ... up to 512 (2-D) or 320 (3-D).
        strides, kernel_sizes: of each stage, a number or one for each axis; 1, 2, 2, ... and 3 by default.
        residual: residual blocks in place of plain ones.
        deep_supervision: in training a list of logits, the largest first, each of half the size of the one before, one
            for each decoder stage.

    Raises:
        ConfigError: numbers of stages that do not fit. ShapeError (forward): an image of other channels or sides.

    Source: Isensee et al., nnU-Net (arXiv 1904.08128); Project-MONAI/MONAI, DynUNet.
    """

    dimensions: ClassVar[tuple[int, ...]] = (2, 3)

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        features: Sequence[int] | None = None,
        strides: Sequence[Size] | None = None,
        kernel_sizes: Sequence[Size] | None = None,
        residual: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_dims("DynamicUNet", spatial_dims, self.dimensions)
        features = tuple(features or (min(32 * 2**s, 512 if spatial_dims == 2 else 320) for s in range(6)))
        stages = len(features)
        strides = tuple(strides or (1, *(2,) * (stages - 1)))
        kernel_sizes = tuple(kernel_sizes or (3,) * stages)
        if stages < 3 or len(strides) != stages or len(kernel_sizes) != stages:
            raise ConfigError(
                f"DynamicUNet: features names {stages} stages, strides {len(strides)} and kernel_sizes "
                f"{len(kernel_sizes)}: give all three the same number, at least 3."
            )
        self.spatial_dims, self.in_channels, self.deep_supervision = spatial_dims, in_channels, deep_supervision
        steps = [(step,) * spatial_dims if isinstance(step, int) else tuple(step) for step in strides]
        self.multiple = tuple(math.prod(sides) for sides in zip(*steps, strict=True))
        self.coarser = stages - 2 if deep_supervision else 0
        self.body = nets.DynUNet(
            spatial_dims,
            in_channels,
            out_channels,
            kernel_size=kernel_sizes,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=features,
            res_block=residual,
            deep_supervision=deep_supervision,
            deep_supr_num=max(self.coarser, 1),
        )

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        check_image("DynamicUNet", image, self.spatial_dims, self.in_channels, self.multiple)
        if not (self.deep_supervision and self.training):
            return self.body(image)
        # MONAI's own forward enlarges the coarser logits to full size, where ours are compared at their own.
        logits = [self.body.output_block(self.body.skip_layers(image)), *self.body.heads]
        self.body.heads[:] = [logits[0].new_zeros(1)] * self.coarser  # the module would keep the graph alive
        return logits


class ResidualSegNet(nn.Module):
    """MONAI's SegResNet: [B, in_channels, *S] -> raw logits [B, out_channels, *S].

    Args:
        spatial_dims: 2 or 3. in_channels, out_channels: any numbers.
        filters: channels of the first stage, a multiple of 8; each further stage has twice as many.
        depths, decoder_depths: residual blocks of each stage, from the image down and from the bottom up; the decoder
            has a stage less.

    Raises:
        ConfigError: filters or depths that do not fit. ShapeError (forward): an image of other channels or sides.

    Source: Myronenko 2018 (arXiv 1810.11654), without the autoencoder; Project-MONAI/MONAI, SegResNet.
    """

    dimensions: ClassVar[tuple[int, ...]] = (2, 3)

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        filters: int = 16,
        depths: Sequence[int] = (1, 2, 2, 4),
        decoder_depths: Sequence[int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        check_dims("ResidualSegNet", spatial_dims, self.dimensions)
        if filters % 8 or len(decoder_depths) != len(depths) - 1:
            raise ConfigError(
                f"ResidualSegNet: filters {filters} has to be a multiple of 8, the groups of its norms, and "
                f"decoder_depths {tuple(decoder_depths)} one stage shorter than depths {tuple(depths)}."
            )
        self.spatial_dims, self.in_channels, self.multiple = spatial_dims, in_channels, 2 ** (len(depths) - 1)
        self.body = nets.SegResNet(
            spatial_dims=spatial_dims,
            init_filters=filters,
            in_channels=in_channels,
            out_channels=out_channels,
            blocks_down=tuple(depths),
            blocks_up=tuple(decoder_depths),
        )

    def forward(self, image: Tensor) -> Tensor:
        check_image("ResidualSegNet", image, self.spatial_dims, self.in_channels, self.multiple)
        return self.body(image)
