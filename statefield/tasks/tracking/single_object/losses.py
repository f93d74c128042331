"""What MambaEVT is trained by: a focal loss on the map of centres, GIoU and L1 of the box at the best cell.

Source: OSTrack (arXiv 2203.11991), section 3.3, as MambaEVT has it; CenterNet (arXiv 1904.07850), equation 1, for the
focal loss; generalised IoU (arXiv 1902.09630).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from statefield.tasks.tracking.nets import CenterMaps

__all__ = ["TrackingLoss", "centre_focal_loss", "centre_target", "corners_of", "generalised_iou", "tracking_loss"]

_MIN_OVERLAP = 0.7


@dataclass(frozen=True)
class TrackingLoss:
    """The terms, unweighted, and their weighted sum; scalars."""

    total: Tensor
    giou: Tensor
    l1: Tensor
    focal: Tensor


def tracking_loss(
    maps: CenterMaps, boxes: Tensor, *, giou_weight: float, l1_weight: float, focal_weight: float
) -> TrackingLoss:
    """The loss of a batch.

    Args:
        maps: of the head.
        boxes: true ones, [B, 4], centre x, centre y, width and height as shares of the search region.

    The box that is compared is the one that the head would report: at the cell of the highest score. True corners
    beyond the region are moved to its edge.
    """
    found = corners_of(maps.boxes())
    true = corners_of(boxes).clamp(0, 1)
    giou = (1 - generalised_iou(found, true)).mean()
    l1 = (found - true).abs().mean()
    side = maps.score.shape[-1]
    focal = centre_focal_loss(maps.score[:, 0], centre_target(boxes, side))
    return TrackingLoss(giou_weight * giou + l1_weight * l1 + focal_weight * focal, giou, l1, focal)


def corners_of(boxes: Tensor) -> Tensor:
    """(centre x, centre y, width, height) -> (x1, y1, x2, y2), [..., 4]."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def generalised_iou(one: Tensor, other: Tensor) -> Tensor:
    """Of boxes side by side, corners [B, 4] and [B, 4] -> [B], in (-1, 1]: IoU less the share of the hull unfilled."""
    sides = (torch.minimum(one[:, 2:], other[:, 2:]) - torch.maximum(one[:, :2], other[:, :2])).clamp(min=0)
    shared = sides.prod(1)
    union = (one[:, 2:] - one[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1) - shared
    hull = (torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])).prod(1)
    least = torch.finfo(one.dtype).eps
    return shared / union.clamp(min=least) - (hull - union) / hull.clamp(min=least)


def centre_target(boxes: Tensor, side: int) -> Tensor:
    """What the map of scores should be, [B, side, side]: 1 in the cell that holds the centre, a Gaussian about it.

    Args: boxes: [B, 4], centre x, centre y, width, height as shares of the region.

    The Gaussian's radius r is CornerNet's for an overlap of 0.7, in whole cells, and its deviation (2 r + 1) / 6. The
    authors' code rounds the centre, which leaves one in the last half cell without any cell of its own; here it is the
    cell from which the head reads it.
    """
    scaled = boxes.detach() * side
    cell = scaled[:, :2].floor().clamp(0, side - 1)
    radius = _radius(scaled[:, 2], scaled[:, 3]).clamp(min=0).floor()
    places = torch.arange(side, device=boxes.device, dtype=scaled.dtype)
    dx, dy = places[None, None, :] - cell[:, 0, None, None], places[None, :, None] - cell[:, 1, None, None]
    reach = radius[:, None, None]
    sigma = (2 * reach + 1) / 6
    gaussian = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2))
    return torch.where((dx.abs() <= reach) & (dy.abs() <= reach), gaussian, torch.zeros_like(gaussian))


def _radius(width: Tensor, height: Tensor) -> Tensor:
    """How far, in cells, a corner may move so that a box of the same size still overlaps by 0.7 (CornerNet's code).

    The least of three cases, with the quotients as that code has them: trained thresholds go with them.
    """
    total, area, overlap = width + height, width * height, _MIN_OVERLAP
    one = (total + (total**2 - 4 * area * (1 - overlap) / (1 + overlap)).clamp(min=0).sqrt()) / 2
    both_in = (2 * total + (4 * total**2 - 16 * (1 - overlap) * area).clamp(min=0).sqrt()) / 2
    both_out = (-2 * overlap * total + (4 * overlap**2 * total**2 + 16 * overlap * (1 - overlap) * area).sqrt()) / 2
    return torch.minimum(torch.minimum(one, both_in), both_out)


def centre_focal_loss(score: Tensor, target: Tensor) -> Tensor:
    """CenterNet's focal loss, scalar: summed over cells, divided by the number of centres.

    Args: score, target: [B, h, w], within (0, 1) and [0, 1]; a centre is a cell of exactly 1.

    Centres: -(1 - p)^2 log p. Other cells: -(1 - y)^4 p^2 log(1 - p), so those next to a centre weigh little.
    """
    is_centre = target == 1
    at_centres = (1 - score) ** 2 * score.log() * is_centre
    elsewhere = (1 - target) ** 4 * score**2 * (1 - score).log() * ~is_centre
    return -(at_centres.sum() + elsewhere.sum()) / is_centre.sum().clamp(min=1)
