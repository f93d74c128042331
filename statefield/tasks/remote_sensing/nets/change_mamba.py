"""ChangeMamba (arXiv 2404.03425): MambaBCD (what changed), MambaSCD (from what to what), MambaBDA (damaged buildings).

    before -> encoder -> maps --+-> change decoder   -> logits of change (damage)
    after  -> encoder -> maps --+
                                +-> semantic decoder -> logits of one date's classes (buildings)

The encoder is one for both dates. Facts were taken from ChenHongruixuan/MambaCD at commit 96c3240; the tests compare
with numbers that its code computes. In ours the encoder may be any backbone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from statefield.backbones import vmamba
from statefield.tasks.remote_sensing.nets.change_decoders import ChangeDecoder, SemanticDecoder, block_maker
from statefield.tasks.remote_sensing.nets.siamese import SiameseNet

__all__ = ["BuildingDamage", "MambaBCD", "MambaBDA", "MambaSCD", "SemanticChange"]


class SemanticChange(NamedTuple):
    """Raw logits of semantic change: `change` [B, K, H, W]; classes `before` and `after`, each [B, S, H, W]."""

    change: Tensor
    before: Tensor
    after: Tensor


class BuildingDamage(NamedTuple):
    """Raw logits of damage assessment: `building` [B, K, H, W] before the event; `damage` [B, S, H, W] after it."""

    building: Tensor
    damage: Tensor


class MambaBCD(SiameseNet):
    """Binary change detection: images before and after, each [B, C, H, W], -> raw logits [B, num_classes, H, W].

    Args:
        in_channels: C. num_classes: 2; class 1 is change.
        encoder: "tiny", "small", "base" (the authors' VMambas), or a timm model; see `SiameseNet`.
        encoder_args: further arguments of the encoder. width: channels of the decoder.
        block_args: further arguments of the decoder's blocks; see `change_decoders.scanning_block`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        *,
        encoder: str = "tiny",
        encoder_args: Mapping[str, Any] | None = None,
        width: int = 128,
        block_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, in_channels, encoder_args)
        self.decoder = ChangeDecoder(self.widths, width, block_maker(block_args))
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        first, second = self.padded(before, after)
        decoded = self.decoder(*self.features(first, second))
        return self.at_full_size(self.classifier(decoded), first, before)


class MambaSCD(SiameseNet):
    """Semantic change detection: images before and after, each [B, C, H, W], -> `SemanticChange`.

    Args:
        in_channels: C. num_classes: of change, 2. num_semantic_classes: of a date; one classifier serves both dates.
            SECOND has 7, of which 0 means unchanged.
        others: as for `MambaBCD`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 2,
        num_semantic_classes: int = 7,
        *,
        encoder: str = "tiny",
        encoder_args: Mapping[str, Any] | None = None,
        width: int = 128,
        block_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, in_channels, encoder_args)
        self.decoder = ChangeDecoder(self.widths, width, block_maker(block_args))
        self.decoder_before = SemanticDecoder(self.widths, width, block_maker(block_args))
        self.decoder_after = SemanticDecoder(self.widths, width, block_maker(block_args))
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.semantic_classifier = nn.Conv2d(width, num_semantic_classes, 1)

    def forward(self, before: Tensor, after: Tensor) -> SemanticChange:
        first, second = self.padded(before, after)
        maps_before, maps_after = self.features(first, second)
        logits = (
            self.classifier(self.decoder(maps_before, maps_after)),
            self.semantic_classifier(self.decoder_before(maps_before)),
            self.semantic_classifier(self.decoder_after(maps_after)),
        )
        return SemanticChange(*(self.at_full_size(one, first, before) for one in logits))


class MambaBDA(SiameseNet):
    """Building damage assessment: images before and after, each [B, C, H, W], -> `BuildingDamage`.

    Args:
        in_channels: C. num_classes: of damage; xBD has 5, of which 0 is no building, and 1 to 4 rise from no damage to
            destroyed. num_building_classes: 2, found in the image before the event alone.
        others: as for `MambaBCD`.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 5,
        num_building_classes: int = 2,
        *,
        encoder: str = "tiny",
        encoder_args: Mapping[str, Any] | None = None,
        width: int = 128,
        block_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, in_channels, encoder_args)
        self.decoder = ChangeDecoder(self.widths, width, block_maker(block_args))
        self.decoder_before = SemanticDecoder(self.widths, width, block_maker(block_args))
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.semantic_classifier = nn.Conv2d(width, num_building_classes, 1)

    def forward(self, before: Tensor, after: Tensor) -> BuildingDamage:
        first, second = self.padded(before, after)
        maps_before, maps_after = self.features(first, second)
        building = self.semantic_classifier(self.decoder_before(maps_before))
        damage = self.classifier(self.decoder(maps_before, maps_after))
        return BuildingDamage(*(self.at_full_size(one, first, before) for one in (building, damage)))


_PARTS = {
    "decoder": "decoder",
    "decoder_bcd": "decoder",
    "decoder_damage": "decoder",
    "decoder_T1": "decoder_before",
    "decoder_building": "decoder_before",
    "decoder_T2": "decoder_after",
    "main_clf": "classifier",
    "main_clf_cd": "classifier",
    "aux_clf": "semantic_classifier",
}
_MECHANISMS = {"1": "parallel", "2": "cross", "3": "sequential"}
_CHANGE_BLOCK = re.compile(r"^st_block_(\d)([123])\.([02])\.")
_SEMANTIC_BLOCK = re.compile(r"^st_block_(\d)_semantic\.([012])\.")
_LAYER = re.compile(r"^(fuse|smooth|trans)_layer_(\d)(_semantic)?\.")
_DEEPEST = 4  # the authors number levels from 1, the finest


def rename_official_key(key: str) -> str:
    """Our name of a parameter that the authors' code calls `key`; names of ours come back as they are.

    >>> rename_official_key("decoder_bcd.st_block_42.2.op.A_logs")
    'decoder.levels.3.cross.block.mixer.A_log'
    >>> rename_official_key("encoder.outnorm0.weight")
    'encoder.model.feature_norms.0.weight'
    >>> rename_official_key("decoder_T2.trans_layer_1.0.bias")
    'decoder_after.lateral.0.0.bias'
    """
    part, _, rest = key.partition(".")
    if part == "encoder":
        return f"encoder.model.{vmamba.rename_official_key(rest.removeprefix('model.'))}"
    if part not in _PARTS:
        return key
    return f"{_PARTS[part]}.{_rename_in_decoder(rest)}"


def _rename_in_decoder(rest: str) -> str:
    if block := _CHANGE_BLOCK.match(rest):
        home = f"levels.{int(block[1]) - 1}.{_MECHANISMS[block[2]]}"
        return _rename_in_block(home, "conv" if block[3] == "0" else "block", rest[block.end() :])
    if block := _SEMANTIC_BLOCK.match(rest):
        level = int(block[1])
        home = "deepest" if level == _DEEPEST else f"blocks.{level - 1}"
        return _rename_in_block(home, "conv" if block[2] == "0" else "block", rest[block.end() :])
    if layer := _LAYER.match(rest):
        kind, level, tail = layer[1], int(layer[2]), rest[layer.end() :]
        if kind == "fuse":
            return f"levels.{level - 1}.fuse.{tail}"
        if kind == "smooth":
            return f"smooth.{level - 1}.{tail}" if level else f"last.{tail}"
        return f"lateral.{level - 1}.{tail}"
    return rest


def _rename_in_block(home: str, part: str, rest: str) -> str:
    if part == "conv":
        return f"{home}.conv.{rest}"
    return f"{home}.block.{vmamba.rename_official_key('blocks.0.' + rest).removeprefix('blocks.0.')}"


def checkpoint_filter_fn(state_dict: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """The authors' state dict of a whole net under our names; what the model calls so itself stays as it is."""
    own = model.state_dict()
    return {key if key in own else rename_official_key(key): value for key, value in state_dict.items()}
