"""Adventurer (arXiv 2410.07599) and its patch scaling (arXiv 2502.03738): an isotropic backbone of Mamba-2 blocks that
read the patches in one direction, for patches from 16 x 16 pixels down to a single one.

    patches, class token last, positions -> blocks (norm, Mamba-2; norm, SwiGLU) -> RMSNorm -> class token -> head

What lets one direction suffice: every block first reads the mean of all tokens, and some blocks read the patches from
the last one. Facts were taken from the authors' repository Patch_Scaling at commit fb8cce8; the tests compare with
numbers that their code computes.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import torch
from timm.layers import DropPath, SwiGLU, lecun_normal_, trunc_normal_
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from statefield.backbones import _isotropic
from statefield.backbones._blocks import drop_path_rates
from statefield.backbones._isotropic import Grid, Isotropic, IsotropicPyramid, PatchEmbed, resize_positions
from statefield.backbones._mixers import DualityMixer
from statefield.backbones._pyramid import checked_image
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)
from statefield.errors import ConfigError

__all__ = ["Adventurer", "AdventurerBlock"]

Flip = Literal["released", "every_two"]


class AdventurerBlock(nn.Module):
    """Mamba-2 and SwiGLU, each a residual behind RMSNorm; the class token is the last: [B, L, D] -> [B, L, D].

    Args:
        dim: D. d_state, head_dim: the mixer's.
        reverse: read the patches from the last one; the class token stays behind them.
        drop_path: a probability.
    """

    def __init__(
        self, dim: int, *, d_state: int = 64, head_dim: int = 64, reverse: bool = False, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.reverse = reverse
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = DualityMixer(dim, d_state=d_state, head_dim=head_dim)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm_mlp = nn.RMSNorm(dim, eps=1e-5)
        self.mlp = SwiGLU(dim, int(2.5 * dim))
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def mix(self, x: Tensor) -> Tensor:
        """The mixer on the mean of all tokens and the tokens themselves; the mean's own result is dropped."""
        patches, class_token = x[:, :-1], x[:, -1:]
        read = torch.cat((x.mean(1, keepdim=True), patches.flip(1) if self.reverse else patches, class_token), dim=1)
        y = self.mixer(read)[:, 1:]
        return torch.cat((y[:, :-1].flip(1), y[:, -1:]), dim=1) if self.reverse else y

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        x = x + self.drop_path1(self.mix(self.norm(x)))
        return x + self.drop_path2(self.mlp(self.norm_mlp(x)))


class Adventurer(Isotropic):
    """Adventurer as a timm model: a classifier that reads its class token, and maps of one size behind every block.

    Args:
        in_chans: channels of the image, any number.
        num_classes: outputs of the head; 0 for none.
        global_pool: "" as timm passes it, or None; the class token is read out.
        img_size: side of the square image whose grid of positions is learned; others are resized to it (bicubic).
        patch_size: side of a patch, 1 or more. The sequence has (side / patch_size)^2 tokens, and memory follows.
        dim: D. num_layers: blocks. d_state: N, states a channel. head_dim: channels of a head.
        flip: which blocks read the patches from the last one. "released": blocks 2 and 3, as the released expression
            `n // 2 == 1` says. "every_two": blocks 2, 3, 6, 7, 10, 11, ..., as the comment beside it says. Only the
            weights could tell which of them they were trained with; none was available to us.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth: 0 in the first two blocks, from the second rising linearly to one step below
            this rate in the last one, as the authors have it.
        shuffle_rate: see `Isotropic`.

    The authors' code takes square images of the size that positions were learned for; here any image serves.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = "",
        *,
        img_size: int = 224,
        patch_size: int = 16,
        dim: int = 256,
        num_layers: int = 12,
        d_state: int = 64,
        head_dim: int = 64,
        flip: Flip = "released",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shuffle_rate: float = 0.0,
    ) -> None:
        if flip not in ("released", "every_two"):
            raise ConfigError(f"flip {flip!r} is not one of 'released', 'every_two'.")
        patch_embed = PatchEmbed(in_chans, dim, patch_size)
        side = patch_embed.side(img_size)
        (rates,) = drop_path_rates(drop_path_rate, (num_layers,))
        options: dict[str, Any] = {"d_state": d_state, "head_dim": head_dim}
        super().__init__(
            patch_embed=patch_embed,
            reduction=patch_size,
            blocks=[
                AdventurerBlock(dim, reverse=_reads_backwards(index, flip), drop_path=rate, **options)
                for index, rate in enumerate([0.0, *rates[:-1]])
            ],
            dim=dim,
            norm=nn.RMSNorm(dim, eps=1e-5),
            head=nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity(),
            in_chans=in_chans,
            num_classes=num_classes,
            learned_grid=(side, side),
            drop_rate=drop_rate,
            shuffle_rate=shuffle_rate,
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.init_weights()

    def init_weights(self) -> None:
        """The authors' initial values; the projections out of the mixers shrink with the depth, as in GPT-2."""
        for module in self.modules():
            if isinstance(module, PatchEmbed):
                lecun_normal_(module.proj.weight)
                assert module.proj.bias is not None
                nn.init.zeros_(module.proj.bias)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            if isinstance(module, DualityMixer):
                nn.init.kaiming_uniform_(module.out_proj.weight, a=math.sqrt(5))
                with torch.no_grad():
                    module.out_proj.weight /= math.sqrt(len(self.blocks))
        trunc_normal_(self.pos_embed, std=0.02)
        trunc_normal_(self.cls_token, std=0.02)
        if isinstance(self.head, nn.Linear):
            trunc_normal_(self.head.weight, std=0.02)

    def position_count(self, grid: Grid) -> int:
        return grid[0] * grid[1] + 1

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        x = self.patch_embed(checked_image(x, self.in_chans))
        grid = (x.shape[1], x.shape[2])
        assert self.learned_grid is not None
        patches = x.flatten(1, 2) + resize_positions(self.pos_embed[:, :-1], self.learned_grid, grid)
        token = (self.cls_token + self.pos_embed[:, -1:]).expand(patches.shape[0], -1, -1)
        return torch.cat((patches, token), dim=1), grid

    def patches(self, tokens: Tensor) -> Tensor:
        return tokens[:, :-1]

    def read_out(self, tokens: Tensor) -> Tensor:
        return tokens[:, -1]


def _reads_backwards(index: int, flip: Flip) -> bool:
    pair = index // 2
    return pair == 1 if flip == "released" else pair % 2 == 1


# The authors' names of parameters, on the left.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^layers\.", "blocks."),
        (r"^norm_f\.", "norm."),
        (r"(^|\.)mlp\.w1\.", r"\1mlp.fc1_g."),
        (r"(^|\.)mlp\.w2\.", r"\1mlp.fc1_x."),
        (r"(^|\.)mlp\.w3\.", r"\1mlp.fc2."),
    )
]


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("layers.3.mlp.w3.bias")
    'blocks.3.mlp.fc2.bias'
    """
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict (the model, a block, or its mixer alone) under our names: renames only."""
    return {rename_official_key(key): value for key, value in state_dict.items()}


_SOURCE = "https://github.com/wangf3014/Patch_Scaling"
_PAPER = "Scaling Laws in Patchification: An Image Is Worth 50,176 Tokens And More, 2025"


def _cfg(patch_size: int, body: str = "") -> Any:
    return imagenet_cfg(
        _SOURCE,
        ("arXiv:2410.07599", "arXiv:2502.03738"),
        first_conv=f"{body}patch_embed.proj",
        classifier=f"{body}head",
        crop_pct=0.875 if patch_size == 16 else 1.0,
    )


_WIDTHS: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 256},
    "small": {"dim": 512},
    "base": {"dim": 768},
    "large": {"dim": 1024, "num_layers": 24},
}
# Published top-1 at 224 x 224 of what the authors have constructors for, None where they publish none.
_PUBLISHED: dict[tuple[str, int], float | None] = {
    ("tiny", 16): 78.2,
    ("small", 16): 81.8,
    ("base", 16): 82.6,
    ("large", 16): 83.4,
    ("base", 8): 83.9,
    ("tiny", 1): 81.9,
    ("small", 1): 83.8,
    ("base", 1): 84.6,
    ("large", 1): None,
}
_PATCHES = {"tiny": (16, 8, 4, 2, 1), "small": (16, 8, 4, 2, 1), "base": (16, 8, 4, 2, 1), "large": (16, 1)}
_MODELS = {f"adventurer_{size}_patch{patch}": (size, patch) for size, sides in _PATCHES.items() for patch in sides}
_PYRAMIDS = {f"{name}_pyramid": key for name, key in _MODELS.items() if key[1] >= 4}
default_cfgs = generate_default_cfgs(
    {name: _cfg(patch) for name, (_, patch) in _MODELS.items()}
    | {name: _cfg(patch, "body.") for name, (_, patch) in _PYRAMIDS.items()}
)


def _create(name: str, pretrained: bool, **options: Any) -> nn.Module:
    depth = options.get("num_layers", 12)
    quarters = tuple((index + 1) * depth // 4 - 1 for index in range(4))
    return build_backbone(Adventurer, name, pretrained, checkpoint_filter_fn, feature_indices=quarters, **options)


def _pyramid(in_chans: int = 3, num_classes: int = 1000, **options: Any) -> IsotropicPyramid:
    return IsotropicPyramid(Adventurer(in_chans, num_classes, **options))


def _create_pyramid(name: str, pretrained: bool, **options: Any) -> nn.Module:
    return build_backbone(_pyramid, name, pretrained, _isotropic.checkpoint_filter_fn, **options)


def _info(key: tuple[str, int], pyramid: bool = False) -> BackboneInfo:
    own = pyramid or key not in _PUBLISHED
    top1 = None if own else _PUBLISHED[key]
    origin, license_ = ("statefield", None) if own else ("paper", "none stated")
    return BackboneInfo("Adventurer", origin, top1, license_, _SOURCE, _PAPER)


def _defaults(key: tuple[str, int]) -> dict[str, Any]:
    size, patch = key
    return _WIDTHS[size] | {"patch_size": patch}


register_sizes(__name__, {name: (_info(key), _defaults(key)) for name, key in _MODELS.items()}, _create)
register_sizes(  # maps at strides 4, 8, 16, 32 for dense decoders; official weights fill the body
    __name__,
    {name: (_info(key, pyramid=True), _defaults(key)) for name, key in _PYRAMIDS.items()},
    _create_pyramid,
)
