"""Vim beyond its goldens: published sizes, its class token, overlapping patches, and the scan's two directions."""

from __future__ import annotations

import pytest
import torch

from statefield.backbones import create_model
from statefield.backbones._isotropic import resize_positions
from statefield.backbones._mixers import BidirectionalMixer
from statefield.backbones.vim import Vim, rename_official_key
from statefield.errors import ConfigError

PUBLISHED = {  # parameters of the authors' models; all have 415 entries
    "vim_tiny": 7_148_008,
    "vim_tiny_plus": 7_250_344,
    "vim_small": 25_796_584,
    "vim_small_plus": 26_001_256,
    "vim_base": 97_598_440,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_entries_are_the_published_ones(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]
    assert len(model.state_dict()) == 415


def small(**kwargs) -> Vim:
    torch.manual_seed(0)
    return Vim(**({"dim": 16, "num_layers": 2, "d_state": 2, "img_size": 64, "num_classes": 4} | kwargs)).eval()


def test_overlapping_patches_begin_at_every_stride():
    model = small(stride=8)
    assert model.learned_grid == (7, 7) and model.feature_info[0]["reduction"] == 8
    with torch.no_grad():
        (feature_map,) = model.forward_intermediates(torch.randn(1, 3, 64, 80), [0], intermediates_only=True)
    assert feature_map.shape == (1, 16, 7, 9)


def test_the_class_token_stands_in_the_middle_and_is_read_out():
    model, x = small(), torch.randn(1, 3, 64, 48)
    tokens, grid = model.embed(x)
    assert grid == (4, 3) and tokens.shape[1] == 13
    learned = torch.cat((model.pos_embed[:, :8], model.pos_embed[:, 9:]), 1)
    torch.testing.assert_close(tokens[:, 6], (model.cls_token + model.pos_embed[:, 8:9])[:, 0])
    expected = model.patch_embed(x).flatten(1, 2) + resize_positions(learned, (4, 4), grid)
    torch.testing.assert_close(model.patches(tokens), expected)
    assert torch.equal(model.read_out(tokens), tokens[:, 6])
    with torch.no_grad():
        assert torch.isfinite(small(class_token=False)(x)).all()


def test_both_directions_reach_every_token_and_each_only_its_own_side():
    torch.manual_seed(0)
    mixer = BidirectionalMixer(8, d_state=2).eval()
    x = torch.randn(1, 9, 8)
    with torch.no_grad():
        changed = x.clone()
        changed[:, 4] += 1
        assert ((mixer(changed) - mixer(x)).abs().amax(dim=(0, 2)) > 0).all()
        mixer.backwards.D.zero_()
        mixer.backwards.x_proj.weight.zero_()  # no B, no C: the backward direction is silent
        difference = (mixer(changed) - mixer(x)).abs().amax(dim=(0, 2))
    assert (difference[:4] == 0).all() and (difference[4:] > 0).all()


def test_official_names_have_one_name_here():
    for official, ours in {
        "layers.0.mixer.A_b_log": "blocks.0.mixer.backwards.A_log",
        "layers.23.mixer.conv1d.bias": "blocks.23.mixer.forwards.conv1d.bias",
        "layers.2.mixer.D": "blocks.2.mixer.forwards.D",
        "dt_proj_b.weight": "backwards.dt_proj.weight",
        "norm_f.weight": "norm.weight",
        "head.bias": "head.bias",
    }.items():
        assert rename_official_key(official) == ours
        assert rename_official_key(ours) == ours


def test_official_weights_fill_the_body_of_a_pyramid():
    from statefield.backbones.checkpoints import load_entries

    whole = small(num_layers=4)
    pyramid = create_model("vim_tiny_pyramid", dim=16, num_layers=4, d_state=2, img_size=64, num_classes=4)
    own = {name: value for name, value in pyramid.state_dict().items() if name.startswith("neck.")}
    load_entries(pyramid, whole.state_dict(), source="a Vim", fresh=tuple(own))
    assert torch.equal(pyramid.body.blocks[3].mixer.in_proj.weight, whole.blocks[3].mixer.in_proj.weight)


def test_a_pyramid_needs_four_blocks_and_a_fixed_read_out_is_told():
    with pytest.raises(ConfigError, match="needs four blocks"):
        create_model("vim_tiny_pyramid", dim=16, num_layers=3)
    with pytest.raises(ConfigError, match="'max'"):
        small().reset_classifier(3, "max")
