"""Vision-RWKV (arXiv 2403.02308): an isotropic backbone of RWKV blocks, linear in the number of patches.

    patches, positions -> blocks (bidirectional WKV, channel mix) -> LayerNorm -> mean -> head

Facts were taken from the authors' repository at commit 0e0e38a, of its models on the fourth RWKV; the tests compare
with numbers that their code computes. Their code holds images to 256 tokens (a constant of its kernel) and derives
keys' and values' gradients from other weights than it went forward with; here any image goes, and gradients are exact
unless `wkv_gradient="official"` asks for theirs.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from statefield.backbones import _isotropic
from statefield.backbones._blocks import drop_path_rates
from statefield.backbones._isotropic import Grid, Isotropic, IsotropicPyramid, PatchEmbed, ReadOutHead
from statefield.backbones._mixers import ChannelMix, SpatialMix
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)

__all__ = ["RWKVBlock", "VisionRWKV", "VisionRWKVBlock"]


class RWKVBlock(nn.Module):
    """Spatial mix and channel mix, each a residual: [B, H, W, C] -> [B, H, W, C], any H and W.

    Args:
        dim: C. layer, num_layers: which block of how many, for the initial values.
        expand: hidden channels of the channel mix over C.
        post_norm: LayerNorm behind each mix, not before it.
        layer_scale: initial value of a learned factor on what each mix adds, None for no factor.
        norm_first: LayerNorm of the block's input, residual and all; the first block of Vision-RWKV has it.
        shift_pixels, shift_share, key_norm, wkv_gradient: see `SpatialMix`. norm_eps: of the LayerNorms.
        drop_path: a probability.
    """

    def __init__(
        self,
        dim: int,
        *,
        layer: int = 0,
        num_layers: int = 12,
        expand: float = 4.0,
        post_norm: bool = False,
        layer_scale: float | None = None,
        norm_first: bool = False,
        shift_pixels: int = 1,
        shift_share: float = 0.25,
        key_norm: bool = False,
        wkv_gradient: Literal["exact", "official"] = "exact",
        norm_eps: float = 1e-5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {
            "layer": layer,
            "num_layers": num_layers,
            "shift_pixels": shift_pixels,
            "shift_share": shift_share,
            "key_norm": key_norm,
        }
        self.post_norm = post_norm
        self.norm0: nn.Module = nn.LayerNorm(dim, eps=norm_eps) if norm_first else nn.Identity()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mixer = SpatialMix(dim, gradient=wkv_gradient, **options)
        self.ffn = ChannelMix(dim, expand=expand, **options)
        self.gamma1: nn.Parameter | None = None
        self.gamma2: nn.Parameter | None = None
        if layer_scale is not None:
            self.gamma1 = nn.Parameter(torch.full((dim,), float(layer_scale)))
            self.gamma2 = nn.Parameter(torch.full((dim,), float(layer_scale)))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(x)
        x = x + self._branch(self.mixer, self.norm1, self.gamma1, x)
        return x + self._branch(self.ffn, self.norm2, self.gamma2, x)

    def _branch(self, mix: nn.Module, norm: nn.Module, gamma: nn.Parameter | None, x: Tensor) -> Tensor:
        y = norm(mix(x)) if self.post_norm else mix(norm(x))
        return self.drop_path(y if gamma is None else gamma * y)


class VisionRWKVBlock(RWKVBlock):
    """`RWKVBlock` on tokens and their grid: [B, L, D] -> [B, L, D]."""

    def forward(self, x: Tensor, grid: Grid) -> Tensor:  # type: ignore[override]  # as isotropic backbones call it
        return super().forward(x.unflatten(1, grid)).flatten(1, 2)


class VisionRWKV(Isotropic):
    """Vision-RWKV as a timm model: a classifier that reads the mean of its tokens, and maps behind every block.

    Args:
        in_chans: channels of the image, any number.
        num_classes: outputs of the head; 0 for none.
        global_pool: "" as timm passes it, or None; the mean of tokens is read out.
        img_size: side of the square image whose grid of positions is learned; others are resized to it (bicubic).
        patch_size: side of a patch. dim: D. num_layers: blocks.
        expand, post_norm, layer_scale, shift_pixels, shift_share, key_norm, wkv_gradient: see `RWKVBlock`.
        head_hidden: tanh units before the classifier, which the largest model has; 0 for none.
        final_norm: LayerNorm behind the last block.
        drop_rate: dropout before the head. drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        shuffle_rate: see `Isotropic`.
    """

    undecayed = (*Isotropic.undecayed, ".spatial_decay", ".spatial_first", ".gamma1", ".gamma2")
    head: ReadOutHead

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = "",
        *,
        img_size: int = 224,
        patch_size: int = 16,
        dim: int = 192,
        num_layers: int = 12,
        expand: float = 4.0,
        post_norm: bool = False,
        layer_scale: float | None = None,
        shift_pixels: int = 1,
        shift_share: float = 0.25,
        key_norm: bool = False,
        wkv_gradient: Literal["exact", "official"] = "exact",
        head_hidden: int = 0,
        final_norm: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shuffle_rate: float = 0.0,
    ) -> None:
        options: dict[str, Any] = {
            "num_layers": num_layers,
            "expand": expand,
            "post_norm": post_norm,
            "layer_scale": layer_scale,
            "shift_pixels": shift_pixels,
            "shift_share": shift_share,
            "key_norm": key_norm,
            "wkv_gradient": wkv_gradient,
        }
        patch_embed = PatchEmbed(in_chans, dim, patch_size)
        side = patch_embed.side(img_size)
        (rates,) = drop_path_rates(drop_path_rate, (num_layers,))
        super().__init__(
            patch_embed=patch_embed,
            reduction=patch_size,
            blocks=[
                VisionRWKVBlock(dim, layer=index, norm_first=index == 0, drop_path=rate, **options)
                for index, rate in enumerate(rates)
            ],
            dim=dim,
            norm=nn.LayerNorm(dim) if final_norm else nn.Identity(),
            head=ReadOutHead(
                nn.Sequential(nn.Linear(dim, head_hidden), nn.Tanh()) if head_hidden else nn.Identity(),
                head_hidden or dim,
                num_classes,
            ),
            in_chans=in_chans,
            num_classes=num_classes,
            learned_grid=(side, side),
            drop_rate=drop_rate,
            shuffle_rate=shuffle_rate,
        )
        nn.init.zeros_(self.pos_embed)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


# The authors' names of parameters, on the left.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^backbone\.", ""),
        (r"^layers\.", "blocks."),
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^ln1\.", "norm."),
        (r"^head\.layers\.pre_logits\.", "head.pre_logits.0."),
        (r"^head\.layers\.head\.", "head.fc."),
        (r"(^|\.)ln([012])\.", r"\1norm\2."),
        (r"(^|\.)att\.", r"\1mixer."),
    )
]


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("backbone.layers.0.att.spatial_mix_k"), rename_official_key("backbone.ln1.weight")
    ('blocks.0.mixer.spatial_mix_k', 'norm.weight')
    """
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict of a classifier or a backbone, under our names: renames only."""
    return {rename_official_key(key): value for key, value in state_dict.items()}


_SOURCE = "https://github.com/OpenGVLab/Vision-RWKV"
_LICENSE = "Apache-2.0 (repository)"
_PAPER = "Vision-RWKV: Efficient and Scalable Visual Perception with RWKV-Like Architectures, ICLR 2025"


def _cfg(body: str = "", size: int = 224) -> Any:
    return imagenet_cfg(
        _SOURCE,
        "arXiv:2403.02308",
        first_conv=f"{body}patch_embed.proj",
        classifier=f"{body}head.fc",
        size=size,
        crop_pct=0.875 if size == 224 else 1.0,
    )


# Published top-1 at 224 x 224, and what differs from the defaults. The largest is published at 384 x 384 (86.0).
_SIZES: dict[str, tuple[float | None, dict[str, Any]]] = {
    "vision_rwkv_tiny": (75.1, {"dim": 192}),
    "vision_rwkv_small": (80.1, {"dim": 384, "post_norm": True, "layer_scale": 1.0, "drop_path_rate": 0.3}),
    "vision_rwkv_base": (82.0, {"dim": 768, "post_norm": True, "layer_scale": 1e-5, "drop_path_rate": 0.5}),
    "vision_rwkv_large": (
        None,
        {
            "dim": 1024,
            "num_layers": 24,
            "post_norm": True,
            "layer_scale": 1e-5,
            "img_size": 384,
            "head_hidden": 3072,
            "drop_path_rate": 0.1,
        },
    ),
}
default_cfgs = generate_default_cfgs(
    {
        f"{name}{end}": _cfg(body, options.get("img_size", 224))
        for name, (_, options) in _SIZES.items()
        for end, body in (("", ""), ("_pyramid", "body."))
    }
)


def _create(name: str, pretrained: bool, **options: Any) -> nn.Module:
    depth = options.get("num_layers", 12)
    quarters = tuple((index + 1) * depth // 4 - 1 for index in range(4))
    return build_backbone(VisionRWKV, name, pretrained, checkpoint_filter_fn, feature_indices=quarters, **options)


def _pyramid(in_chans: int = 3, num_classes: int = 1000, **options: Any) -> IsotropicPyramid:
    return IsotropicPyramid(VisionRWKV(in_chans, num_classes, **options))


def _create_pyramid(name: str, pretrained: bool, **options: Any) -> nn.Module:
    return build_backbone(_pyramid, name, pretrained, _isotropic.checkpoint_filter_fn, **options)


register_sizes(
    __name__,
    {
        name: (BackboneInfo("Vision-RWKV", "paper", top1, _LICENSE, _SOURCE, _PAPER), defaults)
        for name, (top1, defaults) in _SIZES.items()
    },
    _create,
)
register_sizes(  # maps at strides 4, 8, 16, 32 for dense decoders; official weights fill the body
    __name__,
    {
        f"{name}_pyramid": (BackboneInfo("Vision-RWKV", "statefield", None, None, _SOURCE, _PAPER), defaults)
        for name, (_, defaults) in _SIZES.items()
    },
    _create_pyramid,
)
