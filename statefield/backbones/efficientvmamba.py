"""EfficientVMamba (arXiv 2403.09977): atrous scans beside convolutions at high resolution, inverted bottlenecks below.

    patches /4 -> stage 0 -> merge -> stage 1 -> merge -> stage 2 -> merge -> stage 3 -> LayerNorm -> mean -> head
                  scan and convolution                   inverted bottlenecks

Facts were taken from the authors' repository at commit 0bc5ee2; the tests compare with numbers of their code. Its
settings file of the small model says 96 channels; the released weights have 64, and so has `efficientvmamba_small`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import ConvNorm, PatchMerging, PatchStem, drop_path_rates
from statefield.backbones._mixers.atrous import AtrousScanMixer
from statefield.backbones._pyramid import Pyramid, Stage, plan_stages, stage_widths
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)

__all__ = ["EfficientVMamba", "EfficientVMambaBlock", "InvertedBottleneck"]


class ChannelAttention(nn.Module):
    """Channels weighted by what the mean of the normalised map says: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // 8
        self.norm = nn.LayerNorm(channels)
        self.reduce = nn.Linear(channels, hidden)
        self.expand = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.norm(x).mean((1, 2), keepdim=True)
        return x * torch.sigmoid(self.expand(functional.gelu(self.reduce(mean))))


class ConvBranch(nn.Module):
    """Depthwise convolution, BatchNorm, GELU and a linear layer: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = ConvNorm(channels, channels, groups=channels, bias=True, act=False)
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(functional.gelu(self.depthwise(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


class EfficientVMambaBlock(nn.Module):
    """Atrous scan and convolution side by side, each weighted by the same channel attention, with one residual."""

    def __init__(self, channels: int, *, d_state: int = 16, expand: float = 2.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.mixer = AtrousScanMixer(channels, d_state=d_state, expand=expand)
        self.conv_branch = ConvBranch(channels)
        self.se = ChannelAttention(channels)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        return x + self.drop_path(self.se(self.mixer(normed)) + self.se(self.conv_branch(normed)))


class SqueezeExcite(nn.Module):
    """Channels weighted by what their means say: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, hidden, 1)
        self.conv_expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.conv_expand(functional.relu(self.conv_reduce(mean))))


class InvertedBottleneck(nn.Module):
    """MobileNet's: widen four times, depthwise convolution, channel attention, narrow; a residual, [B, H, W, C]."""

    def __init__(self, channels: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        hidden = 4 * channels
        self.conv_pw = ConvNorm(channels, hidden, 1)
        self.conv_dw = ConvNorm(hidden, hidden, groups=hidden)
        self.se = SqueezeExcite(hidden, hidden // 8)
        self.conv_pw2 = ConvNorm(hidden, channels, 1, act=False)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_pw2(self.se(self.conv_dw(self.conv_pw(x.permute(0, 3, 1, 2)))))
        return x + self.drop_path(y.permute(0, 2, 3, 1))


class EfficientVMamba(Pyramid):
    """EfficientVMamba as a timm model: a classifier, and the source of feature maps at strides 4, 8, 16, 32.

    Args:
        in_chans: channels of the image, any number. num_classes: outputs of the head; 0 for none.
        global_pool: timm's name of the pooling before the head.
        dims: channels of each stage; an integer C means C, 2C, 4C, ... depths: blocks of each stage.
        scan_stages: how many stages, from the first, have scans; the others have inverted bottlenecks.
        d_state: N, states a channel. expand: inner channels of the mixer over C.
        output_stride: 32, or 16 or 8: stages past that stride keep the map's size and run à trous on interleaved
            sub-grids, scans included.
        feature_norms: a LayerNorm on every map that `forward_intermediates` gives, as the authors' detection and
            segmentation backbone has.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block; the first has 0, between them it rises linearly.

    Raises:
        ConfigError: an `output_stride` that cannot be had, or `dims` and `depths` of different lengths.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        dims: int | Sequence[int] = 48,
        depths: Sequence[int] = (2, 2, 4, 2),
        scan_stages: int = 2,
        d_state: int = 16,
        expand: float = 2.0,
        output_stride: int = 32,
        feature_norms: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        depths, dims = tuple(depths), stage_widths(dims, depths)
        plans = plan_stages("EfficientVMamba", len(depths), output_stride)
        rates = drop_path_rates(drop_path_rate, depths)
        stages = []
        for index, (channels, plan) in enumerate(zip(dims, plans, strict=True)):
            downsample: nn.Module = nn.Identity()
            if index > 0:
                downsample = PatchMerging(dims[index - 1], channels, stride=plan.stride, dilation=plan.arriving)
            blocks: list[nn.Module] = [
                EfficientVMambaBlock(channels, d_state=d_state, expand=expand, drop_path=rate)
                if index < scan_stages
                else InvertedBottleneck(channels, drop_path=rate)
                for rate in rates[index]
            ]
            stages.append(Stage(downsample, blocks, plan.dilation))
        super().__init__(
            stem=PatchStem(in_chans, dims[0]),
            stages=stages,
            dims=dims,
            reductions=[plan.reduction for plan in plans],
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            feature_norms=feature_norms,
            drop_rate=drop_rate,
        )
        for module in self.modules():  # the recurrences keep what their mixers gave them
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


# The authors' names of parameters, on the left.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^patch_embed\.0\.", "stem.conv1."),
        (r"^patch_embed\.2\.", "stem.norm1."),
        (r"^outnorm(\d+)\.", r"feature_norms.\1."),
        (r"^classifier\.norm\.", "norm."),
        (r"^classifier\.head\.", "head.fc."),
        (r"(blocks\.\d+\.)norm\.", r"\1norm1."),
        (r"(blocks\.\d+\.)op\.", r"\1mixer."),
        (r"(^|\.)conv2d\.", r"\1conv."),
        (r"(^|\.)conv_branch\.0\.", r"\1conv_branch.depthwise.conv."),
        (r"(^|\.)conv_branch\.1\.", r"\1conv_branch.depthwise.norm."),
        (r"(^|\.)conv_branch\.3\.", r"\1conv_branch.pointwise."),
        (r"(^|\.)se\.global_reduce\.", r"\1se.reduce."),
        (r"(^|\.)se\.channel_select\.", r"\1se.expand."),
        (r"(^|\.)(conv_pw|conv_dw|conv_pw2)\.0\.", r"\1\2.conv."),
        (r"(^|\.)(conv_pw|conv_dw|conv_pw2)\.1\.", r"\1\2.norm."),
        (r"(^|\.)x_proj_weight$", r"\1x_proj"),
        (r"(^|\.)dt_projs_weight$", r"\1dt_proj"),
        (r"(^|\.)dt_projs_bias$", r"\1dt_bias"),
        (r"(^|\.)A_logs$", r"\1A_log"),
        (r"(^|\.)Ds$", r"\1D"),
    )
]
_OFFICIAL_STAGE = re.compile(r"^layers\.(\d+)\.(blocks|downsample)\.")
# Stages of bottlenecks are plain sequences: a permutation at 0, the blocks from 1 on, the downsampling at the end.
_OFFICIAL_SEQUENCE = re.compile(r"^layers\.(\d+)\.(\d+)\.(?=(norm|reduction)?)")


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("layers.2.6.reduction.weight")
    'stages.3.downsample.reduction.weight'
    >>> rename_official_key("layers.2.4.conv_dw.0.weight")
    'stages.2.blocks.3.conv_dw.conv.weight'
    """
    stage, sequence = _OFFICIAL_STAGE.match(key), _OFFICIAL_SEQUENCE.match(key)
    if stage:  # the authors end a stage with its downsampling, we begin the next one with it
        index = int(stage[1]) + (stage[2] == "downsample")
        key = f"stages.{index}.{stage[2]}.{key[stage.end() :]}"
    elif sequence and sequence[3]:
        key = f"stages.{int(sequence[1]) + 1}.downsample.{key[sequence.end() :]}"
    elif sequence:
        key = f"stages.{sequence[1]}.blocks.{int(sequence[2]) - 1}.{key[sequence.end() :]}"
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict under our names: renames only."""
    return {rename_official_key(key): value for key, value in state_dict.items()}


_SOURCE = "https://github.com/TerryPei/EfficientVMamba"
_LICENSE = "Apache-2.0 (repository)"
_PAPER = "EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba, AAAI 2025"


def _cfg() -> Any:
    return imagenet_cfg(_SOURCE, "arXiv:2403.09977", first_conv="stem.conv1", classifier="head.fc", pool=7)


_SIZES: dict[str, tuple[float, dict[str, Any]]] = {  # published top-1, and what differs from the defaults
    "efficientvmamba_tiny": (76.5, {"dims": 48, "depths": (2, 2, 4, 2), "drop_path_rate": 0.1}),
    "efficientvmamba_small": (78.7, {"dims": 64, "depths": (2, 2, 4, 2), "drop_path_rate": 0.1}),
    "efficientvmamba_base": (81.8, {"dims": 96, "depths": (2, 2, 9, 2), "drop_path_rate": 0.1}),
}
default_cfgs = generate_default_cfgs({name: _cfg() for name in _SIZES})


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_backbone(EfficientVMamba, name, pretrained, checkpoint_filter_fn, **kwargs)


register_sizes(
    __name__,
    {
        name: (BackboneInfo("EfficientVMamba", "paper", top1, _LICENSE, _SOURCE, _PAPER), defaults)
        for name, (top1, defaults) in _SIZES.items()
    },
    _create,
)
