"""SegMamba: the released size, slices of any number, the authors' names, and what it refuses."""

import pytest
import torch
from monai.inferers import sliding_window_inference

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.medical.nets import SegMamba, segmamba

SMALL = {"features": (4, 4, 8, 8), "depths": (1, 1, 1, 1), "hidden": 8}


def test_parameters_are_as_many_as_the_authors_code_has():
    with torch.device("meta"):
        net = SegMamba(3, 4, 4)
    assert sum(parameter.numel() for parameter in net.parameters()) == 67_416_196


def test_logits_have_the_size_of_the_image_and_every_parameter_learns():
    net = SegMamba(3, 2, 3, **SMALL)
    logits = net(torch.randn(1, 2, 32, 32, 64))
    assert logits.shape == (1, 3, 32, 32, 64)
    logits.square().sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


def test_works_inside_monais_sliding_window():
    net = SegMamba(3, 1, 2, **SMALL).eval()
    image = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(sliding_window_inference(image, (32, 32, 32), 1, net), net(image))


def test_slices_are_those_of_the_map_unless_told():
    x = torch.randn(1, 4, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    layer = segmamba.TriOrientedLayer(4, d_state=2).eval()
    with torch.no_grad():
        own = layer(x)
        layer.slices = 4
        torch.testing.assert_close(layer(x), own, rtol=0, atol=0)
        layer.slices = 6
        assert (layer(x) - own).abs().max() > 1e-6
        layer.slices = 5
        with pytest.raises(ShapeError, match="into 5 equal slices"):
            layer(x)


def test_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match="spatial_dims=2"):
        SegMamba(2, 1, 2)
    with pytest.raises(ConfigError, match="four stages"):
        SegMamba(3, 1, 2, features=(4, 8))
    with pytest.raises(ShapeError, match="multiples of 16"):
        SegMamba(3, 1, 2, **SMALL)(torch.zeros(1, 1, 16, 16, 24))


def test_official_names_are_renamed_and_ours_are_left_alone():
    for name in SegMamba(3, 1, 1, **SMALL).state_dict():
        assert segmamba.rename_official_key(name) == name
