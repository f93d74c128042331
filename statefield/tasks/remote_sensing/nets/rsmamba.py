"""RSMamba (arXiv 2403.19654): a scene classifier whose every layer reads the tokens in up to three orders.

    image -> overlapping 16 x 16 patches + positions -> layers -> norm -> mean -> norm -> linear

    layer   x + sum_k gate_k * undo_k(mixer(norm(order_k(x))))      orders: as they are, reversed, shuffled

One mixer serves all orders of a layer, one norm all layers. Facts were taken from KyanChen/RSMamba at commit 3fa3056;
the tests compare with numbers that its code computes. It is a whole net of this field and no backbone: its maps are all
at stride 8, and the authors draw the shuffled order anew in every call, also when they test.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._isotropic import resize_positions
from statefield.backbones._mixers import OrientedMixer
from statefield.errors import ConfigError, ShapeError

__all__ = ["RSMamba"]

SIZES: dict[str, tuple[int, int]] = {  # channels, layers
    "small": (192, 16),  # the repository has it, the paper does not
    "base": (192, 24),
    "large": (256, 36),
    "huge": (320, 48),
}
PATHS = ("forward", "reverse", "shuffle")
PATCH, STRIDE = 16, 8
_EPS = 1e-6


class Layer(nn.Module):
    """Tokens in several orders through one mixer, weighted by a gate that sees the mean of each; [B, L, C] -> same."""

    def __init__(self, channels: int, paths: int, *, gated: bool) -> None:
        super().__init__()
        self.mixer = OrientedMixer(channels)
        self.gate = nn.Linear(paths * channels, paths, bias=False) if gated else None

    def forward(self, x: Tensor, norm: nn.Module, orders: list[Tensor | None]) -> Tensor:
        """Args: norm: the net's own, shared by its layers. orders: places of the tokens in each path; None: as is."""
        stacked = torch.cat([x if order is None else x[:, order] for order in orders])
        mixed = self.mixer(norm(stacked)).unflatten(0, (len(orders), -1))
        paths = [
            one if order is None else one[:, order.argsort(stable=True)]
            for one, order in zip(mixed, orders, strict=True)
        ]
        if len(paths) == 1:
            return x + paths[0]
        if self.gate is None:
            return x + torch.stack(paths).mean(0)
        shares = self.shares(paths)
        return x + sum(shares[:, None, k : k + 1] * path for k, path in enumerate(paths))

    def shares(self, paths: list[Tensor]) -> Tensor:
        """The weight of each path, [B, K], adding up to 1."""
        assert self.gate is not None
        return self.gate(torch.cat([path.mean(1) for path in paths], dim=-1)).softmax(-1)


class RSMamba(nn.Module):
    """Scenes [B, C, H, W] -> raw logits [B, num_classes].

    Args:
        in_channels: C. num_classes: of scenes; 0 gives the pooled features [B, D].
        size: "base", "large" or "huge" as in the paper, "small", or D and the number of layers.
        image_size: side of the images that the positions are learned for; at other sides they are resized, bicubically.
            A checkpoint fits the size it was trained with (224 for the authors').
        paths: the orders that the tokens are read in, the first being "forward", some of `PATHS`.
        fusion: "gate", or "mean" for the plain mean of the paths.
        shuffle: "fresh" draws the shuffled orders in every call as the authors do, so that two calls on one image
            differ; "fixed" does so in training only, and in evaluation has one order for each layer and number of
            tokens, so that a prediction can be repeated.

    Raises:
        UnknownName, ConfigError: another size, path or fusion. ShapeError (forward): an image of other channels.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 1000,
        *,
        size: str | tuple[int, int] = "base",
        image_size: int = 224,
        paths: tuple[str, ...] = PATHS,
        fusion: Literal["gate", "mean"] = "gate",
        shuffle: Literal["fixed", "fresh"] = "fixed",
    ) -> None:
        super().__init__()
        if isinstance(size, str) and size not in SIZES:
            raise ConfigError(f"RSMamba has no size {size!r}: choose {', '.join(SIZES)}, or channels and layers.")
        paths = tuple(paths)
        if paths not in (PATHS[:1], PATHS[:2], PATHS):
            raise ConfigError(f"paths {paths}: the first one, the first two or all three of {PATHS} are needed.")
        if fusion not in ("gate", "mean") or shuffle not in ("fixed", "fresh"):
            raise ConfigError(
                f"fusion {fusion!r} and shuffle {shuffle!r}: 'gate' or 'mean', and 'fixed' or 'fresh', are needed."
            )
        channels, layers = SIZES[size] if isinstance(size, str) else size
        side = _patches(image_size)
        self.in_channels, self.num_classes, self.num_features = in_channels, num_classes, channels
        self.grid, self.paths, self.shuffle = (side, side), paths, shuffle
        self.patch_embed = nn.Conv2d(in_channels, channels, PATCH, stride=STRIDE, bias=False)
        self.pos_embed = nn.Parameter(torch.empty(1, side * side, channels))
        self.pre_norm = nn.LayerNorm(channels, eps=_EPS)
        gated = fusion == "gate" and len(paths) > 1
        self.layers = nn.ModuleList(Layer(channels, len(paths), gated=gated) for _ in range(layers))
        self.norm = nn.LayerNorm(channels, eps=_EPS)
        self.pooled_norm = nn.LayerNorm(channels, eps=_EPS)
        self.head: nn.Module = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, OrientedMixer):  # their step sizes begin as any linear layer's: not at Mamba's range
                for direction in module.directions():
                    direction.dt_proj.reset_parameters()

    def embed(self, image: Tensor) -> Tensor:
        """Patches [B, L, C] without positions: 16 x 16 at every 8 pixels, zeros beyond the right and lower border."""
        if image.ndim != 4 or image.shape[1] != self.in_channels:
            raise ShapeError(
                f"RSMamba got an image of shape {list(image.shape)} and needs [B, {self.in_channels}, H, W]."
            )
        missing = [(_patches(side) - 1) * STRIDE + PATCH - side for side in image.shape[2:]]
        return self.patch_embed(functional.pad(image, (0, max(missing[1], 0), 0, max(missing[0], 0))))

    def shuffled_order(self, layer: int, tokens: int, device: torch.device) -> Tensor:
        """The order of the third path of a layer, [L]."""
        if self.training or self.shuffle == "fresh":
            return torch.randperm(tokens, device=device)
        return scrambled_order(layer, tokens, device)

    def orders(self, layer: int, tokens: int, device: torch.device) -> list[Tensor | None]:
        """The places of the tokens in each path; None for tokens as they are."""
        found: list[Tensor | None] = [None]
        if "reverse" in self.paths:
            found.append(torch.arange(tokens - 1, -1, -1, device=device))
        if "shuffle" in self.paths:
            found.append(self.shuffled_order(layer, tokens, device))
        return found

    def forward_features(self, image: Tensor) -> Tensor:
        """What the classifier takes: the normalised mean of all tokens, [B, C]."""
        patches = self.embed(image)
        grid = (patches.shape[2], patches.shape[3])
        x = patches.flatten(2).transpose(1, 2) + resize_positions(self.pos_embed, self.grid, grid)
        for index, layer in enumerate(self.layers):
            x = layer(x, self.pre_norm, self.orders(index, x.shape[1], x.device))
        return self.pooled_norm(self.norm(x).mean(1))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.forward_features(image))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that drive the recurrences, and the positions."""
        return {name for name, _ in self.named_parameters() if name.endswith((".A_log", ".D", "pos_embed"))}


def scrambled_order(seed: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """A permutation [count] that looks random and follows from `seed` alone, on every device and inside a graph.

    Places are sorted by a 32-bit hash of theirs; a generator of random numbers would be a break in a compiled graph.

    >>> scrambled_order(1, 8).tolist()
    [2, 5, 4, 3, 6, 1, 0, 7]
    """
    x = torch.arange(1, count + 1, device=device) + seed * 0x9E3779B9
    for _ in range(3):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return x.argsort(stable=True)


def _patches(side: int) -> int:
    """Patches along a side: none is left out."""
    return -(-side // STRIDE)


_RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^backbone\.", ""),
        (r"^head\.fc\.", "head."),
        (r"^patch_embed\.projection\.", "patch_embed."),
        (r"^ln1\.", "norm."),
        (r"^ln2\.", "pooled_norm."),
        (r"^gate_layers\.(\d+)\.0\.", r"layers.\1.gate."),
        (r"^layers\.(\d+)\.(in_proj|out_proj)\.", r"layers.\1.mixer.\2."),
        (r"^layers\.(\d+)\.(?=(?:A_log|D|conv1d\.|x_proj\.|dt_proj\.))", r"layers.\1.mixer.forwards."),
    )
]


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("backbone.layers.3.A_log")
    'layers.3.mixer.forwards.A_log'
    """
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key)
    return key


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict (classifier, or its backbone alone) under our names."""
    return {rename_official_key(key): value for key, value in state_dict.items()}
