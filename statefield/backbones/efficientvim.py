"""EfficientViM (arXiv 2411.15241) for dense prediction: timm's model on our operator, with maps at strides 4 to 32.

    stem /2 /4 /8 /16 -> stage 0 -> down /32 -> stage 1 -> down /64 -> stage 2
             |  |          |                     |                      |
            map map       map                   map  <-- side by side --+

timm has the authors' model under the names `efficientvim_m1` to `efficientvim_m4_dist`; its maps have strides 16, 32
and 64, as in the authors' Semantic FPN, which decoders that begin at stride 4 refuse. The `_pyramid` variants here have
the same parameters and the same classifier, and timm's and the authors' weights fill all of them. Their first two maps
are the stem's, behind its second and third convolution; the last one holds stage 1's and, each pixel repeated 2 x 2,
stage 2's. The mixers compute on `statefield.kernels.hsm_ssd_states`. Against the authors' code, the numbers are equal;
any size of image is taken (theirs takes squares).
"""

from __future__ import annotations

import re
from typing import Any

import torch
from timm.models import efficientvim as of_timm
from timm.models import generate_default_cfgs
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from statefield.backbones._blocks import leading
from statefield.backbones._mixers import HiddenStateMixer
from statefield.backbones._pyramid import checked_image
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)
from statefield.errors import ConfigError

__all__ = ["EfficientViM", "EfficientViMDistilled", "on_our_operator"]


def on_our_operator(block: of_timm.EfficientViMBlock) -> of_timm.EfficientViMBlock:
    """timm's block, its mixer exchanged in place for `HiddenStateMixer`, whose parameters have the same names."""
    theirs = block.mixer
    channels = theirs.BCdt_proj.conv.in_channels
    mixer: nn.Module = HiddenStateMixer(channels, d_state=theirs.state_dim, expand=theirs.ssd_expand)
    block.add_module("mixer", mixer)
    return block


class _Dense(nn.Module):
    """What the plain and the distilled model have beyond timm's classes; stands before one of them among the bases."""

    REDUCTIONS = (4, 8, 16, 32)

    in_chans: int
    embed_dim: tuple[int, ...]
    patch_embed: of_timm.Stem
    stages: nn.ModuleList
    norm: nn.ModuleList

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if len(self.stages) != 3:
            raise ConfigError(f"{len(self.stages)} stages were asked for: the maps at strides 4 to 32 need three.")
        for block in self.modules():
            if isinstance(block, of_timm.EfficientViMBlock):
                on_our_operator(block)
        self.in_chans = next(self.patch_embed.parameters()).shape[1]  # timm has it from 1.0.31 on
        first, second, third = self.embed_dim
        channels = (first // 4, first // 2, first, second + third)
        places = ("patch_embed.conv.1", "patch_embed.conv.2", "stages.0", "stages.1")
        self.feature_info = [
            {"num_chs": count, "reduction": reduction, "module": place}
            for count, reduction, place in zip(channels, self.REDUCTIONS, places, strict=True)
        ]
        self.pruned_parts: tuple[str, ...] = ()

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """What the heads take: normalised hidden states [B, C, N] of every stage, and the last map, [B, C, L]."""
        return super().forward_features(checked_image(x, self.in_chans))  # type: ignore[misc]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[list[Tensor], list[Tensor]]:
        """Chosen maps at strides 4, 8, 16, 32, and what the heads take unless `intermediates_only`.

        Args:
            x: [B, in_chans, H, W].
            indices: maps (negative from the end), a number of last maps, or None for all.
            norm: pass the stages' maps through the norms that the classifier has for the stages' hidden states.
            stop_early: without effect, since the heads take something of every stage.
            output_fmt: "NCHW" or "NHWC".
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ConfigError(f"output_fmt {output_fmt!r} is not one of 'NCHW', 'NHWC'.")
        taken, last = feature_take_indices(len(self.REDUCTIONS), indices)
        x = checked_image(x, self.in_chans)
        behind_convs = []
        for conv in self.patch_embed.conv:
            x = conv(x)
            behind_convs.append(x)
        maps, of_stages, heads_take = behind_convs[1:3], [], []
        needed = self._stages_for(last) if intermediates_only else 3
        for stage, stage_norm in zip(self.stages[:needed], self.norm[:needed], strict=True):
            stage_map, x, hidden = stage(x)
            of_stages.append(stage_norm(stage_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if norm else stage_map)
            if not intermediates_only:
                heads_take.append(stage_norm(hidden.transpose(1, 2)).transpose(1, 2))
        maps += of_stages[:1]
        if len(of_stages) == 3:
            maps.append(torch.cat([of_stages[1], _twice_as_large(of_stages[2], like=of_stages[1])], dim=1))
        found = [maps[index] if output_fmt == "NCHW" else maps[index].permute(0, 2, 3, 1) for index in taken]
        return found if intermediates_only else ([*heads_take, self.norm[-1](x).flatten(2)], found)

    @staticmethod
    def _stages_for(last: int) -> int:
        """How many stages the maps up to `last` are made of."""
        return (0, 0, 1, 3)[last]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps at `indices` do not need; returns the indices counted from the first map."""
        taken, last = feature_take_indices(len(self.REDUCTIONS), indices)
        kept, convs = self._stages_for(last), len(self.patch_embed.conv)
        pruned = [f"stages.{index}" for index in range(kept, 3)]
        self.stages = self.stages[:kept]
        if kept == 1:
            self.stages[0].register_module("downsample", None)
            pruned.append("stages.0.downsample")
        if kept == 0:
            pruned += [f"patch_embed.conv.{index}" for index in range(last + 2, convs)]
            self.patch_embed.conv = self.patch_embed.conv[: last + 2]
        if prune_norm:
            self.norm = nn.ModuleList(nn.Identity() for _ in self.norm)
            pruned.append("norm")
        if prune_head or kept < 3:  # the heads take something of every stage
            self.reset_classifier(0)  # type: ignore[operator]
            for name in ("weights", "weights_dist"):
                if hasattr(self, name):
                    self.register_parameter(name, None)
            pruned += ["heads", "weights", "heads_dist", "weights_dist"]
        self.pruned_parts += tuple(pruned)
        return taken


def _twice_as_large(x: Tensor, like: Tensor) -> Tensor:
    """Every pixel 2 x 2 times, [B, C, h, w] -> [B, C, H, W] of `like`, whose sides are 2 h or 2 h - 1."""
    x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return leading(leading(x, 2, like.shape[2]), 3, like.shape[3])


class EfficientViM(_Dense, of_timm.EfficientViM):
    """EfficientViM as timm has it, with our mixers and maps at strides 4, 8, 16, 32.

    Args:
        in_chans: channels of the image, any number. num_classes: outputs of each of the four heads; 0 for none.
        embed_dim: channels of the three stages; the first is a multiple of 8. depths: their blocks.
        state_dim: N, hidden states of each stage. ssd_expand: inner channels of the mixer over C.
        mlp_ratio: hidden channels of the MLP over C.
        global_pool, drop_rate, drop_path_rate: timm's. The authors have no stochastic depth.

    Raises:
        ConfigError: another number of stages than three.
    """


class EfficientViMDistilled(_Dense, of_timm.EfficientViMDistilled):
    """`EfficientViM` with a second set of heads; class scores are the mean of both, in evaluation."""


_NORM = re.compile(r"(?:^|\.)norm\.(?:\d+\.)?(?:weight|bias)$")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict, or timm's, under timm's names, which are the authors'.

    The authors' LayerNorms hold [1, C, 1] and [1, C, 1, 1] where timm has [C].
    """
    return {name: value.reshape(-1) if _NORM.search(name) else value for name, value in state_dict.items()}


_SOURCE = "https://github.com/mlvlab/EfficientViM"
_PAPER = "EfficientViM: Efficient Vision Mamba with Hidden State Mixer based State Space Duality, CVPR 2025"
_INFO = BackboneInfo("EfficientViM", "statefield", None, "MIT", _SOURCE, _PAPER)


def _cfg(of: str, side: int, heads: tuple[str, ...]) -> Any:
    return imagenet_cfg(
        _SOURCE,
        "arXiv:2411.15241",
        first_conv="patch_embed.conv.0.conv",
        classifier=tuple(f"{name}.{index}" for name in heads for index in range(4)),
        size=side,
        hf_hub_id=f"timm/{of}",
        license="mit",
    )


_SIZES: dict[str, dict[str, Any]] = {
    "m1": {"embed_dim": (128, 192, 320), "depths": (2, 2, 2), "state_dim": (49, 25, 9)},
    "m2": {"embed_dim": (128, 256, 512), "depths": (2, 2, 2), "state_dim": (49, 25, 9)},
    "m3": {"embed_dim": (224, 320, 512), "depths": (2, 2, 2), "state_dim": (49, 25, 9)},
    "m4": {"embed_dim": (224, 320, 512), "depths": (3, 4, 2), "state_dim": (64, 32, 16)},
}
default_cfgs = generate_default_cfgs(
    {
        f"efficientvim_{size}_pyramid": _cfg(f"efficientvim_{size}.e450_in1k", 256 if size == "m4" else 224, ("heads",))
        for size in _SIZES
    }
    | {
        f"efficientvim_{size}_dist_pyramid": _cfg(
            f"efficientvim_{size}_dist.in1k", 256 if size == "m4" else 224, ("heads", "heads_dist")
        )
        for size in _SIZES
    }
)


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    model_cls = EfficientViMDistilled if "_dist_" in name else EfficientViM
    return build_backbone(model_cls, name, pretrained, checkpoint_filter_fn, **kwargs)


register_sizes(
    __name__,
    {f"efficientvim_{size}{kind}_pyramid": (_INFO, _SIZES[size]) for kind in ("", "_dist") for size in _SIZES},
    _create,
)
