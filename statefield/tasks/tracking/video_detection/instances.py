"""The box head of MAMBA: two layers over what is pooled for each proposal, each followed by a look at the memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.tasks.tracking.nets import MemoryAggregation, MemoryBank

__all__ = ["InstanceHead"]


class InstanceHead(nn.Module):
    """Pooled proposals [N, C, 7, 7] -> features [N, width]: twice `x = fc(x); x = relu(x + aggregation(x, memory))`.

    Without aggregations it is torchvision's TwoMLPHead: the control, in which each frame stands by itself.

    Args:
        in_features: C * 7 * 7. width: of both layers.
        aggregations: one for each layer, or none. kept: proposals of a frame that are remembered, the first ones.

    Source: `MambaBBoxHead` of guanxiongsun/vfe.pytorch at a44d847, the order of its operations.
    """

    num_layers = 2

    def __init__(self, in_features: int, width: int, aggregations: Sequence[MemoryAggregation], kept: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(in_features, width), nn.Linear(width, width)])
        self.aggregations = nn.ModuleList(aggregations)
        self.kept = kept

    def forward(self, pooled: Sequence[Tensor], references: Sequence[Tensor] | None = None) -> Tensor:
        """For training: features of all proposals, those of each key frame enhanced by its own references.

        Args:
            pooled: of each key frame, [N, C, 7, 7].
            references: pooled proposals of its references, [M, C, 7, 7], which may be none; not looked at without
                aggregations.
        """
        if not self.aggregations or references is None:
            x = torch.cat(list(pooled)).flatten(1)
            for layer in self.layers:
                x = functional.relu(layer(x))
            return x
        return torch.cat([self._enhanced(one, other) for one, other in zip(pooled, references, strict=True)])

    def _enhanced(self, pooled: Tensor, references: Tensor) -> Tensor:
        x, reference = pooled.flatten(1), references.flatten(1)
        for layer, aggregation in zip(self.layers, self.aggregations, strict=True):
            x, reference = layer(x), layer(reference)
            x = functional.relu(x + aggregation(x, reference) if len(reference) else x)
            reference = functional.relu(reference)
        return x

    def remember(self, pooled: Tensor) -> None:
        """Write the proposals [N, C, 7, 7] of a reference frame into the banks, as they are."""
        x = pooled[: self.kept].flatten(1)
        for layer, aggregation in zip(self.layers, self.aggregations, strict=False):
            x = layer(x)
            _bank(aggregation).write(x)
            x = functional.relu(x)

    def follow(self, pooled: Tensor, *, is_first: bool) -> Tensor:
        """For use: features of a frame's proposals, best first, enhanced by the memory, which they then join.

        The first frame of a video is written before it looks: its own proposals are all there may be.
        """
        x = pooled.flatten(1)
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if self.aggregations:
                bank = _bank(self.aggregations[index])
                if is_first:
                    bank.write(x[: self.kept])
                if len(bank) and len(x):
                    x = x + self.aggregations[index](x)
                bank.write(x[: self.kept])
            x = functional.relu(x)
        return x

    def forget(self) -> None:
        for aggregation in self.aggregations:
            _bank(aggregation).reset()


def _bank(aggregation: nn.Module) -> MemoryBank:
    assert isinstance(aggregation, MemoryAggregation)
    return aggregation.bank
