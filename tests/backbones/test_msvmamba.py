"""MSVMamba beyond its goldens: published sizes, names, and the state that runs on through the half-sized map."""

from __future__ import annotations

import pytest
import torch

from statefield.backbones import create_model
from statefield.backbones._mixers.multi_scale import MultiScaleMixer
from statefield.backbones.msvmamba import rename_official_key

PUBLISHED = {"msvmamba_nano": 6_864_136, "msvmamba_micro": 11_879_272, "msvmamba_tiny": 33_046_312}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


def test_the_state_runs_on_from_one_visit_of_the_half_sized_map_to_the_next():
    torch.manual_seed(0)
    mixer = MultiScaleMixer(8).eval()
    visits = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    with torch.no_grad():
        both = mixer.scan(torch.randn(1, 4, 16), 0, visits)
    assert (both[:, 4:] - both[:, :4]).abs().amax(-1).min() > 0


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 4)])
def test_the_mixer_takes_maps_of_any_size(size):
    x = torch.randn(2, *size, 8)
    with torch.no_grad():
        assert MultiScaleMixer(8)(x).shape == x.shape


def test_official_names_have_one_name_here():
    for official, ours in {
        "layers.0.blocks.0.op.conv2d_b1.weight": "stages.0.blocks.0.mixer.half_conv.weight",
        "layers.1.blocks.1.norm.bias": "stages.1.blocks.1.norm1.bias",
        "layers.1.blocks.1.norm2.bias": "stages.1.blocks.1.norm2.bias",
        "layers.0.downsample.norm.bias": "stages.1.downsample.norm.bias",
        "layers.0.blocks.0.op.se.fc.2.weight": "stages.0.blocks.0.mixer.se.expand.weight",
        "classifier.norm.weight": "norm.weight",
        "norm.weight": "norm.weight",
    }.items():
        assert rename_official_key(official) == ours
        assert rename_official_key(ours) == ours
