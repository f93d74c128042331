"""EfficientVMamba's mixer: the map dealt out to four sub-grids, each scanned once, so that a pixel is visited once.

Symbols   B batch · H, W map · C channels of the block · E = expand C inner channels · N states a channel
          R rank of the step size · K = 4 sub-grids
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional

from statefield.backbones._blocks import DepthwiseConv, leading
from statefield.backbones._mixers.recurrences import Recurrences

# Even rows and columns; odd rows, even columns; even rows, odd columns; odd rows and columns.
SUBGRID_ROUTES = ("raster", "column", "raster", "column")


class AtrousScanMixer(Recurrences):
    """Selective scans of the four sub-grids of every second row and column (ES2D), gated.

    Args:
        channels: C. d_state: N. expand: E / C. dt_rank: R, ceil(C / 16).

    Shape: [B, H, W, C] -> [B, H, W, C], any H and W: odd sides are extended by zeros for the scan.
    Source: EfficientVMamba (arXiv 2403.09977), section 3.2; TerryPei/EfficientVMamba, step size 2.
    """

    def __init__(self, channels: int, *, d_state: int = 16, expand: float = 2.0, dt_rank: int | None = None) -> None:
        inner, rank = int(expand * channels), math.ceil(channels / 16) if dt_rank is None else dt_rank
        super().__init__(inner, len(SUBGRID_ROUTES), d_state=d_state, dt_rank=rank)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = DepthwiseConv(inner)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.reset_ssm_parameters()

    def scan(self, u: Tensor) -> Tensor:
        """Sub-grids u [B, h, w, K, E], each scanned by its own parameters along its own route."""
        return self.scan_along(SUBGRID_ROUTES, u, merge=False, apart=True)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        y = merge_subgrids(self.scan(split_subgrids(functional.silu(self.conv(x)))), height, width)
        return self.out_proj(self.out_norm(y) * functional.silu(gate))


def split_subgrids(x: Tensor) -> Tensor:
    """[B, H, W, E] -> [B, ceil(H/2), ceil(W/2), 4, E], the rows' parity changing fastest; zeros beyond the map."""
    x = functional.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5)
    return x.flatten(3, 4)


def merge_subgrids(x: Tensor, height: int, width: int) -> Tensor:
    """Undo `split_subgrids`: [B, h, w, 4, E] -> [B, height, width, E]."""
    x = x.unflatten(3, (2, 2)).permute(0, 1, 4, 2, 3, 5)
    return leading(leading(x.flatten(3, 4).flatten(1, 2), 1, height), 2, width)
