"""What the target has looked like: a short and a long library of templates, after THOR, as MambaEVT keeps them.

    every crop of the target -> short library: the last few, whatever they show
                             -> long library: those that differ most, if they are still the target
    dynamic template = the net's encoding of the library that holds the crop most like the present one

Symbols   M templates of a library · L tokens of a template · D channels · G[i, j] similarity of templates i and j
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from statefield.errors import ConfigError

__all__ = ["TemplateMemory", "similarity"]


def similarity(one: Tensor, other: Tensor) -> float:
    """How alike two templates' features are: channels correlated over tokens, [L, D] and [L, D] -> at most L - 1.

    The sum over tokens of products of standardised values (standard deviation with L - 1), meaned over channels.
    Equal features give L - 1: 63 for the 64 tokens of a 128 x 128 template.
    """
    return (_standardised(one) * _standardised(other)).sum(0).mean().item()


def _standardised(feature: Tensor) -> Tensor:
    return (feature - feature.mean(0)) / feature.std(0)


class _Library:
    """Templates [M, C, H, W], their features, their similarities and when each was taken."""

    def __init__(self, crop: Tensor, feature: Tensor, capacity: int) -> None:
        self.crops = [crop] * capacity
        self.features = [feature] * capacity
        self.frames = [0] * capacity
        self.gram = torch.full((capacity, capacity), similarity(feature, feature), dtype=torch.float64)
        self.encoded: Tensor | None = None  # of these crops; None when they changed since

    def similarities(self, feature: Tensor) -> Tensor:
        """To each template, [M]."""
        return torch.tensor([similarity(one, feature) for one in self.features], dtype=torch.float64)

    def place(self, slot: int, crop: Tensor, feature: Tensor, frame: int) -> None:
        self.crops[slot], self.features[slot], self.frames[slot] = crop, feature, frame
        self.encoded = None


class ShortTermLibrary(_Library):
    """The last M crops."""

    def append(self, crop: Tensor, feature: Tensor, frame: int) -> None:
        self.crops.append(self.crops.pop(0))
        self.features.append(self.features.pop(0))
        self.frames.append(self.frames.pop(0))
        self.place(-1, crop, feature, frame)
        similar = self.similarities(feature)
        self.gram = self.gram.roll((-1, -1), (0, 1))
        self.gram[-1] = similar
        # The authors' code writes the column one place too high, so neighbours in time count as equal in what
        # `likeness` sums; the trained thresholds go with it.
        self.gram[:-1, -1] = similar[1:]

    def likeness(self) -> float:
        """The mean similarity of two of the templates, as a share of that of equal ones (`normed_div_measure`)."""
        count = self.gram.shape[0]
        return (self.gram.triu(1).sum() / (self.gram[0, 0] * count * (count - 1) / 2)).item()


class LongTermLibrary(_Library):
    """Up to M crops that span as large a volume of features as possible; the first one always stays."""

    def __init__(self, crop: Tensor, feature: Tensor, capacity: int, lower_bound: float) -> None:
        super().__init__(crop, feature, capacity)
        self.lower_bound = lower_bound
        self.filled = 1

    def offer(self, crop: Tensor, feature: Tensor, frame: int, likeness: float) -> None:
        """Take the crop where it is still like the first one, and there is room or it widens the volume.

        Args: likeness: of the short library; the less alike its crops, the lower the bound.
        """
        similar = self.similarities(feature)
        bound = min(max(self.lower_bound - (1 - likeness), 0.0), 1.0)
        if similar[0] < bound * self.gram[0, 0]:
            return
        itself = (feature * feature).sum().item()  # not standardised: the authors' diagonal has another scale
        if self.filled < len(self.crops):
            slot, self.filled = self.filled, self.filled + 1
            self.gram = _with(self.gram, slot, similar, itself)
        else:
            candidates = torch.stack([_with(self.gram, slot, similar, itself) for slot in range(1, len(self.crops))])
            volumes = torch.linalg.slogdet(torch.cat((self.gram[None], candidates)))
            volumes_log = torch.where(volumes.sign > 0, volumes.logabsdet, -torch.inf)
            slot = int(volumes_log[1:].argmax()) + 1
            if not volumes_log[slot] > volumes_log[0]:
                return
            self.gram = candidates[slot - 1]
        self.place(slot, crop, feature, frame)


def _with(gram: Tensor, slot: int, similar: Tensor, itself: float) -> Tensor:
    """The similarities with another template in `slot`."""
    changed = gram.clone()
    changed[slot] = similar
    changed[:, slot] = similar
    changed[slot, slot] = itself
    return changed


class TemplateMemory:
    """The dynamic template of one target, frame by frame.

    Args:
        encode: from templates [1, M, C, H, W] to tokens [1, L, D]: `MambaEVT.encode_templates`, in evaluation.
        short_capacity, long_capacity: templates in each library.
        interval: frames between updates. The paper has 5; in the authors' code a counter stands still and every frame
            updates, with which its figures were measured: the default.
        lower_bound: how unlike the first template a new one may be, as a share.

    Source: MambaEVT (arXiv 2408.10487), section III-C; Event-AHU/MambaEVT at a9f2573, lib/models/thor; THOR (arXiv
    1907.12920).
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        *,
        short_capacity: int = 6,
        long_capacity: int = 16,
        interval: int = 1,
        lower_bound: float = 0.35,
    ) -> None:
        if short_capacity < 2 or long_capacity < 2 or interval < 1:
            raise ConfigError(
                f"a memory of {short_capacity} and {long_capacity} templates, updated every {interval} frames: two "
                "templates each, and one frame, are the least."
            )
        self.encode, self.interval, self.lower_bound = encode, interval, lower_bound
        self.capacities = (short_capacity, long_capacity)
        self.chosen: Literal["short", "long"] = "short"

    @torch.no_grad()
    def start(self, crop: Tensor) -> Tensor:
        """Begin with the first template, [C, H, W]; the dynamic template of it, [1, L, D]."""
        feature = self.encode(crop[None, None])[0]
        self.short = ShortTermLibrary(crop, feature, self.capacities[0])
        self.long = LongTermLibrary(crop, feature, self.capacities[1], self.lower_bound)
        return self._encoded(self.short)

    @torch.no_grad()
    def observe(self, crop: Tensor, frame: int) -> Tensor:
        """The dynamic template [1, L, D] after what the target looks like now, [C, H, W].

        Args: frame: its number; the libraries change where `interval` divides it.
        """
        feature = self.encode(crop[None, None])[0]
        if frame % self.interval == 0:
            self.short.append(crop, feature, frame)
            self.long.offer(crop, feature, frame, self.short.likeness())
        nearest = [library.similarities(feature).max() for library in (self.short, self.long)]
        self.chosen = "short" if nearest[0] >= nearest[1] else "long"
        return self._encoded(self.short if self.chosen == "short" else self.long)

    def _encoded(self, library: _Library) -> Tensor:
        if library.encoded is None:
            library.encoded = self.encode(torch.stack(library.crops)[None])
        return library.encoded
