"""What every four-stage backbone shares: stages, feature maps, the classifier's head, and all that timm asks of them.

    stem -> stage 0 -> ... -> stage 3 -> norm -> mean -> head

Maps between blocks are channels-last, [B, H, W, C]. A family builds its stem and stages and hands them to `Pyramid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import ClassifierHead
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from statefield.backbones._blocks import channels_first, merge_phases, split_phases
from statefield.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class StagePlan:
    """How a stage meets the map: its downsampling's stride, the spacing of the sub-grids before and after it.

    `reduction` is the image's side over the map's. Without an output stride `arriving` and `dilation` are 1.
    """

    stride: int
    arriving: int
    dilation: int
    reduction: int


def plan_stages(family: str, stages: int, output_stride: int, *, first: int = 4) -> list[StagePlan]:
    """Strides of the stages of a net whose stem reduces by `first` and whose stages each halve the map.

    Stages past `output_stride` keep the map's size and run à trous on interleaved sub-grids.

    Raises:
        ConfigError: an output stride that the net does not pass on its way.
    """
    reductions = [first * 2**index for index in range(stages)]
    allowed = [reduction for reduction in reductions if reduction > first] or reductions
    if output_stride not in allowed:
        choices = ", ".join(map(str, allowed[:-1])) + f" or {allowed[-1]}" if len(allowed) > 1 else str(allowed[0])
        raise ConfigError(f"output_stride {output_stride} cannot be had from {family}: choose {choices}.")
    plans = [StagePlan(first, 1, 1, first)]
    for _ in range(1, stages):
        last = plans[-1]
        stride = 2 if last.reduction < output_stride else 1
        plans.append(StagePlan(stride, last.dilation, last.dilation * (2 // stride), last.reduction * stride))
    return plans


def stage_widths(dims: int | Sequence[int], depths: Sequence[int]) -> tuple[int, ...]:
    """Channels of each stage; an integer C means C, 2C, 4C, ... `ConfigError` where the numbers of stages differ."""
    widths = tuple(dims * 2**index for index in range(len(depths))) if isinstance(dims, int) else tuple(dims)
    if len(widths) != len(depths):
        raise ConfigError(f"dims {widths} and depths {tuple(depths)} must name the same number of stages.")
    return widths


class Stage(nn.Module):
    """A downsampling (none before the first stage) and blocks; à trous on `dilation`^2 sub-grids where above 1."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], dilation: int = 1) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.dilation = dilation
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        return self.run_blocks(self.downsample(x))

    def run_blocks(self, x: Tensor) -> Tensor:
        """The blocks alone, on the map behind the downsampling."""
        sides = x.shape[1:-1]
        if self.dilation > 1:
            x = split_phases(x, self.dilation)
        x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing and self.training else self.blocks(x)
        return merge_phases(x, self.dilation, *sides) if self.dilation > 1 else x


class Pyramid(nn.Module):
    """A timm model of stages: a classifier, and the source of feature maps at the stages' strides.

    Args:
        stem: [B, in_chans, H, W] -> [B, H/s, W/s, C]. stages: maps [B, H, W, C] to the next. dims: their channels.
        reductions: the image's side over each stage's map.
        in_chans, num_classes, global_pool, drop_rate: timm's.
        feature_norms: a LayerNorm on every map that `forward_intermediates` gives, as the authors' detection and
            segmentation backbones have. Without it the maps are the classifier's own.
        norm: of the last map before the head; a LayerNorm unless given.
        norm_eps: of that LayerNorm and of the feature norms.
        spatial_dims: 2, or 3 for volumes: then every [B, H, W, C] is [B, D, H, W, C], and images have D too.
    """

    # Parameters that drive a recurrence, by the end of their names: Mamba exempts them from weight decay.
    undecayed: tuple[str, ...] = (".A_log", ".D", ".dt_bias")

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        dims: Sequence[int],
        reductions: Sequence[int],
        in_chans: int,
        num_classes: int,
        global_pool: str = "avg",
        feature_norms: bool = False,
        drop_rate: float = 0.0,
        norm: nn.Module | None = None,
        norm_eps: float = 1e-5,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.output_fmt = "NHWC"  # of forward_features
        self.pruned_parts: tuple[str, ...] = ()
        self.drop_rate = drop_rate
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": channels, "reduction": reduction, "module": f"stages.{index}"}
            for index, (channels, reduction) in enumerate(zip(dims, reductions, strict=True))
        ]
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        norms: list[nn.Module] = [nn.LayerNorm(channels, eps=norm_eps) for channels in dims]
        self.feature_norms = nn.ModuleList(norms) if feature_norms else None
        self.norm: nn.Module = nn.LayerNorm(self.num_features, eps=norm_eps) if norm is None else norm
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt=self.output_fmt
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The recurrence's own parameters, which Mamba exempts; timm exempts every other vector besides."""
        return {name for name, _ in self.named_parameters() if name.endswith(self.undecayed)}

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
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for `num_classes` (0: none), and another pooling where `global_pool` names one."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def stage_maps(self, image: Tensor, last: int | None = None) -> list[Tensor]:
        """Maps of stages 0 to `last` (of all, unless given); a family whose stages are no plain chain overrides it.

        The last of all is what the head takes; it may be one more than those that `feature_info` tells of.
        """
        x, maps = self.stem(checked_image(image, self.in_chans, self.spatial_dims)), []
        for index, stage in enumerate(self.stages):
            if last is not None and index > last:
                break
            x = stage(x)
            maps.append(x)
        return maps

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
            x: [B, in_chans, H, W], or [B, in_chans, D, H, W] where `spatial_dims` is 3.
            indices: stages (negative from the end), a number of last stages, or None for all.
            norm: pass the last stage's map through the model's final norm.
            stop_early: stop after the last stage asked for; the final map is then that stage's.
            output_fmt: "NCHW" (maps in the channels_last memory format, no copy) or "NHWC".
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ConfigError(f"output_fmt {output_fmt!r} is not one of 'NCHW', 'NHWC'.")
        taken, last = feature_take_indices(len(self.feature_info), indices)
        intermediates = []
        maps = self.stage_maps(x, last if stop_early or intermediates_only else None)
        for index, map_bhwc in enumerate(maps):
            if index in taken:
                if self.feature_norms is not None:
                    map_bhwc = self.feature_norms[index](map_bhwc)
                if norm and index == len(self.feature_info) - 1:
                    map_bhwc = self.norm(map_bhwc)
                intermediates.append(map_bhwc if output_fmt == "NHWC" else channels_first(map_bhwc))
        if intermediates_only:
            return intermediates
        return self.final_map(maps), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps at `indices` do not need; returns the indices counted from the first stage."""
        taken, _ = feature_take_indices(len(self.feature_info), indices)
        pruned = self.prune_stages(taken)
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

    def prune_stages(self, taken: Sequence[int]) -> list[str]:
        """Remove what the maps `taken` do not need of the stages, and name it."""
        last = max(taken)
        pruned = [f"stages.{index}" for index in range(last + 1, len(self.stages))]
        self.stages = self.stages[: last + 1]
        return pruned

    def final_map(self, maps: Sequence[Tensor]) -> Tensor:
        """What the head takes, from the maps of `stage_maps`: the normalised last one, unless the family has more."""
        return self.norm(maps[-1])

    def forward_features(self, x: Tensor) -> Tensor:
        """The normalised last map, [B, H/s, W/s, C]."""
        return self.final_map(self.stage_maps(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """From the normalised last map to class scores, or to the pooled vector with `pre_logits`."""
        if x.ndim == 5:  # the pooling over all cells is that of a map with as many
            x = x.flatten(1, 2)
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def checked_image(x: Tensor, in_chans: int, spatial_dims: int = 2) -> Tensor:
    """`x` itself; `ShapeError` unless it is [B, in_chans, H, W], or [B, in_chans, D, H, W] for 3 spatial dimensions."""
    if x.ndim != spatial_dims + 2 or x.shape[1] != in_chans:
        what, axes = ("an image", "H, W") if spatial_dims == 2 else ("a volume", "D, H, W")
        raise ShapeError(f"{what} batch of shape {tuple(x.shape)} was given: [B, {in_chans}, {axes}] is needed.")
    return x
