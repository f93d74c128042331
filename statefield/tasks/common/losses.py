"""Segmentation losses: MONAI's Dice with cross-entropy or focal, and its boundary loss, with unlabelled pixels.

Shape legend: B images, K classes, *S pixels (H, W) or voxels (D, H, W). Targets are int64 [B, *S]; pixels of
`UNLABELLED` count nowhere. Everything is computed in float32, whatever the precision of the net.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import BoundaryLoss, DiceLoss, FocalLoss
from torch import Tensor, nn
from torch.nn import functional

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.common.config import UNLABELLED, LossConfig
from statefield.tasks.common.parallel import num_processes, summed


class SegmentationLoss(nn.Module):
    """The weighted sum that `LossConfig` describes: logits [B, K, *S], target int64 [B, *S] -> scalar float32.

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
        if not summed((target != UNLABELLED).sum()):
            return total  # the mean over no pixel would be NaN
        if self.config.dice_weight:
            total = total + self.config.dice_weight * self._dice_term(logits, target)
        if self.config.pixel_weight:
            total = total + self.config.pixel_weight * self._pixel_term(logits, target)
        if self.config.boundary_weight:
            total = total + self.config.boundary_weight * self._boundary_term(logits, target)
        return total

    def _dice_term(self, logits: Tensor, target: Tensor) -> Tensor:
        if num_processes() == 1:
            return self.dice(logits, target.unsqueeze(1))
        if not self.config.pooled_dice:
            return _mean_of_all(self.dice(logits, target.unsqueeze(1)), logits.new_tensor(float(len(logits))))
        # MONAI's formula from sums over all processes, which its class does not take
        labelled = (target != UNLABELLED).unsqueeze(1)
        one_hot = functional.one_hot(target.clamp(min=0), logits.shape[1]).movedim(-1, 1) * labelled
        probabilities = logits.softmax(dim=1) * labelled
        axes = (0, *range(2, logits.ndim))
        sums = ((probabilities * one_hot).sum(axes), probabilities.sum(axes) + one_hot.sum(axes))
        both, either = summed(torch.stack(sums))[:, 0 if self.config.include_background else 1 :]
        return (1 - (2 * both + self.dice.smooth_nr) / (either + self.dice.smooth_dr)).mean()

    def _pixel_term(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.config.kind == "dice_focal":
            mean = self.focal(logits, target.unsqueeze(1))
            weights = None
        else:
            weights = self.class_weights
            mean = functional.cross_entropy(
                logits,
                target,
                weight=weights,
                ignore_index=UNLABELLED,
                label_smoothing=self.config.label_smoothing,
            )
        if num_processes() == 1:
            return mean
        labelled = target[target != UNLABELLED]  # what the mean divides by: their number, or the sum of their weights
        return _mean_of_all(mean, (torch.ones_like(labelled) if weights is None else weights[labelled]).sum().float())

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
        return summed(weighted.sum()) / (summed(labelled.sum()) * foreground.shape[1])


def _mean_of_all(mean: Tensor, weight: Tensor) -> Tensor:
    """The mean over all processes, from this one's and what it weighs (scalars); a process without pixels adds none."""
    part = mean * weight if weight > 0 else torch.zeros_like(mean)
    return summed(part) / summed(weight)


class DeepSupervisionLoss(nn.Module):
    """A loss at every output of a net with deep supervision: logits, the largest first -> scalar float32.

    Output i, of 1/2^i of the size, weighs 1/2^i; the last and coarsest weighs nothing where there are two or more; and
    weights are divided by their sum. All of it is nnU-Net's (`nnUNetTrainer._build_loss`). Of five outputs that is 8,
    4, 2, 1 and 0 fifteenths. The target of a smaller output is the first pixel of each block (nearest): a block whose
    first pixel is unlabelled counts nowhere.

    Args: loss: of one output and its target, e.g. `SegmentationLoss`.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Sequence[Tensor], target: Tensor) -> Tensor:
        """Args: logits: [B, K, *S / s_i], s_i whole numbers for each axis. target: int64 [B, *S].

        Raises: ShapeError for an output whose size does not divide the target's.
        """
        total = torch.zeros((), device=target.device)
        for output, weight in zip(logits, deep_supervision_weights(len(logits)), strict=True):
            if weight:
                total = total + weight * self.loss(output, _shrunk(target, output.shape[2:]))
            else:  # its head has a gradient all the same, of zero: machines that share gradients wait for each of them
                total = total + 0.0 * output.float().sum()
        return total


def deep_supervision_weights(count: int) -> list[float]:
    """The weights of `count` outputs, the largest first; their sum is 1.

    >>> deep_supervision_weights(3), deep_supervision_weights(1)
    ([0.6666666666666666, 0.3333333333333333, 0.0], [1.0])
    """
    weights = [1 / 2**i for i in range(count)]
    if count > 1:
        weights[-1] = 0.0
    return [weight / sum(weights) for weight in weights]


def _shrunk(target: Tensor, sides: Sequence[int]) -> Tensor:
    steps = [have // side for have, side in zip(target.shape[1:], sides, strict=True)]
    if any(step * side != have for step, side, have in zip(steps, sides, target.shape[1:], strict=True)):
        raise ShapeError(
            f"an output of {tuple(sides)} does not divide a target of {tuple(target.shape[1:])}: deep supervision "
            "needs patches whose sides are multiples of what the net shrinks them by."
        )
    return target[(slice(None), *(slice(None, None, step) for step in steps))]
