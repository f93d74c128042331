"""A U-Net whose encoder is Spatial-Mamba, for images and volumes. It is our own: no paper has it.

    image -> convs -> down, blocks -> down, blocks -> down, blocks -> down, blocks
               |            |             |             |                |
    logits <- join <- up <- join <- up <- join <- up <- join <- up <-----+

What is Spatial-Mamba's (Xiao et al. 2024, arXiv 2410.15091): the block (positional convolution, structure-aware scan,
positional convolution, MLP, each a residual), one state a channel, inner channels twice the block's, three fusing
kernels of dilations 1, 3, 5, a norm on each map that leaves the encoder, and the initial values.

What is ours, for three dimensions: voxels are scanned in raster order, slice by slice and row by row, once; the states
are fused by 3 x 3 x 3 kernels (`statefield.kernels.state_fusion`), whose taps begin at 1/3 so that a constant is fused
as on a map; all convolutions have one axis more. And for segmentation: full size is left to convolutions, the first
scan runs at half of it; downsampling is a strided 3 x 3 x 3 convolution with LayerNorm, which takes any stride of any
axis (the paper's inverted bottleneck with BatchNorm suits large batches); the decoder is nnU-Net's residual one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from timm.layers import trunc_normal_
from torch import Tensor, nn

from statefield.backbones._blocks import ConvMerging, channels_first, channels_last
from statefield.backbones._mixers import StructureAwareMixer
from statefield.backbones.spatial_mamba import SpatialMambaBlock
from statefield.errors import ConfigError
from statefield.tasks.medical.nets.residual_unet import ResidualUNet, Size

__all__ = ["SpatialMambaUNet"]


class ScanStage(nn.Module):
    """Shrink, then Spatial-Mamba blocks: [B, C, *S] -> the map that goes on, [B, C', *S / stride]."""

    def __init__(self, down: ConvMerging, blocks: Sequence[SpatialMambaBlock]) -> None:
        super().__init__()
        self.down = down
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return channels_first(self.blocks(self.down(channels_last(x))))


class MapNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, *S]."""

    def forward(self, x: Tensor) -> Tensor:
        return channels_first(super().forward(channels_last(x)))


class SpatialMambaUNet(ResidualUNet):
    """Spatial-Mamba U-Net: [B, in_channels, *S] -> raw logits [B, out_channels, *S].

    Args:
        spatial_dims: 2 or 3. in_channels, out_channels: any numbers.
        features: channels of each stage, the first at full size. The default is a nano; a tiny, with the widths of
            the paper's, is features (32, 64, 128, 256, 512), depths (1, 2, 4, 8, 4).
        depths: blocks of each stage: of convolutions in the first, of Spatial-Mamba in the others.
        strides: of each stage, a number or one for each axis; 1, 2, 2, ... by default.
        decoder_depths: residual blocks of each decoder stage, from the bottom up; one each by default.
        d_state: states a channel. expand: inner channels of a mixer over its channels. mlp_ratio: hidden channels of
            an MLP over its channels. drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        deep_supervision: in training a list of logits, the largest first, each of the size of its decoder stage.

    Sides are multiples of `multiple`, the product of the strides (16 by default). In training the smallest map must
    have more than one voxel where the decoder's norms take their statistics.

    Raises:
        ConfigError: numbers of stages that do not fit. ShapeError (forward): an image of other channels or sides.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        features: Sequence[int] = (16, 32, 64, 128, 256),
        depths: Sequence[int] = (1, 1, 2, 4, 2),
        strides: Sequence[Size] | None = None,
        decoder_depths: Sequence[int] | None = None,
        d_state: int = 1,
        expand: float = 2.0,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        deep_supervision: bool = False,
    ) -> None:
        if len(depths) != len(features):
            raise ConfigError(f"SpatialMambaUNet: features names {len(features)} stages, and depths {len(depths)}.")
        scanned = sum(depths[1:])
        self._drop_paths: Iterator[float] = iter([drop_path_rate * i / max(scanned - 1, 1) for i in range(scanned)])
        self._block: dict[str, Any] = {"d_state": d_state, "expand": expand, "mlp_ratio": mlp_ratio}
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            features=features,
            strides=strides,
            depths=depths,
            decoder_depths=decoder_depths or (1,) * (len(features) - 1),
            deep_supervision=deep_supervision,
        )
        del self._drop_paths
        self._init_encoder()

    def stage(
        self, stage: int, arriving: int, channels: int, depth: int, *, kernel_size: Size, stride: Size
    ) -> nn.Module:
        if stage == 0:
            return nn.Identity()  # full size: the stem's convolutions are all
        steps = (stride,) * self.spatial_dims if isinstance(stride, int) else tuple(stride)
        blocks = [
            SpatialMambaBlock(channels, drop_path=next(self._drop_paths), spatial_dims=self.spatial_dims, **self._block)
            for _ in range(depth)
        ]
        return ScanStage(ConvMerging(arriving, channels, stride=steps, spatial_dims=self.spatial_dims), blocks)

    def joins(self, stage: int) -> bool:
        return True

    def layer(
        self, stage: int, stages: int, channels: int, kernel_size: Size, sides: tuple[int, ...] | None
    ) -> nn.Module:
        return nn.Identity() if stage == 0 else MapNorm(channels)

    def _init_encoder(self) -> None:
        """The authors' initial values: linear layers normal with std 0.02, the recurrence by its own rule."""
        for module in self.encoder.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.encoder.modules():
            if isinstance(module, StructureAwareMixer):
                module.reset_ssm_parameters()

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that drive the recurrences."""
        return {name for name, _ in self.named_parameters() if name.endswith((".A_log", ".D", ".dt_bias"))}
