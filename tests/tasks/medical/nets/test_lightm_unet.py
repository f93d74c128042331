"""LightM-UNet: released sizes, two and three dimensions, the authors' names, and what it refuses."""

import pytest
import torch
from monai.inferers import sliding_window_inference

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.medical.nets import LightMUNet, lightm_unet

RELEASED = [  # verified by building the authors' code
    (3, 3, 32, 5_015_766),
    (2, 2, 32, 5_011_683),
    (2, 2, 24, 2_886_707),
    (2, 2, 16, 1_342_915),
    (2, 2, 8, 380_787),
]
SMALL = {"filters": 8, "depths": (1, 1, 1), "decoder_depths": (1, 1)}


@pytest.mark.parametrize("spatial_dims, classes, filters, count", RELEASED)
def test_parameters_are_as_many_as_the_released_code_has(spatial_dims, classes, filters, count):
    with torch.device("meta"):
        net = LightMUNet(spatial_dims, 1, classes, filters=filters)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


@pytest.mark.parametrize("shape", [(8, 12), (8, 4, 12)])
def test_logits_have_the_size_of_the_image_and_every_parameter_learns(shape):
    net = LightMUNet(len(shape), 2, 3, **SMALL)
    logits = net(torch.randn(2, 2, *shape))
    assert logits.shape == (2, 3, *shape)
    logits.square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


def test_works_inside_monais_sliding_window_in_three_dimensions():
    net = LightMUNet(3, 1, 2, **SMALL).eval()
    image = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(sliding_window_inference(image, (8, 8, 8), 1, net), net(image))


def test_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match="spatial_dims=1"):
        LightMUNet(1, 1, 2)
    with pytest.raises(ConfigError, match="one decoder stage less"):
        LightMUNet(2, 1, 2, decoder_depths=(1,))
    with pytest.raises(ConfigError, match="multiple of 8"):
        LightMUNet(2, 1, 2, filters=12)
    net = LightMUNet(3, 1, 2, **SMALL)
    with pytest.raises(ShapeError, match="multiples of 4"):
        net(torch.zeros(1, 1, 8, 8, 6))
    with pytest.raises(ShapeError, match=r"needs \[B, 1, D, H, W\]"):
        net(torch.zeros(1, 1, 8, 8))


def test_dropout_acts_in_training_alone():
    net, x = LightMUNet(2, 1, 2, **SMALL, dropout=0.5), torch.ones(1, 1, 8, 8)
    torch.manual_seed(0)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_official_names_are_renamed_and_ours_are_left_alone():
    for name in LightMUNet(2, 1, 1, **SMALL).state_dict():
        assert lightm_unet.rename_official_key(name) == name
