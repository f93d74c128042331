"""Losses against hand-worked values, and pixels without a label."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import functional

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.common.config import UNLABELLED, LossConfig
from statefield.tasks.common.losses import DeepSupervisionLoss, SegmentationLoss, deep_supervision_weights

KINDS = [
    LossConfig(kind="dice_ce"),
    LossConfig(kind="dice_focal"),
    LossConfig(boundary_weight=0.5),
    LossConfig(include_background=True, pooled_dice=False, class_weights=(1.0, 2.0, 3.0), label_smoothing=0.1),
    LossConfig(kind="dice_focal", class_weights=(1.0, 2.0, 3.0)),
]


def test_cross_entropy_of_even_logits_is_the_logarithm_of_the_number_of_classes():
    loss = SegmentationLoss(LossConfig(dice_weight=0), 4)
    assert loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)).item() == pytest.approx(math.log(4))


def test_dice_term_equals_the_formula_worked_by_hand():
    # two classes, p(foreground) = 0.5 everywhere, 1 of 4 pixels is foreground:
    # Dice = 2 * 0.5 / (4 * 0.5 + 1) = 1/3, so the loss is 2/3
    loss = SegmentationLoss(LossConfig(pixel_weight=0), 2)
    target = torch.tensor([[[1, 0], [0, 0]]])
    assert loss(torch.zeros(1, 2, 2, 2), target).item() == pytest.approx(2 / 3, abs=1e-4)


def test_boundary_term_equals_the_formula_worked_by_hand():
    # a row of 5 pixels, the middle three foreground: signed distances 1, 0, -1, 0, 1; p = 0.5 everywhere:
    # mean of 0.5 * (1 + 0 - 1 + 0 + 1) / 5 = 0.1
    loss = SegmentationLoss(LossConfig(dice_weight=0, pixel_weight=0, boundary_weight=1), 2)
    target = torch.tensor([[[0, 1, 1, 1, 0]]])
    assert loss(torch.zeros(1, 2, 1, 5), target).item() == pytest.approx(0.1, abs=1e-6)


def test_boundary_term_grows_with_the_distance_of_a_stray_pixel():
    loss = SegmentationLoss(LossConfig(dice_weight=0, pixel_weight=0, boundary_weight=1), 2)
    target = torch.zeros(1, 1, 20, dtype=torch.int64)
    target[..., :3] = 1

    def with_stray_at(column: int) -> float:
        logits = functional.one_hot(target, 2).movedim(-1, 1).float() * 20
        logits[0, :, 0, column] = torch.tensor([0.0, 20.0])
        return loss(logits, target).item()

    assert with_stray_at(18) > with_stray_at(10) > with_stray_at(4)


@pytest.mark.parametrize("config", KINDS)
def test_unlabelled_pixels_change_neither_the_loss_nor_a_gradient(config):
    torch.manual_seed(0)
    loss = SegmentationLoss(config, 3)
    target = torch.randint(0, 3, (2, 8, 8))
    target[:, 5:] = UNLABELLED
    values, gradients = [], []
    for filling in (-3.0, 7.0):
        logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        logits[:, 1, 5:] = filling
        logits.requires_grad_(True)
        value = loss(logits, target)
        value.backward()
        values.append(value.detach())
        gradients.append(logits.grad)
    torch.testing.assert_close(values[0], values[1])
    assert gradients[0][:, :, 5:].abs().max() == 0
    torch.testing.assert_close(gradients[0][:, :, :5], gradients[1][:, :, :5])


@pytest.mark.parametrize("config", KINDS)
def test_a_batch_without_any_label_gives_zero_and_no_nan(config):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = SegmentationLoss(config, 3)(logits, torch.full((1, 4, 4), UNLABELLED))
    value.backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("config", [dataclasses.replace(c, label_smoothing=0.0) for c in KINDS[:2]])
def test_a_certain_and_right_answer_costs_next_to_nothing(config):
    target = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    logits = functional.one_hot(target, 3).movedim(-1, 1).float() * 30
    assert SegmentationLoss(config, 3)(logits, target).item() < 1e-4


def test_half_precision_logits_give_a_float32_loss():
    logits = torch.randn(1, 2, 4, 4, dtype=torch.bfloat16)
    assert SegmentationLoss(LossConfig(), 2)(logits, torch.ones(1, 4, 4, dtype=torch.int64)).dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LossConfig(dice_weight=0, pixel_weight=0), "one must be > 0"),
        (LossConfig(pixel_weight=-1), "negative"),
        (LossConfig(class_weights=(1.0, 2.0)), "2 values .* 3 classes"),
    ],
)
def test_weights_that_cannot_work_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        SegmentationLoss(config, 3)


def test_a_target_of_another_size_is_refused_with_both_shapes():
    with pytest.raises(ShapeError, match=r"\(1, 4, 5\).*\(1, 2, 4, 4\)"):
        SegmentationLoss(LossConfig(), 2)(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 5, dtype=torch.int64))


@pytest.mark.parametrize("config", KINDS)
def test_a_volume_of_one_slice_costs_what_the_slice_does(config):
    logits = torch.randn(2, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    target = torch.randint(-1, 3, (2, 6, 7), generator=torch.Generator().manual_seed(1))
    loss = SegmentationLoss(config, 3)
    torch.testing.assert_close(loss(logits.unsqueeze(2), target.unsqueeze(1)), loss(logits, target))


@pytest.mark.parametrize("config", KINDS)
def test_unlabelled_voxels_of_a_volume_have_no_gradient(config):
    target = torch.randint(0, 3, (2, 4, 6, 5), generator=torch.Generator().manual_seed(1))
    target[:, 3:] = UNLABELLED
    logits = torch.randn(2, 3, 4, 6, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    SegmentationLoss(config, 3)(logits, target).backward()
    assert logits.grad[:, :, 3:].abs().max() == 0
    assert logits.grad[:, :, :3].abs().min() > 0


def test_deep_supervision_weighs_outputs_by_halves_and_leaves_out_the_coarsest():
    # three outputs: weights 2/3, 1/3 and 0. Cross-entropy of two classes:
    # full size: logits 0 everywhere, log 2. Half size: the target is every second voxel, here all of class 1,
    # where the logits say (0, log 3): p = 3/4, so log 4/3.
    loss = DeepSupervisionLoss(SegmentationLoss(LossConfig(dice_weight=0), 2))
    target = torch.zeros(1, 4, 4, 8, dtype=torch.int64)
    target[:, ::2, ::2, ::2] = 1
    half = torch.zeros(1, 2, 2, 2, 4)
    half[:, 1] = math.log(3)
    outputs = [torch.zeros(1, 2, 4, 4, 8), half, torch.full((1, 2, 1, 1, 2), 5.0, requires_grad=True)]
    value = loss(outputs, target)
    assert value.item() == pytest.approx(2 / 3 * math.log(2) + 1 / 3 * math.log(4 / 3), rel=1e-5)
    value.backward()
    assert outputs[2].grad.abs().max() == 0  # there, and zero: machines that share gradients wait for it


def test_deep_supervision_of_one_output_is_the_loss_itself_and_weights_sum_to_one():
    loss = SegmentationLoss(LossConfig(), 3)
    logits, target = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    torch.testing.assert_close(DeepSupervisionLoss(loss)([logits], target), loss(logits, target))
    assert deep_supervision_weights(5) == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15, 0])


def test_deep_supervision_keeps_half_precision_outputs_in_float32_and_refuses_sizes_that_do_not_divide():
    loss = DeepSupervisionLoss(SegmentationLoss(LossConfig(), 2))
    outputs = [torch.randn(1, 2, side, side, dtype=torch.bfloat16) for side in (8, 4, 2)]
    assert loss(outputs, torch.ones(1, 8, 8, dtype=torch.int64)).dtype == torch.float32
    with pytest.raises(ShapeError, match=r"\(3, 3\) does not divide .*\(8, 8\)"):
        loss([outputs[0], torch.zeros(1, 2, 3, 3), outputs[2]], torch.ones(1, 8, 8, dtype=torch.int64))
