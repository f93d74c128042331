"""MTP: its size, and that what it is told not to read does not matter to the mean."""

import pytest
import torch

from statefield.backbones import without_scan
from statefield.errors import ConfigError, ShapeError
from statefield.kernels import use_kernels
from statefield.tasks.tracking.nets import MotionPredictor


def small(**options):
    torch.manual_seed(0)
    return MotionPredictor(**({"history": 4, "dim": 16, "num_layers": 2, "d_state": 4} | options))


def test_each_block_has_two_mambas_and_a_perceptron():
    """By hand for D 16, E 32, N 4, R 1: a Mamba has in 16 x 64, conv 32 x 4 + 32, x 32 x 9, dt 32 + 32, A 32 x 4,
    D 32, out 32 x 16."""
    mamba = 16 * 64 + 32 * 4 + 32 + 32 * 9 + 64 + 32 * 4 + 32 + 32 * 16
    perceptron = 16 * 64 + 64 + 64 * 16 + 16
    ends = 4 * 16 + 16 + 16 * 16 + 16 + 16 * 4 + 4
    total = sum(parameter.numel() for parameter in small().parameters())
    assert total == ends + 2 * (2 * mamba + perceptron + 2 * 16)


def test_the_control_has_convolutions_and_about_as_many_weights():
    def size(**options):
        net = MotionPredictor(history=10, dim=32, **options)
        return sum(parameter.numel() for parameter in net.parameters())

    assert not any(name.endswith("A_log") for name, _ in MotionPredictor(dim=32, convolution=True).named_parameters())
    assert abs(size(convolution=True) / size() - 1) < 0.05


def test_the_last_steps_are_read_and_so_is_their_order():
    net, steps = small().eval(), torch.randn(1, 4, 4)
    whole = torch.tensor([4])
    with torch.no_grad():
        forwards, backwards = net(steps, whole), net(steps.flip(1), whole)
    assert not torch.allclose(forwards, backwards, atol=1e-4)


def test_native_and_reference_kernels_agree():
    net, steps, lengths = small().eval(), torch.randn(3, 4, 4), torch.tensor([1, 2, 4])
    found = {}
    for kernels in ("native", "reference"):
        with use_kernels(kernels), torch.no_grad():
            found[kernels] = net(steps, lengths)
    assert torch.allclose(found["native"], found["reference"], atol=1e-5)


def test_from_the_last_step_training_begins_with_constant_velocity():
    steps, lengths = torch.randn(3, 4, 4), torch.tensor([1, 2, 4])
    assert torch.equal(small(from_last_step=True)(steps, lengths), steps[:, -1])


def test_large_steps_do_not_explode():
    with torch.no_grad():
        found = small(num_layers=3)(1e4 * torch.randn(8, 4, 4), torch.full((8,), 4))
    assert found.abs().max() < 1e4


def test_tracks_of_a_batch_do_not_see_each_other():
    net, steps, lengths = small().eval(), torch.randn(3, 4, 4), torch.tensor([1, 2, 4])
    with torch.no_grad():
        together, alone = net(steps, lengths), net(steps[1:2], lengths[1:2])
    assert torch.allclose(together[1:2], alone, atol=1e-6)


def test_every_parameter_gets_a_gradient_and_the_scans_can_be_left_out():
    for net in (small(), without_scan(small())):
        net(torch.randn(2, 4, 4), torch.tensor([2, 4])).sum().backward()
        assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


def test_steps_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match=r"\[B, 4, 4\]"):
        small()(torch.randn(2, 5, 4), torch.tensor([2, 4]))
    with pytest.raises(ConfigError, match="history 0"):
        small(history=0)
