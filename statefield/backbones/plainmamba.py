"""PlainMamba (arXiv 2403.17695): an isotropic backbone that scans the patches along continuous routes.

    convolutions /16, positions -> blocks (LayerNorm, direction-aware scan) -> LayerNorm -> mean -> head

Facts were taken from the authors' repository at commit 0975a1d; the tests compare with numbers that their code
computes. Two of its habits, which their weights need, are told in `DirectionAwareMixer`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from timm.layers import DropPath, trunc_normal_
from timm.models import generate_default_cfgs
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones import _isotropic
from statefield.backbones._blocks import drop_path_rates
from statefield.backbones._isotropic import Grid, Isotropic, IsotropicPyramid
from statefield.backbones._mixers import DirectionAwareMixer
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)
from statefield.errors import ConfigError

__all__ = ["PlainMamba", "PlainMambaBlock"]

STEM_CHANNELS = 64


def _conv_norm_act(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


class ConvPatchEmbed(nn.Module):
    """Convolutions at half the image's size, then patches of the rest: [B, in_chans, H, W] -> [B, h, w, D].

    What lacks for a whole patch at the bottom and right is zero, so h = ceil(H / patch_size).
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int, num_convs: int) -> None:
        super().__init__()
        if patch_size % 2:
            raise ConfigError(f"patch_size {patch_size}: the stem halves the image, so it has to be even.")
        self.patch_size = patch_size
        self.stem = nn.Sequential(*_conv_norm_act(in_chans, STEM_CHANNELS, 7, 2))
        convs = (_conv_norm_act(STEM_CHANNELS, STEM_CHANNELS, 3) for _ in range(num_convs))
        self.convs = nn.Sequential(*(layer for conv in convs for layer in conv))
        self.projection = nn.Conv2d(STEM_CHANNELS, dim, patch_size // 2, stride=patch_size // 2)

    def side(self, pixels: int) -> int:
        """Patches along a side of so many pixels."""
        return -(-pixels // self.patch_size)

    def forward(self, image: Tensor) -> Tensor:
        x = self.convs(self.stem(image))
        below, right = -x.shape[-2] % (self.patch_size // 2), -x.shape[-1] % (self.patch_size // 2)
        return self.projection(functional.pad(x, (0, right, 0, below))).permute(0, 2, 3, 1)


class PlainMambaBlock(nn.Module):
    """LayerNorm and a direction-aware scan, with a residual; behind that, with `depthwise`, a convolution.

    Args:
        dim: D. d_state, expand, d_conv: the mixer's. drop_path: a probability.
        depthwise: a 3 x 3 depthwise convolution, BatchNorm and GELU of the sum, without a residual of its own. The
            smallest published model has it in its first block.

    Shape: [B, L, D] and the grid -> [B, L, D].
    """

    def __init__(
        self,
        dim: int,
        *,
        d_state: int = 16,
        expand: float = 2.0,
        d_conv: int = 7,
        depthwise: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = DirectionAwareMixer(dim, d_state=d_state, expand=expand, d_conv=d_conv)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.dw: nn.Sequential | None = None
        if depthwise:
            conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
            self.dw = nn.Sequential(conv, nn.BatchNorm2d(dim), nn.GELU())

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        x = x + self.drop_path(self.mixer(self.norm(x).unflatten(1, grid)).flatten(1, 2))
        if self.dw is None:
            return x
        return self.dw(x.unflatten(1, grid).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)


class PlainMamba(Isotropic):
    """PlainMamba as a timm model: a classifier that reads the mean of its tokens, and maps behind every block.

    Args:
        in_chans: channels of the image, any number.
        num_classes: outputs of the head; 0 for none.
        global_pool: "" as timm passes it, or None; the mean of tokens is read out.
        img_size: side of the square image whose grid of positions is learned; others are resized to it (bicubic).
        patch_size: side of a patch, even. num_convs: 3 x 3 convolutions between the stem and the patches.
        dim: D. num_layers: blocks. depthwise_layers: which of them end in a depthwise convolution.
        d_state: N, states a channel. expand: inner channels of the mixer over D. d_conv: side of its convolution.
        positions: learned position embeddings, which every published model has.
        feature_norms: blocks whose maps `forward_intermediates` gives through a LayerNorm, as the authors' dense
            backbones do: the last block's through the model's final norm, every other through one of its own.
        drop_rate: dropout before the head. drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        shuffle_rate: see `Isotropic`.

    The authors' layer draws step sizes as Mamba does, and so do we. Their training configuration then sets the bias of
    every linear layer to 0, that of the step sizes with it.
    """

    undecayed = (*Isotropic.undecayed, ".direction_Bs")

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = "",
        *,
        img_size: int = 224,
        patch_size: int = 16,
        num_convs: int = 2,
        dim: int = 384,
        num_layers: int = 24,
        depthwise_layers: Sequence[int] = (),
        d_state: int = 16,
        expand: float = 2.0,
        d_conv: int = 7,
        positions: bool = True,
        feature_norms: Sequence[int] = (),
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shuffle_rate: float = 0.0,
    ) -> None:
        patch_embed = ConvPatchEmbed(in_chans, dim, patch_size, num_convs)
        side = patch_embed.side(img_size)
        (rates,) = drop_path_rates(drop_path_rate, (num_layers,))
        options: dict[str, Any] = {"d_state": d_state, "expand": expand, "d_conv": d_conv}
        super().__init__(
            patch_embed=patch_embed,
            reduction=patch_size,
            blocks=[
                PlainMambaBlock(dim, depthwise=index in depthwise_layers, drop_path=rate, **options)
                for index, rate in enumerate(rates)
            ],
            dim=dim,
            norm=nn.LayerNorm(dim, eps=1e-6),
            head=nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity(),
            in_chans=in_chans,
            num_classes=num_classes,
            learned_grid=(side, side) if positions else None,
            drop_rate=drop_rate,
            shuffle_rate=shuffle_rate,
        )
        if not set(feature_norms) <= set(range(num_layers)):
            raise ConfigError(f"feature_norms {tuple(feature_norms)}: blocks are numbered 0 to {num_layers - 1}.")
        last = num_layers - 1
        self.last_map_normed = last in feature_norms
        self.feature_norms = nn.ModuleDict(
            {str(index): nn.LayerNorm(dim, eps=1e-6) for index in feature_norms if index != last}
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Linear layers and positions normal with std 0.02; the recurrences by their own rule."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, DirectionAwareMixer):
                module.reset_ssm_parameters()
        if self.learned_grid is not None:
            trunc_normal_(self.pos_embed, std=0.02)

    def as_map(self, index: int, tokens: Tensor, norm: bool) -> Tensor:
        if str(index) in self.feature_norms:
            return self.feature_norms[str(index)](tokens)
        return super().as_map(index, tokens, norm or (self.last_map_normed and index == len(self.feature_info) - 1))

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As of every isotropic backbone, and the norms of the maps that are not asked for; those of others stay."""
        keeps_norm = self.last_map_normed and len(self.blocks) - 1 in feature_take_indices(len(self.blocks), indices)[0]
        taken = super().prune_intermediate_layers(indices, prune_norm and not keeps_norm, prune_head)
        unused = [index for index in self.feature_norms if int(index) not in taken]
        for index in unused:
            del self.feature_norms[index]
        self.pruned_parts += tuple(f"feature_norms.{index}" for index in unused)
        return taken


# The authors' names of parameters, on the left.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^backbone\.", ""),
        (r"^head\.fc\.", "head."),
        (r"^layers\.", "blocks."),
        (r"^ln1\.", "norm."),
        (r"^norm_layer(\d+)\.", r"feature_norms.\1."),
        (r"(^|\.)mamba\.", r"\1mixer."),
        (r"(^|\.)conv2d\.", r"\1conv."),
    )
]


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("backbone.layers.3.mamba.conv2d.weight")
    'blocks.3.mixer.conv.weight'
    """
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict (classifier, backbone, or its mixer alone) under our names: renames only."""
    return {rename_official_key(key): value for key, value in state_dict.items()}


_SOURCE = "https://github.com/ChenhongyiYang/PlainMamba"
_LICENSE = "Apache-2.0 (repository)"
_PAPER = "PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition, BMVC 2024"


def _cfg(body: str = "") -> Any:
    return imagenet_cfg(_SOURCE, "arXiv:2403.17695", first_conv=f"{body}patch_embed.stem.0", classifier=f"{body}head")


_SIZES: dict[str, tuple[float, dict[str, Any]]] = {  # published top-1, and what differs from the defaults
    "plainmamba_l1": (77.9, {"dim": 192, "num_convs": 1, "depthwise_layers": (0,), "drop_path_rate": 0.2}),
    "plainmamba_l2": (81.6, {"dim": 384, "drop_path_rate": 0.2}),
    "plainmamba_l3": (82.3, {"dim": 448, "num_layers": 36, "drop_path_rate": 0.4}),
}
default_cfgs = generate_default_cfgs(
    {name: _cfg() for name in _SIZES} | {f"{name}_pyramid": _cfg("body.") for name in _SIZES}
)


def _create(name: str, pretrained: bool, **options: Any) -> nn.Module:
    depth = options.get("num_layers", 24)
    quarters = tuple((index + 1) * depth // 4 - 1 for index in range(4))
    return build_backbone(PlainMamba, name, pretrained, checkpoint_filter_fn, feature_indices=quarters, **options)


def _pyramid(in_chans: int = 3, num_classes: int = 1000, **options: Any) -> IsotropicPyramid:
    return IsotropicPyramid(PlainMamba(in_chans, num_classes, **options))


def _create_pyramid(name: str, pretrained: bool, **options: Any) -> nn.Module:
    return build_backbone(_pyramid, name, pretrained, _isotropic.checkpoint_filter_fn, **options)


register_sizes(
    __name__,
    {
        name: (BackboneInfo("PlainMamba", "paper", top1, _LICENSE, _SOURCE, _PAPER), defaults)
        for name, (top1, defaults) in _SIZES.items()
    },
    _create,
)
register_sizes(  # maps at strides 4, 8, 16, 32 for dense decoders; official weights fill the body
    __name__,
    {
        f"{name}_pyramid": (BackboneInfo("PlainMamba", "statefield", None, None, _SOURCE, _PAPER), defaults)
        for name, (_, defaults) in _SIZES.items()
    },
    _create_pyramid,
)
