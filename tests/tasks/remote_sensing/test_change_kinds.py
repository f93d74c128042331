"""The three questions: what they decide from logits, the threshold, and datasets that cannot answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from statefield.datasets.change import ChangeInfo
from statefield.errors import ConfigError
from statefield.labels import UNLABELLED
from statefield.tasks.remote_sensing.change_kinds import ShiftedLogits, change_kind
from statefield.tasks.remote_sensing.change_threshold import ThresholdCounts
from statefield.tasks.remote_sensing.nets import BuildingDamage

BINARY = ChangeInfo(("unchanged", "changed"), ("red",), 2)
LAND = ("unchanged", "water", "tree")
SEMANTIC = ChangeInfo(("unchanged", "changed"), ("red",), 2, before_classes=LAND, after_classes=LAND)
DAMAGE = ChangeInfo(
    ("background", "no", "minor", "major", "destroyed"), ("red",), 2, before_classes=("background", "building")
)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.93])
def test_the_largest_shifted_logit_is_change_where_its_probability_passes_the_threshold(threshold):
    kind = change_kind("binary", BINARY, {})
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (1, 2, 8, 9))).float()
    net = ShiftedLogits(torch.nn.Identity(), kind.shifts(threshold))
    net.net.forward = lambda before, after: logits  # type: ignore[method-assign]
    decided = kind.decide(net(logits, logits))["change"]
    assert torch.equal(decided.bool(), logits.softmax(1)[:, 1] > threshold)


def test_an_output_that_no_loss_trains_is_never_chosen():
    kind = change_kind("damage", DAMAGE, {})
    damage = torch.tensor([9.0, 0, 1, 0, 0]).reshape(1, 5, 1, 1).expand(-1, -1, 2, 2)
    outputs = BuildingDamage(torch.zeros(1, 2, 2, 2), damage)
    net = ShiftedLogits(torch.nn.Identity(), kind.shifts(0.5))
    net.net.forward = lambda before, after: outputs  # type: ignore[method-assign]
    shifted = net(torch.zeros(1), torch.zeros(1))
    assert isinstance(shifted, BuildingDamage)
    assert (kind.decide(torch.cat(shifted, dim=1))["damage"] == 2).all()


def test_maps_have_classes_only_where_there_is_something():
    decided = {"change": np.array([[0, 1]]), "before": np.array([[1, 1]]), "after": np.array([[2, 2]])}
    maps = change_kind("semantic", SEMANTIC, {}).maps(decided)
    assert maps["before"].tolist() == [[0, 1]] and maps["after"].tolist() == [[0, 2]]
    decided = {"building": np.array([[0, 1]]), "damage": np.array([[3, 4]])}
    assert change_kind("damage", DAMAGE, {}).maps(decided)["damage"].tolist() == [[0, 4]]


@pytest.mark.parametrize(
    ("task", "info", "said"),
    [
        ("binary", DAMAGE, "mamba_bda"),
        ("semantic", BINARY, "mamba_bcd"),
        ("damage", BINARY, "5: background, no damage"),
    ],
)
def test_a_dataset_that_cannot_answer_is_refused(task, info, said):
    with pytest.raises(ConfigError, match=said):
        change_kind(task, info, {})


def test_weights_of_the_loss_are_named_and_checked():
    with pytest.raises(ConfigError, match="no weight dice; of this net it may have cross_entropy, lovasz"):
        change_kind("binary", BINARY, {"dice": 1.0})
    logits, target = torch.randn(1, 2, 4, 4), torch.randint(0, 2, (1, 4, 4))
    alone = change_kind("binary", BINARY, {"lovasz": 0.0}).loss(logits, {"mask": target})
    torch.testing.assert_close(alone, torch.nn.functional.cross_entropy(logits, target))


@pytest.mark.parametrize("threshold", [0.0, 1.0, float("nan")])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        change_kind("binary", BINARY, {}).shifts(threshold)


def test_the_best_threshold_is_found_by_hand():
    # probabilities 0.2, 0.6, 0.7 of unchanged pixels and 0.65, 0.9 of changed ones. From above 0.6 to 0.65: 2 hits, 1
    # false, F1 = 4 / 5; from above 0.7 to 0.9: 1 hit, none false, F1 = 2 / 3; to 0.6: 2 hits, 2 false, F1 = 4 / 6.
    probability = np.array([0.2, 0.602, 0.702, 0.652, 0.902])
    target = np.array([0, 0, 0, 1, 1])
    best = ThresholdCounts.of(np.log(probability / (1 - probability)), target).best()
    assert best.f1 == pytest.approx(0.8)
    assert best.threshold == pytest.approx(0.605)  # the nearest to 0.5


def test_threshold_counts_of_parts_add_and_leave_out_what_has_no_label():
    rng = np.random.default_rng(1)
    margin, target = rng.normal(0, 3, (6, 7)), rng.integers(-1, 2, (6, 7))
    whole = ThresholdCounts.of(margin, target)
    parts = ThresholdCounts.of(margin[:2], target[:2]) + ThresholdCounts.of(margin[2:], target[2:])
    np.testing.assert_array_equal(whole.counts, parts.counts)
    assert whole.counts.sum() == (target != UNLABELLED).sum()


def test_without_a_changed_pixel_the_threshold_stays_at_a_half():
    assert ThresholdCounts.of(np.zeros((2, 2)), np.zeros((2, 2), int)).best() == (0.5, 0.0)
