"""VMamba (arXiv 2401.10166): a four-stage backbone whose blocks scan the map along rows and columns, both ways.

    stem /4 -> stage 0 -> down -> stage 1 -> down -> stage 2 -> down -> stage 3 -> LayerNorm -> mean -> head

Three generations have one class here: "vanilla" (16 states, gated, no MLP), the second (1 state, no gate, MLP), and the
second on Mamba-2 scans. Facts were taken from the authors' repository at commit 2ed52ea; the tests compare with numbers
that their code computes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from timm.layers import DropPath, Mlp, trunc_normal_
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import (
    CONVOLUTIONS,
    ConvMerging,
    PatchMerging,
    PatchStem,
    channels_first,
    channels_last,
    check_spatial_dims,
    drop_path_rates,
)
from statefield.backbones._mixers import CrossDualityMixer, CrossScanMixer
from statefield.backbones._pyramid import Pyramid, Stage, plan_stages, stage_widths
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)
from statefield.errors import ConfigError

__all__ = ["VMamba", "VMambaBlock"]


class ConvStem(nn.Module):
    """Two convolutions of stride 2, LayerNorm behind each: [B, in_chans, H, W] -> [B, ceil(H/4), ceil(W/4), C].

    With `spatial_dims=3` a volume, [B, in_chans, D, H, W].
    """

    def __init__(self, in_chans: int, channels: int, *, spatial_dims: int = 2) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[spatial_dims]
        self.conv1 = convolution(in_chans, channels // 2, 3, stride=2, padding=1)
        self.norm1 = nn.LayerNorm(channels // 2)
        self.conv2 = convolution(channels // 2, channels, 3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.gelu(self.norm1(channels_last(self.conv1(image))))
        return self.norm2(channels_last(self.conv2(channels_first(x)))).contiguous()


class VMambaBlock(nn.Module):
    """A mixer and, with `mlp_ratio` above 0, an MLP; each a residual behind LayerNorm, [B, H, W, C].

    Volumes [B, D, H, W, C] go through where the mixer takes them.
    """

    def __init__(
        self,
        channels: int,
        mixer: nn.Module,
        *,
        mlp_ratio: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.mixer = mixer
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.mlp: nn.Module | None = None
        if mlp_ratio > 0:
            self.norm2 = nn.LayerNorm(channels)
            self.mlp = Mlp(channels, int(mlp_ratio * channels), drop=proj_drop_rate)
            self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.mixer(self.norm1(x)))
        return x if self.mlp is None else x + self.drop_path2(self.mlp(self.norm2(x)))


class VMamba(Pyramid):
    """VMamba as a timm model: a classifier, and the source of feature maps at strides 4, 8, 16, 32.

    Args:
        in_chans: channels of the image, any number. num_classes: outputs of the head; 0 for none.
        global_pool: timm's name of the pooling before the head.
        dims: channels of each stage; an integer C means C, 2C, 4C, ... depths: blocks of each stage.
        d_state: N, states a channel. expand: inner channels of the mixer over C.
        duality: scan as Mamba-2 does, heads of 16 channels sharing a decay.
        gated: the mixer's gate. conv_bias: a bias in its convolution.
        mlp_ratio: hidden channels of the MLP over C; 0 for blocks without MLP.
        conv_stem: two convolutions at the entrance and one between stages, in place of patches and patch merging.
        output_stride: 32, or 16 or 8: stages past that stride keep the map's size and run à trous on interleaved
            sub-grids, scans included.
        feature_norms: a LayerNorm on every map that `forward_intermediates` gives, as the authors' detection and
            segmentation backbone has.
        drop_rate: dropout before the head. proj_drop_rate: dropout in the MLPs.
        drop_path_rate: stochastic depth of the last block; the first has 0, between them it rises linearly.
        spatial_dims: 2, or 3 for volumes [B, in_chans, D, H, W]: convolutions are 3-D, and blocks scan each of the
            three axes both ways. A form of ours: the paper has images, and there are no weights for it.

    Raises:
        ConfigError: an `output_stride` that cannot be had (volumes have their full depth of strides only), `dims` and
            `depths` of different lengths, or `spatial_dims` other than 2 and 3.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        dims: int | Sequence[int] = 96,
        depths: Sequence[int] = (2, 2, 8, 2),
        d_state: int = 1,
        expand: float = 1.0,
        duality: bool = False,
        gated: bool = False,
        conv_bias: bool = False,
        mlp_ratio: float = 4.0,
        conv_stem: bool = True,
        output_stride: int = 32,
        feature_norms: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        spatial_dims: int = 2,
    ) -> None:
        check_spatial_dims(spatial_dims)
        depths, dims = tuple(depths), stage_widths(dims, depths)
        plans = plan_stages("VMamba", len(depths), output_stride)
        if spatial_dims == 3 and plans[-1].dilation > 1:
            raise ConfigError(f"output_stride {output_stride} cannot be had of volumes: leave it out, or use images.")
        rates = drop_path_rates(drop_path_rate, depths)

        def mixer(channels: int) -> nn.Module:
            if duality:
                return CrossDualityMixer(
                    channels, d_state=d_state, expand=expand, conv_bias=conv_bias, spatial_dims=spatial_dims
                )
            return CrossScanMixer(
                channels, d_state=d_state, expand=expand, gated=gated, conv_bias=conv_bias, spatial_dims=spatial_dims
            )

        merging: Callable[..., nn.Module] = ConvMerging if conv_stem else PatchMerging
        stages = []
        for index, (channels, plan) in enumerate(zip(dims, plans, strict=True)):
            downsample: nn.Module = nn.Identity()
            if index > 0:
                downsample = merging(
                    dims[index - 1], channels, stride=plan.stride, dilation=plan.arriving, spatial_dims=spatial_dims
                )
            options = {"mlp_ratio": mlp_ratio, "proj_drop_rate": proj_drop_rate}
            blocks = [VMambaBlock(channels, mixer(channels), drop_path=rate, **options) for rate in rates[index]]
            stages.append(Stage(downsample, blocks, plan.dilation))
        super().__init__(
            stem=(ConvStem if conv_stem else PatchStem)(in_chans, dims[0], spatial_dims=spatial_dims),
            stages=stages,
            dims=dims,
            reductions=[plan.reduction for plan in plans],
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            feature_norms=feature_norms,
            drop_rate=drop_rate,
            spatial_dims=spatial_dims,
        )
        for module in self.modules():  # the recurrences keep what their mixers gave them
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


# The authors' names of parameters, on the left: of both generations, and of files from before they were renamed.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^patch_embed\.(?:0|proj)\.", "stem.conv1."),
        (r"^patch_embed\.(?:2|norm)\.", "stem.norm1."),
        (r"^patch_embed\.5\.", "stem.conv2."),
        (r"^patch_embed\.7\.", "stem.norm2."),
        (r"^outnorm(\d+)\.", r"feature_norms.\1."),
        (r"^classifier\.norm\.", "norm."),
        (r"^(?:classifier\.)?head\.(weight|bias)$", r"head.fc.\1"),
        (r"(^|\.)(?:op|self_attention)\.", r"\1mixer."),
        (r"(^|\.)ln_1\.", r"\1norm1."),
        (r"(blocks\.\d+\.)norm\.", r"\1norm1."),
        (r"(^|\.)conv2d\.(?:1\.)?", r"\1conv."),
        (r"(^|\.)x_proj_weight$", r"\1x_proj"),
        (r"(^|\.)dt_projs_weight$", r"\1dt_proj"),
        (r"(^|\.)dt_projs_bias$", r"\1dt_bias"),
        (r"(^|\.)A_logs$", r"\1A_log"),
        (r"(^|\.)Ds$", r"\1D"),
        (r"(^|\.)downsample\.1\.", r"\1downsample.conv."),
        (r"(^|\.)downsample\.3\.", r"\1downsample.norm."),
    )
]
_OFFICIAL_STAGE = re.compile(r"^layers\.(\d+)\.(blocks|downsample)\.")


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("layers.1.blocks.0.op.dt_projs_weight")
    'stages.1.blocks.0.mixer.dt_proj'
    >>> rename_official_key("layers.0.downsample.3.weight")
    'stages.1.downsample.norm.weight'
    """
    stage = _OFFICIAL_STAGE.match(key)
    if stage:  # the authors end a stage with its downsampling, we begin the next one with it
        index = int(stage[1]) + (stage[2] == "downsample")
        key = f"stages.{index}.{stage[2]}.{key[stage.end() :]}"
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict (classifier, dense backbone, or any module of them) under our names.

    Weights of 1 x 1 convolutions lose their last two axes: channels-first files hold some linear layers as such.
    """
    renamed = {rename_official_key(key): value for key, value in state_dict.items()}
    if isinstance(model, VMambaBlock):  # alone, its first norm has the name that the model's last one has
        renamed = {re.sub(r"^norm\.", "norm1.", name): value for name, value in renamed.items()}
    return {
        name: value.flatten(1) if value.ndim == 4 and value.shape[-2:] == (1, 1) and ".conv" not in name else value
        for name, value in renamed.items()
    }


_SOURCE = "https://github.com/MzeroMiko/VMamba"
_LICENSE = "MIT (repository)"
_PAPER = "VMamba: Visual State Space Model, NeurIPS 2024"


def _cfg() -> Any:
    return imagenet_cfg(_SOURCE, "arXiv:2401.10166", first_conv="stem.conv1", classifier="head.fc", pool=7)


_VANILLA = {"d_state": 16, "expand": 2.0, "gated": True, "conv_bias": True, "mlp_ratio": 0.0, "conv_stem": False}
_DUAL = {"d_state": 64, "expand": 1.0, "duality": True}
_SIZES: dict[str, tuple[float | None, dict[str, Any]]] = {  # published top-1, and what differs from the defaults
    "vmamba_vanilla_tiny": (82.2, _VANILLA | {"depths": (2, 2, 9, 2), "drop_path_rate": 0.2}),
    "vmamba_vanilla_small": (83.5, _VANILLA | {"depths": (2, 2, 27, 2), "drop_path_rate": 0.3}),
    "vmamba_vanilla_base": (83.7, _VANILLA | {"dims": 128, "depths": (2, 2, 27, 2), "drop_path_rate": 0.6}),
    "vmamba_tiny_s2l5": (82.5, {"expand": 2.0, "depths": (2, 2, 5, 2), "drop_path_rate": 0.2}),
    "vmamba_small_s2l15": (83.6, {"expand": 2.0, "depths": (2, 2, 15, 2), "drop_path_rate": 0.3}),
    "vmamba_base_s2l15": (83.9, {"dims": 128, "expand": 2.0, "depths": (2, 2, 15, 2), "drop_path_rate": 0.6}),
    "vmamba_tiny_s1l8": (82.6, {"depths": (2, 2, 8, 2), "drop_path_rate": 0.2}),
    "vmamba_small_s1l20": (83.3, {"depths": (2, 2, 20, 2), "drop_path_rate": 0.3}),
    "vmamba_base_s1l20": (83.8, {"dims": 128, "depths": (2, 2, 20, 2), "drop_path_rate": 0.5}),
    "vmamba_tiny_m2": (None, _DUAL | {"depths": (2, 2, 4, 2), "drop_path_rate": 0.2}),
    "vmamba_small_m2": (None, _DUAL | {"depths": (2, 2, 12, 2), "drop_path_rate": 0.3}),
    "vmamba_base_m2": (None, _DUAL | {"dims": 128, "depths": (2, 2, 12, 2), "drop_path_rate": 0.3}),
}
default_cfgs = generate_default_cfgs({name: _cfg() for name in _SIZES})


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_backbone(VMamba, name, pretrained, checkpoint_filter_fn, **kwargs)


register_sizes(
    __name__,
    {
        name: (BackboneInfo("VMamba", "paper", top1, _LICENSE if top1 else "none released", _SOURCE, _PAPER), defaults)
        for name, (top1, defaults) in _SIZES.items()
    },
    _create,
)
