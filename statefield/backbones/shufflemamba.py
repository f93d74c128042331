"""ShuffleMamba (arXiv 2408.17081): Vim's blocks trained with stochastic layer-wise shuffle, and its two token layouts.

    patches, class token first, positions                -> blocks -> norm -> class token                 -> head
    patches, class tokens spread among them, positions   -> blocks -> norm -> class tokens, neck and norm -> head

The shuffle is a regulariser of training alone and lives in `Isotropic`, so that every family of sequences has it
(`shuffle_rate`); with `shuffle_rate=0` these are plain Vims with other class tokens. The second layout is Mamba-Reg's
("registers"). Facts were taken from the authors' repository at commit 0df405f; the tests compare with numbers that
their code computes.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from timm.layers import lecun_normal_, trunc_normal_
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from statefield.backbones import _isotropic, vim
from statefield.backbones._blocks import drop_path_rates
from statefield.backbones._isotropic import (
    Grid,
    Isotropic,
    IsotropicPyramid,
    PatchEmbed,
    ReadOutHead,
    resize_positions,
)
from statefield.backbones._mixers import BidirectionalMixer
from statefield.backbones._pyramid import checked_image
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)
from statefield.backbones.vim import VimBlock
from statefield.errors import ConfigError

__all__ = ["ShuffleMamba"]

_NORMS = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}


class RegisterNeck(nn.Module):
    """Registers side by side, each narrowed by one linear layer, then a norm: [B, R, D] -> [B, R D / reduce]."""

    def __init__(self, dim: int, registers: int, reduce: int, norm: str) -> None:
        super().__init__()
        if dim % reduce:
            raise ConfigError(f"reduce {reduce} has to divide the width {dim}.")
        self.proj = nn.Linear(dim, dim // reduce, bias=False)
        self.norm = _NORMS[norm](registers * (dim // reduce), eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        # under autocast the projection is of half precision, and what it feeds is few numbers: normalised as float32
        return self.norm(self.proj(x).flatten(1).to(x.dtype))


class ShuffleMamba(Isotropic):
    """ShuffleMamba as a timm model: a classifier that reads class tokens, and maps of one size behind every block.

    Args:
        in_chans: channels of the image, any number.
        num_classes: outputs of the head; 0 for none.
        global_pool: "" as timm passes it, or None; class tokens are read out.
        img_size: side of the square image whose grid of positions is learned; others are resized to it (bicubic).
        patch_size: side of a patch. stride: pixels from patch to patch, `patch_size` unless they overlap.
        dim: D. num_layers: blocks.
        d_state: N, states a channel. expand: inner channels of the mixer over D.
        registers: R class tokens spread evenly among the patches, one behind every M // (R + 1) of the M patches; 0 for
            one class token before the patches.
        reduce: each register is narrowed to D / reduce before all are read side by side, with a norm behind them; 1 for
            registers read as they are.
        norm: "rms", or "layer" as the size "middle" has it.
        drop_rate: dropout before the head. drop_path_rate: stochastic depth of the last block, rising linearly from 0.
        shuffle_rate: see `Isotropic`.

    Raises:
        ConfigError: another norm, or `reduce` without registers.
    """

    undecayed = (*Isotropic.undecayed, "pos_embed_cls")

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = "",
        *,
        img_size: int = 224,
        patch_size: int = 16,
        stride: int | None = None,
        dim: int = 192,
        num_layers: int = 24,
        d_state: int = 16,
        expand: float = 2.0,
        registers: int = 0,
        reduce: int = 1,
        norm: Literal["rms", "layer"] = "rms",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        shuffle_rate: float = 0.1,
    ) -> None:
        if norm not in _NORMS:
            raise ConfigError(f"norm {norm!r} is not one of 'rms', 'layer'.")
        if reduce > 1 and not registers:
            raise ConfigError(f"reduce {reduce} narrows registers, and there are none: give registers too.")
        self.registers = registers
        patch_embed = PatchEmbed(in_chans, dim, patch_size, stride=stride)
        side = patch_embed.side(img_size)
        (rates,) = drop_path_rates(drop_path_rate, (num_layers,))
        options: dict[str, Any] = {"d_state": d_state, "expand": expand, "norm_layer": _NORMS[norm]}
        features = (registers or 1) * (dim // reduce)
        neck = RegisterNeck(dim, registers, reduce, norm) if reduce > 1 else nn.Flatten()
        super().__init__(
            patch_embed=patch_embed,
            reduction=patch_embed.stride,
            blocks=[VimBlock(dim, drop_path=rate, **options) for rate in rates],
            dim=dim,
            norm=_NORMS[norm](dim, eps=1e-5),
            head=ReadOutHead(neck, features, num_classes),
            in_chans=in_chans,
            num_classes=num_classes,
            learned_grid=(side, side),
            drop_rate=drop_rate,
            shuffle_rate=shuffle_rate,
        )
        self.cls_token = nn.Parameter(torch.zeros(1, registers or 1, dim))
        if registers:
            self.pos_embed_cls = nn.Parameter(torch.empty(1, registers, dim))
        self.init_weights()

    def init_weights(self) -> None:
        """The authors' initial values; the projections out of the mixers shrink with the depth, as in GPT-2.

        With one class token they draw every linear layer alike, that of the step sizes and its bias (0) with them, and
        leave the class token at 0. With registers the mixers keep Mamba's own.
        """
        if not self.registers:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    _init_linear(module)
        for module in self.modules():
            if isinstance(module, PatchEmbed):
                lecun_normal_(module.proj.weight)
                assert module.proj.bias is not None
                nn.init.zeros_(module.proj.bias)
            if isinstance(module, RegisterNeck):
                _init_linear(module.proj)
            if isinstance(module, BidirectionalMixer):
                nn.init.kaiming_uniform_(module.out_proj.weight, a=math.sqrt(5))
                with torch.no_grad():
                    module.out_proj.weight /= math.sqrt(len(self.blocks))
        if isinstance(self.get_classifier(), nn.Linear):
            _init_linear(self.get_classifier())
        trunc_normal_(self.pos_embed, std=0.02)
        if self.registers:
            trunc_normal_(self.cls_token, std=0.02)
            trunc_normal_(self.pos_embed_cls, std=0.02)

    def position_count(self, grid: Grid) -> int:
        return grid[0] * grid[1] + (0 if self.registers else 1)

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        x = self.patch_embed(checked_image(x, self.in_chans))
        grid = (x.shape[1], x.shape[2])
        patches = x.flatten(1, 2)
        assert self.learned_grid is not None
        if not self.registers:
            patches = patches + resize_positions(self.pos_embed[:, 1:], self.learned_grid, grid)
            token = (self.cls_token + self.pos_embed[:, :1]).expand(patches.shape[0], -1, -1)
            return torch.cat((token, patches), dim=1), grid
        patches = patches + resize_positions(self.pos_embed, self.learned_grid, grid)
        tokens = (self.cls_token + self.pos_embed_cls).expand(patches.shape[0], -1, -1)
        order = order_with_registers(patches.shape[1], self.registers, patches.device)
        return torch.cat((patches, tokens), dim=1)[:, order], grid

    def _apart(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Patches [B, M, D] and registers [B, R, D] of tokens in which registers are spread."""
        order = order_with_registers(tokens.shape[1] - self.registers, self.registers, tokens.device)
        sorted_tokens = tokens[:, order.argsort()]
        return sorted_tokens[:, : -self.registers], sorted_tokens[:, -self.registers :]

    def patches(self, tokens: Tensor) -> Tensor:
        return self._apart(tokens)[0] if self.registers else tokens[:, 1:]

    def read_out(self, tokens: Tensor) -> Tensor:
        """The class tokens, [B, R, D] (R = 1 without registers)."""
        return self._apart(tokens)[1] if self.registers else tokens[:, :1]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As of every isotropic backbone, with the authors' initial values."""
        super().reset_classifier(num_classes, global_pool)
        if isinstance(self.get_classifier(), nn.Linear):
            _init_linear(self.get_classifier())


def _init_linear(layer: Any) -> None:
    trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def order_with_registers(patches: int, registers: int, device: torch.device) -> Tensor:
    """Where each place of the sequence takes its token from, when the registers' tokens follow the patches'.

    Groups of patches // (registers + 1) patches, a register behind each of the first `registers` groups.

    >>> order_with_registers(7, 2, torch.device("cpu"))
    tensor([0, 1, 7, 2, 3, 8, 4, 5, 6])
    """
    group = patches // (registers + 1) + 1  # with its register
    place = torch.arange(patches + registers, device=device)
    before = (place // group).clamp(max=registers)  # registers in front of this place
    is_register = (place % group == group - 1) & (place < registers * group)
    return torch.where(is_register, patches + before, place - before)


# The authors' names of what Vim has not, on the left.
_RENAMES = {
    "neck.weight": "head.pre_logits.proj.weight",
    "norm_neck.weight": "head.pre_logits.norm.weight",
    "norm_neck.bias": "head.pre_logits.norm.bias",
    "head.weight": "head.fc.weight",
    "head.bias": "head.fc.bias",
}


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("layers.3.mixer.A_b_log"), rename_official_key("neck.weight")
    ('blocks.3.mixer.backwards.A_log', 'head.pre_logits.proj.weight')
    """
    return _RENAMES.get(key) or vim.rename_official_key(key)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict (the model, or a block alone) under our names: renames only."""
    return {rename_official_key(key): value for key, value in state_dict.items()}


_SOURCE = "https://github.com/huangzizheng01/ShuffleMamba"
_PAPER = "Stochastic Layer-Wise Shuffle for Improving Vision Mamba Training, ICML 2025"


def _cfg(body: str = "") -> Any:
    return imagenet_cfg(
        _SOURCE, "arXiv:2408.17081", first_conv=f"{body}patch_embed.proj", classifier=f"{body}head.fc", crop_pct=0.9
    )


_SIZES: dict[str, dict[str, Any]] = {  # what differs from the defaults; the authors' README has no accuracies
    "shufflemamba_tiny": {"dim": 192},
    "shufflemamba_small": {"dim": 384},
    "shufflemamba_middle": {"dim": 576, "num_layers": 32, "norm": "layer"},
    "shufflemamba_base": {"dim": 768, "drop_path_rate": 0.5, "shuffle_rate": 0.5},
    "shufflemamba_large": {"dim": 1024, "num_layers": 48},
    "shufflemamba_large_depth40": {"dim": 1024, "num_layers": 40},
    "shufflemamba_reg_tiny": {"dim": 192, "registers": 12},
    "shufflemamba_reg_small": {"dim": 384, "registers": 12, "reduce": 2},
    "shufflemamba_reg_base": {"dim": 768, "registers": 12, "reduce": 4},
    "shufflemamba_reg_large": {"dim": 1024, "num_layers": 48, "registers": 16, "reduce": 8},
}
_PYRAMIDS = [name for name in _SIZES if name != "shufflemamba_large_depth40"]
default_cfgs = generate_default_cfgs(
    {name: _cfg() for name in _SIZES} | {f"{name}_pyramid": _cfg("body.") for name in _PYRAMIDS}
)


def _create(name: str, pretrained: bool, **options: Any) -> nn.Module:
    depth = options.get("num_layers", 24)
    quarters = tuple((index + 1) * depth // 4 - 1 for index in range(4))
    return build_backbone(ShuffleMamba, name, pretrained, checkpoint_filter_fn, feature_indices=quarters, **options)


def _pyramid(in_chans: int = 3, num_classes: int = 1000, **options: Any) -> IsotropicPyramid:
    return IsotropicPyramid(ShuffleMamba(in_chans, num_classes, **options))


def _create_pyramid(name: str, pretrained: bool, **options: Any) -> nn.Module:
    return build_backbone(_pyramid, name, pretrained, _isotropic.checkpoint_filter_fn, **options)


register_sizes(
    __name__,
    {
        name: (BackboneInfo("ShuffleMamba", "paper", None, "none stated", _SOURCE, _PAPER), defaults)
        for name, defaults in _SIZES.items()
    },
    _create,
)
register_sizes(  # maps at strides 4, 8, 16, 32 for dense decoders; official weights fill the body
    __name__,
    {
        f"{name}_pyramid": (BackboneInfo("ShuffleMamba", "statefield", None, None, _SOURCE, _PAPER), _SIZES[name])
        for name in _PYRAMIDS
    },
    _create_pyramid,
)
