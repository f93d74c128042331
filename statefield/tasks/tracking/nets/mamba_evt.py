"""MambaEVT (arXiv 2408.10487): one object followed through event frames, its template renewed as it changes.

    templates seen before -> patches -> Vim -> the last 64 tokens = dynamic template
    [first template, dynamic template, search region] -> patches + positions -> Vim -> search tokens -> centre head

One Vim serves both branches. Facts were taken from Event-AHU/MambaEVT at commit a9f2573; the tests compare with numbers
that its code computes. The paper's MambaEVT-P has a second Mamba for the dynamic branch; it was not published. On RGB
frames it is the same net.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from timm.layers import lecun_normal_, trunc_normal_
from torch import Tensor, nn

from statefield.backbones._isotropic import PatchEmbed
from statefield.backbones.vim import VimBlock
from statefield.backbones.vim import rename_official_key as _rename_vim_key
from statefield.errors import ConfigError, ShapeError
from statefield.tasks.tracking.nets.center_head import CenterHead, CenterMaps
from statefield.tasks.tracking.nets.gated_convolution import GatedConvolution

__all__ = ["MambaEVT"]


class MambaEVT(nn.Module):
    """A template, what the target looked like since, and a region to search -> maps of centre, size and offset.

    Args:
        in_channels: of templates and search regions.
        template_size, search_size: sides in pixels, multiples of `patch_size`.
        dim: D. num_layers: blocks. d_state: N. expand: inner channels of a mixer over D.
        head_channels: of the head's first convolution.
        drop_path_rate: the probability that a training sample leaves out the last block: the authors' code builds
            rising rates and applies this one alone.
        convolution: gated convolutions over the tokens in place of the scans, of as many weights: a control.

    Raises:
        ConfigError: a side that is no multiple of `patch_size`.

    Defaults are the paper's: Vim-S, 29.3 M parameters.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        template_size: int = 128,
        search_size: int = 256,
        patch_size: int = 16,
        dim: int = 384,
        num_layers: int = 24,
        d_state: int = 16,
        expand: float = 2.0,
        head_channels: int = 256,
        drop_path_rate: float = 0.1,
        convolution: bool = False,
    ) -> None:
        super().__init__()
        for name, side in (("template_size", template_size), ("search_size", search_size)):
            if side < patch_size or side % patch_size:
                raise ConfigError(f"{name} {side}: a multiple of patch_size {patch_size} is needed.")
        self.in_channels, self.template_size, self.search_size = in_channels, template_size, search_size
        self.search_grid = search_size // patch_size
        self.template_tokens = (template_size // patch_size) ** 2
        self.patch_embed = PatchEmbed(in_channels, dim, patch_size)
        self.pos_embed_search = nn.Parameter(torch.zeros(1, self.search_grid**2, dim))
        self.pos_embed_static = nn.Parameter(torch.zeros(1, self.template_tokens, dim))
        self.pos_embed_dynamic = nn.Parameter(torch.zeros(1, self.template_tokens, dim))
        rates = [0.0] * (num_layers - 1) + [drop_path_rate]
        self.blocks = nn.ModuleList(VimBlock(dim, d_state=d_state, expand=expand, drop_path=rate) for rate in rates)
        if convolution:
            for block in self.blocks:
                assert isinstance(block, VimBlock)
                block.add_module("mixer", GatedConvolution.as_large_as(block.mixer))
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head = CenterHead(dim, head_channels)
        self._init_weights()

    def _init_weights(self) -> None:
        lecun_normal_(self.patch_embed.proj.weight)
        assert self.patch_embed.proj.bias is not None
        nn.init.zeros_(self.patch_embed.proj.bias)
        for positions in (self.pos_embed_search, self.pos_embed_static, self.pos_embed_dynamic):
            trunc_normal_(positions, std=0.02)  # zeros in the authors' code, which begins with trained weights
        with torch.no_grad():
            for block in self.blocks:
                assert isinstance(block, VimBlock)
                block.mixer.out_proj.weight /= len(self.blocks) ** 0.5

    def tokens(self, image: Tensor, side: int) -> Tensor:
        """Patches of an image [B, C, side, side] row by row, [B, L, D], without positions."""
        if image.ndim != 4 or tuple(image.shape[1:]) != (self.in_channels, side, side):
            raise ShapeError(
                f"MambaEVT got an image of shape {list(image.shape)} and needs [B, {self.in_channels}, {side}, {side}]."
            )
        return self.patch_embed(image).flatten(1, 2)

    def _through_blocks(self, tokens: Tensor) -> Tensor:
        grid = (tokens.shape[1], 1)
        for block in self.blocks:
            tokens = block(tokens, grid)
        return self.norm(tokens)

    def encode_templates(self, templates: Tensor) -> Tensor:
        """The dynamic template, [B, 64, D], of M templates in order, [B, M, C, H, W].

        They have no positions: what comes last is what the recurrence has read all others before.
        In training their order is drawn anew for every sample.
        """
        if templates.ndim != 5:
            raise ShapeError(f"templates of shape {list(templates.shape)}: [B, M, C, H, W] is needed.")
        batch, count = templates.shape[:2]
        if self.training and count > 1:
            order = torch.rand(batch, count, device=templates.device).argsort(1)
            templates = templates[torch.arange(batch, device=templates.device)[:, None], order]
        tokens = self.tokens(templates.flatten(0, 1), self.template_size).unflatten(0, (batch, count)).flatten(1, 2)
        return self._through_blocks(tokens)[:, -self.template_tokens :]

    def joint_tokens(self, static: Tensor, dynamic: Tensor, search: Tensor) -> Tensor:
        """Normalised tokens of first template, dynamic template and search region, in this order."""
        parts = (
            self.tokens(static, self.template_size) + self.pos_embed_static,
            dynamic + self.pos_embed_dynamic,
            self.tokens(search, self.search_size) + self.pos_embed_search,
        )
        return self._through_blocks(torch.cat(parts, dim=1))

    def forward(self, static: Tensor, dynamic: Tensor, search: Tensor) -> CenterMaps:
        """Find the target of a template in a search region.

        Args:
            static: the first template, [B, C, H, W].
            dynamic: what `encode_templates` made of the templates since, [B, 64, D].
            search: [B, C, H', W'].
        """
        found = self.joint_tokens(static, dynamic, search)[:, -(self.search_grid**2) :]
        return self.head(found.transpose(1, 2).unflatten(2, (self.search_grid, self.search_grid)))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that drive the recurrences, and the positions."""
        return {name for name, _ in self.named_parameters() if name.endswith((".A_log", ".D")) or "pos_embed" in name}


UNUSED_ENTRIES = re.compile(r"(^|\.)cls_token$")  # the authors' backbone has a class token and never reads it

_BRANCHES = {"ctr": "score", "size": "size", "offset": "offset"}
_POSITIONS = {"pos_embed_x": "pos_embed_search", "pos_embed_z": "pos_embed_static"} | {
    "pos_embed_dynamic_z": "pos_embed_dynamic"
}


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("box_head.conv3_ctr.1.running_var")
    'head.score.2.1.running_var'
    >>> rename_official_key("backbone.layers.3.mixer.A_b_log")
    'blocks.3.mixer.backwards.A_log'
    """
    if found := re.fullmatch(r"box_head\.conv(\d)_(ctr|size|offset)\.(.*)", key):
        layer, branch, rest = found.groups()
        return f"head.{_BRANCHES[branch]}.{int(layer) - 1}.{rest}"
    key = key.removeprefix("backbone.")
    return _POSITIONS.get(key) or _rename_vim_key(key)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict under our names: renames only."""
    return {rename_official_key(key): value for key, value in state_dict.items()}
