"""SegMamba (arXiv 2401.13560; ge-xing/SegMamba at commit cff3597): UNETR's decoder over an encoder that scans volumes.

    image -> conv 7^3 /2 -> spatial convs -> Mamba x 2 -> down -> ... (four stages)
      |                                        |
      |                                       norm -> MLP        (not fed on)
      v                                        v
    encoder1 ---------------------------> encoder2 ... encoder5 -> up + join ... -> logits

Mamba scans forwards, backwards and through the slices. The figure of the paper multiplies in the spatial convolutions
where the released code adds: the code's sum is here. The encoder's and decoder's residual blocks are MONAI's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from monai.networks.blocks import UnetOutBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones import lightm
from statefield.backbones._blocks import channels_first, channels_last
from statefield.backbones._mixers import TRI_ORIENTED, OrientedMixer
from statefield.errors import ConfigError, ShapeError
from statefield.tasks.medical.nets._shapes import check_dims, check_image

__all__ = ["SegMamba", "SpatialConvs", "TriOrientedLayer"]


class SpatialConvs(nn.Module):
    """Two convolutions beside one of a single voxel, added, mixed, and a residual (the paper's GSC)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, channels, 3, padding=1)
        self.proj2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.proj3 = nn.Conv3d(channels, channels, 1)
        self.proj4 = nn.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        near = _active(self.proj2(_active(self.proj(x))))
        return x + _active(self.proj4(near + _active(self.proj3(x))))


def _active(x: Tensor) -> Tensor:
    return functional.relu(functional.instance_norm(x))


class TriOrientedLayer(nn.Module):
    """x + mixer(norm(x)), the mixer scanning forwards, backwards and through the slices: [B, C, D, H, W] -> same.

    Args: slices: as many equal runs of voxels in raster order, a divisor of D H W; None: D, the slices there are.
    """

    def __init__(
        self, channels: int, *, slices: int | None = None, d_state: int = 16, d_conv: int = 4, expand: float = 2.0
    ) -> None:
        super().__init__()
        self.slices = slices
        self.norm = nn.LayerNorm(channels)
        self.mixer = OrientedMixer(channels, routes=TRI_ORIENTED, d_state=d_state, d_conv=d_conv, expand=expand)

    def forward(self, x: Tensor) -> Tensor:
        volume = channels_last(x)
        if self.slices is not None and self.slices != x.shape[2]:
            voxels = x.shape[2:].numel()
            if voxels % self.slices:
                raise ShapeError(f"a map of {list(x.shape[2:])} voxels cannot be cut into {self.slices} equal slices.")
            volume = volume.flatten(1, 3).unflatten(1, (self.slices, -1, 1))
        mixed = self.mixer(self.norm(volume)).flatten(1, 3).unflatten(1, x.shape[2:])
        return x + channels_first(mixed)


class Perceptron(nn.Module):
    """Two convolutions of a single voxel behind an instance norm, GELU between them: [B, C, *S] -> same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv3d(channels, 2 * channels, 1)
        self.fc2 = nn.Conv3d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(functional.instance_norm(x))))


class EncoderStage(nn.Module):
    """A downsampling (behind an instance norm but for the first), spatial convolutions, Mamba layers."""

    def __init__(self, down: nn.Module, channels: int, depth: int, slices: int | None, *, first: bool) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.spatial = SpatialConvs(channels)
        self.layers = nn.Sequential(*(TriOrientedLayer(channels, slices=slices) for _ in range(depth)))
        self.out = Perceptron(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the next stage receives, and what the decoder does."""
        x = self.down(x if self.first else functional.instance_norm(x))
        x = self.layers(self.spatial(x))
        return x, self.out(x)


class SegMamba(nn.Module):
    """SegMamba: [B, in_channels, D, H, W] -> raw logits [B, out_channels, D, H, W].

    Args:
        spatial_dims: 3. in_channels, out_channels: any numbers.
        features: channels of the four stages. depths: Mamba layers of each. hidden: channels at the bottom.
        slices: for the scan through the slices, of each stage. By default those that the map has. The authors' code
            has 64, 32, 16, 8 whatever the map, which is the same for the 128^3 windows that they train.

    Sides are multiples of 16, and of 32 in training (an instance norm of a single voxel has no variance).

    Raises:
        ConfigError: dimensions or stages that cannot be had. ShapeError (forward): an image of other channels or sides.
    """

    dimensions: ClassVar[tuple[int, ...]] = (3,)

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        features: Sequence[int] = (48, 96, 192, 384),
        depths: Sequence[int] = (2, 2, 2, 2),
        hidden: int = 768,
        slices: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_dims("SegMamba", spatial_dims, self.dimensions)
        counts: tuple[int | None, ...] = (None,) * 4 if slices is None else tuple(slices)
        if not len(features) == len(depths) == len(counts) == 4:
            raise ConfigError(
                f"SegMamba has four stages; features {tuple(features)} have {len(features)}, depths {tuple(depths)} "
                f"{len(depths)} and slices {counts} {len(counts)}."
            )
        self.spatial_dims, self.in_channels, self.multiple = spatial_dims, in_channels, 16
        downs = [nn.Conv3d(in_channels, features[0], 7, stride=2, padding=3)]
        downs += [nn.Conv3d(features[i], features[i + 1], 2, stride=2) for i in range(3)]
        self.stages = nn.ModuleList(
            EncoderStage(down, channels, depth, count, first=index == 0)
            for index, (down, channels, depth, count) in enumerate(zip(downs, features, depths, counts, strict=True))
        )
        block: dict[str, Any] = {"kernel_size": 3, "norm_name": "instance", "res_block": True}
        arriving, leaving = (in_channels, *features), (*features, hidden)
        self.skips = nn.ModuleList(
            UnetrBasicBlock(3, a, b, stride=1, **block) for a, b in zip(arriving, leaving, strict=True)
        )
        self.ups = nn.ModuleList(
            UnetrUpBlock(
                3,
                leaving[i],
                leaving[i - 1],
                kernel_size=3,
                upsample_kernel_size=2,
                norm_name="instance",
                res_block=True,
            )
            for i in (4, 3, 2, 1)
        )
        self.last = UnetrBasicBlock(3, features[0], features[0], stride=1, **block)
        self.out = UnetOutBlock(3, features[0], out_channels)

    def forward(self, image: Tensor) -> Tensor:
        check_image("SegMamba", image, self.spatial_dims, self.in_channels, self.multiple)
        x, seen = image, [image]
        for stage in self.stages:
            x, shown = stage(x)
            seen.append(shown)
        *joined, x = (block(shown) for block, shown in zip(self.skips, seen, strict=True))
        for up, skip in zip(self.ups, reversed(joined), strict=True):
            x = up(x, skip)
        return self.out(self.last(x))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that drive the recurrences."""
        return {name for name, _ in self.named_parameters() if name.endswith((".A_log", ".D"))}


_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^vit\.downsample_layers\.0\.0\.", "stages.0.down."),
        (r"^vit\.downsample_layers\.(\d+)\.1\.", r"stages.\1.down."),
        (r"^vit\.gscs\.(\d+)\.", r"stages.\1.spatial."),
        (r"^vit\.stages\.(\d+)\.(\d+)\.", r"stages.\1.layers.\2."),
        (r"^vit\.mlps\.(\d+)\.", r"stages.\1.out."),
        (r"^decoder1\.", "last."),
    )
]
_BLOCK = re.compile(r"^(encoder|decoder)([1-5])\.")


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("vit.stages.0.1.mamba.A_s_log"), rename_official_key("decoder5.transp_conv.conv.weight")
    ('stages.0.layers.1.mixer.slices.A_log', 'ups.0.transp_conv.conv.weight')
    """
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    block = _BLOCK.match(key)
    if block:
        number = int(block[2])
        ours = f"skips.{number - 1}." if block[1] == "encoder" else f"ups.{5 - number}."
        key = ours + key[block.end() :]
    return lightm.rename_official_key(key) if ".layers." in key or key.startswith("mamba.") else key


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict (net, or any module of it) under our names."""
    return {rename_official_key(key): value for key, value in state_dict.items()}
