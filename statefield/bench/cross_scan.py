"""The routed scan by the means that others use: cross-scan (copies of the map), one scan of them all, cross-merge.

The copies stand side by side as K E channels, so that our own `selective_scan` runs them in one call with parameters
for each route. delta, B and C are taken to be in the order of the routes already and cost nothing, as in VMamba, which
projects after its cross-scan. What the way of copies costs is the copies of x, the scan, and the merge of its outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from statefield.kernels import selective_scan
from statefield.kernels.routes import route_order

CROSS = ("raster", "raster~", "column", "column~")


@dataclass(frozen=True)
class CrossScan:
    """Cross-scan, scan and merge on maps of `height` x `width`, along CROSS.

    Attributes:
        by_views: gather by transposing and flipping views, as VMamba does in PyTorch; otherwise by one index_select.
            The merge goes by views either way: by index_select or index_add it took two to six times as long.
    """

    height: int
    width: int
    by_views: bool

    def in_route_order(self, x: Tensor) -> Tensor:
        """[b, H, W, K, ...], each route's own, to [b, L, K, ...] with axis 1 in the order of the route."""
        tokens = x.flatten(1, 2)
        return torch.stack([tokens[:, order, k] for k, order in enumerate(self._orders)], dim=2)

    def __call__(
        self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor
    ) -> Tensor:
        """Args: x [b, H, W, E]; delta [b, L, K, E], B, C [b, L, K, N] in route order; A [K, E, N]; D, delta_bias
        [K, E]. Returns: [b, H, W, E]."""
        sequences = self._gathered(x).flatten(2)
        parameters = (A.flatten(0, 1), B, C, D.flatten(), None, delta_bias.flatten())
        y = selective_scan(sequences, delta.flatten(2), *parameters, True, layout="bld")
        return self._merged(y.unflatten(2, delta.shape[2:]))

    def _gathered(self, x: Tensor) -> Tensor:  # [b, L, K, E]
        tokens = x.flatten(1, 2)
        if self.by_views:
            columns = x.transpose(1, 2).flatten(1, 2)
            return torch.stack([tokens, tokens.flip(1), columns, columns.flip(1)], dim=2)
        return tokens.index_select(1, self._walked).unflatten(1, (-1, len(CROSS)))

    def _merged(self, y: Tensor) -> Tensor:
        rows = y[:, :, 0] + y[:, :, 1].flip(1)
        columns = (y[:, :, 2] + y[:, :, 3].flip(1)).unflatten(1, (self.width, self.height))
        return rows.unflatten(1, (self.height, self.width)) + columns.transpose(1, 2)

    @cached_property
    def _orders(self) -> list[Tensor]:
        return [route_order(name, (self.height, self.width)) for name in CROSS]

    @cached_property
    def _walked(self) -> Tensor:
        """The token of each row of [b, L K, E] in route order."""
        return torch.stack(self._orders, dim=1).flatten()
