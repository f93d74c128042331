"""Spatial-Mamba (arXiv 2410.15091): a four-stage backbone whose scan states are fused along the image's structure.

    stem /4 -> stage 0 -> down -> stage 1 -> down -> stage 2 -> down -> stage 3 -> LayerNorm -> mean -> head

Maps between blocks are channels-last, [B, H, W, C]. Facts were taken from the authors' repository at commit 71221eb;
the tests compare with numbers that their code computes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, DropPath, Mlp, trunc_normal_
from timm.models import checkpoint_seq, generate_default_cfgs
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from statefield.backbones._blocks import ConvNorm, DepthwiseConv, drop_path_rates, merge_phases, split_phases
from statefield.backbones._mixers import StructureAwareMixer
from statefield.backbones._register import BackboneInfo, build_backbone, register_backbone
from statefield.errors import ConfigError, ShapeError

__all__ = ["SpatialMamba", "SpatialMambaBlock"]


class Stem(nn.Module):
    """Four convolutions that bring the image to a quarter of its size: [B, in_chans, H, W] -> [B, H/4, W/4, C]."""

    def __init__(self, in_chans: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = ConvNorm(in_chans, half, stride=2)
        self.conv2 = nn.Sequential(ConvNorm(half, half), ConvNorm(half, half, act=False))
        self.conv3 = nn.Sequential(
            ConvNorm(half, 4 * channels, stride=2), ConvNorm(4 * channels, channels, 1, act=False)
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv1(image)
        x = self.conv3(x + self.conv2(x))
        return x.permute(0, 2, 3, 1).contiguous()  # once: every later addition keeps the layout of its first operand


class Downsample(nn.Module):
    """Halve the map and widen it, [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C'], by an inverted bottleneck of 4 C'.

    With `stride=1` the map keeps its size and the following stage runs à trous; `dilation` is the spacing of the
    sub-grids that the map arrives with.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 2, dilation: int = 1) -> None:
        super().__init__()
        hidden = 4 * out_channels
        self.conv = nn.Sequential(
            ConvNorm(in_channels, hidden, 1, bias=True, norm=False),
            ConvNorm(hidden, hidden, 3, stride=stride, dilation=dilation, groups=hidden, bias=True, norm=False),
            ConvNorm(hidden, out_channels, 1, bias=True, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SpatialMambaBlock(nn.Module):
    """Positional convolution, structure-aware scan, positional convolution, MLP; each a residual, [B, H, W, C].

    Only the scan and the MLP are subject to stochastic depth (`drop_path`, a probability).
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
    ) -> None:
        super().__init__()
        self.cpe1 = DepthwiseConv(channels)
        self.norm1 = nn.LayerNorm(channels)
        self.mixer = StructureAwareMixer(channels, d_state=d_state, expand=expand)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.cpe2 = DepthwiseConv(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(mlp_ratio * channels), drop=proj_drop_rate)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.cpe1(x)
        x = x + self.drop_path1(self.mixer(self.norm1(x)))
        x = x + self.cpe2(x)
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """A `Downsample` (none before the first stage) and blocks; à trous on `dilation`^2 sub-grids where above 1."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], dilation: int) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.dilation = dilation
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        _, height, width, _ = x.shape
        if self.dilation > 1:
            x = split_phases(x, self.dilation)
        x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing and self.training else self.blocks(x)
        return merge_phases(x, self.dilation, height, width) if self.dilation > 1 else x


class SpatialMamba(nn.Module):
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
        super().__init__()
        depths = tuple(depths)
        dims = tuple(dims * 2**index for index in range(len(depths))) if isinstance(dims, int) else tuple(dims)
        if len(dims) != len(depths):
            raise ConfigError(f"dims {dims} and depths {depths} must name the same number of stages.")
        if output_stride not in (8, 16, 32):
            raise ConfigError(f"output_stride {output_stride} cannot be had from Spatial-Mamba: choose 8, 16 or 32.")
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.output_fmt = "NHWC"  # of forward_features
        self.feature_info: list[dict[str, Any]] = []
        self.pruned_parts: tuple[str, ...] = ()
        self.drop_rate = drop_rate

        self.stem = Stem(in_chans, dims[0])
        self.stages = nn.Sequential()
        reduction, dilation = 4, 1
        drop_paths = drop_path_rates(drop_path_rate, depths)
        for index, channels in enumerate(dims):
            downsample: nn.Module = nn.Identity()
            if index > 0:
                stride, arriving = (2 if reduction < output_stride else 1), dilation
                reduction, dilation = reduction * stride, dilation * (2 // stride)
                downsample = Downsample(dims[index - 1], channels, stride=stride, dilation=arriving)
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
            self.stages.append(Stage(downsample, blocks, dilation))
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"stages.{index}"})
        norms: list[nn.Module] = [nn.LayerNorm(channels) for channels in dims]
        self.feature_norms = nn.ModuleList(norms) if feature_norms else None
        self.norm: nn.Module = nn.LayerNorm(self.num_features)
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt=self.output_fmt
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

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The recurrence's own parameters, which Mamba exempts; timm exempts every other vector besides.

        The authors' optimizer overlooks the exemption and decays the two-dimensional `A_log`; to repeat their training
        to the letter, leave it out of what you exempt.
        """
        return {name for name, _ in self.named_parameters() if name.endswith((".A_log", ".D", ".dt_bias"))}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: the stem, then stages (coarse) or blocks."""
        if coarse:
            return {"stem": r"^stem", "blocks": [(r"^stages\.(\d+)", None), (r"^(?:norm|feature_norms)", (99999,))]}
        return {
            "stem": r"^stem",
            "blocks": [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^(?:norm|feature_norms)", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for `num_classes` (0: none), and another pooling where `global_pool` names one."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of chosen stages, and the normalised last map unless `intermediates_only`.

        Args:
            x: [B, in_chans, H, W].
            indices: stages (negative from the end), a number of last stages, or None for all.
            norm: pass the last stage's map through the model's final LayerNorm.
            stop_early: stop after the last stage asked for; the final map is then that stage's.
            output_fmt: "NCHW" (maps in the channels_last memory format, no copy) or "NHWC".
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ConfigError(f"output_fmt {output_fmt!r} is not one of 'NCHW', 'NHWC'.")
        taken, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.stem(_checked_image(x, self.in_chans))
        for index, stage in enumerate(self.stages):
            if index > last and (stop_early or intermediates_only):
                break
            x = stage(x)
            if index in taken:
                map_bhwc = x if self.feature_norms is None else self.feature_norms[index](x)
                if norm and index == len(self.feature_info) - 1:
                    map_bhwc = self.norm(map_bhwc)
                intermediates.append(map_bhwc if output_fmt == "NHWC" else map_bhwc.permute(0, 3, 1, 2))
        if intermediates_only:
            return intermediates
        return self.norm(x), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps at `indices` do not need; returns the indices counted from the first stage."""
        taken, last = feature_take_indices(len(self.stages), indices)
        pruned = [f"stages.{index}" for index in range(last + 1, len(self.stages))]
        self.stages = self.stages[: last + 1]
        if self.feature_norms is not None:
            unused = [index for index in range(len(self.feature_norms)) if index not in taken]
            pruned += [f"feature_norms.{index}" for index in unused]
            for index in unused:
                self.feature_norms[index] = nn.Identity()
        if prune_norm:
            self.norm = nn.Identity()
            pruned.append("norm")
        if prune_head:
            self.reset_classifier(0, "")
            pruned.append("head")
        self.pruned_parts += tuple(pruned)
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """The normalised last map, [B, H/32, W/32, C]."""
        return self.norm(self.stages(self.stem(_checked_image(x, self.in_chans))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """From the normalised last map to class scores, or to the pooled vector with `pre_logits`."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def _checked_image(x: Tensor, in_chans: int) -> Tensor:
    if x.ndim != 4 or x.shape[1] != in_chans:
        raise ShapeError(f"an image batch of shape {tuple(x.shape)} was given: [B, {in_chans}, H, W] is needed.")
    return x


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
_PAPER = "Spatial-Mamba: Effective Visual State Space Models via Structure-Aware State Fusion, ICLR 2025"


def _info(published_top1: float | None, origin: str = "paper") -> BackboneInfo:
    return BackboneInfo("Spatial-Mamba", origin, published_top1, None, _SOURCE, _PAPER)


def _cfg() -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.conv1.conv",
        "classifier": "head.fc",
        "origin_url": _SOURCE,
        "paper_ids": "arXiv:2410.15091",
    }


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
