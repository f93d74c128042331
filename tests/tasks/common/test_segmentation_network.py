"""`SegmentationNet`: encoders, decoders, sizes, and the full-resolution path."""

from __future__ import annotations

import pytest
import torch

from statefield.errors import ConfigError, ShapeError, UnknownName
from statefield.tasks.common.network import DECODERS, SegmentationNet


@pytest.mark.parametrize("detail_channels", [0, 4])
@pytest.mark.parametrize("decoder", [name for name in DECODERS if name != "dpt"])
def test_every_decoder_gives_logits_of_the_images_own_size(decoder, detail_channels):
    net = SegmentationNet(
        "test_efficientnet", decoder, in_channels=2, num_classes=3, detail_channels=detail_channels
    ).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 2, 64, 70)).shape == (2, 3, 64, 70)


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (64, 32), (65, 100)])
def test_any_size_is_padded_and_cropped_back(size):
    net = SegmentationNet("test_convnext", in_channels=1, num_classes=2, detail_channels=4).eval()
    with torch.no_grad():
        logits = net(torch.randn(1, 1, *size))
    assert logits.shape == (1, 2, *size)
    assert torch.isfinite(logits).all()


def test_padding_repeats_the_edge_so_a_constant_image_gives_the_same_logits_at_its_edge_as_a_larger_one():
    torch.manual_seed(0)
    net = SegmentationNet("test_convnext", in_channels=1, num_classes=2, detail_channels=4).eval()
    with torch.no_grad():
        small, large = net(torch.ones(1, 1, 40, 40)), net(torch.ones(1, 1, 64, 64))
    torch.testing.assert_close(small, large[..., :40, :40])


def test_the_detail_path_separates_pixels_that_the_encoder_sees_as_one():
    """With the decoder silenced, one changed pixel changes only the logits within reach of three 3x3 kernels."""
    torch.manual_seed(0)
    net = SegmentationNet("test_convnext", in_channels=1, num_classes=2, detail_channels=4).eval()
    with torch.no_grad():
        net.classifier.weight[:, :-4] = 0
        image = torch.zeros(1, 1, 64, 64)
        before = net(image)
        image[0, 0, 20, 30] = 5.0
        changed = (net(image) - before).abs().amax(dim=(0, 1)) > 0
    rows, columns = changed.nonzero(as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (17, 23, 27, 33)


def test_every_parameter_of_the_net_receives_a_gradient():
    net = SegmentationNet("test_convnext", in_channels=3, num_classes=3, detail_channels=4)
    net(torch.randn(2, 3, 64, 64)).square().mean().backward()
    silent = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert silent == []


def test_parameters_that_the_encoder_exempts_from_weight_decay_are_named_as_in_the_net():
    net = SegmentationNet("spatial_mamba_nano", in_channels=1, num_classes=2, detail_channels=0)
    names = dict(net.named_parameters())
    exempt = net.no_weight_decay()
    assert exempt
    assert exempt <= set(names)


def test_an_unknown_encoder_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownName, match=r"did you mean .*spatial_mamba_nano"):
        SegmentationNet("spatial_mamba_nanno", in_channels=1, num_classes=2)


def test_an_unknown_decoder_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownName, match="did you mean 'unet"):
        SegmentationNet("test_convnext", "unett", in_channels=1, num_classes=2)


def test_an_argument_that_the_decoder_does_not_have_is_a_config_error_that_shows_it():
    with pytest.raises(ConfigError, match="decoder_chanels"):
        SegmentationNet("test_convnext", in_channels=1, num_classes=2, decoder_args={"decoder_chanels": [8]})


SEQUENCES = {
    "adventurer_tiny_patch16_pyramid": {"dim": 8, "num_layers": 4, "d_state": 2, "head_dim": 8},
    "plainmamba_l1_pyramid": {"dim": 8, "num_layers": 4, "d_state": 2},
    "shufflemamba_tiny_pyramid": {"dim": 8, "num_layers": 4, "d_state": 2},
    "vil2_tiny_pyramid": {"dim": 8, "num_layers": 4},
    "vim_tiny_pyramid": {"dim": 8, "num_layers": 4, "d_state": 2},
    "vision_rwkv_tiny_pyramid": {"dim": 8, "num_layers": 4},
}


@pytest.mark.parametrize("encoder", SEQUENCES)
def test_every_encoder_of_sequences_is_shuffled_at_the_rate_asked_for(encoder):
    net = SegmentationNet(encoder, in_channels=1, num_classes=2, encoder_args=SEQUENCES[encoder], shuffle_rate=0.3)
    assert net.body.encoder.model.model.body.shuffle_rates == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("encoder", ["test_convnext", "spatial_mamba_nano"])
def test_shuffling_an_encoder_of_maps_is_refused(encoder):
    with pytest.raises(ConfigError, match=f"shuffle_rate 0.3 was given, and the encoder '{encoder}'"):
        SegmentationNet(encoder, in_channels=1, num_classes=2, shuffle_rate=0.3)


def test_the_detail_path_is_refused_for_the_one_decoder_that_cannot_have_it():
    with pytest.raises(ConfigError, match="dpt"):
        SegmentationNet("test_vit", "dpt", in_channels=1, num_classes=2, detail_channels=4)


def test_a_wrong_number_of_channels_is_refused_with_the_shape():
    net = SegmentationNet("test_convnext", in_channels=3, num_classes=2)
    with pytest.raises(ShapeError, match=r"\(1, 1, 32, 32\).*\[B, 3, H, W\]"):
        net(torch.randn(1, 1, 32, 32))
