"""The losses of MambaEVT, each with a case worked by hand."""

import math

import pytest
import torch

from statefield.tasks.tracking.nets import CenterMaps
from statefield.tasks.tracking.single_object.losses import (
    centre_focal_loss,
    centre_target,
    generalised_iou,
    tracking_loss,
)


def test_generalised_iou_of_two_boxes_by_hand():
    """2 x 2 and 2 x 2, one of their squares shared: IoU 1/7, hull 9, of which 2 are empty: 1/7 - 2/9."""
    one, other = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 1.0, 3.0, 3.0]])
    assert generalised_iou(one, other).item() == pytest.approx(1 / 7 - 2 / 9)


def test_boxes_far_apart_are_worse_than_boxes_that_touch():
    one = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(3, 4)
    other = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 2.0, 1.0], [9.0, 0.0, 10.0, 1.0]])
    assert generalised_iou(one, other).tolist() == pytest.approx([1.0, 0.0, -0.8])


def test_the_centre_is_the_cell_that_holds_it():
    """0.62 and 0.3 of 8 cells: cell 4.96 -> 4 and 2.4 -> 2; the last half cell has a centre of its own, too."""
    target = centre_target(torch.tensor([[0.62, 0.3, 0.1, 0.1], [0.999, 0.999, 0.1, 0.1]]), 8)
    assert (target[0] == 1).nonzero().tolist() == [[2, 4]]
    assert (target[1] == 1).nonzero().tolist() == [[7, 7]]


def test_the_gaussian_has_cornernets_radius():
    """A box of 8 x 8 of 16 cells: of the three radii the least is (-22.4 + sqrt(501.76 + 215.04)) / 2 = 2.19 -> 2."""
    least = (-1.4 * 16 + math.sqrt(4 * 0.49 * 256 + 16 * 0.7 * 0.3 * 64)) / 2
    assert math.floor(least) == 2
    target = centre_target(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), 16)[0]
    sigma = 5 / 6
    assert target[8, 8] == 1
    assert target[8, 10].item() == pytest.approx(math.exp(-4 / (2 * sigma**2)))
    assert target[6, 7].item() == pytest.approx(math.exp(-5 / (2 * sigma**2)))
    assert target[8, 11] == 0 and target[5, 8] == 0
    assert int((target > 0).sum()) == 25


def test_the_focal_loss_by_hand():
    """A centre at 0.8, a neighbour of target 0.5 at 0.4, another cell at 0.1."""
    score, target = torch.tensor([[[0.8, 0.4, 0.1]]]), torch.tensor([[[1.0, 0.5, 0.0]]])
    wanted = -(0.2**2 * math.log(0.8) + 0.5**4 * 0.4**2 * math.log(0.6) + 0.1**2 * math.log(0.9))
    assert centre_focal_loss(score, target).item() == pytest.approx(wanted, rel=1e-5)


def test_the_loss_weighs_its_terms():
    """The best cell of 4 x 4 is (1, 2): centre (0.625, 0.375), size 0.5; the true box is 0.25 narrower on its right."""
    score, size, offset = torch.full((1, 1, 4, 4), 0.1), torch.full((1, 2, 4, 4), 0.5), torch.full((1, 2, 4, 4), 0.5)
    score[0, 0, 1, 2] = 0.9
    maps = CenterMaps(score, size, offset)  # corners 0.375, 0.125, 0.875, 0.625
    true = torch.tensor([[0.5, 0.375, 0.25, 0.5]])  # corners 0.375, 0.125, 0.625, 0.625
    found = tracking_loss(maps, true, giou_weight=2.0, l1_weight=5.0, focal_weight=1.0)
    assert found.giou.item() == pytest.approx(0.5)
    assert found.l1.item() == pytest.approx(0.0625)
    assert found.total.item() == pytest.approx(1.0 + 0.3125 + found.focal.item())


def test_a_true_box_beyond_the_region_is_cut_at_its_edge():
    score, offset = torch.full((1, 1, 2, 2), 0.1), torch.zeros(1, 2, 2, 2)
    score[0, 0, 0, 0] = 0.9
    maps = CenterMaps(score, torch.full((1, 2, 2, 2), 0.5), offset + 0.5)  # corners 0, 0, 0.5, 0.5
    found = tracking_loss(maps, torch.tensor([[0.1, 0.1, 0.8, 0.8]]), giou_weight=1.0, l1_weight=1.0, focal_weight=0.0)
    assert found.giou.item() == pytest.approx(0.0, abs=1e-6)
    assert found.l1.item() == pytest.approx(0.0, abs=1e-6)
