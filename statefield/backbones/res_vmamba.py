"""Res-VMamba (arXiv 2402.15761): the first VMamba, with a pooled residual around every stage but the last.

    x_(i+1) = down(stage_i(x_i)) + conv1x1(maxpool2x2(x_i)),      i = 0, 1, 2

The authors' code makes the 1 x 1 convolutions anew, with random weights, in every call: they are neither trained nor
stored, and two evaluations of one image differ. Here they are parameters like any other, so results are deterministic
and training reaches them. Facts were taken from the authors' repository at commit b7a080d; the tests compare with
numbers that their code computes once its convolutions are given fixed weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones import vmamba
from statefield.backbones._pyramid import Stage, checked_image, plan_stages, stage_widths
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)
from statefield.backbones.vmamba import VMamba

__all__ = ["ResVMamba"]


class PooledResidual(nn.Module):
    """The largest of four neighbours, then a 1 x 1 convolution: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C'].

    With `stride=1` the map keeps its size and the neighbours lie `dilation` apart, as a stage that runs à trous asks.
    """

    def __init__(self, channels: int, out_channels: int, *, stride: int = 2, dilation: int = 1) -> None:
        super().__init__()
        self.stride, self.dilation = stride, dilation
        self.conv = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x.permute(0, 3, 1, 2), (0, self.dilation, 0, self.dilation), value=float("-inf"))
        x = functional.max_pool2d(x, 2, stride=self.stride, dilation=self.dilation)
        return self.conv(x).permute(0, 2, 3, 1)


class ResVMamba(VMamba):
    """Res-VMamba as a timm model: a classifier, and the source of feature maps at strides 4, 8, 16, 32.

    Args:
        dims, depths, d_state, expand, output_stride, feature_norms, drop_rate, drop_path_rate, ...: see `VMamba`.
        residuals: the residuals around the stages; without them the model is vanilla VMamba.

    An official file has no weights for the residuals, and fits `residuals=False`: what the authors' network saw as
    noise is left out then. Or load it with `fresh=model.residual_names`: the residuals keep what they were initialised
    with, which is one of the authors' random draws (fixed by the seed), and can be trained.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        dims: int | Sequence[int] = 96,
        depths: Sequence[int] = (2, 2, 27, 2),
        d_state: int = 16,
        expand: float = 2.0,
        residuals: bool = True,
        output_stride: int = 32,
        feature_norms: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(
            in_chans,
            num_classes,
            global_pool,
            dims=dims,
            depths=depths,
            d_state=d_state,
            expand=expand,
            gated=True,
            conv_bias=True,
            mlp_ratio=0.0,
            conv_stem=False,
            output_stride=output_stride,
            feature_norms=feature_norms,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )
        widths = stage_widths(dims, depths)
        plans = plan_stages("Res-VMamba", len(depths), output_stride)
        self.residual_names: tuple[str, ...] = ()
        for index in range(1, len(depths) if residuals else 1):
            stride, dilation = plans[index].stride, plans[index].arriving
            residual = PooledResidual(widths[index - 1], widths[index], stride=stride, dilation=dilation)
            self.stages[index].add_module("residual", residual)
            self.residual_names += (f"stages.{index}.residual",)

    def stage_maps(self, image: Tensor, last: int | None = None) -> list[Tensor]:
        x, maps = self.stem(checked_image(image, self.in_chans)), []
        begin = x
        for index, stage in enumerate(self.stages):
            if last is not None and index > last:
                break
            assert isinstance(stage, Stage)
            x = stage.downsample(x)
            if f"stages.{index}.residual" in self.residual_names:
                x = x + stage.get_submodule("residual")(begin)
            begin = x
            x = stage.run_blocks(x)
            maps.append(x)
        return maps

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups of a pyramid; a residual is of the group of the downsampling beside it."""
        matcher = super().group_matcher(coarse)
        if not coarse:
            matcher["blocks"].insert(0, (r"^stages\.(\d+)\.residual", (0,)))
        return matcher


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    The authors' convolutions have no names, being made in every call: `fuse.<stage>` is what the goldens call them.

    >>> rename_official_key("fuse.0.weight")
    'stages.1.residual.conv.weight'
    >>> rename_official_key("layers.1.blocks.0.op.Ds")
    'stages.1.blocks.0.mixer.D'
    """
    fuse = re.match(r"^fuse\.(\d+)\.", key)
    if fuse:
        return f"stages.{int(fuse[1]) + 1}.residual.conv.{key[fuse.end() :]}"
    return vmamba.rename_official_key(key)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict under our names, as `vmamba.checkpoint_filter_fn` gives it, and the residuals."""
    residuals = {rename_official_key(key): value for key, value in state_dict.items() if key.startswith("fuse.")}
    others = {key: value for key, value in state_dict.items() if not key.startswith("fuse.")}
    return vmamba.checkpoint_filter_fn(others, model) | residuals


_SOURCE = "https://github.com/ChiShengChen/ResVMamba"
_PAPER = (
    "Res-VMamba: Fine-Grained Food Category Visual Classification Using Selective State Space Models, arXiv 2402.15761"
)

default_cfgs = generate_default_cfgs(
    {
        "res_vmamba_small": imagenet_cfg(
            _SOURCE, "arXiv:2402.15761", first_conv="stem.conv1", classifier="head.fc", pool=7
        )
    }
)


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_backbone(ResVMamba, name, pretrained, checkpoint_filter_fn, **kwargs)


# Published for food pictures alone (CNFOOD-241, 81.7 % top-1), not for ImageNet.
register_sizes(
    __name__,
    {
        "res_vmamba_small": (
            BackboneInfo("Res-VMamba", "paper", None, "none stated", _SOURCE, _PAPER),
            {"drop_path_rate": 0.3},
        )
    },
    _create,
)
