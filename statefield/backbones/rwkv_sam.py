"""The mixed backbone of RWKV-SAM (arXiv 2406.19369): convolutions at strides 4 and 8, RWKV blocks at stride 16.

    stem /2 -> MBConv /4 -> MBConv /8 -> convolution /16 -> RWKV blocks, LayerNorm -> MBConv /32

The last step is one that the authors' code has as an option (`additional_final_layers`); their released configuration
is `final_layer=False`, whose maps have strides 4, 8, 16 and 16: the third is taken in the middle of the blocks, the
fourth behind them. Facts were taken from the authors' repository at commit 137d2c2; the tests compare with numbers
that their code computes. Theirs is a segmenter's encoder: the classifier, a LayerNorm, mean and linear layer, is ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.layers import DropPath, make_divisible, trunc_normal_
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import drop_path_rates
from statefield.backbones._isotropic import Grid, resize_positions
from statefield.backbones._pyramid import Pyramid, Stage, plan_stages
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)
from statefield.backbones.vision_rwkv import RWKVBlock
from statefield.errors import ConfigError

__all__ = ["RWKVSAM", "MBConv"]

NORM_EPS = 1e-6
LAYER_SCALE = 1e-2


class MapConv(nn.Conv2d):
    """A convolution of channels-last maps, [B, H, W, C] -> [B, ceil(H/stride), ceil(W/stride), C']."""

    def __init__(self, channels: int, out_channels: int, side: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out_channels, side, stride=stride, padding=side // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvStem(nn.Module):
    """Two 3 x 3 convolutions, LayerNorm and GELU between: [B, in_chans, H, W] -> [B, ceil(H/2), ceil(W/2), C]."""

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        self.conv1 = MapConv(in_chans, channels, 3, stride=2)
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.conv2 = MapConv(channels, channels, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv2(functional.gelu(self.norm1(self.conv1(image.permute(0, 2, 3, 1)))))


class PoolShortcut(nn.Module):
    """The mean of each 3 x 3 neighbourhood (of what lies in the map), then a linear layer where channels change."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.expand: nn.Module = MapConv(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = functional.avg_pool2d(x.permute(0, 3, 1, 2), 3, self.stride, 1, count_include_pad=False)
        return self.expand(x.permute(0, 2, 3, 1))


class MBConv(nn.Module):
    """LayerNorm, widening, depthwise 3 x 3 convolution, narrowing, with a shortcut.

    Args:
        channels, out_channels: before and behind. expand: inner channels over `out_channels`.
        stride: 2 halves the map (sides rounded up).
        downsamples: the shortcut is a mean of neighbours, as where the map is halved; with `stride=1` such a block
            computes at every place what it would compute at every second one.
        drop_path: a probability.

    Shape: [B, H, W, C] -> [B, ceil(H/stride), ceil(W/stride), C'].
    Source: HarborYuan/ovsam, MbConvLNBlock (of ViTamin).
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        downsamples: bool | None = None,
        expand: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        inner = make_divisible(out_channels * expand)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2 if downsamples is None else downsamples:
            self.shortcut = PoolShortcut(channels, out_channels, stride)
        elif channels != out_channels:
            self.shortcut = MapConv(channels, out_channels, 1)
        self.pre_norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.conv1_1x1 = MapConv(channels, inner, 1)
        self.conv2_kxk = MapConv(inner, inner, 3, stride=stride, groups=inner)
        self.conv3_1x1 = MapConv(inner, out_channels, 1)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.gelu(self.conv1_1x1(self.pre_norm(x)))
        y = functional.gelu(self.conv2_kxk(y))
        return self.shortcut(x) + self.drop_path(self.conv3_1x1(y))


class NormConv(nn.Module):
    """LayerNorm and a 3 x 3 convolution that halves the map (with `stride=1` it keeps its size), positions added.

    `learned_grid` is the map that positions are learned for, None for no positions; others get them resized (bicubic).
    """

    def __init__(self, channels: int, out_channels: int, stride: int, learned_grid: Grid | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.proj = MapConv(channels, out_channels, 3, stride=stride)
        self.learned_grid = learned_grid
        if learned_grid is not None:
            self.pos_embed = nn.Parameter(torch.empty(1, learned_grid[0] * learned_grid[1], out_channels))
            trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(self.norm(x))
        if self.learned_grid is None:
            return x
        grid = (x.shape[1], x.shape[2])
        return x + resize_positions(self.pos_embed, self.learned_grid, grid).unflatten(1, grid)


class NormedStage(Stage):
    """A stage whose map goes through a LayerNorm."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], dilation: int, channels: int) -> None:
        super().__init__(downsample, blocks, dilation)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class RWKVSAM(Pyramid):
    """RWKV-SAM's backbone as a timm model: maps at strides 4, 8, 16, 32 (or 16 twice), and a classifier of ours.

    Args:
        in_chans: channels of the image, any number. num_classes: outputs of the head; 0 for none.
        global_pool: how the last map becomes a vector (timm's names).
        dims: channels at strides 4, 8 and 16. depths: MBConv blocks at strides 4 and 8.
        num_layers: RWKV blocks. mlp_ratio: hidden channels of their channel mix over C; the released configuration
            has 2, the class itself 4.
        final_layer: an MBConv block that halves the normalised last map and doubles its channels. Without it (the
            released configuration) the maps at stride 16 are those of the middle block, as it is, and of the last one,
            normalised.
        positions: learned positions of the map at stride 16, for images of `img_size` (side, or height and width).
        wkv_gradient: see `SpatialMix`.
        output_stride: None for the strides above. 8 or 16: later maps keep that size, and run à trous.
        drop_rate: dropout before the head. drop_path_rate: stochastic depth of the last RWKV block, rising from 0.

    Raises:
        ConfigError: an `output_stride` that cannot be had.
    """

    undecayed = (*Pyramid.undecayed, ".spatial_decay", ".spatial_first", ".gamma1", ".gamma2", ".pos_embed")

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        dims: tuple[int, int, int] = (64, 128, 384),
        depths: tuple[int, int] = (2, 4),
        num_layers: int = 14,
        mlp_ratio: float = 2.0,
        final_layer: bool = True,
        positions: bool = False,
        img_size: int | tuple[int, int] = 1024,
        wkv_gradient: Literal["exact", "official"] = "exact",
        output_stride: int | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if len(dims) != 3 or len(depths) != 2:
            raise ConfigError(f"dims {dims} and depths {depths}: three widths and two numbers of blocks are needed.")
        plans = plan_stages("RWKV-SAM", 4 if final_layer else 3, output_stride or (32 if final_layer else 16))
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        learned_grid = (-(-height // 16), -(-width // 16)) if positions else None
        (rates,) = drop_path_rates(drop_path_rate, (num_layers,))
        options: dict[str, Any] = {"expand": mlp_ratio, "layer_scale": LAYER_SCALE, "norm_eps": NORM_EPS}
        layers = [
            RWKVBlock(dims[2], layer=index, num_layers=num_layers, wkv_gradient=wkv_gradient, drop_path=rate, **options)
            for index, rate in enumerate(rates)
        ]
        pool = NormConv(dims[1], dims[2], plans[2].stride, learned_grid)
        middle = num_layers if final_layer else num_layers // 2 + 1
        stages: list[nn.Module] = [
            Stage(nn.Identity(), _conv_stage(dims[0], dims[0], depths[0])),
            Stage(nn.Identity(), _conv_stage(dims[0], dims[1], depths[1])),
        ]
        if final_layer:
            last = MBConv(dims[2], 2 * dims[2], stride=plans[3].stride, downsamples=True)
            stages += [
                NormedStage(pool, layers, plans[2].dilation, dims[2]),
                Stage(nn.Identity(), [last], plans[3].arriving),
            ]
        else:
            stages += [
                Stage(pool, layers[:middle], plans[2].dilation),
                NormedStage(nn.Identity(), layers[middle:], plans[2].dilation, dims[2]),
            ]
        super().__init__(
            stem=ConvStem(in_chans, dims[0]),
            stages=stages,
            dims=(*dims, 2 * dims[2] if final_layer else dims[2]),
            reductions=[plans[min(index, len(plans) - 1)].reduction for index in range(4)],
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            norm_eps=NORM_EPS,
        )
        self.final_layer, self.num_early_layers = final_layer, middle
        self.init_weights()

    def init_weights(self) -> None:
        """Convolutions of stem and MBConv blocks by their fan-out; the RWKV blocks keep what they have."""
        for module in self.modules():
            if isinstance(module, ConvStem | MBConv):
                for conv in module.modules():
                    if isinstance(conv, nn.Conv2d):
                        fan_out = conv.weight.shape[2:].numel() * conv.out_channels // conv.groups
                        nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_out))
                        assert conv.bias is not None
                        nn.init.zeros_(conv.bias)
        if isinstance(self.head.fc, nn.Linear):
            trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)


def _conv_stage(channels: int, out_channels: int, depth: int) -> list[nn.Module]:
    return [
        MBConv(out_channels if index else channels, out_channels, stride=1 if index else 2) for index in range(depth)
    ]


# The authors' names of parameters, on the left.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^conv_stages\.(\d+)\.", r"stages.\1.blocks."),
        (r"^conv_final_pool\.", "stages.2.downsample."),
        (r"^pos_embed$", "stages.2.downsample.pos_embed"),
        (r"^final_layer\.", "stages.3.blocks.0."),
        (r"(^|\.)layer_scale_([12])$", r"\1gamma\2"),
        (r"(^|\.)attn\.", r"\1mixer."),
        (r"(^|\.)mlp\.", r"\1ffn."),
    )
]
_LAYER = re.compile(r"^layers\.(\d+)\.")


def rename_official_key(key: str, num_early_layers: int = 14) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    `num_early_layers` of the RWKV blocks are in stage 2, the others in stage 3.

    >>> rename_official_key("layers.9.attn.key.weight"), rename_official_key("layers.9.attn.key.weight", 8)
    ('stages.2.blocks.9.mixer.key.weight', 'stages.3.blocks.1.mixer.key.weight')
    """
    layer = _LAYER.match(key)
    if layer:
        index = int(layer[1])
        place = f"2.blocks.{index}" if index < num_early_layers else f"3.blocks.{index - num_early_layers}"
        key = f"stages.{place}.{key[layer.end() :]}"
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict (the backbone, or a block of it alone) under our names: renames only."""
    if not isinstance(model, RWKVSAM):
        return {rename_official_key(key): value for key, value in state_dict.items()}
    normed = "stages.2.norm." if model.final_layer else "stages.3.norm."
    return {
        re.sub(r"^final_norm\.", normed, rename_official_key(key, model.num_early_layers)): value
        for key, value in state_dict.items()
    }


_SOURCE = "https://github.com/HarborYuan/ovsam"
_PAPER = "Mamba or RWKV: Exploring High-Quality and High-Efficiency Segment Anything Model, arXiv 2406.19369"


def _cfg() -> Any:
    return imagenet_cfg(_SOURCE, "arXiv:2406.19369", first_conv="stem.conv1", classifier="head.fc", pool=7)


_SIZES: dict[str, dict[str, Any]] = {
    "rwkv_sam_tiny": {"dims": (32, 64, 192)},
    "rwkv_sam_small": {"dims": (64, 128, 384)},
    "rwkv_sam_base": {"dims": (128, 256, 768)},
}
default_cfgs = generate_default_cfgs({name: _cfg() for name in _SIZES})


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_backbone(RWKVSAM, name, pretrained, checkpoint_filter_fn, **kwargs)


register_sizes(
    __name__,
    {
        name: (BackboneInfo("RWKV-SAM", "paper", None, "none released", _SOURCE, _PAPER), defaults)
        for name, defaults in _SIZES.items()
    },
    _create,
)
