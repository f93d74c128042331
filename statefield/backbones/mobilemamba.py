"""MobileMamba (arXiv 2411.15941): three stages at coarse strides, whose mixers scan, convolve and pass on channels.

    convolutions /2 /4 /8 /16 -> stage 0 -> down /32 -> stage 1 -> down /64 -> stage 2 -> mean -> BatchNorm -> head
                    |  |            |                     |                      |
                   map map         map                   map  <-- side by side --+

As a source of maps it serves decoders that begin at stride 4 without further parameters: the first two maps are the
stem's, behind the ReLU of its second and third convolution; the last one holds stage 1's and, each pixel repeated
2 x 2, stage 2's. The authors' detectors read the three stages themselves: `MobileMamba.stage_maps`.

Facts were taken from a description of the authors' repository at commit 0980f48; the tests compare with numbers that
their code computes. The shortcut around a block is added twice, once by its parts and once around all: theirs is so.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, DropPath, SqueezeExcite, trunc_normal_
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from statefield.backbones._blocks import (
    ConvNorm,
    MapConvNorm,
    drop_path_rates,
    leading,
    merge_phases,
    split_phases,
)
from statefield.backbones._mixers.wavelet import MultiReceptiveFieldMixer
from statefield.backbones._pyramid import Pyramid, Stage, checked_image, plan_stages
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)
from statefield.errors import ConfigError

__all__ = ["MobileMamba", "MobileMambaBlock", "MobileMambaMerging"]


def depthwise(channels: int, *, scale: float) -> MapConvNorm:
    """A 3 x 3 depthwise convolution and BatchNorm whose weight begins at `scale`."""
    conv = MapConvNorm(channels, channels, groups=channels, act=False)
    nn.init.constant_(conv.norm.weight, scale)
    return conv


class ConvFFN(nn.Sequential):
    """Two 1 x 1 convolutions, ReLU between them, 2 C channels inside: [B, H, W, C] -> [B, H, W, C]; begins at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pw1 = MapConvNorm(channels, 2 * channels, 1)
        self.pw2 = MapConvNorm(2 * channels, channels, 1, act=False)
        nn.init.zeros_(self.pw2.norm.weight)


class MobileMambaBlock(nn.Module):
    """Depthwise convolution, FFN, mixer, depthwise convolution, FFN; each a residual, and one more around them all.

    Args:
        channels: C. drop_path: the probability that only the outer residual is left. The others: of the mixer.

    Shape: [B, H, W, C] -> [B, H, W, C]. As new, it doubles its input: every part begins at zero.
    """

    def __init__(
        self,
        channels: int,
        *,
        global_ratio: float = 0.25,
        local_ratio: float = 0.25,
        kernel_size: int = 3,
        expand: float = 2.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.dw0 = depthwise(channels, scale=0.0)
        self.ffn0 = ConvFFN(channels)
        self.mixer = MultiReceptiveFieldMixer(
            channels, global_ratio=global_ratio, local_ratio=local_ratio, kernel_size=kernel_size, expand=expand
        )
        nn.init.zeros_(self.mixer.proj.norm.weight)
        self.dw1 = depthwise(channels, scale=0.0)
        self.ffn1 = ConvFFN(channels)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for part in (self.dw0, self.ffn0, self.mixer, self.dw1, self.ffn1):
            y = y + part(y)
        return x + self.drop_path(y)


class MobileMambaMerging(nn.Module):
    """Halve a map and widen it by an inverted bottleneck of 4 C with channel attention, without a residual.

    With `stride=1` no pixel is left out: the map is dealt out to the four sub-grids of every second row and column,
    each of which sees what it alone would be reduced to.

    Shape: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C'], or [4 B, ceil(H/2), ceil(W/2), C'] with stride 1.
    """

    def __init__(self, channels: int, out_channels: int, *, stride: int = 2) -> None:
        super().__init__()
        hidden = 4 * channels
        self.stride = stride
        self.conv1 = MapConvNorm(channels, hidden, 1)
        self.conv2 = MapConvNorm(hidden, hidden, stride=stride, groups=hidden)
        self.se = SqueezeExcite(hidden, 0.25)
        self.conv3 = MapConvNorm(hidden, out_channels, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))
        if self.stride == 1:
            x = split_phases(x, 2)
        return self.conv3(self.se(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Downsample(nn.Module):
    """Merging between two pairs of residuals, depthwise convolution and FFN; shapes as of the merging."""

    def __init__(self, channels: int, out_channels: int, *, stride: int = 2) -> None:
        super().__init__()
        self.dw0 = depthwise(channels, scale=1.0)
        self.ffn0 = ConvFFN(channels)
        self.merge = MobileMambaMerging(channels, out_channels, stride=stride)
        self.dw1 = depthwise(out_channels, scale=1.0)
        self.ffn1 = ConvFFN(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dw0(x)
        x = self.merge(x + self.ffn0(x))
        x = x + self.dw1(x)
        return x + self.ffn1(x)


class PhasedStage(Stage):
    """A stage whose downsampling deals its map out to sub-grids; what it gives is in one piece again."""

    def __init__(self, downsample: Downsample, blocks: Sequence[nn.Module], arriving: int) -> None:
        super().__init__(downsample, blocks)
        self.arriving = arriving

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        grids = split_phases(x, self.arriving) if self.arriving > 1 else x
        y = merge_phases(super().forward(grids), 2, grids.shape[1], grids.shape[2])
        return merge_phases(y, self.arriving, height, width) if self.arriving > 1 else y


class PooledNormHead(ClassifierHead):
    """The mean over the map, BatchNorm, dropout, a linear layer; from [B, H, W, C] or, without pooling, the map itself.

    With `distillation` there is a second norm and layer (`norm_dist`, `fc_dist`); the scores are the mean of both.
    """

    norm: nn.Module
    norm_dist: nn.Module
    fc_dist: nn.Module

    def __init__(
        self, channels: int, num_classes: int, pool_type: str, drop_rate: float = 0.0, *, distillation: bool = False
    ) -> None:
        super().__init__(channels, num_classes, pool_type=pool_type, drop_rate=drop_rate, input_fmt="NHWC")
        self.distillation = distillation
        self._make_layers(num_classes)

    def reset(self, num_classes: int, pool_type: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Fresh layers for `num_classes`; none for 0."""
        super().reset(num_classes, pool_type, *args, **kwargs)
        self._make_layers(num_classes)

    def _make_layers(self, num_classes: int) -> None:
        layers = ("", "_dist") if self.distillation and num_classes > 0 else ("",)
        num_features = self.in_features * self.global_pool.feat_mult()  # what is left after pooling
        if "fc_dist" in self._modules:
            del self.norm_dist, self.fc_dist
        for suffix in layers:
            fc = nn.Linear(num_features, num_classes) if suffix else self.fc
            if isinstance(fc, nn.Linear):
                trunc_normal_(fc.weight, std=0.02)
                nn.init.zeros_(fc.bias)
            self.add_module(f"fc{suffix}", fc)
            self.add_module(f"norm{suffix}", nn.BatchNorm1d(num_features) if num_classes > 0 else nn.Identity())

    def heads(self, x: Tensor) -> list[Tensor]:
        """The scores of each layer, [B, num_classes], from the map: the classifier's, and the distillation's."""
        pooled = self.global_pool(x)
        scores = [self.fc(self.drop(self.norm(pooled)))]
        if "fc_dist" in self._modules:
            scores.append(self.fc_dist(self.drop(self.norm_dist(pooled))))
        return scores

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if pre_logits:
            return self.drop(self.norm(self.global_pool(x)))
        scores = self.heads(x)
        return scores[0] if len(scores) == 1 else (scores[0] + scores[1]) / 2


class MobileMamba(Pyramid):
    """MobileMamba as a timm model: a classifier of stride 64, and the source of feature maps at strides 4, 8, 16, 32.

    Args:
        in_chans: channels of the image, any number. num_classes: outputs of the head; 0 for none.
        global_pool: timm's name of the pooling before the head.
        dims: channels of the three stages; the stem's convolutions have an eighth, a quarter, a half and all of the
            first. depths: their blocks.
        global_ratios, local_ratios: shares of each stage's channels that its mixers scan and convolve.
        kernel_sizes: of each stage's mixers. expand: inner channels of the scans over those that they are given.
        output_stride: of the last map: 32, or 16 or 8. Stages past that stride run à trous on interleaved sub-grids,
            scans, wavelets and channel attention included; stage 2 halves each sub-grid as it would halve the map.
        distillation: a second head for training with a teacher; in the forward pass the scores of both are averaged,
            as theirs are in evaluation, and `model.head.heads` gives them apart.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block; the first has 0, between them it rises linearly.

    Raises:
        ConfigError: an `output_stride` that cannot be had, other numbers of stages than three, or channels that cannot
            be split so.
    """

    stem: nn.Sequential
    STEM_MAPS = 2  # the maps that are the stem's; the stages' come behind them

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        dims: Sequence[int] = (144, 272, 368),
        depths: Sequence[int] = (1, 2, 2),
        global_ratios: Sequence[float] = (0.8, 0.7, 0.6),
        local_ratios: Sequence[float] = (0.2, 0.2, 0.3),
        kernel_sizes: Sequence[int] = (7, 5, 3),
        expand: float = 2.0,
        output_stride: int = 32,
        distillation: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        for name, values in {
            "dims": dims,
            "depths": depths,
            "global_ratios": global_ratios,
            "local_ratios": local_ratios,
            "kernel_sizes": kernel_sizes,
        }.items():
            if len(values) != 3:
                raise ConfigError(f"{name} {tuple(values)}: one value for each of the three stages is needed.")
        if dims[0] < 8:
            raise ConfigError(f"dims {tuple(dims)}: the stem begins with an eighth of the first, so 8 at least.")
        plans = plan_stages("MobileMamba", 4, output_stride)
        rates = drop_path_rates(drop_path_rate, tuple(depths))

        def blocks(stage: int) -> list[nn.Module]:
            return [
                MobileMambaBlock(
                    dims[stage],
                    global_ratio=global_ratios[stage],
                    local_ratio=local_ratios[stage],
                    kernel_size=kernel_sizes[stage],
                    expand=expand,
                    drop_path=rate,
                )
                for rate in rates[stage]
            ]

        down = Downsample(dims[0], dims[1], stride=plans[3].stride)
        super().__init__(
            stem=conv_stem(in_chans, dims[0], last_stride=plans[2].stride),
            stages=[
                Stage(nn.Identity(), blocks(0), plans[2].dilation),
                PhasedStage(down, blocks(1), plans[3].arriving) if down.merge.stride == 1 else Stage(down, blocks(1)),
                Stage(Downsample(dims[1], dims[2]), blocks(2)),
            ],
            dims=dims,
            reductions=[plan.reduction for plan in plans[1:]],
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
            norm=nn.Identity(),
        )
        self.head = PooledNormHead(dims[2], num_classes, global_pool, drop_rate, distillation=distillation)
        self.dilation = plans[3].dilation
        widths = (dims[0] // 4, dims[0] // 2, dims[0], dims[1] + dims[2])
        places = ("stem.conv2", "stem.conv3", "stages.0", "stages.2")
        self.feature_info = [
            {"num_chs": channels, "reduction": plan.reduction, "module": place}
            for channels, plan, place in zip(widths, plans, places, strict=True)
        ]

    def stem_maps(self, image: Tensor) -> list[Tensor]:
        """The image behind the stem's second convolution and those after it, [B, H/4, W/4, C/4] and so on."""
        x, maps = checked_image(image, self.in_chans), []
        for index, conv in enumerate(self.stem):
            x = conv(x)
            if index > 0:
                # Once: every later operation keeps the layout of its input.
                x = x.contiguous(memory_format=torch.channels_last)
                maps.append(x.permute(0, 2, 3, 1))
        return maps

    def last_stage(self, x: Tensor) -> Tensor:
        """Stage 2 on stage 1's map, sub-grid by sub-grid: [B, H, W, C] -> [B d d, h, w, C'] with d the dilation."""
        return self.stages[2](split_phases(x, self.dilation) if self.dilation > 1 else x)

    def stage_maps(self, image: Tensor, last: int | None = None) -> list[Tensor]:
        """The maps at the four strides (or as far as the one numbered `last`), then stage 2's own, the head's."""
        last = self.STEM_MAPS + 1 if last is None else last
        maps = self.stem_maps(image)
        if last < self.STEM_MAPS:
            return maps[: last + 1]
        x = self.stages[0](maps.pop())
        maps.append(x)
        if last == self.STEM_MAPS:
            return maps
        x = self.stages[1](x)
        coarse = self.last_stage(x)
        return [*maps, self.side_by_side(x, coarse), self.whole(coarse)]

    def side_by_side(self, x: Tensor, coarse: Tensor) -> Tensor:
        """Stage 1's map and, each pixel repeated 2 x 2, stage 2's: [B, H, W, C + C']."""
        _, height, width, _ = x.shape
        if self.dilation > 1:
            x = split_phases(x, self.dilation)
        fine = coarse[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1).flatten(3, 4).flatten(1, 2)
        y = torch.cat([x, leading(leading(fine, 1, x.shape[1]), 2, x.shape[2])], dim=-1)
        return merge_phases(y, self.dilation, height, width) if self.dilation > 1 else y

    def whole(self, coarse: Tensor) -> Tensor:
        """Stage 2's map in one piece, [B, h d, w d, C']."""
        rows, columns = coarse.shape[1] * self.dilation, coarse.shape[2] * self.dilation
        return merge_phases(coarse, self.dilation, rows, columns) if self.dilation > 1 else coarse

    def forward_features(self, x: Tensor) -> Tensor:
        """Stage 2's map, [B, ceil(H/64), ceil(W/64), C]."""
        x = self.stem_maps(x)[-1]
        return self.norm(self.whole(self.last_stage(self.stages[1](self.stages[0](x)))))

    def prune_stages(self, taken: Sequence[int]) -> list[str]:
        """Remove what the maps `taken` do not need of stem and stages, and name it."""
        last = max(taken)
        convs = last + 2 if last < self.STEM_MAPS else len(self.stem)
        stages = (0, 0, 1, 3)[last]
        pruned = [f"stem.conv{index + 1}" for index in range(convs, len(self.stem))]
        pruned += [f"stages.{index}" for index in range(stages, len(self.stages))]
        self.stem, self.stages = self.stem[:convs], self.stages[:stages]
        return pruned


def conv_stem(in_chans: int, channels: int, *, last_stride: int = 2) -> nn.Sequential:
    """Four convolutions of stride 2 (the last of `last_stride`) that double the channels; ReLU between them."""
    widths = (in_chans, channels // 8, channels // 4, channels // 2, channels)
    strides = (2, 2, 2, last_stride)
    return nn.Sequential(
        OrderedDict(
            (f"conv{index + 1}", ConvNorm(widths[index], widths[index + 1], stride=stride, act=index < 3))
            for index, stride in enumerate(strides)
        )
    )


# The authors' names of parameters, on the left.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(^|\.)(dw[01]|ffn[01])\.m\.", r"\1\2."),
        (r"(^|\.)mixer\.m\.", r"\1mixer."),
        (r"(^|\.)attn\.", r"\1"),
        (r"(^|\.)dwconv3x3\.", r"\1spatial.conv."),
        (r"(^|\.)local_op\.bn1\.", r"\1local_op.spatial.norm."),
        (r"(^|\.)dwconv1x1\.", r"\1channel.conv."),
        (r"(^|\.)local_op\.bn2\.", r"\1local_op.channel.norm."),
        (r"^bn1\.", "spatial.norm."),
        (r"^bn2\.", "channel.norm."),
        (r"(^|\.)proj\.1\.", r"\1proj."),
        (r"(^|\.)global_atten\.", r"\1scan."),
        (r"(^|\.)base_scale\.weight$", r"\1base_scale"),
        (r"(^|\.)wavelet_scale\.0\.weight$", r"\1wavelet_scale"),
        (r"(^|\.)wavelet_convs\.0\.", r"\1wavelet_conv."),
        (r"(^|\.)conv2d\.", r"\1conv."),
        (r"(^|\.)c\.weight$", r"\1conv.weight"),
        (r"^head(_dist)?\.bn\.", r"head.norm\1."),
        (r"^head(_dist)?\.l\.", r"head.fc\1."),
        (r"(^|\.)bn\.", r"\1norm."),
        (r"(^|\.)x_proj_weight$", r"\1x_proj"),
        (r"(^|\.)dt_projs_weight$", r"\1dt_proj"),
        (r"(^|\.)dt_projs_bias$", r"\1dt_bias"),
        (r"(^|\.)A_logs$", r"\1A_log"),
        (r"(^|\.)Ds$", r"\1D"),
    )
]
_OFFICIAL_STEM = re.compile(r"^patch_embed\.(\d+)\.")
_OFFICIAL_STAGE = re.compile(r"^blocks(\d+)\.(\d+)\.")
# Before the blocks of the second and third stage stand a pair, the merging, and a pair: (dw, FFN), -, (dw, FFN).
_OFFICIAL_DOWNSAMPLE = re.compile(r"^blocks([23])\.(?:(1)|([02])\.([01])\.m)\.")


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("blocks2.2.1.m.pw1.c.weight")
    'stages.1.downsample.ffn1.pw1.conv.weight'
    >>> rename_official_key("blocks3.4.mixer.m.attn.global_op.global_atten.Ds")
    'stages.2.blocks.1.mixer.global_op.scan.D'
    """
    stem, stage, down = (pattern.match(key) for pattern in (_OFFICIAL_STEM, _OFFICIAL_STAGE, _OFFICIAL_DOWNSAMPLE))
    if stem:
        key = f"stem.conv{int(stem[1]) // 2 + 1}.{key[stem.end() :]}"
    elif down:
        part = "merge" if down[2] else f"{('dw', 'ffn')[int(down[4])]}{int(down[3]) // 2}"
        key = f"stages.{int(down[1]) - 1}.downsample.{part}.{key[down.end() :]}"
    elif stage:
        first = 0 if stage[1] == "1" else 3
        key = f"stages.{int(stage[1]) - 1}.blocks.{int(stage[2]) - first}.{key[stage.end() :]}"
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict under our names: renames only."""
    return {rename_official_key(key): value for key, value in state_dict.items()}


_SOURCE = "https://github.com/lewandofskee/MobileMamba"
_PAPER = "MobileMamba: Lightweight Multi-Receptive Visual Mamba Network, CVPR 2025"


def _cfg(side: int) -> Any:
    return imagenet_cfg(
        _SOURCE, "arXiv:2411.15941", first_conv="stem.conv1.conv", classifier="head.fc", size=side, pool=-(-side // 64)
    )


_B: dict[str, Any] = {"dims": (200, 376, 448), "depths": (2, 3, 2), "drop_path_rate": 0.03}
# The side of the images that the authors train at, their top-1 there without a teacher, and what differs from the
# defaults. T2: as their table has it; a log of theirs says 73.6. B1, B2 and B4 are one network.
_SIZES: dict[str, tuple[int, float, dict[str, Any]]] = {
    "mobilemamba_t2": (192, 71.5, {"dims": (144, 272, 368)}),
    "mobilemamba_t4": (192, 76.1, {"dims": (176, 368, 448)}),
    "mobilemamba_s6": (224, 78.0, {"dims": (192, 384, 448)}),
    "mobilemamba_b1": (256, 79.9, _B),
    "mobilemamba_b2": (384, 81.6, _B),
    "mobilemamba_b4": (512, 82.5, _B),
}
default_cfgs = generate_default_cfgs({name: _cfg(side) for name, (side, _, _) in _SIZES.items()})


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_backbone(MobileMamba, name, pretrained, checkpoint_filter_fn, **kwargs)


register_sizes(
    __name__,
    {
        name: (BackboneInfo("MobileMamba", "paper", top1, "MIT (repository)", _SOURCE, _PAPER), defaults)
        for name, (_, top1, defaults) in _SIZES.items()
    },
    _create,
)
