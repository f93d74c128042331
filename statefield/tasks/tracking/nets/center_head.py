"""The head that finds one object on a map: where its centre is, how large it is, and the rest below a cell's size."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

__all__ = ["CenterHead", "CenterMaps"]

_LEAST = 1e-4  # scores and sizes stay off 0 and 1, where the focal loss has no gradient


@dataclass(frozen=True)
class CenterMaps:
    """What the head says of every cell of a map of side h by w.

    Attributes:
        score: [B, 1, h, w], within (0, 1): how likely the object's centre lies in the cell.
        size: [B, 2, h, w], within (0, 1): width and height, as shares of the image's.
        offset: [B, 2, h, w]: the centre's place right of and below the cell's corner, in cells.
    """

    score: Tensor
    size: Tensor
    offset: Tensor

    def boxes(self, response: Tensor | None = None) -> Tensor:
        """The box at the best cell, [B, 4]: centre x, centre y, width, height as shares of the image's sides.

        Args:
            response: [B, 1, h, w], what the best cell is chosen by: the score, unless it is weighted first.
        """
        chosen = self.score if response is None else response
        height, width = chosen.shape[-2:]
        cell = chosen.flatten(1).argmax(1)
        size = _at(self.size, cell)
        offset = _at(self.offset, cell)
        x = (cell % width + offset[:, 0]) / width
        y = (torch.div(cell, width, rounding_mode="floor") + offset[:, 1]) / height
        return torch.stack((x, y, size[:, 0], size[:, 1]), dim=1)


def _at(maps: Tensor, cell: Tensor) -> Tensor:
    """[B, 2, h, w] at one cell of each, [B, 2]."""
    return maps.flatten(2).gather(2, cell[:, None, None].expand(-1, maps.shape[1], 1)).squeeze(2)


class CenterHead(nn.Module):
    """Three branches of convolutions over one map: [B, C, h, w] -> `CenterMaps`.

    Args:
        in_channels: C. channels: of the first convolution; each of the next three has half as many.

    Source: OSTrack (arXiv 2203.11991), `CenterPredictor`, as MambaEVT has it (Event-AHU/MambaEVT at a9f2573).
    """

    def __init__(self, in_channels: int, channels: int = 256) -> None:
        super().__init__()
        self.score = _branch(in_channels, channels, 1)
        self.size = _branch(in_channels, channels, 2)
        self.offset = _branch(in_channels, channels, 2)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        last = self.score[-1]
        assert isinstance(last, nn.Conv2d) and last.bias is not None
        # Scores begin near 0.1, CenterNet's prior, and not at 0.5 as the authors': one cell of 256 has the centre, and
        # the first steps would only lower all others.
        nn.init.constant_(last.bias, -2.19)

    def forward(self, x: Tensor) -> CenterMaps:
        return CenterMaps(score=_bounded(self.score(x)), size=_bounded(self.size(x)), offset=self.offset(x))


def _branch(in_channels: int, channels: int, out_channels: int) -> nn.Sequential:
    widths = [in_channels, *(channels >> step for step in range(4))]
    layers: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())
        for before, after in pairwise(widths)
    ]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], out_channels, 1))


def _bounded(logits: Tensor) -> Tensor:
    return logits.sigmoid().clamp(_LEAST, 1 - _LEAST)
