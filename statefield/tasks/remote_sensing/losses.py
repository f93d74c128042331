"""Losses of change detection: cross-entropy with Lovasz-softmax, and agreement of the dates where nothing changed.

Shape legend: B pairs of images, K outputs of a head, H rows, W columns. Logits are [B, K, H, W], targets int64
[B, H, W]; pixels of `UNLABELLED` count nowhere. Everything is computed in float32, whatever the precision of the net. A
term without a pixel to count is 0, with gradients of 0. Means are over the batch of one process.

Every loss offers `terms(...)`, its parts by the names of its weights, and `forward(...)`, their weighted sum.

Source: Chen et al., ChangeMamba, 2024, arXiv 2404.03425; script/train_Mamba{BCD,SCD,BDA}.py of ChenHongruixuan/MambaCD.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from segmentation_models_pytorch.losses import LovaszLoss
from torch import Tensor, nn
from torch.nn import functional

from statefield.errors import ShapeError
from statefield.labels import UNLABELLED
from statefield.tasks.remote_sensing.loss_config import (
    BinaryChangeLossConfig,
    DamageLossConfig,
    SemanticChangeLossConfig,
)

_LOVASZ = LovaszLoss("multiclass", ignore_index=UNLABELLED)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """The mean cross-entropy over labelled pixels: scalar float32, 0 where no pixel is labelled."""
    logits = _checked(logits, target)
    if not (target != UNLABELLED).any():
        return logits.sum() * 0.0
    return functional.cross_entropy(logits, target, ignore_index=UNLABELLED)


def lovasz_softmax(logits: Tensor, target: Tensor) -> Tensor:
    """Lovasz-softmax: a convex surrogate of 1 - IoU, over all labelled pixels of the batch together.

    The mean over the classes present in the target, of the Lovasz extension of the Jaccard loss at the errors |[label
    is k] - softmax_k|. Scalar float32 in [0, 1], 0 where no pixel is labelled.

    Source: Berman et al., The Lovasz-Softmax loss, CVPR 2018, algorithm 1; computed by segmentation_models_pytorch.
    """
    logits = _checked(logits, target)
    if not (target != UNLABELLED).any():
        return logits.sum() * 0.0
    return _LOVASZ(logits, target)


def consistency(before: Tensor, after: Tensor, change: Tensor) -> Tensor:
    """How far both dates' class maps are apart where nothing has changed: scalar float32 in [0, 1].

    The squared difference of the softmaxes [B, K, H, W] at the pixels where `change` [B, H, W] is 0; the mean is over
    all B * K * H * W elements, so it counts less where less is unchanged. The official code includes the padding
    around crops, which here, being unlabelled, is left out.
    """
    if before.shape != after.shape:
        raise ShapeError(f"logits of shape {tuple(before.shape)} and {tuple(after.shape)}: both dates need the same.")
    first, second = _checked(before, change).softmax(dim=1), _checked(after, change).softmax(dim=1)
    unchanged = (change == 0).unsqueeze(1)
    return ((first - second).square() * unchanged).mean()


class BinaryChangeLoss(nn.Module):
    """Of one change map: 0 unchanged, 1 changed."""

    def __init__(self, config: BinaryChangeLossConfig | None = None) -> None:
        super().__init__()
        self.weights = asdict(config or BinaryChangeLossConfig())

    def terms(self, logits: Tensor, change: Tensor) -> dict[str, Tensor]:
        """Args: logits: [B, 2, H, W]. change: int64 [B, H, W]."""
        return {"cross_entropy": cross_entropy(logits, change), "lovasz": lovasz_softmax(logits, change)}

    def forward(self, logits: Tensor, change: Tensor) -> Tensor:
        return _weighted(self.weights, self.terms(logits, change))


class SemanticChangeLoss(nn.Module):
    """Of a change map and of a class map for each date, whose labels are 0 where unchanged and 1..K where changed.

    An unchanged pixel has no class to learn, it enters the consistency term alone; so output 0 of the class maps is
    never trained, and a class is to be the argmax over the others.
    """

    def __init__(self, config: SemanticChangeLossConfig | None = None) -> None:
        super().__init__()
        self.weights = asdict(config or SemanticChangeLossConfig())

    def terms(
        self,
        change_logits: Tensor,
        before_logits: Tensor,
        after_logits: Tensor,
        change: Tensor,
        before: Tensor,
        after: Tensor,
    ) -> dict[str, Tensor]:
        """Args: change_logits: [B, 2, H, W]. before_logits, after_logits: [B, K + 1, H, W]. Targets: int64."""
        first, second = _unlabelled_where_0(before), _unlabelled_where_0(after)
        return {
            "change_cross_entropy": cross_entropy(change_logits, change),
            "semantic_cross_entropy": cross_entropy(before_logits, first) + cross_entropy(after_logits, second),
            "consistency": consistency(before_logits, after_logits, change),
            "change_lovasz": lovasz_softmax(change_logits, change),
            "semantic_lovasz": lovasz_softmax(before_logits, first) + lovasz_softmax(after_logits, second),
        }

    def forward(
        self,
        change_logits: Tensor,
        before_logits: Tensor,
        after_logits: Tensor,
        change: Tensor,
        before: Tensor,
        after: Tensor,
    ) -> Tensor:
        return _weighted(self.weights, self.terms(change_logits, before_logits, after_logits, change, before, after))


class DamageLoss(nn.Module):
    """Of a map of buildings (0, 1) and of a damage map (1..4 in buildings; 0 elsewhere, where there is none to learn).

    A batch without a building has a damage term of 0; the official code skips such a batch altogether.
    """

    def __init__(self, config: DamageLossConfig | None = None) -> None:
        super().__init__()
        self.weights = asdict(config or DamageLossConfig())

    def terms(
        self, building_logits: Tensor, damage_logits: Tensor, buildings: Tensor, damage: Tensor
    ) -> dict[str, Tensor]:
        """Args: building_logits: [B, 2, H, W]. damage_logits: [B, 5, H, W]. Targets: int64 [B, H, W]."""
        known = _unlabelled_where_0(damage)
        return {
            "building_cross_entropy": cross_entropy(building_logits, buildings),
            "damage_cross_entropy": cross_entropy(damage_logits, known),
            "building_lovasz": lovasz_softmax(building_logits, buildings),
            "damage_lovasz": lovasz_softmax(damage_logits, known),
        }

    def forward(self, building_logits: Tensor, damage_logits: Tensor, buildings: Tensor, damage: Tensor) -> Tensor:
        return _weighted(self.weights, self.terms(building_logits, damage_logits, buildings, damage))


def _weighted(weights: dict[str, float], terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def _unlabelled_where_0(target: Tensor) -> Tensor:
    return target.masked_fill(target == 0, UNLABELLED)


def _checked(logits: Tensor, target: Tensor) -> Tensor:
    """The logits as float32; `ShapeError` where the target does not fit them."""
    if logits.ndim != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ShapeError(
            f"a target of shape {tuple(target.shape)} does not fit logits {tuple(logits.shape)}: [B, H, W] for logits "
            "[B, K, H, W] is needed."
        )
    return logits.float()
