"""U-Mamba and xLSTM-UNet: the authors' sizes, where their layers stand, deep supervision, and what they refuse."""

import pytest
import torch
from monai.inferers import sliding_window_inference
from torch import nn

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.medical.nets import ResidualUNet, UMamba, XLSTMUNet, xlstm_unet
from statefield.tasks.medical.nets.residual_unet import ResidualBlock, TokenLayer, usual_decoder_depths, usual_depths

SIX = (32, 64, 128, 256, 320, 320)
PLAN_3D = {
    "features": SIX,
    "strides": (1, (1, 2, 2), 2, 2, 2, (1, 2, 2)),
    "kernel_sizes": ((1, 3, 3), 3, 3, 3, 3, 3),
}
PLAN_2D = {"features": (32, 64, 128, 256, 512, 512, 512)}
FIVE = {"features": (32, 64, 128, 256, 512)}
# Verified by building the authors' code; xLSTM-UNet's without the norms that its layers have and never use.
SIZES = [
    (UMamba, 3, 14, PLAN_3D | {"place": "encoder", "image_size": (40, 224, 192)}, 42_842_798),
    (UMamba, 3, 14, PLAN_3D, 41_945_158),
    (UMamba, 2, 14, PLAN_2D | {"place": "encoder", "image_size": (320, 320)}, 47_015_538),
    (UMamba, 2, 14, PLAN_2D, 47_533_012),
    (XLSTMUNet, 2, 2, FIVE, 11_179_664 - 2 * 512),
    (XLSTMUNet, 2, 2, FIVE | {"place": "encoder", "image_size": (64, 64)}, 9_748_008 - 2 * (128 + 16)),
]
SMALL = {"features": (4, 8, 8), "depths": (1, 1, 1), "decoder_depths": (1, 1)}
every_net = pytest.mark.parametrize("net_cls", [ResidualUNet, UMamba, XLSTMUNet])


@pytest.mark.parametrize("net_cls, spatial_dims, classes, options, count", SIZES)
def test_parameters_are_as_many_as_the_authors_code_has(net_cls, spatial_dims, classes, options, count):
    with torch.device("meta"):
        net = net_cls(spatial_dims, 1, classes, **options, deep_supervision=True)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


@every_net
@pytest.mark.parametrize("shape", [(16, 8), (8, 16, 8)])
def test_logits_have_the_size_of_the_image_and_every_parameter_learns(net_cls, shape):
    net = net_cls(len(shape), 2, 3, **SMALL)
    logits = net(torch.randn(2, 2, *shape))
    assert logits.shape == (2, 3, *shape)
    logits.square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


@every_net
def test_deep_supervision_gives_a_list_in_training_alone(net_cls):
    net, x = net_cls(2, 1, 2, **SMALL, deep_supervision=True), torch.randn(2, 1, 16, 16)
    assert [tuple(level.shape[2:]) for level in net(x)] == [(16, 16), (8, 8)]
    net.eval()
    torch.testing.assert_close(net(x), net.all_logits(x)[0])


@pytest.mark.parametrize("net_cls", [UMamba, XLSTMUNet])
def test_works_inside_monais_sliding_window(net_cls):
    net = net_cls(3, 1, 2, **SMALL).eval()
    image = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(sliding_window_inference(image, (8, 8, 8), 1, net), net(image))


def _kinds(net: ResidualUNet) -> list[str]:
    def kind(layer: nn.Module) -> str:
        if isinstance(layer, TokenLayer):
            return "channels" if layer.by_channel else "voxels"
        return "block" if isinstance(layer, ResidualBlock) else "none"

    return [kind(layer) for layer in net.layers]


def test_layers_stand_where_the_authors_have_them():
    with torch.device("meta"):
        plane = FIVE | {"place": "encoder", "image_size": (64, 64)}
        volume = {"features": SIX, "place": "encoder", "image_size": (64, 64, 64)}
        assert _kinds(UMamba(2, 1, 2, **plane)) == ["voxels", "none", "voxels", "none", "channels"]
        assert _kinds(UMamba(3, 1, 2, **volume)) == ["voxels"] * 4 + ["channels"] * 2
        assert _kinds(XLSTMUNet(2, 1, 2, **plane)) == ["none", "block", "voxels", "none", "channels"]
        assert _kinds(XLSTMUNet(3, 1, 2, **volume)) == ["block"] * 3 + ["voxels"] + ["channels"] * 2
        assert _kinds(UMamba(3, 1, 2)) == ["none"] * 5 + ["voxels"]


@pytest.mark.parametrize("net_cls", [UMamba, XLSTMUNet])
def test_a_net_with_channels_as_tokens_takes_its_own_size_alone(net_cls):
    net = net_cls(2, 1, 2, **SMALL, place="encoder", image_size=(8, 8))
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 2, 8, 8)
    with pytest.raises(ShapeError, match=r"built for images of \[8, 8\]"):
        net(torch.randn(2, 1, 16, 16))
    with pytest.raises(ConfigError, match="needs image_size"):
        net_cls(2, 1, 2, place="encoder")
    with pytest.raises(ConfigError, match="'top'"):
        net_cls(2, 1, 2, place="top")


def test_a_feature_count_of_a_channel_layer_may_be_even_but_not_odd():
    assert xlstm_unet.SequenceBlock(18).mixer.heads == 2
    with pytest.raises(ConfigError, match="over 9 features"):
        xlstm_unet.SequenceBlock(9)


def test_plans_are_reduced_as_the_authors_reduce_them():
    assert usual_depths((2,) * 6) == (2, 2, 2, 1, 1, 1)
    assert usual_depths((3, 3, 3, 3, 3)) == (3, 3, 3, 1, 1)
    assert usual_decoder_depths((2,) * 5) == (2, 2, 2, 1, 1)
    assert usual_decoder_depths((2,) * 4) == (2, 2, 2, 1)


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="strides does not fit"):
        ResidualUNet(2, 1, 2, features=(4, 8), strides=(1, 2, 2))
