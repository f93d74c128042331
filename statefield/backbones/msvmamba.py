"""MSVMamba (arXiv 2405.14174): VMamba with one scan of the map, three of a half-sized one, and convolutional MLPs.

    patches /4 -> stage 0 -> merge -> stage 1 -> merge -> stage 2 -> merge -> stage 3 -> LayerNorm -> mean -> head

Facts were taken from the authors' repository at commit c394019; the tests compare with numbers of their code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from timm.layers import DropPath, trunc_normal_
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import DepthwiseConv, PatchMerging, PatchStem, drop_path_rates
from statefield.backbones._mixers.multi_scale import MultiScaleMixer
from statefield.backbones._pyramid import Pyramid, Stage, plan_stages, stage_widths
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)

__all__ = ["MSVMamba", "MSVMambaBlock"]


class ConvFFN(nn.Module):
    """An MLP with a depthwise convolution, added to its own input, between its layers: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(self, channels: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.conv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.drop(self.fc2(self.drop(functional.gelu(x + self.conv(x)))))


class MSVMambaBlock(nn.Module):
    """Multi-scale scan and convolutional MLP, each a residual behind LayerNorm: [B, H, W, C] -> [B, H, W, C]."""

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 1,
        expand: float = 2.0,
        mlp_ratio: float = 2.0,
        proj_drop_rate: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.mixer = MultiScaleMixer(channels, d_state=d_state, expand=expand)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = ConvFFN(channels, int(mlp_ratio * channels), proj_drop_rate)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.mixer(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class MSVMamba(Pyramid):
    """MSVMamba as a timm model: a classifier, and the source of feature maps at strides 4, 8, 16, 32.

    Args:
        in_chans: channels of the image, any number. num_classes: outputs of the head; 0 for none.
        global_pool: timm's name of the pooling before the head.
        dims: channels of each stage; an integer C means C, 2C, 4C, ... depths: blocks of each stage.
        d_state: N, states a channel. expand: inner channels of the mixer over C. mlp_ratio: hidden channels over C.
        output_stride: 32, or 16 or 8: stages past that stride keep the map's size and run à trous on interleaved
            sub-grids, scans included.
        feature_norms: a LayerNorm on every map that `forward_intermediates` gives, as the authors' detection and
            segmentation backbone has.
        drop_rate: dropout before the head. proj_drop_rate: dropout in the MLPs.
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
        dims: int | Sequence[int] = 96,
        depths: Sequence[int] = (1, 2, 9, 2),
        d_state: int = 1,
        expand: float = 2.0,
        mlp_ratio: float = 2.0,
        output_stride: int = 32,
        feature_norms: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        depths, dims = tuple(depths), stage_widths(dims, depths)
        plans = plan_stages("MSVMamba", len(depths), output_stride)
        rates = drop_path_rates(drop_path_rate, depths)
        options: dict[str, Any] = {"d_state": d_state, "expand": expand, "mlp_ratio": mlp_ratio}
        options["proj_drop_rate"] = proj_drop_rate
        stages = []
        for index, (channels, plan) in enumerate(zip(dims, plans, strict=True)):
            downsample: nn.Module = nn.Identity()
            if index > 0:
                downsample = PatchMerging(dims[index - 1], channels, stride=plan.stride, dilation=plan.arriving)
            blocks = [MSVMambaBlock(channels, drop_path=rate, **options) for rate in rates[index]]
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
        (r"(^|\.)conv2d_b1\.", r"\1half_conv."),
        (r"(^|\.)se\.fc\.0\.", r"\1se.reduce."),
        (r"(^|\.)se\.fc\.2\.", r"\1se.expand."),
        (r"(^|\.)x_proj_weight$", r"\1x_proj"),
        (r"(^|\.)dt_projs_weight$", r"\1dt_proj"),
        (r"(^|\.)dt_projs_bias$", r"\1dt_bias"),
        (r"(^|\.)A_logs$", r"\1A_log"),
        (r"(^|\.)Ds$", r"\1D"),
        (r"(^|\.)convFFN\.linear(\d)\.", r"\1mlp.fc\2."),
        (r"(^|\.)convFFN\.dwc\.", r"\1mlp.conv."),
    )
]
_OFFICIAL_STAGE = re.compile(r"^layers\.(\d+)\.(blocks|downsample)\.")


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("layers.0.blocks.0.convFFN.linear2.bias")
    'stages.0.blocks.0.mlp.fc2.bias'
    """
    stage = _OFFICIAL_STAGE.match(key)
    if stage:  # the authors end a stage with its downsampling, we begin the next one with it
        index = int(stage[1]) + (stage[2] == "downsample")
        key = f"stages.{index}.{stage[2]}.{key[stage.end() :]}"
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict under our names; the MLPs' 1 x 1 convolutions become the linear layers that they are."""
    renamed = {rename_official_key(key): value for key, value in state_dict.items()}
    is_pointwise = re.compile(r"(^|\.)mlp\.fc\d\.weight$")
    return {name: value.flatten(1) if is_pointwise.search(name) else value for name, value in renamed.items()}


_SOURCE = "https://github.com/YuHengsss/MSVMamba"
_LICENSE = "none stated"
_PAPER = "Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model, NeurIPS 2024"


def _cfg() -> Any:
    return imagenet_cfg(_SOURCE, "arXiv:2405.14174", first_conv="stem.conv1", classifier="head.fc", pool=7)


_SIZES: dict[str, tuple[float, dict[str, Any]]] = {  # published top-1, and what differs from the defaults
    "msvmamba_nano": (77.3, {"dims": 48, "depths": (1, 2, 5, 2), "drop_path_rate": 0.2}),
    "msvmamba_micro": (79.8, {"dims": 64, "depths": (1, 2, 5, 2), "drop_path_rate": 0.2}),
    "msvmamba_tiny": (82.8, {"dims": 96, "depths": (1, 2, 9, 2), "drop_path_rate": 0.2}),
}
default_cfgs = generate_default_cfgs({name: _cfg() for name in _SIZES})


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_backbone(MSVMamba, name, pretrained, checkpoint_filter_fn, **kwargs)


register_sizes(
    __name__,
    {
        name: (BackboneInfo("MSVMamba", "paper", top1, _LICENSE, _SOURCE, _PAPER), defaults)
        for name, (top1, defaults) in _SIZES.items()
    },
    _create,
)
