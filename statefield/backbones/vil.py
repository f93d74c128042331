"""ViL, or Vision-LSTM (arXiv 2406.04303): an isotropic backbone of mLSTM blocks that read the patches in turns, one
from the top left, the next from the bottom right.

    patches, positions -> blocks (norm, matrix memory) -> norm -> first and last token -> norm -> head

Both published versions have one class here. Facts were taken from the authors' repository at commit 381ba95; the tests
compare with numbers that their code computes. Their blocks leave out whole samples where stochastic depth drops them,
which saves time and gives the same as here. A norm of theirs stores how far its scale lies from 1.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from timm.layers import DropPath, trunc_normal_
from timm.models import generate_default_cfgs
from torch import Tensor, nn

from statefield.backbones import _isotropic
from statefield.backbones._isotropic import Grid, Isotropic, IsotropicPyramid, PatchEmbed, ReadOutHead
from statefield.backbones._mixers import MatrixMemoryMixer
from statefield.backbones._mixers.matrix_memory import GainNorm
from statefield.backbones._register import (
    BackboneInfo,
    build_backbone,
    imagenet_cfg,
    register_sizes,
)
from statefield.errors import ConfigError

__all__ = ["ViL", "ViLBlock"]


class ViLBlock(nn.Module):
    """A norm and a matrix memory, with a residual: [B, L, D] and the grid -> [B, L, D].

    Args:
        dim: D. reverse: read the tokens from the last one. drop_path: a probability.
        conv, taps, block, heads, bias: the mixer's. norm_bias: of the norm before it and of the one inside it.
    """

    def __init__(
        self,
        dim: int,
        *,
        reverse: bool = False,
        conv: str = "2d",
        taps: int | None = None,
        block: int = 4,
        heads: int = 4,
        bias: bool = True,
        norm_bias: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = GainNorm(dim, bias=norm_bias)
        self.mixer = MatrixMemoryMixer(
            dim, reverse=reverse, conv=conv, taps=taps, block=block, heads=heads, bias=bias, norm_bias=norm_bias
        )
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm(x), grid))


class ViL(Isotropic):
    """Vision-LSTM as a timm model: a classifier that reads its first and last token, and maps behind every block.

    Args:
        in_chans: channels of the image, any number.
        num_classes: outputs of the head; 0 for none.
        global_pool: "" as timm passes it, or None; what is read out is fixed by `pooling`.
        version: 2, or 1 for the first release: a causal convolution of 4 tokens in place of one over the 3 x 3
            neighbourhood, biases only in convolutions, gates and head, and the mean of both tokens read out.
        img_size: side of the square image (or its height and width) whose grid of positions is learned; others are
            resized to it (bicubic).
        patch_size: side of a patch. stride: pixels from patch to patch, `patch_size` unless they overlap.
        dim: D. num_layers: blocks; two of them are what the authors' second version counts as one.
        pooling: "flatten" (first and last token side by side, 2 D) or "mean" of them; None for the version's own.
        conv, taps, bias, norm_bias: of the blocks, None for the version's own.
        legacy_norm: the second of two norms around the read-out, which all published weights have.
        drop_rate: dropout before the head. drop_path_rate: stochastic depth, the same in every block.
        shuffle_rate: see `Isotropic`.

    Raises:
        ConfigError: another version or pooling, or a width that 4 does not divide.
    """

    undecayed = (*Isotropic.undecayed, ".gain")
    head: ReadOutHead

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str | None = "",
        *,
        version: Literal[1, 2] = 2,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        dim: int = 192,
        num_layers: int = 24,
        pooling: Literal["flatten", "mean"] | None = None,
        conv: Literal["2d", "causal"] | None = None,
        taps: int | None = None,
        bias: bool | None = None,
        norm_bias: bool | None = None,
        legacy_norm: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shuffle_rate: float = 0.0,
    ) -> None:
        if version not in (1, 2):
            raise ConfigError(f"version {version!r} of Vision-LSTM: there are 1 and 2.")
        second = version == 2
        pooling = pooling or ("flatten" if second else "mean")
        if pooling not in ("flatten", "mean"):
            raise ConfigError(f"pooling {pooling!r} is not one of 'flatten', 'mean'.")
        norm_bias = second if norm_bias is None else norm_bias
        options: dict[str, Any] = {
            "conv": conv or ("2d" if second else "causal"),
            "taps": taps,
            "bias": second if bias is None else bias,
            "norm_bias": norm_bias,
            "drop_path": drop_path_rate,
        }
        patch_embed = PatchEmbed(in_chans, dim, patch_size, stride=stride)
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        features = 2 * dim if pooling == "flatten" else dim
        norm: nn.Module
        behind: nn.Module
        if second:
            norm = GainNorm(dim, bias=norm_bias, eps=1e-6)
            behind = nn.LayerNorm(features) if legacy_norm else nn.Identity()
        else:
            norm = GainNorm(dim, bias=norm_bias) if legacy_norm else nn.Identity()
            behind = nn.LayerNorm(features, eps=1e-6)
        super().__init__(
            patch_embed=patch_embed,
            reduction=patch_embed.stride,
            blocks=[ViLBlock(dim, reverse=bool(index % 2), **options) for index in range(num_layers)],
            dim=dim,
            norm=norm,
            head=ReadOutHead(behind, features, num_classes),
            in_chans=in_chans,
            num_classes=num_classes,
            learned_grid=(patch_embed.side(height), patch_embed.side(width)),
            drop_rate=drop_rate,
            shuffle_rate=shuffle_rate,
        )
        self.version, self.pooling = version, pooling
        self.init_weights()

    def init_weights(self) -> None:
        """Positions, patches and head; the blocks have theirs from their mixers."""
        trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, PatchEmbed):
                nn.init.xavier_uniform_(module.proj.weight.flatten(1))  # as a linear layer of all pixels; in place
                assert module.proj.bias is not None
                nn.init.zeros_(module.proj.bias)
        self._init_classifier()

    def _init_classifier(self) -> None:
        if isinstance(self.head.fc, nn.Linear):
            trunc_normal_(self.head.fc.weight, std=2e-5)
            nn.init.zeros_(self.head.fc.bias)

    def read_out(self, tokens: Tensor) -> Tensor:
        first, last = tokens[:, 0], tokens[:, -1]
        return torch.cat((first, last), dim=1) if self.pooling == "flatten" else (first + last) / 2

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As of every isotropic backbone, with the authors' initial values."""
        super().reset_classifier(num_classes, global_pool)
        self._init_classifier()


# The authors' names of parameters, on the left: of their released models, and of files as their trainer wrote them.
_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^xlstm\.", ""),
        (r"(^|\.)(?:layer|xlstm)\.", r"\1mixer."),
        (r"(^|\.)xlstm_norm\.", r"\1norm."),
        (r"(^|\.)mlstm_cell\.igate\.", r"\1input_gate."),
        (r"(^|\.)mlstm_cell\.fgate\.", r"\1forget_gate."),
        (r"(^|\.)mlstm_cell\.outnorm\.", r"\1out_norm."),
        (r"(^|\.)proj_up\.", r"\1in_proj."),
        (r"(^|\.)proj_down\.", r"\1out_proj."),
        (r"(^|\.)learnable_skip$", r"\1skip"),
        (r"(^|\.)(?:conv1d|conv)\.(?:conv\.)?", r"\1conv."),
        (r"^pos_embed\.embed$", "pos_embed"),
        (r"^head\.0\.", "head.pre_logits."),
        (r"^head\.(?:1\.)?(weight|bias)$", r"head.fc.\1"),
        (r"(^blocks\.\d+\.norm|(?:^|\.)out_norm)\.weight$", r"\1.gain"),
    )
]
_PAIR = re.compile(r"^blocks\.(\d+)\.rowwise_from_(top_left|bot_right)\.")
# The norms around the read-out have swapped names between the versions.
_NORMS = {
    1: {r"^norm\.(weight|bias)$": r"head.pre_logits.\1", r"^(?:legacy_norm|post_blocks_norm)\.weight$": "norm.gain"},
    2: {
        r"^(?:norm|post_blocks_norm)\.weight$": "norm.gain",
        r"^post_blocks_norm\.bias$": "norm.bias",
        r"^legacy_norm\.": "head.pre_logits.",
    },
}


def rename_official_key(key: str, version: int = 2) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("blocks.3.rowwise_from_bot_right.layer.mlstm_cell.igate.bias")
    'blocks.7.mixer.input_gate.bias'
    >>> rename_official_key("norm.weight", version=1), rename_official_key("norm.weight", version=2)
    ('head.pre_logits.weight', 'norm.gain')
    """
    pair = _PAIR.match(key)
    if pair:  # two of our blocks
        key = f"blocks.{2 * int(pair[1]) + (pair[2] == 'bot_right')}.{key[pair.end() :]}"
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    for official, ours in _NORMS[version].items():
        key = re.sub(official, ours, key)
    return key


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict (a model of either version, a block or its layer alone) under our names.

    Positions, which their files hold as a map [1, h, w, D], become tokens.
    """
    version = model.version if isinstance(model, ViL) else 2
    renamed = {rename_official_key(key, version): value for key, value in state_dict.items()}
    positions = renamed.get("pos_embed")
    if positions is not None and positions.ndim == 4:
        renamed["pos_embed"] = positions.flatten(1, 2)
    return renamed


_SOURCE = "https://github.com/NX-AI/vision-lstm"
_LICENSE = "MIT (repository)"
_PAPER = "Vision-LSTM: xLSTM as Generic Vision Backbone, ICLR 2025"


def _cfg(body: str = "") -> Any:
    return imagenet_cfg(_SOURCE, "arXiv:2406.04303", first_conv=f"{body}patch_embed.proj", classifier=f"{body}head.fc")


_FIRST: dict[str, Any] = {"version": 1}
_SIZES: dict[str, tuple[float, dict[str, Any]]] = {  # published top-1, and what differs from the defaults
    "vil2_tiny": (78.3, {"dim": 192}),
    "vil2_small": (81.5, {"dim": 384}),
    "vil2_base": (82.4, {"dim": 768}),
    "vil_tiny": (77.3, _FIRST | {"dim": 192}),
    "vil_tiny_plus": (78.1, _FIRST | {"dim": 192, "num_layers": 29}),
    "vil_tiny_plus_stride8": (80.0, _FIRST | {"dim": 192, "num_layers": 29, "stride": 8}),
    "vil_small": (80.7, _FIRST | {"dim": 384}),
    "vil_small_plus": (80.9, _FIRST | {"dim": 384, "num_layers": 26}),
    "vil_small_plus_stride8": (82.2, _FIRST | {"dim": 384, "num_layers": 26, "stride": 8}),
    "vil_base": (81.6, _FIRST | {"dim": 768}),
    "vil_base_stride8": (82.7, _FIRST | {"dim": 768, "stride": 8}),
}
_PYRAMIDS = ("vil2_tiny", "vil2_small", "vil2_base", "vil_tiny", "vil_small", "vil_base")
default_cfgs = generate_default_cfgs(
    {name: _cfg() for name in _SIZES} | {f"{name}_pyramid": _cfg("body.") for name in _PYRAMIDS}
)


def _create(name: str, pretrained: bool, **options: Any) -> nn.Module:
    depth = options.get("num_layers", 24)
    quarters = tuple((index + 1) * depth // 4 - 1 for index in range(4))
    return build_backbone(ViL, name, pretrained, checkpoint_filter_fn, feature_indices=quarters, **options)


def _pyramid(in_chans: int = 3, num_classes: int = 1000, **options: Any) -> IsotropicPyramid:
    return IsotropicPyramid(ViL(in_chans, num_classes, **options))


def _create_pyramid(name: str, pretrained: bool, **options: Any) -> nn.Module:
    return build_backbone(_pyramid, name, pretrained, _isotropic.checkpoint_filter_fn, **options)


register_sizes(
    __name__,
    {
        name: (BackboneInfo("ViL", "paper", top1, _LICENSE, _SOURCE, _PAPER), defaults)
        for name, (top1, defaults) in _SIZES.items()
    },
    _create,
)
register_sizes(  # maps at strides 4, 8, 16, 32 for dense decoders; official weights fill the body
    __name__,
    {
        f"{name}_pyramid": (BackboneInfo("ViL", "statefield", None, None, _SOURCE, _PAPER), _SIZES[name][1])
        for name in _PYRAMIDS
    },
    _create_pyramid,
)
