"""MambaOut (arXiv 2405.07992) for dense prediction: the gated convolutions of Mamba's block, without its scan.

    stem /4 -> stage 0 -> down -> stage 1 -> down -> stage 2 -> down -> stage 3 -> mean -> LayerNorm -> MLP head

timm has the authors' models under the names `mambaout_femto` to `mambaout_base`; their maps serve every decoder that
takes strides 4 to 32. What is missing there is an output stride, which DeepLabV3 and PAN ask for: the `_pyramid`
variants here have it. They are timm's blocks with timm's parameter names, so timm's and the authors' weights fill them:
the control that a state-space model is held against, under the same decoder, whichever it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import trunc_normal_
from timm.models import generate_default_cfgs
from timm.models import mambaout as of_timm
from torch import nn

from statefield.backbones._blocks import drop_path_rates
from statefield.backbones._pyramid import Pyramid, Stage, plan_stages, stage_widths
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)

__all__ = ["MambaOut"]

NORM_EPS = 1e-6


class MambaOut(Pyramid):
    """MambaOut as a timm model with an output stride.

    Args:
        in_chans: channels of the image, any number. num_classes: outputs of the head; 0 for none.
        global_pool: "avg", or "" for none.
        dims: channels of each stage. depths: blocks of each stage.
        expansion_ratio: hidden channels of a block over C, rounded down. kernel_size: side of its convolution.
        output_stride: 32, or 16 or 8: stages past that stride keep the map's size and run à trous.
        feature_norms: a LayerNorm on every map that `forward_intermediates` gives.
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
        dims: int | Sequence[int] = (96, 192, 384, 576),
        depths: Sequence[int] = (3, 3, 9, 3),
        expansion_ratio: float = 8 / 3,
        kernel_size: int = 7,
        output_stride: int = 32,
        feature_norms: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        depths, dims = tuple(depths), stage_widths(dims, depths)
        plans = plan_stages("MambaOut", len(depths), output_stride)
        rates = drop_path_rates(drop_path_rate, depths)
        block = partial(of_timm.GatedConvBlock, expansion_ratio=expansion_ratio, kernel_size=kernel_size)
        stages = []
        for index, (channels, plan) in enumerate(zip(dims, plans, strict=True)):
            downsample: nn.Module = nn.Identity()
            if index > 0:
                downsample = of_timm.Downsample(dims[index - 1], channels)
                conv, apart = downsample.conv, (plan.arriving, plan.arriving)
                conv.stride, conv.dilation, conv.padding = (plan.stride, plan.stride), apart, apart
            stages.append(Stage(downsample, [block(channels, drop_path=rate) for rate in rates[index]], plan.dilation))
        super().__init__(
            stem=of_timm.Stem(in_chans, dims[0]),
            stages=stages,
            dims=dims,
            reductions=[plan.reduction for plan in plans],
            in_chans=in_chans,
            num_classes=num_classes,
            feature_norms=feature_norms,
            norm=nn.Identity(),  # the head has it behind the mean
            norm_eps=NORM_EPS,
        )
        head = of_timm.MlpHead(dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.add_module("head", head)
        self.head_hidden_size = head.num_features
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh last layer for `num_classes`; with 0 and pooling "" nothing is left of the head."""
        bare = num_classes == 0 and global_pool == ""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, reset_other=bare)
        self.head_hidden_size = self.head.num_features


# The authors' names become timm's, which are ours; timm's own come back as they are.
checkpoint_filter_fn = of_timm.checkpoint_filter_fn

_SOURCE = "https://github.com/yuweihao/MambaOut"
_PAPER = "MambaOut: Do We Really Need Mamba for Vision?, CVPR 2025"
_INFO = BackboneInfo("MambaOut", "statefield", None, "Apache-2.0", _SOURCE, _PAPER)


def _cfg(of: str) -> Any:
    return imagenet_cfg(
        _SOURCE,
        "arXiv:2405.07992",
        first_conv="stem.conv1",
        classifier="head.fc",
        pool=7,
        crop_pct=1.0,
        hf_hub_id=f"timm/{of}.in1k",
        license="apache-2.0",
    )


_SIZES: dict[str, dict[str, Any]] = {
    "femto": {"dims": (48, 96, 192, 288), "drop_path_rate": 0.025},
    "kobe": {"dims": (48, 96, 192, 288), "depths": (3, 3, 15, 3), "drop_path_rate": 0.025},
    "tiny": {"drop_path_rate": 0.2},
    "small": {"depths": (3, 4, 27, 3), "drop_path_rate": 0.4},
    "base": {"dims": (128, 256, 512, 768), "depths": (3, 4, 27, 3), "drop_path_rate": 0.6},
}
default_cfgs = generate_default_cfgs({f"mambaout_{size}_pyramid": _cfg(f"mambaout_{size}") for size in _SIZES})


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_backbone(MambaOut, name, pretrained, checkpoint_filter_fn, **kwargs)


register_sizes(__name__, {f"mambaout_{size}_pyramid": (_INFO, options) for size, options in _SIZES.items()}, _create)
