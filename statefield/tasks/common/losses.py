"""Segmentation losses: MONAI's Dice with cross-entropy or focal, and its boundary loss, with unlabelled pixels.

Shape legend: B images, K classes, H x W pixels. Targets are int64 [B, H, W]; pixels of `UNLABELLED` count nowhere.
"""

from __future__ import annotations

import torch
from monai.losses import BoundaryLoss, DiceLoss, FocalLoss
from torch import Tensor, nn
from torch.nn import functional

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.common.config import UNLABELLED, LossConfig


class SegmentationLoss(nn.Module):
    """The weighted sum that `LossConfig` describes: logits [B, K, H, W], target int64 [B, H, W] -> scalar float32.

    Raises:
        ConfigError: fewer than two classes, or weights that are negative, all zero, or not one per class.
    """

    class_weights: Tensor | None

    def __init__(self, config: LossConfig, num_classes: int) -> None:
        super().__init__()
        weights = (config.dice_weight, config.pixel_weight, config.boundary_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise ConfigError(
                f"loss weights (dice, pixel, boundary) = {weights}: none may be negative, one must be > 0."
            )
        if num_classes < 2:
            raise ConfigError(f"{num_classes} class(es): segmentation needs two or more, background included.")
        if config.class_weights is not None and len(config.class_weights) != num_classes:
            raise ConfigError(
                f"loss.class_weights has {len(config.class_weights)} values and the dataset has {num_classes} classes: "
                "give one weight per class, background included."
            )
        self.config = config
        given = None if config.class_weights is None else torch.tensor(config.class_weights)
        self.register_buffer("class_weights", given, persistent=False)
        self.dice = DiceLoss(
            include_background=config.include_background,
            to_onehot_y=True,
            softmax=True,
            batch=config.pooled_dice,
            ignore_index=UNLABELLED,
        )
        self.focal = FocalLoss(
            to_onehot_y=True,
            use_softmax=True,
            gamma=config.focal_gamma,
            weight=config.class_weights,
            ignore_index=UNLABELLED,
        )
        self.boundary = BoundaryLoss()

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        if target.shape != (logits.shape[0], *logits.shape[2:]):
            raise ShapeError(
                f"a target of shape {tuple(target.shape)} does not fit logits {tuple(logits.shape)}: "
                f"needed {(logits.shape[0], *logits.shape[2:])}."
            )
        logits = logits.float()  # Dice sums over many pixels: half precision would lose small structures
        total = logits.sum() * 0.0
        if not (target != UNLABELLED).any():
            return total  # the mean over no pixel would be NaN
        if self.config.dice_weight:
            total = total + self.config.dice_weight * self.dice(logits, target.unsqueeze(1))
        if self.config.pixel_weight:
            total = total + self.config.pixel_weight * self._pixel_term(logits, target)
        if self.config.boundary_weight:
            total = total + self.config.boundary_weight * self._boundary_term(logits, target)
        return total

    def _pixel_term(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.config.kind == "dice_focal":
            return self.focal(logits, target.unsqueeze(1))
        return functional.cross_entropy(
            logits,
            target,
            weight=self.class_weights,
            ignore_index=UNLABELLED,
            label_smoothing=self.config.label_smoothing,
        )

    def _boundary_term(self, logits: Tensor, target: Tensor) -> Tensor:
        """The mean over labelled pixels and foreground classes k of `p_k * phi_k`.

        `phi_k` is the signed distance in pixels to the boundary of class k, negative inside: probability is pulled in
        where the class is, and pushed away in proportion to how far it strays. It may be negative. Alone it is content
        with an empty prediction, so it stands beside a region term.

        Source: Kervadec et al., Boundary loss for highly unbalanced segmentation, MIDL 2019, eq. 5.
        """
        labelled = target != UNLABELLED
        one_hot = functional.one_hot(target.clamp(min=0), logits.shape[1]) * labelled.unsqueeze(-1)
        foreground = one_hot.movedim(-1, 1)[:, 1:]
        distance = self.boundary.compute_distance_map(foreground.float()).to(logits)
        weighted = logits.softmax(dim=1)[:, 1:] * distance * labelled.unsqueeze(1)
        return weighted.sum() / (labelled.sum() * foreground.shape[1])
