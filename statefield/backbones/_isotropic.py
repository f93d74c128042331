"""What every isotropic backbone shares: tokens of one width from the first block to the last, and timm's interface.

    patch embedding -> class tokens, positions -> blocks -> norm -> read-out -> head

Tokens are [B, L, D], the patches row by row, among them what class tokens a family has. `IsotropicPyramid` makes maps
at strides 4, 8, 16, 32 of them, for decoders that need a pyramid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from timm.layers import LayerNorm2d
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from statefield.backbones._blocks import CONVOLUTIONS, channels_first, channels_last, leading, padded_behind
from statefield.backbones._pyramid import checked_image
from statefield.backbones.checkpoints import family_filter
from statefield.errors import ConfigError

Grid = tuple[int, ...]  # patches down and across; of a volume along its depth first


class PatchEmbed(nn.Module):
    """Patches of an image as tokens: [B, in_chans, H, W] -> [B, h, w, D].

    A patch begins at every `stride`-th pixel (by default they do not overlap). The image is extended by zeros at the
    bottom and right until whole patches cover it, so without overlap h = ceil(H / patch_size). With `spatial_dims=3`
    patches are cubes of a volume: [B, in_chans, D, H, W] -> [B, d, h, w, dim].
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        patch_size: int,
        *,
        stride: int | None = None,
        bias: bool = True,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.stride = patch_size if stride is None else stride
        self.proj = CONVOLUTIONS[spatial_dims](in_chans, dim, patch_size, stride=self.stride, bias=bias)

    def side(self, pixels: int) -> int:
        """Patches along a side of so many pixels."""
        if self.stride == self.patch_size:
            return -(-pixels // self.stride)
        return -(-max(pixels - self.patch_size, 0) // self.stride) + 1

    def forward(self, image: Tensor) -> Tensor:
        sides = image.shape[2:]
        covered = [(self.side(pixels) - 1) * self.stride + self.patch_size for pixels in sides]
        behind = tuple(pixels - side for pixels, side in zip(covered, sides, strict=True))
        return channels_last(self.proj(padded_behind(image, behind)))


def resize_positions(positions: Tensor, learned: Grid, grid: Grid) -> Tensor:
    """Position embeddings [1, h w, D] of a learned grid at another: bicubic, as the papers do for other image sizes.

    Those of a volume, [1, d h w, D], are interpolated trilinearly.
    """
    if learned == grid:
        return positions
    maps = channels_first(positions.float().unflatten(1, learned))
    mode = "bicubic" if len(grid) == 2 else "trilinear"
    maps = functional.interpolate(maps, grid, mode=mode, align_corners=False)
    return channels_last(maps).flatten(1, -2).to(positions.dtype)


class ReadOutHead(nn.Module):
    """A head with more than a linear layer: `pre_logits` of what was read out of the tokens, then `fc`.

    Args:
        pre_logits: a norm, hidden units, ...: from what the model's `read_out` gives to [B, features].
        features, num_classes: of the linear layer; num_classes 0 for none.
    """

    def __init__(self, pre_logits: nn.Module, features: int, num_classes: int) -> None:
        super().__init__()
        self.in_features = features
        self.pre_logits = pre_logits
        self.fc = nn.Linear(features, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pre_logits(x))


class Isotropic(nn.Module):
    """A timm model of blocks that keep the number and width of tokens.

    A family gives its parts and overrides `embed`, `patches` and `read_out` where it has class tokens.

    Args:
        patch_embed: [B, in_chans, H, W] -> [B, h, w, D]. reduction: the image's side over the map's.
        blocks: each [B, L, D] and the grid to [B, L, D].
        dim: D. norm: of the tokens behind the last block.
        head: from what `read_out` gives to class scores: a linear layer (or nothing), or a `ReadOutHead`.
        learned_grid: patches down and across that `pos_embed` [1, h w, D] has; None for no positions.
        spatial_dims: 2, or 3 for volumes [B, in_chans, D, H, W], whose patches have three indices.
        shuffle_rate: the probability, in training, that the last block sees its tokens in a random order; the first
            never does, between them it rises linearly (stochastic layer-wise shuffle, arXiv 2408.17081). A
            regulariser of blocks that treat tokens as a sequence: nothing changes in evaluation.

    Raises:
        ConfigError: a `shuffle_rate` that is no probability.
    """

    # Parameters that weight decay spares, by the end of their names.
    undecayed: tuple[str, ...] = (".A_log", ".D", "pos_embed", "cls_token")

    def __init__(
        self,
        *,
        patch_embed: nn.Module,
        reduction: int,
        blocks: Sequence[nn.Module],
        dim: int,
        norm: nn.Module,
        head: nn.Module,
        in_chans: int,
        num_classes: int,
        learned_grid: Grid | None,
        drop_rate: float = 0.0,
        shuffle_rate: float = 0.0,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.embed_dim = dim
        self.head_hidden_size = head.in_features if isinstance(head, (nn.Linear, ReadOutHead)) else dim
        self.learned_grid = learned_grid
        self.grad_checkpointing = False
        self.pruned_parts: tuple[str, ...] = ()
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": dim, "reduction": reduction, "module": f"blocks.{index}"} for index in range(len(blocks))
        ]
        self.patch_embed = patch_embed
        if learned_grid is not None:
            self.pos_embed = nn.Parameter(torch.empty(1, self.position_count(learned_grid), dim))
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.head_drop = nn.Dropout(drop_rate)
        self.head = head
        if not 0 <= shuffle_rate <= 1:
            raise ConfigError(f"shuffle_rate {shuffle_rate}: a probability, from 0 to 1, is needed.")
        self.shuffle_rates = [shuffle_rate * index / max(len(blocks) - 1, 1) for index in range(len(blocks))]

    def position_count(self, grid: Grid) -> int:
        """Entries of `pos_embed` for a grid; more than patches where class tokens have positions too."""
        return prod(grid)

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Tokens as the first block takes them, and the grid of patches."""
        x = self.patch_embed(checked_image(x, self.in_chans, self.spatial_dims))
        grid = tuple(x.shape[1:-1])
        tokens = x.flatten(1, -2)
        if self.learned_grid is not None:
            tokens = tokens + resize_positions(self.pos_embed, self.learned_grid, grid)
        return tokens, grid

    def patches(self, tokens: Tensor) -> Tensor:
        """The patches alone, [B, h w, D], of tokens that may hold others too."""
        return tokens

    def read_out(self, tokens: Tensor) -> Tensor:
        """What the head takes, from normalised tokens [B, L, D]: their mean, unless the family has class tokens."""
        return tokens.mean(1)

    def as_map(self, index: int, tokens: Tensor, norm: bool) -> Tensor:
        """Tokens behind a block as its map shows them: as they are, or through the final norm where asked."""
        return self.norm(tokens) if norm else tokens

    def run_block(self, index: int, tokens: Tensor, grid: Grid) -> Tensor:
        """One block; in training under checkpointing, and on shuffled tokens, where that is switched on."""
        block = self.blocks[index]
        order = None
        if self.training and self.shuffle_rates[index] > 0 and torch.rand(()).item() < self.shuffle_rates[index]:
            order = torch.randperm(tokens.shape[1], device=tokens.device)  # one for the batch, class tokens included
            tokens = tokens[:, order]
        if self.grad_checkpointing and self.training:
            tokens = checkpoint(block, tokens, grid, use_reentrant=False)
        else:
            tokens = block(tokens, grid)
        return tokens if order is None else tokens[:, order.argsort()]

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised tokens, [B, L, D]."""
        tokens, grid = self.embed(x)
        for index in range(len(self.blocks)):
            tokens = self.run_block(index, tokens, grid)
        return self.norm(tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """From normalised tokens to class scores, or to what the last linear layer takes with `pre_logits`."""
        x, classify = self.read_out(x), self.head
        if isinstance(self.head, ReadOutHead):
            x, classify = self.head.pre_logits(x), self.head.fc
        x = self.head_drop(x)
        return x if pre_logits else classify(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps behind chosen blocks (class tokens left out), and the normalised tokens unless `intermediates_only`.

        Args:
            x: [B, in_chans, H, W], or [B, in_chans, D, H, W] where `spatial_dims` is 3.
            indices: blocks (negative from the end), a number of last blocks, or None for all.
            norm: pass each map through the final norm.
            stop_early: stop after the last block asked for; the tokens are then that block's.
            output_fmt: "NCHW" or "NHWC".
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ConfigError(f"output_fmt {output_fmt!r} is not one of 'NCHW', 'NHWC'.")
        taken, last = feature_take_indices(len(self.blocks), indices)
        intermediates = []
        tokens, grid = self.embed(x)
        for index in range(len(self.blocks)):
            if index > last and (stop_early or intermediates_only):
                break
            tokens = self.run_block(index, tokens, grid)
            if index in taken:
                patches = self.patches(self.as_map(index, tokens, norm)).unflatten(1, grid)
                intermediates.append(patches if output_fmt == "NHWC" else channels_first(patches))
        if intermediates_only:
            return intermediates
        return self.norm(tokens), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps at `indices` do not need; returns the indices counted from the first block."""
        taken, last = feature_take_indices(len(self.blocks), indices)
        pruned = [f"blocks.{index}" for index in range(last + 1, len(self.blocks))]
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
            pruned.append("norm")
        if prune_head:
            self.reset_classifier(0)
            if isinstance(self.head, ReadOutHead):
                self.head.pre_logits = nn.Identity()
            pruned.append("head")
        self.pruned_parts += tuple(pruned)
        return taken

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The recurrence's own parameters, positions and class tokens; timm exempts every other vector besides."""
        return {name for name, _ in self.named_parameters() if name.endswith(self.undecayed)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: what makes the tokens, then block by block."""
        return {"stem": r"^(?:patch_embed|pos_embed|cls_token)", "blocks": [(r"^blocks\.(\d+)", None), (r"", (99999,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc if isinstance(self.head, ReadOutHead) else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh last layer for `num_classes` (0: none). How tokens are read out belongs to the family.

        Raises:
            ConfigError: a `global_pool` other than None and "".
        """
        if global_pool:
            raise ConfigError(f"global_pool {global_pool!r}: how {type(self).__name__} reads out its tokens is fixed.")
        self.num_classes = num_classes
        last = nn.Linear(self.head_hidden_size, num_classes) if num_classes > 0 else nn.Identity()
        if isinstance(self.head, ReadOutHead):
            self.head.fc = last
        else:
            self.head = last


class VolumeNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, D, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return channels_first(super().forward(channels_last(x)))


class Resize(nn.Sequential):
    """A map made `factor` times as large by transposed convolutions, or as small by pooling; [B, D, h, w].

    With `spatial_dims=3` a volume.
    """

    def __init__(self, dim: int, up: int, down: int, spatial_dims: int = 2) -> None:
        volume = spatial_dims == 3
        enlarge: Callable[..., nn.Module] = nn.ConvTranspose3d if volume else nn.ConvTranspose2d
        pool: Callable[..., nn.Module] = nn.MaxPool3d if volume else nn.MaxPool2d
        norm: Callable[..., nn.Module] = VolumeNorm if volume else LayerNorm2d
        layers: list[nn.Module] = []
        while up > 1:
            layers.append(enlarge(dim, dim, 2, stride=2))
            up //= 2
            if up > 1:
                layers += [norm(dim), nn.GELU()]
        if down > 1:
            layers.append(pool(down, ceil_mode=True))
        super().__init__(*layers, norm(dim))


class IsotropicPyramid(nn.Module):
    """Maps at strides 4, 8, 16, 32 from four depths of an isotropic backbone, resized as Vim's segmenter does.

    The maps behind a quarter, a half, three quarters and all of the blocks are enlarged by transposed convolutions (or
    pooled) and normalised: parameters beyond the classifier's, which stays what it is.

    Args:
        body: the isotropic backbone, whose patches begin at every 1, 2, 4, 8, 16 or 32 pixels.
    """

    REDUCTIONS = (4, 8, 16, 32)

    def __init__(self, body: Isotropic) -> None:
        super().__init__()
        patch, depth = body.feature_info[0]["reduction"], len(body.blocks)
        if depth < len(self.REDUCTIONS):
            raise ConfigError(f"a pyramid of four maps needs four blocks, {type(body).__name__} was given {depth}.")
        self.body = body
        self.taps = [(index + 1) * depth // 4 - 1 for index in range(4)]
        self.neck = nn.ModuleList(
            Resize(body.embed_dim, patch // r, r // patch, body.spatial_dims) for r in self.REDUCTIONS
        )
        self.feature_info = [
            {"num_chs": body.embed_dim, "reduction": r, "module": f"neck.{index}"}
            for index, r in enumerate(self.REDUCTIONS)
        ]
        self.in_chans, self.num_classes = body.in_chans, body.num_classes
        self.num_features, self.head_hidden_size = body.num_features, body.head_hidden_size
        self.pruned_parts: tuple[str, ...] = ()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of chosen levels, sides ceil(side / stride), and the body's tokens unless `intermediates_only`.

        Args: as for `Isotropic`; the maps are always normalised.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ConfigError(f"output_fmt {output_fmt!r} is not one of 'NCHW', 'NHWC'.")
        taken, _ = feature_take_indices(len(self.feature_info), indices)
        depths = [self.taps[index] for index in taken]
        found = self.body.forward_intermediates(x, depths, stop_early=stop_early, intermediates_only=intermediates_only)
        maps = found if isinstance(found, list) else found[1]
        levels = []
        for index, feature_map in zip(taken, maps, strict=True):
            level = self.neck[index](feature_map)
            for axis, side in enumerate(x.shape[2:], start=2):
                level = leading(level, axis, -(-side // self.REDUCTIONS[index]))
            levels.append(level if output_fmt == "NCHW" else channels_last(level))
        return levels if isinstance(found, list) else (found[0], levels)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the levels at `indices` do not need; returns the indices counted from the first level."""
        taken, last = feature_take_indices(len(self.feature_info), indices)
        self.body.prune_intermediate_layers([self.taps[last]], prune_norm, prune_head)
        unused = [index for index in range(len(self.neck)) if index not in taken]
        for index in unused:
            self.neck[index] = nn.Identity()
        self.num_classes = self.body.num_classes
        self.pruned_parts += tuple(f"neck.{index}" for index in unused)
        self.pruned_parts += tuple(f"body.{part}" for part in self.body.pruned_parts)
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """The body's normalised tokens, [B, L, D]."""
        return self.body.forward_features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The body's classifier."""
        return self.body.forward_head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {f"body.{name}" for name in self.body.no_weight_decay()}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates: the body's, and the neck with the last of them."""
        stem = r"^body\.(?:patch_embed|pos_embed|cls_token)"
        return {"stem": stem, "blocks": [(r"^body\.blocks\.(\d+)", None), (r"", (99999,))]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.body.set_grad_checkpointing(enable)

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.body.get_classifier()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.body.reset_classifier(num_classes, global_pool)
        self.num_classes = num_classes


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Entries of a pyramid: the neck's as they are, all others as the body's family names them."""
    assert isinstance(model, IsotropicPyramid)
    neck = {key: value for key, value in state_dict.items() if key.startswith("neck.")}
    rest = {key.removeprefix("body."): value for key, value in state_dict.items() if key not in neck}
    return neck | {f"body.{key}": value for key, value in family_filter(model.body)(rest, model.body).items()}
