"""FC-Siam-diff (Daudt, Le Saux, Boulch, ICIP 2018; arXiv 1810.08462): a small convolutional U-Net of two dates.

    before -> 4 stages --+-> |difference| of each stage --+
    after  -> 4 stages --+-> deepest map ------------> 4 stages up -> logits

The control beside which nets of state spaces stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, cat, nn
from torch.nn import functional

from statefield.tasks.remote_sensing.nets.siamese import check_dates

__all__ = ["FCSiamDiff"]

_CONVOLUTIONS = (2, 2, 3, 3)  # of each stage, down and up


class FCSiamDiff(nn.Module):
    """Images before and after, each [B, C, H, W], -> raw logits [B, num_classes, H, W]; any sides.

    Stages shrink by 2 and round down; what is missing on the way up is filled by the edge. As in the authors' code the
    way up begins with the deepest map of the later date, so the order of the dates matters.

    Args:
        in_channels: C. num_classes: 2; class 1 is change. width: channels of the first stage, doubled at each.
        drop_rate: of whole channels, behind every convolution but the last.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 2, *, width: int = 16, drop_rate: float = 0.2) -> None:
        super().__init__()
        self.in_channels, self.multiple = in_channels, 2 ** len(_CONVOLUTIONS)
        widths = [width * 2**stage for stage in range(len(_CONVOLUTIONS))]
        self.down, self.up, self.enlarge = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for stage, count in enumerate(_CONVOLUTIONS):
            entering = widths[stage - 1] if stage else in_channels
            self.down.append(_stage([entering] + [widths[stage]] * count, drop_rate))
            # up again: from what is there and the difference, to the width of the next finer stage at the end
            leaving = widths[stage - 1] if stage else width
            channels = [2 * widths[stage]] + [widths[stage]] * (count - 1) + [leaving]
            self.up.append(_stage(channels if stage else channels[:-1], drop_rate))
            self.enlarge.append(
                nn.ConvTranspose2d(widths[stage], widths[stage], 3, stride=2, padding=1, output_padding=1)
            )
        self.classifier = nn.Conv2d(width, num_classes, 3, padding=1)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        check_dates(type(self).__name__, self.in_channels, before, after)
        height, width = before.shape[-2:]
        x = _filled(cat([before, after]), (max(height, self.multiple), max(width, self.multiple)))
        differences = []
        for stage in self.down:
            x = stage(x)
            first, second = x.unflatten(0, (2, -1))  # chunk(2) binds an exported graph to a batch
            differences.append((first - second).abs())
            x = functional.max_pool2d(x, 2)
        x = x.unflatten(0, (2, -1))[1]
        for enlarge, stage, difference in reversed(list(zip(self.enlarge, self.up, differences, strict=True))):
            x = stage(cat([_filled(enlarge(x), difference.shape[-2:]), difference], dim=1))
        return self.classifier(x)[..., :height, :width]


def _stage(channels: Sequence[int], drop_rate: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for entering, leaving in pairwise(channels):
        layers += [
            nn.Conv2d(entering, leaving, 3, padding=1),
            nn.BatchNorm2d(leaving),
            nn.ReLU(),
            nn.Dropout2d(drop_rate),
        ]
    return nn.Sequential(*layers)


def _filled(x: Tensor, sides: Sequence[int]) -> Tensor:
    """x [B, C, h, w] at larger sides, by its edge on the right and below."""
    missing = (0, sides[1] - x.shape[-1], 0, sides[0] - x.shape[-2])
    return functional.pad(x, missing, mode="replicate") if any(missing) else x
