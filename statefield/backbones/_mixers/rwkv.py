"""RWKV's mixers on maps: bidirectional WKV for the exchange between tokens, a gated MLP for channels.

Both look at each token beside its four neighbours: a quarter of the channels is taken from each (q-shift).
Symbols   B batch · H, W map · T = H W tokens · C channels
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._mixers.scanning import Scanning
from statefield.errors import ConfigError
from statefield.kernels import wkv


def quad_shift(x: Tensor, pixels: int = 1, share: float = 0.25) -> Tensor:
    """Channels in four groups, each moved by `pixels` across the map; zeros come in at the border.

    Args:
        x: [B, H, W, C]. share: of the channels in each group, at most 1/4, bounds rounded down; those that four such
            groups leave over stay in place.

    The first group takes its values from the left neighbour, the second from the right, the third from above, the
    fourth from below.

    >>> quad_shift(torch.arange(1.0, 4.0).reshape(1, 1, 3, 1).expand(1, 1, 3, 4))[0, 0].T.tolist()
    [[0.0, 1.0, 2.0], [2.0, 3.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    bounds = [int(x.shape[-1] * share * group) for group in range(5)]
    left, right, above, below = (x[..., start:stop] for start, stop in pairwise(bounds))
    moved = [
        functional.pad(left, (0, 0, pixels, -pixels)),
        functional.pad(right, (0, 0, -pixels, pixels)),
        functional.pad(above, (0, 0, 0, 0, pixels, -pixels)),
        functional.pad(below, (0, 0, 0, 0, -pixels, pixels)),
        x[..., bounds[-1] :],
    ]
    return torch.cat(moved, dim=-1)


class Mixing(nn.Module):
    """What both mixers share: the q-shift, and shares of it that are learned by channel.

    Args:
        channels: C. layer, num_layers: which block of how many, for the initial values.
        shift_pixels: of the q-shift; 0 for none, and then no shares either. shift_share: see `quad_shift`.
    """

    def __init__(self, channels: int, layer: int, num_layers: int, shift_pixels: int, shift_share: float) -> None:
        super().__init__()
        if not 0 <= shift_share <= 0.25:
            raise ConfigError(
                f"shift_share {shift_share}: each of four groups takes at most a quarter of the channels."
            )
        if not 0 <= layer < num_layers:
            raise ConfigError(f"layer {layer}: the blocks are numbered 0 to {num_layers - 1}.")
        self.channels, self.shift_pixels, self.shift_share = channels, shift_pixels, shift_share
        self.depth = layer / max(num_layers - 1, 1)  # 0 for the first block, 1 for the last
        self.rest = 1 - layer / num_layers  # 1 for the first block, nearly 0 for the last

    def ramp(self) -> Tensor:
        """0 to nearly 1 over the channels, [1, 1, C]."""
        return torch.arange(self.channels).div(self.channels).reshape(1, 1, -1)

    def new_share(self) -> nn.Parameter | None:
        return nn.Parameter(torch.empty(1, 1, self.channels)) if self.shift_pixels else None

    def mixed(self, x: Tensor, *shares: Tensor | None) -> list[Tensor]:
        """x [B, H, W, C] mixed with its shift, once for each share [1, 1, C] of x in the mixture."""
        if not self.shift_pixels:
            return [x] * len(shares)
        shifted = quad_shift(x, self.shift_pixels, self.shift_share)
        difference = x - shifted
        return [x if share is None else shifted + share * difference for share in shares]


class SpatialMix(Mixing, Scanning):
    """Tokens exchange values: for each the mean of all, weighted by keys and distance, behind a gate.

        k, v, r = linear layers of x mixed with its shift      out = output(sigmoid(r) * norm(wkv(k, v)))

    Args: as for `Mixing`, and
        key_norm: a LayerNorm of what WKV gives.
        gradient: of WKV, see `statefield.kernels.wkv`: "official" repeats the authors' backward pass.

    WKV is what the authors' kernels compute (mode "kernel"), which differs a little from their formula; their weights
    were trained with it. Positions are counted row by row, and decay is by the count of tokens in the image.

    Shape: [B, H, W, C] -> [B, H, W, C].
    Source: Vision-RWKV (arXiv 2403.02308), section 3.2; OpenGVLab/Vision-RWKV, VRWKV_SpatialMix.
    """

    scan_parameters = ("spatial_decay", "spatial_first", "spatial_mix_k", "key")

    def __init__(
        self,
        channels: int,
        *,
        layer: int = 0,
        num_layers: int = 12,
        shift_pixels: int = 1,
        shift_share: float = 0.25,
        key_norm: bool = False,
        gradient: Literal["exact", "official"] = "exact",
    ) -> None:
        super().__init__(channels, layer, num_layers, shift_pixels, shift_share)
        self.gradient: Literal["exact", "official"] = gradient
        self.spatial_decay = nn.Parameter(torch.empty(channels))
        self.spatial_first = nn.Parameter(torch.empty(channels))
        self.spatial_mix_k = self.new_share()
        self.spatial_mix_v = self.new_share()
        self.spatial_mix_r = self.new_share()
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.key_norm: nn.Module = nn.LayerNorm(channels) if key_norm else nn.Identity()
        self.output = nn.Linear(channels, channels, bias=False)
        self.reset_mixing()

    @torch.no_grad()
    def reset_mixing(self) -> None:
        """The authors' "fancy" initial values: from near to far over channels, from shifted to not over depth."""
        channel = torch.arange(self.channels)
        self.spatial_decay.copy_(8 * (channel / max(self.channels - 1, 1)) ** (0.7 + 1.3 * self.depth) - 5)
        self.spatial_first.copy_(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        if self.spatial_mix_k is not None and self.spatial_mix_v is not None and self.spatial_mix_r is not None:
            self.spatial_mix_k.copy_(self.ramp() ** self.rest)
            self.spatial_mix_v.copy_(self.ramp() ** self.rest + 0.3 * self.depth)
            self.spatial_mix_r.copy_(self.ramp() ** (0.5 * self.rest))

    def forward(self, x: Tensor) -> Tensor:
        grid = (x.shape[1], x.shape[2])
        if not self.scans:
            mixed_v, mixed_r = self.mixed(x, self.spatial_mix_v, self.spatial_mix_r)
            return self.output(torch.sigmoid(self.receptance(mixed_r)) * self.key_norm(self.value(mixed_v)))
        mixed_k, mixed_v, mixed_r = self.mixed(x, self.spatial_mix_k, self.spatial_mix_v, self.spatial_mix_r)
        k, v, r = (
            linear(mixture).flatten(1, 2)
            for linear, mixture in ((self.key, mixed_k), (self.value, mixed_v), (self.receptance, mixed_r))
        )
        T = grid[0] * grid[1]
        y = wkv(self.spatial_decay / T, self.spatial_first / T, k, v, mode="kernel", gradient=self.gradient)
        return self.output(torch.sigmoid(r) * self.key_norm(y)).unflatten(1, grid)


class ChannelMix(Mixing):
    """Channels are mixed within a token: out = sigmoid(receptance(x)) * value(norm(relu(key(x))^2)), x with its shift.

    Args: as for `Mixing`, and
        expand: hidden channels over C. key_norm: a LayerNorm of the hidden channels.

    Shape: [B, H, W, C] -> [B, H, W, C].
    Source: as for `SpatialMix`, VRWKV_ChannelMix.
    """

    def __init__(
        self,
        channels: int,
        *,
        layer: int = 0,
        num_layers: int = 12,
        expand: float = 4.0,
        shift_pixels: int = 1,
        shift_share: float = 0.25,
        key_norm: bool = False,
    ) -> None:
        super().__init__(channels, layer, num_layers, shift_pixels, shift_share)
        hidden = int(expand * channels)
        self.spatial_mix_k = self.new_share()
        self.spatial_mix_r = self.new_share()
        self.key = nn.Linear(channels, hidden, bias=False)
        self.key_norm: nn.Module = nn.LayerNorm(hidden) if key_norm else nn.Identity()
        self.receptance = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(hidden, channels, bias=False)
        self.reset_mixing()

    @torch.no_grad()
    def reset_mixing(self) -> None:
        """The authors' "fancy" initial values."""
        for mix in (self.spatial_mix_k, self.spatial_mix_r):
            if mix is not None:
                mix.copy_(self.ramp() ** self.rest)

    def forward(self, x: Tensor) -> Tensor:
        mixed_k, mixed_r = self.mixed(x, self.spatial_mix_k, self.spatial_mix_r)
        hidden = torch.relu(self.key(mixed_k)).square()
        return torch.sigmoid(self.receptance(mixed_r)) * self.value(self.key_norm(hidden))
