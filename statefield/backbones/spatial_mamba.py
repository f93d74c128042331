"""Spatial-Mamba (arXiv 2410.15091): a four-stage backbone whose scan states are fused along the image's structure.

    stem /4 -> stage 0 -> down -> stage 1 -> down -> stage 2 -> down -> stage 3 -> LayerNorm -> mean -> head

Maps between blocks are channels-last, [B, H, W, C]. Facts were taken from the authors' repository at commit 71221eb;
the tests compare with numbers that their code computes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from timm.layers import trunc_normal_
from timm.models import generate_default_cfgs
from torch import nn

from statefield.backbones._blocks import InvertedMerging, PositionalBlock, ResidualStem, drop_path_rates
from statefield.backbones._mixers import StructureAwareMixer
from statefield.backbones._pyramid import Pyramid, Stage, plan_stages, stage_widths
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_backbone,
)

__all__ = ["SpatialMamba", "SpatialMambaBlock"]


class SpatialMambaBlock(PositionalBlock):
    """A structure-aware scan and an MLP among positional convolutions; each a residual, [B, H, W, C].

    With `spatial_dims=3` over volumes, [B, D, H, W, C].
    """

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 1,
        expand: float = 2.0,
        mlp_ratio: float = 4.0,
        proj_drop_rate: float = 0.0,
        drop_path: float = 0.0,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__(
            channels,
            StructureAwareMixer(channels, d_state=d_state, expand=expand, spatial_dims=spatial_dims),
            mlp_ratio=mlp_ratio,
            proj_drop_rate=proj_drop_rate,
            drop_path=drop_path,
            spatial_dims=spatial_dims,
        )


class SpatialMamba(Pyramid):
    """Spatial-Mamba as a timm model: a classifier, and the source of feature maps at strides 4, 8, 16, 32.

    Args:
        in_chans: channels of the image, any number.
        num_classes: outputs of the head; 0 for none.
        global_pool: timm's name of the pooling before the head.
        dims: channels of each stage; an integer C means C, 2C, 4C, ...
        depths: blocks of each stage.
        d_state: N, states a channel; published models have 1.
        expand: inner channels of the mixer over C. mlp_ratio: hidden channels of the MLP over C.
        output_stride: 32, or 16 or 8: stages past that stride keep the map's size and run à trous on interleaved
            sub-grids, scan included, so published weights keep their meaning. Every 2nd (or 4th) pixel of such a map,
            from the first on, equals the map at stride 32.
        feature_norms: a LayerNorm on every map that `forward_intermediates` gives, as the authors' detection and
            segmentation backbone has. Without it the maps are the classifier's own.
        drop_rate: dropout before the head. proj_drop_rate: dropout in the MLPs.
        drop_path_rate: stochastic depth of the last block; the first has 0, between them it rises linearly.

    The authors' optimizer overlooks the exemption of `no_weight_decay` and decays the two-dimensional `A_log`; to
    repeat their training to the letter, leave it out of what you exempt.

    Raises:
        ConfigError: an `output_stride` that cannot be had, or `dims` and `depths` of different lengths.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        dims: int | Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 4, 8, 4),
        d_state: int = 1,
        expand: float = 2.0,
        mlp_ratio: float = 4.0,
        output_stride: int = 32,
        feature_norms: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        depths = tuple(depths)
        dims = stage_widths(dims, depths)
        drop_paths = drop_path_rates(drop_path_rate, depths)
        plans = plan_stages("Spatial-Mamba", len(depths), output_stride)
        stages = []
        for index, (channels, plan) in enumerate(zip(dims, plans, strict=True)):
            downsample: nn.Module = nn.Identity()
            if index > 0:
                downsample = InvertedMerging(dims[index - 1], channels, stride=plan.stride, dilation=plan.arriving)
            blocks = [
                SpatialMambaBlock(
                    channels,
                    d_state=d_state,
                    expand=expand,
                    mlp_ratio=mlp_ratio,
                    proj_drop_rate=proj_drop_rate,
                    drop_path=rate,
                )
                for rate in drop_paths[index]
            ]
            stages.append(Stage(downsample, blocks, plan.dilation))
        super().__init__(
            stem=ResidualStem(in_chans, dims[0]),
            stages=stages,
            dims=dims,
            reductions=[plan.reduction for plan in plans],
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            feature_norms=feature_norms,
            drop_rate=drop_rate,
        )
        self.init_weights()

    def init_weights(self) -> None:
        """The authors' initial values: linear layers normal with std 0.02, the recurrence by its own rule."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, StructureAwareMixer):
                module.reset_ssm_parameters()


# The authors' names of parameters, on the left; ours are plainer and the same at every depth of the model.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^patch_embed\.", "stem."),
        (r"^outnorm(\d+)\.", r"feature_norms.\1."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
        (r"(^|\.)self_attention\.", r"\1mixer."),
        (r"(^|\.)ln_([12])\.", r"\1norm\2."),
        (r"(^|\.)conv2d\.", r"\1conv."),
        (r"(^|\.)x_proj_weight$", r"\1x_proj.weight"),
        (r"(^|\.)dt_projs_weight$", r"\1dt_proj.weight"),
        (r"(^|\.)dt_projs_bias$", r"\1dt_bias"),
        (r"(^|\.)A_logs$", r"\1A_log"),
        (r"(^|\.)Ds$", r"\1D"),
        (r"(^|\.)state_fusion\.", r"\1fusion."),
        (r"(^|\.)kernel_3$", r"\1kernel_d1"),
        (r"(^|\.)kernel_3_1$", r"\1kernel_d3"),
        (r"(^|\.)kernel_3_2$", r"\1kernel_d5"),
    )
]
_OFFICIAL_STAGE = re.compile(r"^layers\.(\d+)\.(blocks|downsample)\.")


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("layers.0.downsample.conv.2.norm.weight")
    'stages.1.downsample.conv.2.norm.weight'
    >>> rename_official_key("layers.3.blocks.1.self_attention.state_fusion.kernel_3_1")
    'stages.3.blocks.1.mixer.fusion.kernel_d3'
    """
    stage = _OFFICIAL_STAGE.match(key)
    if stage:  # the authors end a stage with its downsampling, we begin the next one with it
        index = int(stage[1]) + (stage[2] == "downsample")
        key = f"stages.{index}.{stage[2]}.{key[stage.end() :]}"
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict (classifier, dense backbone, or any module of them) under our names: renames only."""
    return {rename_official_key(key): value for key, value in state_dict.items()}


_SOURCE = "https://github.com/EdwardChasel/Spatial-Mamba"
_LICENSE = "Apache-2.0 (repository)"
_PAPER = "Spatial-Mamba: Effective Visual State Space Models via Structure-Aware State Fusion, ICLR 2025"


def _info(published_top1: float | None, origin: str = "paper") -> BackboneInfo:
    license_ = _LICENSE if origin == "paper" else None
    return BackboneInfo("Spatial-Mamba", origin, published_top1, license_, _SOURCE, _PAPER)


def _cfg() -> dict[str, Any]:
    return imagenet_cfg(_SOURCE, "arXiv:2410.15091", first_conv="stem.conv1.conv", classifier="head.fc", pool=7)


default_cfgs = generate_default_cfgs(
    {f"spatial_mamba_{size}": _cfg() for size in ("nano", "tiny", "small", "base")},
)


def _create(name: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> nn.Module:
    return build_backbone(SpatialMamba, name, pretrained, checkpoint_filter_fn, **(defaults | kwargs))


@register_backbone(_info(None, "statefield"))
def spatial_mamba_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Ours, not the paper's: an encoder of 3.6 M parameters, small enough to train on a CPU."""
    return _create("spatial_mamba_nano", pretrained, {"dims": (32, 64, 128, 256), "depths": (1, 2, 4, 2)}, kwargs)


@register_backbone(_info(83.5))
def spatial_mamba_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Spatial-Mamba-T of the paper: 26.7 M parameters, 4.4 G multiply-adds at 224 x 224."""
    defaults = {"dims": (64, 128, 256, 512), "depths": (2, 4, 8, 4), "drop_path_rate": 0.2}
    return _create("spatial_mamba_tiny", pretrained, defaults, kwargs)


@register_backbone(_info(84.6))
def spatial_mamba_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Spatial-Mamba-S of the paper: 43.1 M parameters, 7.1 G multiply-adds at 224 x 224."""
    defaults = {"dims": (64, 128, 256, 512), "depths": (2, 4, 21, 5), "drop_path_rate": 0.3}
    return _create("spatial_mamba_small", pretrained, defaults, kwargs)


@register_backbone(_info(85.3))
def spatial_mamba_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Spatial-Mamba-B of the paper: 95.7 M parameters, 15.7 G multiply-adds at 224 x 224."""
    defaults = {"dims": (96, 192, 384, 768), "depths": (2, 4, 21, 5), "drop_path_rate": 0.5}
    return _create("spatial_mamba_base", pretrained, defaults, kwargs)
