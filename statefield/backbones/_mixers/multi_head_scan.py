"""MHS-VM's mixer: the channels are shared out to heads, each scans the map along two routes of its own, both ways.

Symbols   B batch · H, W map · C channels of the block · s = C / heads · N states a channel · R rank of the step size
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import DepthwiseConv
from statefield.backbones._mixers.recurrences import Recurrences
from statefield.errors import ConfigError

HEAD_ROUTES = (  # in the order in which the authors' heads lie: C, X, S, Z
    ("snake", "column_snake"),
    ("zigzag", "zigzag_from_right"),
    ("spiral", "spiral_from_bottom"),
    ("raster", "column"),
)


class ScanHead(Recurrences):
    """Two routes and their reverses over a map, and what they agree on taken away (the paper's gated fusion).

        out = sum_k y_k * relu(std_k / (mean_k - min_k + 1e-5) - threshold)      over the four routes k, value by value

    Args:
        channels: s. routes: the two. d_state: N. threshold: of the relative spread below which a value is dropped.

    Without its scans a head is the identity: the fusion keeps what routes differ in, which would be nothing.

    Shape: [B, H, W, s] -> [B, H, W, s].
    """

    def __init__(self, channels: int, routes: tuple[str, str], *, d_state: int = 16, threshold: float = 0.5) -> None:
        super().__init__(channels, 2 * len(routes), d_state=d_state, dt_rank=math.ceil(channels / 16))
        self.routes = tuple(name for route in routes for name in (route, f"{route}~"))
        self.threshold = threshold
        self.reset_ssm_parameters()

    def scan(self, u: Tensor) -> Tensor:
        """Each route by itself, [B, H, W, s] -> [B, H, W, 4, s]: the first, its reverse, the second, its reverse."""
        return self.scan_along(self.routes, u, merge=False)

    def fuse(self, y: Tensor) -> Tensor:
        """[B, H, W, 4, s] -> [B, H, W, s]."""
        deviation = y.std(dim=-2)
        above = (y - y.amin(dim=-2, keepdim=True)).mean(dim=-2)
        return y.sum(dim=-2) * functional.relu(deviation / (above + 1e-5) - self.threshold)

    def forward(self, u: Tensor) -> Tensor:
        return self.fuse(self.scan(u)) if self.scans else u


class MultiHeadScan(nn.Module):
    """Heads side by side behind one projection, and another projection behind them; [B, H, W, C] -> [B, H, W, C].

    Args:
        channels: C. heads: 1 to 4 of `HEAD_ROUTES`; each has C // heads channels.
        d_state, threshold: as for `ScanHead`.
    """

    def __init__(self, channels: int, *, heads: int = 4, d_state: int = 16, threshold: float = 0.5) -> None:
        super().__init__()
        if not 1 <= heads <= min(len(HEAD_ROUTES), channels):
            raise ConfigError(
                f"MultiHeadScan: {heads} heads over {channels} channels: give 1 to {len(HEAD_ROUTES)} heads and at "
                "least one channel for each."
            )
        share = channels // heads
        self.in_proj = nn.Linear(channels, share * heads, bias=False)
        self.heads = nn.ModuleList(
            ScanHead(share, routes, d_state=d_state, threshold=threshold) for routes in HEAD_ROUTES[:heads]
        )
        self.norm = nn.LayerNorm(share * heads)
        self.out_proj = nn.Linear(share * heads, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.in_proj(x).chunk(len(self.heads), dim=-1)
        scanned = [head(share) for head, share in zip(self.heads, shares, strict=True)]
        return self.out_proj(self.norm(torch.cat(scanned, dim=-1)))


class MultiHeadScanMixer(nn.Module):
    """A convolution, the heads, and a gate: norm(heads(silu(conv(x)))) * silu(z), without a projection out of it.

    Args: as for `MultiHeadScan`.

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W.
    Source: MHS-VM (arXiv 2406.05992); PixDeep/MHS-VM, VSSGate and MHSM. The authors' routes are fixed for one size of
    image; ours are made for any.
    """

    def __init__(self, channels: int, *, heads: int = 4, d_state: int = 16, threshold: float = 0.5) -> None:
        super().__init__()
        self.in_proj = nn.Linear(channels, 2 * channels, bias=False)
        self.conv = DepthwiseConv(channels)
        self.scan = MultiHeadScan(channels, heads=heads, d_state=d_state, threshold=threshold)
        self.out_norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        return self.out_norm(self.scan(functional.silu(self.conv(x)))) * functional.silu(gate)
