"""Vim, or Vision Mamba (arXiv 2401.09417): an isotropic backbone whose blocks scan the patches from both ends.

    patches, class token in the middle, positions -> blocks (RMSNorm, scan from both ends) -> RMSNorm -> head

Facts were taken from the authors' repository at commit dd0358a; the tests compare with numbers that their code
computes. Their unfused path, which runs without CUDA kernels, leaves the backward direction out: not here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from timm.layers import DropPath, lecun_normal_, trunc_normal_
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from statefield.backbones import _isotropic
from statefield.backbones._blocks import check_spatial_dims, drop_path_rates
from statefield.backbones._isotropic import Grid, Isotropic, IsotropicPyramid, PatchEmbed, resize_positions
from statefield.backbones._mixers import BidirectionalMixer
from statefield.backbones._pyramid import checked_image
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_backbone,
)

__all__ = ["Vim", "VimBlock"]


class VimBlock(nn.Module):
    """A norm and a bidirectional scan, with a residual: [B, L, D] -> [B, L, D].

    Args:
        dim: D. d_state, expand: the mixer's. norm_layer: of the norm. drop_path: a probability.
    """

    def __init__(
        self,
        dim: int,
        *,
        d_state: int = 16,
        expand: float = 2.0,
        norm_layer: Callable[..., nn.Module] = nn.RMSNorm,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = norm_layer(dim, eps=1e-5)
        self.mixer = BidirectionalMixer(dim, d_state=d_state, expand=expand)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm(x)))


class Vim(Isotropic):
    """Vim as a timm model: a classifier that reads its class token, and maps of one size behind every block.

    Args:
        in_chans: channels of the image, any number.
        num_classes: outputs of the head; 0 for none.
        global_pool: "" as timm passes it, or None; the class token is read out.
        img_size: side of the square image whose grid of positions is learned, 224; others are resized to it (bicubic).
            Of volumes the side of the cube, 96; others are resized trilinearly.
        patch_size: side of a patch. stride: pixels from patch to patch, `patch_size` unless they overlap.
        dim: D. num_layers: blocks.
        d_state: N, states a channel. expand: inner channels of the mixer over D.
        class_token: one in the middle of the sequence (the published form); without it the mean of tokens is read.
        drop_rate: dropout before the head. drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        shuffle_rate: see `Isotropic`.
        spatial_dims: 2, or 3 for volumes [B, in_chans, D, H, W]: patches are cubes, scanned slice by slice from both
            ends. A form of ours: the paper has images, and there are no weights for it.

    Raises:
        ConfigError: `spatial_dims` other than 2 and 3.

    The authors resize positions for another patch size as if the class token came first; here it is taken from the
    middle, where it stands.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = "",
        *,
        img_size: int | None = None,
        patch_size: int = 16,
        stride: int | None = None,
        dim: int = 192,
        num_layers: int = 24,
        d_state: int = 16,
        expand: float = 2.0,
        class_token: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shuffle_rate: float = 0.0,
        spatial_dims: int = 2,
    ) -> None:
        check_spatial_dims(spatial_dims)
        self.class_token = class_token
        patch_embed = PatchEmbed(in_chans, dim, patch_size, stride=stride, spatial_dims=spatial_dims)
        side = patch_embed.side({2: 224, 3: 96}[spatial_dims] if img_size is None else img_size)
        (rates,) = drop_path_rates(drop_path_rate, (num_layers,))
        super().__init__(
            patch_embed=patch_embed,
            reduction=patch_embed.stride,
            blocks=[VimBlock(dim, d_state=d_state, expand=expand, drop_path=rate) for rate in rates],
            dim=dim,
            norm=nn.RMSNorm(dim, eps=1e-5),
            head=nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity(),
            in_chans=in_chans,
            num_classes=num_classes,
            learned_grid=(side,) * spatial_dims,
            drop_rate=drop_rate,
            shuffle_rate=shuffle_rate,
            spatial_dims=spatial_dims,
        )
        if class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.init_weights()

    def init_weights(self) -> None:
        """The authors' initial values; the projections out of the mixers shrink with the depth, as in GPT-2."""
        for module in self.modules():
            if isinstance(module, PatchEmbed):
                lecun_normal_(module.proj.weight)
                assert module.proj.bias is not None
                nn.init.zeros_(module.proj.bias)
            if isinstance(module, BidirectionalMixer):
                nn.init.kaiming_uniform_(module.out_proj.weight, a=math.sqrt(5))
                with torch.no_grad():
                    module.out_proj.weight /= math.sqrt(len(self.blocks))
        trunc_normal_(self.pos_embed, std=0.02)
        if self.class_token:
            trunc_normal_(self.cls_token, std=0.02)
        if isinstance(self.head, nn.Linear):
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def position_count(self, grid: Grid) -> int:
        return prod(grid) + self.class_token

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        x = self.patch_embed(checked_image(x, self.in_chans, self.spatial_dims))
        grid = tuple(x.shape[1:-1])
        patches = x.flatten(1, -2)
        assert self.learned_grid is not None
        if not self.class_token:
            return patches + resize_positions(self.pos_embed, self.learned_grid, grid), grid
        learned, position = _without_middle(self.pos_embed)
        patches = patches + resize_positions(learned, self.learned_grid, grid)
        middle = patches.shape[1] // 2
        token = (self.cls_token + position).expand(patches.shape[0], -1, -1)
        return torch.cat((patches[:, :middle], token, patches[:, middle:]), dim=1), grid

    def patches(self, tokens: Tensor) -> Tensor:
        return _without_middle(tokens)[0] if self.class_token else tokens

    def read_out(self, tokens: Tensor) -> Tensor:
        return _without_middle(tokens)[1].squeeze(1) if self.class_token else tokens.mean(1)


def _without_middle(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The patches [B, M, D] and the class token [B, 1, D] of M + 1 tokens, the class token at place M // 2."""
    middle = (tokens.shape[1] - 1) // 2
    patches = torch.cat((tokens[:, :middle], tokens[:, middle + 1 :]), dim=1)
    return patches, tokens[:, middle : middle + 1]


# The authors' names of parameters, on the left.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^layers\.", "blocks."),
        (r"^norm_f\.", "norm."),
        (r"(^|mixer\.)(conv1d|x_proj|dt_proj)_b\.", r"\1backwards.\2."),
        (r"(^|mixer\.)(conv1d|x_proj|dt_proj)\.", r"\1forwards.\2."),
        (r"(^|mixer\.)A_b_log$", r"\1backwards.A_log"),
        (r"(^|mixer\.)D_b$", r"\1backwards.D"),
        (r"(^|mixer\.)(A_log|D)$", r"\1forwards.\2"),
    )
]


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("layers.3.mixer.dt_proj_b.bias")
    'blocks.3.mixer.backwards.dt_proj.bias'
    """
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict (the model, or its mixer alone) under our names: renames only."""
    return {rename_official_key(key): value for key, value in state_dict.items()}


_SOURCE = "https://github.com/hustvl/Vim"
_LICENSE = "Apache-2.0 (repository)"
_PAPER = "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model, ICML 2024"


def _info(published_top1: float | None, origin: str = "paper") -> BackboneInfo:
    license_ = _LICENSE if origin == "paper" else None
    return BackboneInfo("Vim", origin, published_top1, license_, _SOURCE, _PAPER)


def _cfg(body: str = "") -> Any:
    return imagenet_cfg(
        _SOURCE, "arXiv:2401.09417", first_conv=f"{body}patch_embed.proj", classifier=f"{body}head", crop_pct=0.9
    )


_SIZES = ("tiny", "tiny_plus", "small", "small_plus", "base")
default_cfgs = generate_default_cfgs(
    {f"vim_{size}": _cfg() for size in _SIZES}
    | {f"vim_{size}_pyramid": _cfg("body.") for size in ("tiny", "small", "base")}
)


def _create(name: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> nn.Module:
    options = defaults | kwargs
    depth = options.get("num_layers", 24)
    quarters = tuple((index + 1) * depth // 4 - 1 for index in range(4))
    return build_backbone(Vim, name, pretrained, checkpoint_filter_fn, feature_indices=quarters, **options)


def _pyramid(in_chans: int = 3, num_classes: int = 1000, **options: Any) -> IsotropicPyramid:
    return IsotropicPyramid(Vim(in_chans, num_classes, **options))


def _create_pyramid(name: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> nn.Module:
    return build_backbone(_pyramid, name, pretrained, _isotropic.checkpoint_filter_fn, **(defaults | kwargs))


@register_backbone(_info(76.1))
def vim_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-Ti of the paper: 7.1 M parameters."""
    return _create("vim_tiny", pretrained, {"dim": 192}, kwargs)


@register_backbone(_info(78.3))
def vim_tiny_plus(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-Ti+ of the paper: finetuned with overlapping patches, 16 x 16 at every 8th pixel; 7.3 M parameters."""
    return _create("vim_tiny_plus", pretrained, {"dim": 192, "stride": 8}, kwargs)


@register_backbone(_info(80.5))
def vim_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-S of the paper: 25.8 M parameters."""
    return _create("vim_small", pretrained, {"dim": 384, "drop_path_rate": 0.05}, kwargs)


@register_backbone(_info(81.6))
def vim_small_plus(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-S+ of the paper: finetuned with overlapping patches, 16 x 16 at every 8th pixel; 26.0 M parameters."""
    return _create("vim_small_plus", pretrained, {"dim": 384, "stride": 8, "drop_path_rate": 0.05}, kwargs)


@register_backbone(_info(81.9))
def vim_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-B of the paper: 97.6 M parameters."""
    return _create("vim_base", pretrained, {"dim": 768}, kwargs)


@register_backbone(_info(None, "statefield"))
def vim_tiny_pyramid(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-Ti with maps at strides 4, 8, 16, 32 for dense decoders; official weights fill the body."""
    return _create_pyramid("vim_tiny_pyramid", pretrained, {"dim": 192}, kwargs)


@register_backbone(_info(None, "statefield"))
def vim_small_pyramid(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-S with maps at strides 4, 8, 16, 32 for dense decoders; official weights fill the body."""
    return _create_pyramid("vim_small_pyramid", pretrained, {"dim": 384, "drop_path_rate": 0.05}, kwargs)


@register_backbone(_info(None, "statefield"))
def vim_base_pyramid(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Vim-B with maps at strides 4, 8, 16, 32 for dense decoders; official weights fill the body."""
    return _create_pyramid("vim_base_pyramid", pretrained, {"dim": 768}, kwargs)
