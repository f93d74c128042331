"""Change losses against hand-worked cases, the definition of the Lovasz extension, and the published weights."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from math import log

import pytest
import torch

from statefield.errors import ConfigError, ShapeError
from statefield.labels import UNLABELLED
from statefield.tasks.remote_sensing.loss_config import (
    BinaryChangeLossConfig,
    DamageLossConfig,
    SemanticChangeLossConfig,
)
from statefield.tasks.remote_sensing.losses import (
    BinaryChangeLoss,
    DamageLoss,
    SemanticChangeLoss,
    consistency,
    cross_entropy,
    lovasz_softmax,
)


def _logits(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), requires_grad=True)


def _labels(low, high, *shape, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(100 + seed))


def _of_two_pixels(p_first, p_second):
    """Logits [1, 2, 1, 2] whose softmax gives class 1 these probabilities."""
    p = torch.tensor([p_first, p_second])
    return torch.stack([(1 - p).log(), p.log()]).reshape(1, 2, 1, 2)


def test_lovasz_by_hand():
    # pixel a: label 1, p1 = .6, error .4 in both classes; pixel b: label 0, p1 = .3, error .3 in both
    # class 1, worst first (a of the class, b not): Jaccard losses 1, 1: steps 1, 0: .4
    # class 0, worst first (a not, b of the class): Jaccard losses 1/2, 1: steps .5, .5: .2 + .15
    loss = lovasz_softmax(_of_two_pixels(0.6, 0.3), torch.tensor([[[1, 0]]]))
    assert loss.item() == pytest.approx((0.4 + 0.35) / 2)


def test_lovasz_means_over_present_classes_and_skips_unlabelled_pixels():
    # only a counts, so only class 1 is present: its error
    loss = lovasz_softmax(_of_two_pixels(0.6, 0.3), torch.tensor([[[1, UNLABELLED]]]))
    assert loss.item() == pytest.approx(0.4)


def _lovasz_by_definition(logits, target):
    """The mean over present classes of the integral over t in [0, 1] of the Jaccard loss of the set {error > t}."""
    known = target != UNLABELLED
    losses = []
    for label in target[known].unique():
        wanted = target[known] == label
        errors = (wanted.float() - logits.softmax(1)[:, label][known]).abs()
        levels = torch.cat([torch.zeros(1), errors.sort().values])
        loss = 0.0
        for low, high in pairwise(levels):
            wrong = errors > low
            loss = loss + (high - low) * wrong.sum() / (wanted | wrong).sum()
        losses.append(loss)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("shape", [(2, 2, 5, 7), (1, 4, 3, 3), (3, 7, 4, 2), (1, 2, 1, 1)])
def test_lovasz_is_the_extension_of_the_jaccard_loss_with_its_gradient(shape):
    logits = _logits(*shape).detach().requires_grad_()
    target = _labels(0, shape[1], shape[0], *shape[2:])
    if target.numel() > 1:
        target[0, 0, 0] = UNLABELLED
    twin = logits.detach().clone().requires_grad_()
    loss, expected = lovasz_softmax(logits, target), _lovasz_by_definition(twin, target)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(logits.grad, twin.grad, rtol=1e-4, atol=1e-6)


def test_cross_entropy_means_over_labelled_pixels():
    loss = cross_entropy(_of_two_pixels(0.6, 0.3), torch.tensor([[[1, UNLABELLED]]]))
    assert loss.item() == pytest.approx(-log(0.6))


def test_consistency_by_hand():
    # two pixels, the second changed: (.6 - .1)^2 for each of 2 classes, over 4 elements
    before, after = _of_two_pixels(0.6, 0.3), _of_two_pixels(0.1, 0.9)
    assert consistency(before, after, torch.tensor([[[0, 1]]])).item() == pytest.approx(2 * 0.25 / 4)
    assert consistency(before, after, torch.tensor([[[UNLABELLED, 1]]])).item() == 0.0
    with pytest.raises(ShapeError, match="both dates"):
        consistency(before, _logits(1, 3, 1, 2), torch.tensor([[[0, 1]]]))


def test_binary_loss_has_the_published_weights():
    logits, change = _logits(2, 2, 5, 6), _labels(0, 2, 2, 5, 6)
    expected = cross_entropy(logits, change) + 0.75 * lovasz_softmax(logits, change)
    torch.testing.assert_close(BinaryChangeLoss()(logits, change), expected)


def test_semantic_loss_has_the_published_weights():
    c, a, b = _logits(2, 2, 5, 6), _logits(2, 7, 5, 6, seed=1), _logits(2, 7, 5, 6, seed=2)
    change = _labels(0, 2, 2, 5, 6)
    before, after = (_labels(1, 7, 2, 5, 6, seed=s) * change for s in (1, 2))
    one, two = (torch.where(labels == 0, UNLABELLED, labels) for labels in (before, after))
    entropy = cross_entropy(a, one) + cross_entropy(b, two) + 0.5 * consistency(a, b, change)
    lovasz = lovasz_softmax(c, change) + 0.5 * (lovasz_softmax(a, one) + lovasz_softmax(b, two))
    expected = cross_entropy(c, change) + 0.5 * entropy + 0.75 * lovasz
    torch.testing.assert_close(SemanticChangeLoss()(c, a, b, change, before, after), expected)


def test_damage_loss_has_the_published_weights():
    b, d = _logits(2, 2, 5, 6), _logits(2, 5, 5, 6, seed=1)
    buildings = _labels(0, 2, 2, 5, 6)
    damage = _labels(1, 5, 2, 5, 6, seed=1) * buildings
    known = torch.where(damage == 0, UNLABELLED, damage)
    expected = cross_entropy(b, buildings) + cross_entropy(d, known)
    expected = expected + 0.5 * lovasz_softmax(b, buildings) + 0.75 * lovasz_softmax(d, known)
    torch.testing.assert_close(DamageLoss()(b, d, buildings, damage), expected)


def test_class_maps_learn_nothing_of_class_0_and_nothing_but_agreement_where_unchanged():
    c, a, b = _logits(1, 2, 2, 2), _logits(1, 7, 2, 2, seed=1), _logits(1, 7, 2, 2, seed=2)
    change = torch.tensor([[[1, 0], [0, 0]]])
    terms = SemanticChangeLoss().terms(c, a, b, change, 3 * change, 5 * change)
    (gradient,) = torch.autograd.grad(terms["semantic_cross_entropy"] + terms["semantic_lovasz"], a, retain_graph=True)
    assert gradient[0, :, 0, 0].abs().min() > 0
    assert not gradient[0, :, 0, 1].any() and not gradient[0, :, 1].any()
    (gradient,) = torch.autograd.grad(terms["consistency"], b)
    assert not gradient[0, :, 0, 0].any() and gradient[0, :, 1, 1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_without_a_labelled_pixel_costs_nothing_and_has_gradients_of_zero(dtype):
    logits = _logits(2, 2, 3, 3).detach().to(dtype).requires_grad_()
    damage = _logits(2, 5, 3, 3).detach().to(dtype).requires_grad_()
    unknown = torch.full((2, 3, 3), UNLABELLED)
    loss = BinaryChangeLoss()(logits, unknown) + DamageLoss()(logits, damage, unknown, torch.zeros_like(unknown))
    assert loss.item() == 0.0 and loss.dtype == torch.float32
    loss.backward()
    assert not logits.grad.any() and not damage.grad.any()


@pytest.mark.parametrize("config", [BinaryChangeLossConfig, SemanticChangeLossConfig, DamageLossConfig])
def test_weights_that_cannot_work_are_refused(config):
    names = [field.name for field in dataclasses.fields(config)]
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=config.__name__):
            config(**{names[-1]: value})
    with pytest.raises(ConfigError):
        config(**dict.fromkeys(names, 0.0))


def test_target_of_another_size_is_refused():
    with pytest.raises(ShapeError, match=r"\(1, 4, 4\).*\(1, 2, 3, 3\)"):
        BinaryChangeLoss()(_logits(1, 2, 3, 3), torch.zeros(1, 4, 4, dtype=torch.int64))
