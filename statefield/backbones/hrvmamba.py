"""HRVMamba (arXiv 2410.03174): maps at strides 4, 8, 16 and 32 side by side, to the end, exchanging at every step.

    stem /4 -> stage 0 -> /4 -+-> /4 -+-> /4 -+-> /4 -+
                              +-> /8 -+-> /8 -+-> /8 -+-> fusion /32 -> mean -> head
                                      +-> /16 +-> /16 +
                                              +-> /32 +

A stage after the first adds a branch of half the resolution and runs units: blocks on each branch, then an exchange in
which every branch receives all others. The feature maps are the four branches of the last stage. Facts were taken from
the authors' repository at commit 7222bc4; the tests compare with numbers that their code computes.

The repository's deformable convolution has linear layers before and behind that the published weights lack (their
counts tell, and a compiled module of the authors): `pointwise` builds it with them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.layers import ClassifierHead, DropPath, Mlp, trunc_normal_
from timm.models import generate_default_cfgs
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones import vmamba
from statefield.backbones._blocks import ConvNorm, DepthwiseConv, MapConvNorm, drop_path_rates
from statefield.backbones._mixers.deformable import DeformableConv, DeformableScanMixer
from statefield.backbones._pyramid import Pyramid, Stage, checked_image, stage_widths
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)
from statefield.errors import ConfigError

__all__ = ["HRVMamba", "HRVMambaBlock"]

STEM_CHANNELS = 64
EXPANSION = 4  # of a bottleneck: its output channels over its inner ones
KERNEL_SIZES = (3, 5, 7, 9)


class ConvStem(nn.Module):
    """Two convolutions of stride 2: [B, in_chans, H, W] -> [B, ceil(H/4), ceil(W/4), 64]."""

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_chans, STEM_CHANNELS, stride=2)
        self.conv2 = ConvNorm(STEM_CHANNELS, STEM_CHANNELS, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv2(self.conv1(image)).permute(0, 2, 3, 1)


class Bottleneck(nn.Module):
    """ResNet's: narrow, 3 x 3 convolution, widen, a residual and ReLU; [B, H, W, C] -> [B, H, W, 4 inner]."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        out_channels = EXPANSION * inner
        self.conv1 = MapConvNorm(channels, inner, 1)
        self.conv2 = MapConvNorm(inner, inner)
        self.conv3 = MapConvNorm(inner, out_channels, 1, act=False)
        self.shortcut: nn.Module = nn.Identity()
        if channels != out_channels:
            self.shortcut = MapConvNorm(channels, out_channels, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.shortcut(x) + self.conv3(self.conv2(self.conv1(x))))


class MultiScaleConv(nn.Module):
    """Depthwise convolutions of 3, 5, 7 and 9 pixels, each on a quarter of the channels, then shuffled; [B, H, W, C].

    The shuffle takes a channel of each quarter in turn. `ConfigError` unless 4 divides C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarters = len(KERNEL_SIZES)
        if channels % quarters:
            raise ConfigError(f"{channels} channels of a branch cannot be dealt out to {quarters} convolutions evenly.")
        self.convs = nn.ModuleList([DepthwiseConv(channels // quarters, side) for side in KERNEL_SIZES])

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.convs), dim=-1)
        return torch.stack([conv(part) for conv, part in zip(self.convs, parts, strict=True)], dim=-1).flatten(-2)


class HRVMambaBlock(nn.Module):
    """Convolutions of four sizes, a mixer and an MLP, each a residual behind LayerNorm; [B, H, W, C].

    Args:
        channels: C. d_state, expand, pointwise: of the mixer (`DeformableScanMixer`).
        mlp_ratio: hidden channels of the MLP over C.
        positional: depthwise convolutions added before the first and the third part, and a mixer that weighs channels
            (`squeeze`), as the two smallest models have them. The first is seen by the convolutions alone: as in the
            authors' code, the residual round them adds the block's input as it came.
        drop_path: probability of stochastic depth, of each residual. proj_drop_rate: dropout in the MLP.
    """

    def __init__(
        self,
        channels: int,
        *,
        d_state: int = 1,
        expand: float = 2.0,
        mlp_ratio: float = 2.0,
        positional: bool = False,
        pointwise: bool = False,
        proj_drop_rate: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.cpe1 = DepthwiseConv(channels) if positional else None
        self.norm0 = nn.LayerNorm(channels)
        self.conv = MultiScaleConv(channels)
        self.norm1 = nn.LayerNorm(channels)
        self.mixer = DeformableScanMixer(
            channels, d_state=d_state, expand=expand, squeeze=positional, pointwise=pointwise
        )
        self.cpe2 = DepthwiseConv(channels) if positional else None
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, int(mlp_ratio * channels), drop=proj_drop_rate)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        placed = x if self.cpe1 is None else x + self.cpe1(x)
        x = x + self.drop_path(functional.gelu(self.conv(self.norm0(placed))))
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        if self.cpe2 is not None:
            x = x + self.cpe2(x)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Exchange(nn.Module):
    """What one branch receives: all branches brought to its size and channels, added, ReLU.

    Args:
        dims: channels of the branches. target: the branch that receives.

    Maps of lower resolution come through a 1 x 1 convolution and are enlarged bilinearly, twice where sides are odd: by
    the power of two, then to the target's size, as in the authors' code. Those of higher resolution come through
    depthwise convolutions of stride 2, a 1 x 1 convolution behind each.
    """

    def __init__(self, dims: Sequence[int], target: int) -> None:
        super().__init__()
        self.target = target
        paths: list[nn.Module] = []
        for source, channels in enumerate(dims):
            if source > target:
                paths.append(MapConvNorm(channels, dims[target], 1, act=False))
            elif source == target:
                paths.append(nn.Identity())
            else:
                steps = [_halving(channels, channels) for _ in range(target - source - 1)]
                paths.append(nn.Sequential(*steps, _halving(channels, dims[target], act=False)))
        self.paths = nn.ModuleList(paths)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        _, height, width, _ = maps[self.target].shape
        total: Tensor | None = None
        for source, (path, x) in enumerate(zip(self.paths, maps, strict=True)):
            x = path(x)
            if source > self.target:
                x = enlarge(x, 2 ** (source - self.target), height, width)
            total = x if total is None else total + x
        assert total is not None
        return functional.relu(total)


def _halving(channels: int, out_channels: int, *, act: bool = True) -> nn.Module:
    return nn.Sequential(
        MapConvNorm(channels, channels, stride=2, groups=channels, act=False),
        MapConvNorm(channels, out_channels, 1, act=act),
    )


def enlarge(x: Tensor, factor: int, height: int, width: int) -> Tensor:
    """Bilinearly by `factor`, and from there to `height` and `width`: [B, h, w, C] -> [B, height, width, C]."""
    x = x.permute(0, 3, 1, 2)
    x = functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    if not isinstance(height, int) or x.shape[-2:] != (height, width):  # sizes that are symbols may differ
        x = functional.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1)


class ExchangeUnit(nn.Module):
    """Blocks on each branch, then an exchange: maps to maps, as many and of the same sizes."""

    def __init__(self, dims: Sequence[int], branches: Sequence[Sequence[nn.Module]]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([Stage(nn.Identity(), blocks) for blocks in branches])
        self.exchanges = nn.ModuleList([Exchange(dims, target) for target in range(len(dims))])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [
            exchange(maps) if isinstance(exchange, Exchange) else x
            for exchange, x in zip(self.exchanges, maps, strict=True)
        ]

    def prune(self, taken: Sequence[int]) -> list[str]:
        """Give up the exchanges of branches that are not `taken`, whose maps then come as they are; names them."""
        unused = [index for index in range(len(self.exchanges)) if index not in taken]
        for index in unused:
            self.exchanges[index] = nn.Identity()
        return [f"exchanges.{index}" for index in unused]


class ParallelStage(nn.Module):
    """One more branch, of half the last one's resolution, then exchange units: maps to maps, one more of them."""

    def __init__(self, arriving: Sequence[int], dims: Sequence[int], units: Sequence[nn.Module]) -> None:
        super().__init__()
        widen: list[nn.Module] = [
            nn.Identity() if channels == wanted else MapConvNorm(channels, wanted)
            for channels, wanted in zip(arriving, dims, strict=False)
        ]
        self.widen = nn.ModuleList([*widen, MapConvNorm(arriving[-1], dims[-1], stride=2)])
        self.units = nn.Sequential(*units)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return self.units([widen(x) for widen, x in zip(self.widen, [*maps, maps[-1]], strict=True)])


class Fusion(nn.Module):
    """What the classifier sees: branches widened and added up from fine to coarse, [B, ceil(H/32), ., 2 dims[-1]]."""

    def __init__(self, arriving: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__()
        pairs = zip(arriving, dims, strict=True)
        self.increase = nn.ModuleList([Bottleneck(channels, wanted // EXPANSION) for channels, wanted in pairs])
        self.halve = nn.ModuleList([MapConvNorm(fine, coarse, stride=2) for fine, coarse in pairwise(dims)])
        self.final = MapConvNorm(dims[-1], 2 * dims[-1], 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = self.increase[0](maps[0])
        for halve, increase, coarser in zip(self.halve, self.increase[1:], maps[1:], strict=True):
            x = halve(x) + increase(coarser)
        return self.final(x)


class HRVMamba(Pyramid):
    """HRVMamba as a timm model: a classifier, and the source of feature maps at strides 4, 8, 16, 32.

    Args:
        in_chans: channels of the image, any number. num_classes: outputs of the head; 0 for none.
        global_pool: timm's name of the pooling before the head.
        dims: channels of each branch; an integer C means C, 2C, 4C, 8C. 4 divides each.
        units: exchange units of the stages with two, three and four branches. depths: blocks of each branch in one.
        num_bottlenecks, bottleneck_dim: blocks of the first stage, and their inner channels.
        fusion_dims: channels to which the classifier widens the branches; its vector has twice the last.
        d_state: N. expand: inner channels of the mixer over C. mlp_ratio: hidden channels of the MLP over C.
        positional, pointwise: see `HRVMambaBlock` and `DeformableConv`.
        feature_norms: a LayerNorm on every map that `forward_intermediates` gives, as the authors' segmentation
            backbone has.
        drop_rate: dropout before the head. proj_drop_rate: dropout in the MLPs.
        drop_path_rate: stochastic depth of the last block; the first has 0, between them it rises linearly.

    An `output_stride` is refused: branches reach each other through enlarged maps, which have no counterpart where maps
    keep their size.

    Raises:
        ConfigError: other numbers of branches or stages than there are, or channels that 4 does not divide.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        dims: int | Sequence[int] = 32,
        units: Sequence[int] = (1, 4, 2),
        depths: Sequence[int] = (2, 2, 2),
        num_bottlenecks: int = 2,
        bottleneck_dim: int = 64,
        fusion_dims: Sequence[int] = (128, 256, 512, 1024),
        d_state: int = 1,
        expand: float = 2.0,
        mlp_ratio: float = 2.0,
        positional: bool = False,
        pointwise: bool = False,
        feature_norms: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        dims = stage_widths(dims, range(4))
        if len(units) != 3 or len(depths) != 3 or len(fusion_dims) != 4:
            raise ConfigError(
                f"units {tuple(units)} and depths {tuple(depths)} have to be of three stages, fusion_dims "
                f"{tuple(fusion_dims)} of four branches."
            )
        options: dict[str, Any] = {
            "d_state": d_state,
            "expand": expand,
            "mlp_ratio": mlp_ratio,
            "positional": positional,
        }
        options |= {"pointwise": pointwise, "proj_drop_rate": proj_drop_rate}
        rates = drop_path_rates(drop_path_rate, tuple(n * depth for n, depth in zip(units, depths, strict=True)))
        out_channels = EXPANSION * bottleneck_dim
        inputs = [STEM_CHANNELS] + [out_channels] * (num_bottlenecks - 1)
        stages: list[nn.Module] = [nn.Sequential(*(Bottleneck(channels, bottleneck_dim) for channels in inputs))]
        arriving: Sequence[int] = (out_channels,)
        for index, (count, depth) in enumerate(zip(units, depths, strict=True)):
            present = dims[: index + 2]
            made = []
            for unit in range(count):
                own = rates[index][unit * depth : (unit + 1) * depth]  # branches drop at equal rates
                branches = [[HRVMambaBlock(c, drop_path=rate, **options) for rate in own] for c in present]
                made.append(ExchangeUnit(present, branches))
            stages.append(ParallelStage(arriving, present, made))
            arriving = present
        super().__init__(
            stem=ConvStem(in_chans),
            stages=stages,
            dims=dims,
            reductions=(4, 8, 16, 32),
            in_chans=in_chans,
            num_classes=0,
            feature_norms=feature_norms,
            norm=nn.Identity(),
        )
        for branch, info in enumerate(self.feature_info):
            info["module"] = f"stages.3.units.{units[-1] - 1}.exchanges.{branch}"
        self.fusion: nn.Module = Fusion(dims, fusion_dims)
        self.num_classes, self.drop_rate = num_classes, drop_rate
        self.num_features = self.head_hidden_size = 2 * fusion_dims[-1]
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt=self.output_fmt
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Convolutions and linear layers as the authors have them; recurrences keep what their mixers gave them.

        Offsets and weights of the deformable convolutions begin at 0, as DCNv4 has it, and with them what the mixers
        add; the norms and residuals around them let them learn from there.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=0.001)
                else:
                    trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, DeformableConv):
                module.reset_parameters()

    def stage_maps(self, image: Tensor, last: int | None = None) -> list[Tensor]:
        """The branches of the last stage: each needs all stages, whatever is `last`."""
        first, *parallel = self.stages
        maps = [first(self.stem(checked_image(image, self.in_chans)))]
        for stage in parallel:
            maps = stage(maps)
        return maps

    def final_map(self, maps: Sequence[Tensor]) -> Tensor:
        """All branches fused, [B, ceil(H/32), ceil(W/32), 2 fusion_dims[-1]]."""
        return self.fusion(maps)

    def prune_stages(self, taken: Sequence[int]) -> list[str]:
        """Every branch takes part in every map, but for the last exchange: that of branches not taken is left out."""
        stage = self.stages[-1]
        assert isinstance(stage, ParallelStage)
        last = len(stage.units) - 1
        unit = stage.units[last]
        assert isinstance(unit, ExchangeUnit)
        return [f"stages.{len(self.stages) - 1}.units.{last}.{name}" for name in unit.prune(taken)]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps at `indices` do not need; the fusion goes with the head."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.fusion = nn.Identity()
            self.pruned_parts += ("fusion",)
        return taken

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: the stem, then stages (coarse), or bottlenecks and units."""
        ends = (r"^(?:fusion|norm|feature_norms)", (99999,))
        if coarse:
            return {"stem": r"^stem", "blocks": [(r"^stages\.(\d+)", None), ends]}
        return {
            "stem": r"^stem",
            "blocks": [
                (r"^stages\.(\d+)\.widen", (0,)),
                (r"^stages\.(\d+)\.units\.(\d+)", None),
                (r"^stages\.(\d+)\.(\d+)", None),
                ends,
            ],
        }


# The authors' names of parameters, on the left; those of the mixers are VMamba's.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^conv([12])\.weight$", r"stem.conv\1.conv.weight"),
        (r"^bn([12])\.", r"stem.conv\1.norm."),
        (r"^layer1\.", "stages.0."),
        (r"^neck\.increase_layers\.(\d+)\.0\.", r"fusion.increase.\1."),
        (r"^neck\.downsample_layers\.(\d+)\.", r"fusion.halve.\1."),
        (r"^neck\.final_layer\.", "fusion.final."),
        (r"^(fusion\..*)\.bn\.", r"\1.norm."),
        (r"^(stages\.0\.\d+|fusion\.increase\.\d+)\.conv([123])\.weight$", r"\1.conv\2.conv.weight"),
        (r"^(stages\.0\.\d+|fusion\.increase\.\d+)\.bn([123])\.", r"\1.conv\2.norm."),
        (r"^(stages\.0\.\d+|fusion\.increase\.\d+)\.downsample\.0\.", r"\1.shortcut.conv."),
        (r"^(stages\.0\.\d+|fusion\.increase\.\d+)\.downsample\.1\.", r"\1.shortcut.norm."),
        (r"^transition(\d+)\.(\d+)\.(?:0\.)?0\.(\w+)$", r"stages.\1.widen.\2.conv.\3"),
        (r"^transition(\d+)\.(\d+)\.(?:0\.)?1\.(\w+)$", r"stages.\1.widen.\2.norm.\3"),
        (r"\.branches\.(\d+)\.(\d+)\.", r".branches.\1.blocks.\2."),
        (r"(^|\.)conv2d\.(\d+)\.", r"\1conv.convs.\2."),
        (r"(^|\.)se\.fc\.0\.", r"\1se.reduce."),
        (r"(^|\.)se\.fc\.2\.", r"\1se.expand."),
    )
]
_OFFICIAL_UNIT = re.compile(r"^stage(\d+)\.(\d+)\.")
_OFFICIAL_PATH = re.compile(r"^(.*)\.fuse_layers\.(\d+)\.(\d+)\.(.*)$")
_OFFICIAL_HALVING = re.compile(r"^(\d+)\.(\d+)\.")


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("stage3.1.branches.2.0.op.dt_projs_weight")
    'stages.2.units.1.branches.2.blocks.0.mixer.dt_proj'
    >>> rename_official_key("stage4.0.fuse_layers.3.1.0.2.weight")
    'stages.3.units.0.exchanges.3.paths.1.0.1.conv.weight'
    """
    unit = _OFFICIAL_UNIT.match(key)
    if unit:  # the authors count from 1, the bottlenecks being the first
        key = f"stages.{int(unit[1]) - 1}.units.{unit[2]}.{key[unit.end() :]}"
    path = _OFFICIAL_PATH.match(key)
    if path:
        key = f"{path[1]}.exchanges.{path[2]}.paths.{path[3]}.{_rename_path(path[4])}"
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return vmamba.rename_official_key(key)


def _rename_path(key: str) -> str:
    """The end of a name in an exchange: convolution and norm in turn, in a list of steps where the map is halved."""
    step = _OFFICIAL_HALVING.match(key)
    if step:
        place = int(step[2])
        return f"{step[1]}.{place // 2}.{('conv', 'norm')[place % 2]}.{key[step.end() :]}"
    place_name, _, name = key.partition(".")
    return f"{('conv', 'norm')[int(place_name)]}.{name}"


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict (classifier, dense backbone, or any module of them) under our names.

    Linear layers that a file stores as 1 x 1 convolutions lose their last two axes.
    """
    renamed = {rename_official_key(key): value for key, value in state_dict.items()}
    if isinstance(model, HRVMambaBlock):  # alone, its second norm has no stage before its name
        renamed = {re.sub(r"^norm\.", "norm1.", name): value for name, value in renamed.items()}
    return vmamba.checkpoint_filter_fn(renamed, model)


_SOURCE = "https://github.com/zhanghao5201/HRVMamba"
_PAPER = "HRVMamba: High-Resolution Visual State Space Model for Dense Prediction, arXiv 2410.03174"


def _cfg(size: int = 256) -> Any:
    return imagenet_cfg(
        _SOURCE, "arXiv:2410.03174", first_conv="stem.conv1.conv", classifier="head.fc", size=size, pool=size // 32
    )


_SIZES: dict[str, tuple[float, dict[str, Any]]] = {  # top-1 as published, all but the base model's at 256 x 256
    "hrvmamba_nano": (74.8, {"dims": 8, "bottleneck_dim": 16, "positional": True, "drop_path_rate": 0.1}),
    "hrvmamba_tiny": (78.6, {"dims": 16, "bottleneck_dim": 32, "positional": True, "drop_path_rate": 0.1}),
    "hrvmamba_small": (81.3, {"drop_path_rate": 0.2}),
    "hrvmamba_base": (84.2, {"dims": 80, "drop_path_rate": 0.2}),
}
default_cfgs = generate_default_cfgs({name: _cfg(224 if name == "hrvmamba_base" else 256) for name in _SIZES})


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_backbone(HRVMamba, name, pretrained, checkpoint_filter_fn, **kwargs)


register_sizes(
    __name__,
    {
        name: (BackboneInfo("HRVMamba", "paper", top1, "none stated", _SOURCE, _PAPER), defaults)
        for name, (top1, defaults) in _SIZES.items()
    },
    _create,
)
