"""MAMBA (arXiv 2401.09923), video object detection: features of a frame enhanced by a memory of frames before.

    enhanced = x + fc(softmax(q(x) k(m)^T / sqrt(C / heads)) v(m)),    m a random part of the memory bank

"Multi-level Aggregation via Memory Bank": its name aside it is no state-space model. The level of instances
(proposals) was taken from guanxiongsun/vfe.pytorch at commit a44d847; the tests compare with numbers that its code
computes. The level of pixels was not published: `PixelAggregation` follows the paper's words; nothing else holds it.

Symbols   N features of a frame · M of the memory · C channels
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from statefield.errors import ConfigError, ShapeError

__all__ = ["MemoryAggregation", "MemoryBank", "PixelAggregation"]

Permute = Callable[[int, torch.device], Tensor]


def _random_permutation(count: int, device: torch.device) -> Tensor:
    return torch.randperm(count, device=device)


class MemoryBank:
    """Features of frames before, [M, C], of which a random part is read and, when full, a random part is forgotten.

    Args:
        max_length: features above which room is made: as many are forgotten as are added. Those of one frame may stand
            above it, as in the authors' code.
        key_length: at most so many are read at once.
        permute: a random order of so many places; torch's, seeded by the caller, unless a test brings its own.
    """

    def __init__(self, max_length: int = 20000, key_length: int = 2000, permute: Permute = _random_permutation) -> None:
        if not 0 < key_length <= max_length:
            raise ConfigError(f"a memory of {max_length} that reads {key_length}: from 1 to all of it can be read.")
        self.max_length, self.key_length, self.permute = max_length, key_length, permute
        self.features: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.features is None else self.features.shape[0]

    def reset(self) -> None:
        """Forget everything: a new video begins."""
        self.features = None

    def write(self, features: Tensor) -> None:
        """Add features [N, C]; they are detached, since no gradient goes back over frames."""
        features = features.detach()
        if self.features is None:
            self.features = features
            return
        if features.shape[1] != self.features.shape[1]:
            raise ShapeError(f"features of {features.shape[1]} channels in a memory of {self.features.shape[1]}.")
        kept = self.features
        if len(self) > self.max_length:
            kept = kept[self.permute(len(self), kept.device)[: max(len(self) - features.shape[0], 0)]]
        self.features = torch.cat((kept, features))

    def read(self) -> Tensor:
        """Up to `key_length` features [M, C].

        Raises:
            ConfigError: nothing was written since the last `reset`.
        """
        if self.features is None:
            raise ConfigError("the memory is empty: write the features of the first frame before it is read.")
        if len(self) <= self.key_length:
            return self.features
        return self.features[self.permute(len(self), self.features.device)[: self.key_length]]


class MemoryAggregation(nn.Module):
    """The generalised enhancement operation over a bank of its own: [N, C] -> what is to be added, [N, C].

    A new one adds nothing: its output layer begins at zero, so a detector begins as the one without a memory and learns
    what to add. The authors' is drawn as torch draws layers; their encoder knows ImageNet, and its features mean
    something from the first step. Those of an untrained encoder do not, and what is added is noise that the layers
    behind have to learn through.

    Args:
        channels: C, a multiple of `heads`. heads: of the attention. bank: its memory, one a video at a time.

    Source: equation 4 of the paper; `MambaAggregator` of the authors' code, 16 heads on 1024 channels.
    """

    def __init__(self, channels: int = 1024, heads: int = 16, bank: MemoryBank | None = None) -> None:
        super().__init__()
        if channels % heads:
            raise ConfigError(f"{channels} channels do not divide into {heads} heads.")
        self.heads = heads
        self.bank = MemoryBank() if bank is None else bank
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, reference: Tensor | None = None) -> Tensor:
        """Args: x: [N, C]. reference: [M, C], what to attend to; the memory where none is given."""
        if x.ndim != 2 or x.shape[1] != self.query.in_features:
            raise ShapeError(f"features of shape {list(x.shape)}: [N, {self.query.in_features}] is needed.")
        memory = self.bank.read() if reference is None else reference
        q, k, v = (
            self._by_head(linear, of) for linear, of in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        found = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(found.transpose(0, 1).flatten(1))

    def _by_head(self, linear: nn.Module, x: Tensor) -> Tensor:
        """[N, C] -> [heads, N, C / heads]."""
        return linear(x).unflatten(1, (self.heads, -1)).transpose(0, 1)


class PixelAggregation(nn.Module):
    """The same operation over the pixels of a feature map, before proposals are made: [B, C, h, w] -> the same shape.

    Args:
        channels: C. heads: of the attention. bank: of pixels.
        kept: pixels of a frame that are written, those of the highest `foreground` (the paper keeps what detections
            cover; how many it does not say).
    """

    def __init__(self, channels: int, heads: int = 16, bank: MemoryBank | None = None, kept: int = 256) -> None:
        super().__init__()
        self.aggregation = MemoryAggregation(channels, heads, bank)
        self.kept = kept

    @property
    def bank(self) -> MemoryBank:
        return self.aggregation.bank

    def forward(self, feature_map: Tensor, reference: Tensor | None = None) -> Tensor:
        """The map enhanced by the memory; as it is while the memory is empty (the first frame of a video).

        Args: reference: pixels [M, C] to attend to in place of the memory.
        """
        if not len(self.bank if reference is None else reference):
            return feature_map
        pixels = feature_map.permute(0, 2, 3, 1)
        added = self.aggregation(pixels.flatten(0, 2), reference).unflatten(0, pixels.shape[:3])
        return feature_map + added.permute(0, 3, 1, 2)

    def remember(self, feature_map: Tensor, foreground: Tensor) -> None:
        """Write the pixels that matter, as `likeliest` finds them."""
        for pixels in self.likeliest(feature_map, foreground):
            self.bank.write(pixels)

    def likeliest(self, feature_map: Tensor, foreground: Tensor) -> list[Tensor]:
        """The `kept` pixels of each map that are likeliest to be of an object, B of [M, C].

        Args: feature_map: [B, C, h, w]. foreground: [B, h, w], higher is nearer; -inf is never kept.
        """
        if foreground.shape != feature_map[:, 0].shape:
            raise ShapeError(
                f"foreground of shape {list(foreground.shape)} for a map of {list(feature_map.shape)}: "
                "[B, h, w] is needed."
            )
        found = []
        for one, weight in zip(feature_map, foreground, strict=True):
            best = weight.flatten().topk(min(self.kept, weight.numel()))
            found.append(one.flatten(1)[:, best.indices[best.values > -torch.inf]].mT)
        return found


_OFFICIAL = {"fc_embed": "query", "ref_fc_embed": "key", "ref_fc": "value", "fc": "out"}


def rename_official_key(key: str) -> str:
    """Our name of a parameter of an aggregator that the authors' code calls `key`; ours come back as they are."""
    *before, owner, what = key.split(".")
    return ".".join((*before, _OFFICIAL.get(owner, owner), what))


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The authors' state dict of an aggregator under our names: renames only."""
    return {rename_official_key(key): value for key, value in state_dict.items()}
