"""The residual U-Net that nnU-Net plans, with a place behind every encoder stage for a layer that sees the whole map.

    image -> stem -> stage 0 -> layer 0 -> stage 1 -> layer 1 -> ... -> stage n -> layer n
                                  |                     |                             |
    logits <- head <- blocks <- join <- up <- blocks <- join <- up <------------------+

U-Mamba and xLSTM-UNet are this net with layers of their own. Facts were taken from bowang-lab/U-Mamba at commit
28459e3, tianrun-chen/xLSTM-UNet-PyTorch and MIC-DKFZ/dynamic-network-architectures.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, cat, nn
from torch.nn import functional

from statefield.errors import ConfigError
from statefield.tasks.medical.nets._shapes import check_dims, check_image, convolution, instance_norm

Size = int | Sequence[int]  # one number for all axes, or one for each


class ResidualBlock(nn.Module):
    """act(norm(conv(act(norm(conv(x))))) + shortcut), [B, C, *S] -> [B, C', *S / stride]; act is LeakyReLU(0.01).

    The shortcut is x itself, or with `project` a 1 x 1 convolution of it (with bias, without norm).
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        out_channels: int,
        *,
        kernel_size: Size = 3,
        stride: Size = 1,
        project: bool = False,
    ) -> None:
        super().__init__()
        conv, norm = convolution(spatial_dims), instance_norm(spatial_dims)
        sides = _per_axis(kernel_size, spatial_dims)
        padding = tuple(side // 2 for side in sides)
        self.conv1 = conv(channels, out_channels, sides, stride=_per_axis(stride, spatial_dims), padding=padding)
        self.norm1 = norm(out_channels, eps=1e-5, affine=True)
        self.conv2 = conv(out_channels, out_channels, sides, padding=padding)
        self.norm2 = norm(out_channels, eps=1e-5, affine=True)
        self.conv3: nn.Module = nn.Identity()
        if project:
            self.conv3 = conv(channels, out_channels, 1, stride=_per_axis(stride, spatial_dims))

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.leaky_relu(self.norm1(self.conv1(x)))
        return functional.leaky_relu(self.norm2(self.conv2(inner)) + self.conv3(x))


class DecoderStage(nn.Module):
    """Enlarge to the encoder's map, join it, blocks; `head` makes class scores of this size, where there is one.

    Args: stride: of the encoder stage below. skips: whether the encoder's map is joined (side by side) at all.
    """

    def __init__(
        self,
        spatial_dims: int,
        below: int,
        channels: int,
        classes: int | None,
        *,
        kernel_size: Size,
        stride: Size,
        depth: int,
        skips: bool,
    ) -> None:
        super().__init__()
        self.stride, self.skips = tuple(float(side) for side in _per_axis(stride, spatial_dims)), skips
        self.narrow = convolution(spatial_dims)(below, channels, 1)
        arriving = 2 * channels if skips else channels
        self.blocks = _blocks(spatial_dims, arriving, channels, depth, kernel_size=kernel_size)
        self.head = None if classes is None else convolution(spatial_dims)(channels, classes, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.narrow(functional.interpolate(x, scale_factor=self.stride, mode="nearest"))
        return self.blocks(cat((x, skip), dim=1) if self.skips else x)


class TokenLayer(nn.Module):
    """A module over sequences, [B, L, D] -> [B, L, D], on a map: [B, C, *S] -> [B, C, *S].

    A voxel is a token and its channels are the features; with `by_channel` a channel is a token and its voxels are the
    features, so that the module fits one size of map only.
    """

    def __init__(self, module: nn.Module, *, by_channel: bool) -> None:
        super().__init__()
        self.module, self.by_channel = module, by_channel

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        if self.by_channel:
            return self.module(tokens).unflatten(2, x.shape[2:])
        return self.module(tokens.transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])


class ResidualUNet(nn.Module):
    """The net without layers behind its stages: [B, in_channels, *S] -> raw logits [B, out_channels, *S].

    Args:
        spatial_dims: 2 or 3. in_channels, out_channels: any numbers.
        features: channels of each stage; by default six stages of 32, 64, ... up to 512 (2-D) or 320 (3-D).
        strides, kernel_sizes: of each stage, a number or one for each axis; 1, 2, 2, ... and 3 by default.
        depths, decoder_depths: blocks of each stage, from the image down and from the bottom up. By default two, and
            one in the lower half of the encoder and the last decoder stages, to which the authors reduce any plan.
        deep_supervision: in training a list of logits, the largest first, each of half the size of the one before.
        image_size: sides of the image; where given, no other is taken.

    Raises:
        ConfigError: numbers of stages that do not fit. ShapeError (forward): an image of other channels or sides.
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
        depths: Sequence[int] | None = None,
        decoder_depths: Sequence[int] | None = None,
        deep_supervision: bool = False,
        image_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_dims(name, spatial_dims, self.dimensions)
        features = tuple(features or (min(32 * 2**s, 512 if spatial_dims == 2 else 320) for s in range(6)))
        n = len(features)
        strides = tuple(strides or (1, *(2,) * (n - 1)))
        kernel_sizes = tuple(kernel_sizes or (3,) * n)
        depths = tuple(depths or usual_depths((2,) * n))
        decoder_depths = tuple(decoder_depths or usual_decoder_depths((2,) * (n - 1)))
        counts = {"strides": len(strides), "kernel_sizes": len(kernel_sizes), "depths": len(depths)}
        for argument, count in (counts | {"decoder_depths": len(decoder_depths) + 1}).items():
            if count != n:
                raise ConfigError(f"{name}: features names {n} stages, and {argument} does not fit them.")
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        self.deep_supervision = deep_supervision
        self.image_size = None if image_size is None else tuple(image_size)
        per_axis = [_per_axis(stride, spatial_dims) for stride in strides]
        self.multiple = tuple(math.prod(sides) for sides in zip(*per_axis, strict=True))

        self.stem = _blocks(spatial_dims, in_channels, features[0], depths[0], kernel_size=kernel_sizes[0])
        self.encoder, self.layers, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        sides = self.image_size
        for s, (channels, depth) in enumerate(zip(features, depths, strict=True)):
            arriving = features[max(s - 1, 0)]
            options: dict[str, Any] = {"kernel_size": kernel_sizes[s], "stride": strides[s]}
            self.encoder.append(self.stage(s, arriving, channels, depth, **options))
            if sides is not None:
                sides = tuple(side // step for side, step in zip(sides, per_axis[s], strict=True))
            self.layers.append(self.layer(s, n, channels, kernel_sizes[s], sides))
        for place, depth in enumerate(decoder_depths):
            s = n - 2 - place
            self.decoder.append(
                DecoderStage(
                    spatial_dims,
                    features[s + 1],
                    features[s],
                    out_channels if deep_supervision or s == 0 else None,
                    kernel_size=kernel_sizes[s],
                    stride=strides[s + 1],
                    depth=depth,
                    skips=self.joins(s),
                )
            )
        self.pruned_parts = () if deep_supervision else tuple(f"decoder.{place}.head" for place in range(n - 2))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, a=1e-2)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def stage(
        self, stage: int, arriving: int, channels: int, depth: int, *, kernel_size: Size, stride: Size
    ) -> nn.Module:
        """A stage of the encoder, [B, arriving, *S] -> [B, channels, *S / stride]."""
        return _blocks(self.spatial_dims, arriving, channels, depth, kernel_size=kernel_size, stride=stride)

    def joins(self, stage: int) -> bool:
        """Whether the decoder joins this stage's map. The authors' 2-D nets leave out the join at full size."""
        return self.spatial_dims == 3 or stage > 0

    def layer(
        self, stage: int, stages: int, channels: int, kernel_size: Size, sides: tuple[int, ...] | None
    ) -> nn.Module:
        """What stands behind a stage. sides: of its map, where `image_size` is known."""
        return nn.Identity()

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        if self.deep_supervision and self.training:
            return self.all_logits(image)
        return self._logits(image, every=False)[0]

    def all_logits(self, image: Tensor) -> list[Tensor]:
        """Logits of every decoder stage that has a head, the largest first."""
        return self._logits(image, every=True)[::-1]

    def _logits(self, image: Tensor, *, every: bool) -> list[Tensor]:
        """Of every decoder stage that has a head, the smallest first; or of the last one alone."""
        check_image(
            type(self).__name__, image, self.spatial_dims, self.in_channels, self.multiple, image_size=self.image_size
        )
        x, skips = self.stem(image), []
        for stage, layer in zip(self.encoder, self.layers, strict=True):
            x = layer(stage(x))
            skips.append(x)
        logits = []
        for stage, skip in zip(self.decoder, reversed(skips[:-1]), strict=True):
            assert isinstance(stage, DecoderStage)
            x = stage(x, skip)
            if stage.head is not None and (every or stage is self.decoder[-1]):
                logits.append(stage.head(x))
        return logits


class SequenceUNet(ResidualUNet, ABC):
    """A residual U-Net with layers that see the whole map, behind its last stage or along its encoder.

    Args:
        place: "bottom", one layer behind the last stage (what the authors call Bot); "encoder", layers behind stages
            that `along_encoder` of the net tells (Enc). "encoder" needs `image_size`: where a map has no more voxels
            than channels, channels are the tokens, and the layer fits this size only.
        others: as for `ResidualUNet`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        place: Literal["bottom", "encoder"] = "bottom",
        features: Sequence[int] | None = None,
        strides: Sequence[Size] | None = None,
        kernel_sizes: Sequence[Size] | None = None,
        depths: Sequence[int] | None = None,
        decoder_depths: Sequence[int] | None = None,
        deep_supervision: bool = False,
        image_size: Sequence[int] | None = None,
    ) -> None:
        name = type(self).__name__
        if place not in ("bottom", "encoder"):
            raise ConfigError(f"{name}: place {place!r} is not one of 'bottom', 'encoder'.")
        if place == "encoder" and image_size is None:
            raise ConfigError(
                f"{name}: place 'encoder' needs image_size, the sides of the images or windows that it will see: "
                "layers over small maps fit one size only."
            )
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            features=features,
            strides=strides,
            kernel_sizes=kernel_sizes,
            depths=depths,
            decoder_depths=decoder_depths,
            deep_supervision=deep_supervision,
            image_size=image_size if place == "encoder" else None,
        )

    @abstractmethod
    def sequence_module(self, features: int) -> nn.Module:
        """What runs over the tokens, [B, L, features] -> the same."""

    @abstractmethod
    def along_encoder(self, stage: int, stages: int, channels: int, kernel_size: Size) -> nn.Module | None:
        """What stands behind a stage that has no sequence layer; None where it has one."""

    def layer(
        self, stage: int, stages: int, channels: int, kernel_size: Size, sides: tuple[int, ...] | None
    ) -> nn.Module:
        if sides is None:
            last = stage == stages - 1
            return TokenLayer(self.sequence_module(channels), by_channel=False) if last else nn.Identity()
        other = self.along_encoder(stage, stages, channels, kernel_size)
        if other is not None:
            return other
        voxels = math.prod(sides)
        by_channel = voxels <= channels
        return TokenLayer(self.sequence_module(voxels if by_channel else channels), by_channel=by_channel)


def usual_depths(depths: Sequence[int]) -> tuple[int, ...]:
    """Blocks of encoder stages as the authors' nets have them, whatever the plan says: one in the lower half."""
    return tuple(1 if s >= math.ceil(len(depths) / 2) else depth for s, depth in enumerate(depths))


def usual_decoder_depths(depths: Sequence[int]) -> tuple[int, ...]:
    """The same for decoder stages, counted from the bottom: one in the last of them."""
    return tuple(1 if s >= math.ceil(len(depths) / 2 + 0.5) else depth for s, depth in enumerate(depths))


def _per_axis(size: Size, spatial_dims: int) -> tuple[int, ...]:
    return (size,) * spatial_dims if isinstance(size, int) else tuple(size)


def _blocks(spatial_dims: int, channels: int, out_channels: int, depth: int, **options: Any) -> nn.Sequential:
    first = ResidualBlock(spatial_dims, channels, out_channels, project=True, **options)
    sides = {"kernel_size": options["kernel_size"]}
    more = (ResidualBlock(spatial_dims, out_channels, out_channels, **sides) for _ in range(depth - 1))
    return nn.Sequential(first, *more)


# The authors' decoder holds the encoder, too, and their blocks hold their layers twice.
REPEATED_ENTRIES = re.compile(r"^decoder\.encoder\.|\.all_modules\.")
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^decoder\.encoder\.", "encoder."),
        (r"\.all_modules\.0\.", ".conv."),
        (r"\.all_modules\.1\.", ".norm."),
        (r"(\.|^)conv([12])\.(conv|norm)\.", r"\1\3\2."),
        (r"^encoder\.stem\.", "stem."),
        (r"^encoder\.stages\.", "encoder."),
        (r"^encoder\.(?:mamba|xlstm)_layers\.", "layers."),
        (r"^decoder\.stages\.(\d+)\.", r"decoder.\1.blocks."),
        (r"^decoder\.upsample_layers\.(\d+)\.conv\.", r"decoder.\1.narrow."),
        (r"^decoder\.seg_layers\.(\d+)\.", r"decoder.\1.head."),
    )
]


def rename_official_key(key: str) -> str:
    """Our name of a parameter of the common parts; names of ours come back as they are.

    >>> rename_official_key("decoder.encoder.stages.1.1.conv2.all_modules.1.bias")
    'encoder.1.1.norm2.bias'
    """
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key
