"""The convolutional controls: MONAI's own nets, their sides, deep supervision, and what is refused."""

import copy

import pytest
import torch
from monai.networks import nets

from statefield.backbones import without_scan
from statefield.errors import ConfigError, ShapeError
from statefield.tasks.medical.nets import DynamicUNet, ResidualSegNet

SMALL = {DynamicUNet: {"features": (4, 8, 8)}, ResidualSegNet: {"filters": 8, "depths": (1, 1), "decoder_depths": (1,)}}
every_net = pytest.mark.parametrize("net_cls", list(SMALL))


@every_net
@pytest.mark.parametrize("shape", [(16, 8), (8, 16, 8)])
def test_logits_have_the_size_of_the_image_and_every_parameter_learns(net_cls, shape):
    net = net_cls(len(shape), 2, 3, **SMALL[net_cls])
    logits = net(torch.randn(2, 2, *shape))
    assert logits.shape == (2, 3, *shape)
    logits.square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


def test_they_are_monais_nets_of_monais_size():
    with torch.device("meta"):
        ours, theirs = ResidualSegNet(3, 1, 2), nets.SegResNet(init_filters=16)
        count = [sum(parameter.numel() for parameter in net.parameters()) for net in (ours, theirs)]
        assert count[0] == count[1] == 4_700_914
        assert sum(parameter.numel() for parameter in DynamicUNet(3, 1, 3).parameters()) == 31_189_443


def test_deep_supervision_gives_the_coarser_logits_at_their_own_size_in_training_alone():
    net = DynamicUNet(2, 1, 2, features=(4, 8, 8, 8), deep_supervision=True)
    image = torch.randn(2, 1, 32, 16)
    levels = net(image)
    assert [tuple(level.shape) for level in levels] == [(2, 2, 32, 16), (2, 2, 16, 8), (2, 2, 8, 4)]
    stacked = net.body(image)  # MONAI's own: all enlarged to full size
    torch.testing.assert_close(levels[0], stacked[:, 0])
    torch.testing.assert_close(nets.dynunet.interpolate(levels[1], (32, 16)), stacked[:, 1])
    assert net.eval()(image).shape == (2, 2, 32, 16)


def test_a_net_that_was_trained_can_be_copied():
    """For averaged weights; MONAI's module holds on to logits with their graph, of which torch makes no copy."""
    net = DynamicUNet(2, 1, 2, features=(4, 8, 8), deep_supervision=True)
    sum(level.sum() for level in net(torch.randn(2, 1, 16, 16))).backward()
    assert copy.deepcopy(net.eval())(torch.randn(1, 1, 16, 16)).shape == (1, 2, 16, 16)


@every_net
def test_they_have_no_scan_to_leave_out(net_cls):
    with pytest.raises(ConfigError, match="has no scan"):
        without_scan(net_cls(2, 1, 2, **SMALL[net_cls]))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="names 2 stages"):
        DynamicUNet(2, 1, 2, features=(4, 8))
    with pytest.raises(ConfigError, match="multiple of 8"):
        ResidualSegNet(2, 1, 2, filters=12)
    with pytest.raises(ConfigError, match="spatial_dims=4"):
        DynamicUNet(4, 1, 2)
    with pytest.raises(ShapeError, match="multiples of 4"):
        DynamicUNet(2, 1, 2, **SMALL[DynamicUNet])(torch.zeros(1, 1, 8, 6))
