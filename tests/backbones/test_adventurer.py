"""Adventurer beyond its goldens: published sizes, patches down to a pixel, what a block reads and in which order."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from statefield.backbones import create_model
from statefield.backbones._isotropic import resize_positions
from statefield.backbones._mixers import DualityMixer
from statefield.backbones.adventurer import Adventurer, AdventurerBlock, rename_official_key
from statefield.backbones.checkpoints import load_entries
from statefield.errors import ConfigError, ShapeError

PUBLISHED = {  # parameters of the authors' models with positions for 224 x 224
    "adventurer_tiny_patch16": 11_608_840,
    "adventurer_small_patch16": 44_491_816,
    "adventurer_base_patch16": 98_657_608,
    "adventurer_large_patch16": 346_196_200,
    "adventurer_tiny_patch1": 24_207_880,
    "adventurer_small_patch1": 69_689_896,
    "adventurer_base_patch1": 136_454_728,
    "adventurer_large_patch1": 396_592_360,
}
AT_64 = {  # and with positions for 64 x 64
    "adventurer_tiny_patch1": 12_411_400,
    "adventurer_small_patch1": 46_096_936,
    "adventurer_base_patch1": 101_065_288,
    "adventurer_large_patch1": 349_406_440,
}


def count(name: str, **kwargs) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name, **kwargs).parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    assert count(name) == PUBLISHED[name]


@pytest.mark.parametrize("name", AT_64)
def test_parameters_of_smaller_pictures_are_the_published_ones(name):
    assert count(name, img_size=64) == AT_64[name]


def test_patches_of_one_pixel_cost_nothing_but_positions():
    """256 (3 p^2) weights a patch fewer, and 256 positions more for every token more: 50,177 in place of 197."""
    grown = count("adventurer_tiny_patch1") - count("adventurer_tiny_patch16")
    assert grown == 256 * (50_177 - 197) - 256 * 3 * (16 * 16 - 1)


def small(**kwargs) -> Adventurer:
    torch.manual_seed(0)
    options = {"dim": 8, "num_layers": 4, "d_state": 2, "head_dim": 8, "img_size": 32, "num_classes": 4}
    return Adventurer(**(options | kwargs)).eval()


@pytest.mark.parametrize(("flip", "reversed_blocks"), [("released", [2, 3]), ("every_two", [2, 3, 6, 7, 10, 11])])
def test_which_blocks_read_backwards_is_the_released_rule_or_the_comments(flip, reversed_blocks):
    model = small(num_layers=12, flip=flip)
    assert [index for index, block in enumerate(model.blocks) if block.reverse] == reversed_blocks


def test_an_unknown_rule_is_refused():
    with pytest.raises(ConfigError, match="'always'"):
        small(flip="always")


def test_the_class_token_comes_last_with_a_position_of_its_own():
    model, x = small(), torch.randn(2, 3, 48, 64)
    tokens, grid = model.embed(x)
    assert grid == (3, 4) and tokens.shape == (2, 13, 8)
    torch.testing.assert_close(tokens[0, 12], model.cls_token[0, 0] + model.pos_embed[0, 4])
    expected = model.patch_embed(x).flatten(1, 2) + resize_positions(model.pos_embed[:, :4], (2, 2), grid)
    torch.testing.assert_close(model.patches(tokens), expected)
    assert torch.equal(model.read_out(tokens), tokens[:, 12])


def test_a_block_is_its_definition_written_out():
    torch.manual_seed(0)
    block, x = AdventurerBlock(8, d_state=2, head_dim=8, reverse=True).eval(), torch.randn(2, 6, 8)
    order = [4, 3, 2, 1, 0, 5]  # the patches from the last one, the class token where it was; its own inverse
    with torch.no_grad():
        normed = block.norm(x)
        read = block.mixer(torch.cat((normed.mean(1, keepdim=True), normed[:, order]), dim=1))[:, 1:]
        middle = x + read[:, order]
        gate, value = block.mlp.fc1_g(block.norm_mlp(middle)), block.mlp.fc1_x(block.norm_mlp(middle))
        torch.testing.assert_close(block(x, (1, 5)), middle + block.mlp.fc2(functional.silu(gate) * value))
        assert block.mlp.fc1_g.out_features == 20  # int(2.5 D)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_mean_alone_reaches_tokens_that_were_read_before(reverse):
    torch.manual_seed(0)
    block, x = AdventurerBlock(8, d_state=2, head_dim=8, reverse=reverse).eval(), torch.randn(1, 7, 8)
    moved, kept = x.clone(), x.clone()
    moved[:, 3] += 1
    kept[:, 3] += 1
    kept[:, 6 if not reverse else 0] -= (
        1  # a token read after patch 3 (reversed: patch 0) undoes the change of the mean
    )
    with torch.no_grad():
        by_all = (block.mix(moved) - block.mix(x)).abs().amax(dim=(0, 2))
        in_order = (block.mix(kept) - block.mix(x)).abs().amax(dim=(0, 2))
    assert (by_all > 1e-5).all()
    before = [0, 1, 2] if not reverse else [4, 5]
    after = [3, 4, 5, 6] if not reverse else [3, 2, 1, 0, 6]
    assert (in_order[before] < 1e-6).all() and (in_order[after] > 1e-5).all()


def test_the_gate_comes_before_the_norm():
    torch.manual_seed(0)
    mixer, x = DualityMixer(8, d_state=2, head_dim=8).eval(), torch.randn(1, 5, 8)
    with torch.no_grad():
        plain = mixer(x)
        mixer.in_proj.weight[:16] = 0  # z = 0: silu(z) = 0, and the norm of zeros is zero
        assert torch.equal(mixer(x), torch.zeros_like(plain))
    with pytest.raises(ConfigError, match="head_dim 5"):
        DualityMixer(8, head_dim=5)


def test_stochastic_depth_begins_one_block_late():
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in small(num_layers=5, drop_path_rate=0.4).blocks]
    assert rates == pytest.approx([0, 0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_small_patches_give_maps_as_fine_as_themselves_and_pyramids(patch_size):
    x = torch.randn(1, 3, 12, 8)
    options = {"dim": 8, "num_layers": 4, "d_state": 2, "head_dim": 8, "img_size": 8, "num_classes": 0}
    with torch.no_grad():
        whole = create_model(f"adventurer_tiny_patch{patch_size}", **options).eval()
        (feature_map,) = whole.forward_intermediates(x, [-1], intermediates_only=True)
        levels = create_model(
            "adventurer_tiny_patch4_pyramid", features_only=True, **options | {"patch_size": patch_size}
        ).eval()(x)
    assert feature_map.shape == (1, 8, 12 // patch_size, 8 // patch_size)
    assert [tuple(level.shape[-2:]) for level in levels] == [(3, 2), (2, 1), (1, 1), (1, 1)]


def test_official_names_have_one_name_here():
    for official, ours in {
        "layers.0.mixer.dt_bias": "blocks.0.mixer.dt_bias",
        "layers.11.norm_mlp.weight": "blocks.11.norm_mlp.weight",
        "layers.2.mixer.norm.weight": "blocks.2.mixer.norm.weight",
        "mlp.w1.weight": "mlp.fc1_g.weight",
        "norm_f.weight": "norm.weight",
        "head.bias": "head.bias",
    }.items():
        assert rename_official_key(official) == ours
        assert rename_official_key(ours) == ours


def test_official_weights_fill_the_body_of_a_pyramid():
    whole = small(patch_size=8)
    options = {"dim": 8, "num_layers": 4, "d_state": 2, "head_dim": 8, "img_size": 32, "num_classes": 4}
    pyramid = create_model("adventurer_tiny_patch8_pyramid", **options)
    own = tuple(name for name in pyramid.state_dict() if name.startswith("neck."))
    load_entries(pyramid, whole.state_dict(), source="an Adventurer", fresh=own)
    assert torch.equal(pyramid.body.blocks[3].mixer.in_proj.weight, whole.blocks[3].mixer.in_proj.weight)


def test_an_image_of_other_channels_is_refused():
    with pytest.raises(ShapeError, match=r"\[B, 3, H, W\]"):
        small()(torch.randn(1, 1, 32, 32))
