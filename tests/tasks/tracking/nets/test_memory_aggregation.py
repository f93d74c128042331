"""The memory of video detection: what a bank holds, and what the enhancement makes of it."""

import pytest
import torch

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.tracking.nets import MemoryAggregation, MemoryBank, PixelAggregation


def test_a_bank_reads_all_it_holds_until_it_holds_too_much():
    bank = MemoryBank(max_length=8, key_length=4)
    bank.write(torch.arange(4.0)[:, None])
    assert bank.read().flatten().tolist() == [0, 1, 2, 3]
    bank.write(torch.arange(4.0, 8.0)[:, None])
    assert len(bank) == 8
    assert bank.read().shape == (4, 1)
    assert len(set(bank.read().flatten().tolist())) == 4


def test_a_full_bank_forgets_as_many_as_it_gains_and_keeps_the_new():
    bank = MemoryBank(max_length=4, key_length=4)
    bank.write(torch.zeros(5, 1))
    bank.write(torch.ones(3, 1))
    assert sorted(bank.features.flatten().tolist()) == [0, 0, 1, 1, 1]


def test_no_gradient_goes_back_over_frames():
    bank = MemoryBank()
    bank.write(torch.ones(2, 3, requires_grad=True) * 2)
    assert not bank.read().requires_grad


def test_a_new_aggregation_adds_nothing_and_learns_what_to_add():
    aggregation = MemoryAggregation(8, heads=2)
    added = aggregation(torch.rand(3, 8), torch.rand(5, 8))
    assert not added.any()
    (added - torch.rand(3, 8)).square().sum().backward()
    assert aggregation.out.weight.grad.any() and aggregation.out.bias.grad.any()


def test_attention_to_equal_features_is_their_projection():
    """Where every feature of the memory is m, softmax weights do not matter: out = fc(v(m))."""
    aggregation = MemoryAggregation(8, heads=2)
    aggregation.out.reset_parameters()
    memory = torch.rand(1, 8).expand(5, -1)
    expected = aggregation.out(aggregation.value(memory[:1])).expand(3, -1)
    assert torch.allclose(aggregation(torch.rand(3, 8), memory), expected, atol=1e-6)


def test_the_paper_aggregation_has_four_square_layers():
    assert sum(parameter.numel() for parameter in MemoryAggregation().parameters()) == 4 * (1024 * 1024 + 1024)


def test_pixels_are_as_they_are_until_something_is_remembered():
    level = PixelAggregation(8, heads=2, kept=3)
    level.aggregation.out.reset_parameters()
    feature_map = torch.rand(1, 8, 4, 5)
    assert torch.equal(level(feature_map), feature_map)
    foreground = torch.zeros(1, 4, 5)
    foreground[0, 1, 2], foreground[0, 3, 0], foreground[0, 0, 4] = 3, 2, 1
    level.remember(feature_map, foreground)
    assert torch.equal(level.bank.features, feature_map[0][:, [1, 3, 0], [2, 0, 4]].mT)
    enhanced = level(feature_map)
    assert not torch.equal(enhanced, feature_map)
    one = level.aggregation(feature_map[0, :, 2, 3][None])[0]
    assert torch.allclose(enhanced[0, :, 2, 3], feature_map[0, :, 2, 3] + one, atol=1e-6)


def test_what_cannot_be_remembered_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        MemoryBank().read()
    with pytest.raises(ConfigError, match="heads"):
        MemoryAggregation(10, heads=4)
    with pytest.raises(ConfigError, match="reads 9"):
        MemoryBank(max_length=8, key_length=9)
    with pytest.raises(ShapeError, match=r"\[N, 8\]"):
        MemoryAggregation(8, heads=2)(torch.rand(2, 3, 8))
    bank = MemoryBank()
    bank.write(torch.rand(2, 4))
    with pytest.raises(ShapeError, match="5 channels"):
        bank.write(torch.rand(2, 5))
    with pytest.raises(ShapeError, match=r"\[B, h, w\]"):
        PixelAggregation(8, heads=2).remember(torch.rand(1, 8, 4, 5), torch.rand(1, 5, 4))
