"""VSSD (arXiv 2407.18559): a four-stage backbone whose blocks share one state among all pixels, with attention at last.

    stem /4 -> stage 0 -> down -> stage 1 -> down -> stage 2 -> down -> stage 3 (attention) -> LayerNorm -> mean -> head

Facts were taken from the authors' repository at commit 87b753b; the tests compare with numbers that their code
computes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from timm.layers import trunc_normal_
from timm.models import generate_default_cfgs
from torch import nn

from statefield.backbones._blocks import InvertedMerging, PositionalBlock, ResidualStem, drop_path_rates
from statefield.backbones._mixers import MapAttention, NonCausalDualityMixer
from statefield.backbones._pyramid import Pyramid, Stage, plan_stages, stage_widths
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)
from statefield.errors import ConfigError

__all__ = ["VSSD"]


class VSSD(Pyramid):
    """VSSD as a timm model: a classifier, and the source of feature maps at strides 4, 8, 16, 32.

    Args:
        in_chans: channels of the image, any number. num_classes: outputs of the head; 0 for none.
        global_pool: timm's name of the pooling before the head.
        dims: channels of each stage; an integer C means C, 2C, 4C, ... depths: blocks of each stage.
        heads: of the mixers of each stage.
        mixers: what the blocks of each stage mix with: "duality" or (softmax) "attention".
        d_state: N. expand: inner channels of a duality over C. groups: of its B and C.
        positive_decay: see `NonCausalDualityMixer`.
        mlp_ratio: hidden channels of the MLP over C.
        output_stride: 32, or 16 or 8: stages past that stride keep the map's size and run à trous on interleaved
            sub-grids, each with a state (or an attention) of its own.
        feature_norms: a LayerNorm on every map that `forward_intermediates` gives, as the authors' detection and
            segmentation backbone has.
        drop_rate: dropout before the head. proj_drop_rate: dropout in the MLPs.
        drop_path_rate: stochastic depth of the last block; the first has 0, between them it rises linearly.

    The authors' classifier is for sides that 32 divides; others are rounded up here, as in their dense backbone.

    Raises:
        ConfigError: an `output_stride` that cannot be had, stages of different numbers, heads that do not divide the
            channels, or an unknown mixer.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        dims: int | Sequence[int] = 64,
        depths: Sequence[int] = (2, 4, 8, 4),
        heads: Sequence[int] = (2, 4, 8, 16),
        mixers: Sequence[str] = ("duality", "duality", "duality", "attention"),
        d_state: int = 64,
        expand: float = 2.0,
        groups: int = 1,
        positive_decay: bool = True,
        mlp_ratio: float = 4.0,
        output_stride: int = 32,
        feature_norms: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        depths, dims = tuple(depths), stage_widths(dims, depths)
        if not len(heads) == len(mixers) == len(depths):
            raise ConfigError(f"heads {tuple(heads)} and mixers {tuple(mixers)} must be as many as depths {depths}.")
        plans = plan_stages("VSSD", len(depths), output_stride)
        rates = drop_path_rates(drop_path_rate, depths)
        duality = {"d_state": d_state, "expand": expand, "groups": groups, "positive_decay": positive_decay}
        stages = []
        for index, (channels, plan) in enumerate(zip(dims, plans, strict=True)):
            downsample: nn.Module = nn.Identity()
            if index > 0:
                downsample = InvertedMerging(dims[index - 1], channels, stride=plan.stride, dilation=plan.arriving)
            blocks = [
                PositionalBlock(
                    channels,
                    _mixer(mixers[index], channels, heads[index], duality),
                    mlp_ratio=mlp_ratio,
                    proj_drop_rate=proj_drop_rate,
                    drop_path=rate,
                )
                for rate in rates[index]
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
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _mixer(kind: str, channels: int, heads: int, duality: dict[str, Any]) -> nn.Module:
    if kind == "duality":
        return NonCausalDualityMixer(channels, heads=heads, **duality)
    if kind != "attention":
        raise ConfigError(f"the mixer {kind!r} is not one of 'duality', 'attention'.")
    if channels % heads:
        raise ConfigError(f"heads {heads} has to divide the {channels} channels of the attention.")
    return MapAttention(channels, heads)


# The authors' names of parameters, on the left.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^patch_embed\.", "stem."),
        (r"^outnorm(\d+)\.", r"feature_norms.\1."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
        (r"(^|\.)attn\.", r"\1mixer."),
        (r"(^|\.)conv2d\.", r"\1conv."),
        (r"(^|\.)to_qkv\.", r"\1qkv."),
        (r"(^|\.)to_out\.", r"\1proj."),
    )
]
_OFFICIAL_STAGE = re.compile(r"^layers\.(\d+)\.(blocks|downsample)\.")


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("layers.0.downsample.conv.2.norm.weight")
    'stages.1.downsample.conv.2.norm.weight'
    >>> rename_official_key("layers.3.blocks.1.attn.to_qkv.weight")
    'stages.3.blocks.1.mixer.qkv.weight'
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


_SOURCE = "https://github.com/YuHengsss/VSSD"
_LICENSE = "none stated"
_PAPER = "VSSD: Vision Mamba with Non-Causal State Space Duality, arXiv 2407.18559"


def _cfg() -> Any:
    return imagenet_cfg(_SOURCE, "arXiv:2407.18559", first_conv="stem.conv1.conv", classifier="head.fc", pool=7)


_SIZES: dict[str, tuple[float, dict[str, Any]]] = {  # published top-1, and what differs from the defaults
    # The authors' file says 0.1 for the smallest model's stochastic depth, under a key that their builder ignores.
    "vssd_micro": (82.5, {"dims": 48, "depths": (2, 2, 8, 4), "d_state": 48, "drop_path_rate": 0.2}),
    "vssd_tiny": (83.6, {"drop_path_rate": 0.2}),
    "vssd_small": (84.1, {"depths": (3, 4, 21, 5), "drop_path_rate": 0.4}),
    "vssd_base": (84.7, {"dims": 96, "depths": (3, 4, 21, 5), "heads": (3, 6, 12, 24), "drop_path_rate": 0.6}),
}
default_cfgs = generate_default_cfgs({name: _cfg() for name in _SIZES})


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_backbone(VSSD, name, pretrained, checkpoint_filter_fn, **kwargs)


register_sizes(
    __name__,
    {
        name: (BackboneInfo("VSSD", "paper", top1, _LICENSE, _SOURCE, _PAPER), defaults)
        for name, (top1, defaults) in _SIZES.items()
    },
    _create,
)
