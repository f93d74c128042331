"""Vision-RWKV beyond its goldens: published sizes, the shift, what the mixes reach, and the authors' names."""

from __future__ import annotations

import math

import pytest
import torch

from statefield.backbones import create_model
from statefield.backbones._mixers import ChannelMix, SpatialMix
from statefield.backbones._mixers.rwkv import quad_shift
from statefield.backbones.checkpoints import load_checkpoint
from statefield.backbones.vision_rwkv import RWKVBlock, VisionRWKV, rename_official_key
from statefield.errors import ConfigError

PUBLISHED = {"vision_rwkv_tiny": 6_155_176, "vision_rwkv_small": 23_820_136, "vision_rwkv_base": 93_645_544}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


def test_the_largest_model_has_a_hidden_layer_before_its_classifier():
    with torch.device("meta"):
        model = create_model("vision_rwkv_large", num_classes=10)
    assert model.learned_grid == (24, 24) and len(model.blocks) == 24
    assert (model.head.pre_logits[0].out_features, model.head.fc.in_features) == (3072, 3072)
    model.reset_classifier(7)
    assert model.get_classifier().weight.shape == (7, 3072)
    with torch.device("meta"):
        whole = create_model("vision_rwkv_large")
    count = sum(parameter.numel() for parameter in whole.parameters())
    assert count == pytest.approx(334.9e6, rel=1e-3)  # the authors round, and we could not count theirs


def test_each_quarter_of_the_channels_comes_from_one_neighbour_and_what_is_left_stays():
    x = torch.arange(12.0).reshape(1, 3, 4, 1).expand(1, 3, 4, 6) + 1
    y = quad_shift(x)[0, 1, 1]  # the token 6: left of it 5, right 7, above 2, below 10
    assert y.tolist() == [5, 7, 7, 2, 10, 10]
    corner = quad_shift(x)[0, 0, 0]
    assert corner.tolist() == [0, 2, 2, 0, 5, 5]
    assert quad_shift(x, share=0.17)[0, 1, 1].tolist() == [5, 7, 2, 10, 6, 6]
    assert quad_shift(x[:, :1, :1])[0, 0, 0].tolist() == [0, 0, 0, 0, 0, 0]


def test_the_channel_mix_reaches_four_neighbours_and_the_spatial_mix_the_whole_map():
    torch.manual_seed(0)
    options = {"layer": 1, "num_layers": 4}
    x = torch.randn(1, 5, 5, 8)
    changed = x.clone()
    changed[:, 2, 2] += 1
    with torch.no_grad():
        channel, spatial = ChannelMix(8, **options), SpatialMix(8, **options)
        reached = (channel(changed) - channel(x)).abs().amax(dim=(0, 3)) > 0
        cross = [[abs(i - 2) + abs(j - 2) <= 1 for j in range(5)] for i in range(5)]
        assert reached.tolist() == cross
        assert ((spatial(changed) - spatial(x)).abs().amax(dim=(0, 3)) > 0).all()


def test_decay_is_by_the_number_of_tokens():
    """Twice as many equal tokens in a row give the same mean: the decay over the whole image does not change."""
    torch.manual_seed(0)
    mix = SpatialMix(8, shift_pixels=0).double()
    one = torch.randn(1, 1, 400, 8, dtype=torch.float64)
    two = one.repeat_interleave(2, dim=2)
    with torch.no_grad():
        difference = (mix(two)[:, :, ::2] - mix(one)).abs().max()
        assert difference < 0.02 * mix(one).abs().max()


def test_initial_values_are_the_authors():
    first, last = SpatialMix(8, layer=0, num_layers=4), SpatialMix(8, layer=3, num_layers=4)
    assert first.spatial_decay[0] == last.spatial_decay[0] == -5
    assert first.spatial_decay[7].item() == pytest.approx(3)
    assert first.spatial_decay[3].item() == pytest.approx(-5 + 8 * (3 / 7) ** 0.7)
    assert last.spatial_decay[3].item() == pytest.approx(-5 + 8 * (3 / 7) ** 2)
    expected = [math.log(0.3) + shift for shift in (0, 0.5, -0.5)]
    assert first.spatial_first[:3].tolist() == pytest.approx(expected)
    torch.testing.assert_close(first.spatial_mix_k.flatten(), torch.arange(8) / 8)
    torch.testing.assert_close(last.spatial_mix_v.flatten(), (torch.arange(8) / 8) ** 0.25 + 0.3)
    torch.testing.assert_close(last.spatial_mix_r.flatten(), (torch.arange(8) / 8) ** 0.125)


def test_without_a_shift_there_are_no_shares_to_learn():
    names = {name for name, _ in RWKVBlock(8, shift_pixels=0).named_parameters()}
    assert not any("spatial_mix" in name for name in names)


def test_only_the_first_block_normalises_what_it_adds_to():
    model = VisionRWKV(dim=8, num_layers=2, img_size=32, num_classes=4)
    with_norm0 = {name for name, _ in model.named_parameters() if ".norm0." in name}
    assert with_norm0 == {"blocks.0.norm0.weight", "blocks.0.norm0.bias"}


def test_layer_scale_at_zero_leaves_the_stream_as_it_is():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 4, 8)
    for post_norm in (False, True):
        block = RWKVBlock(8, layer_scale=0.0, post_norm=post_norm)
        assert torch.equal(block(x), x)
        torch.nn.init.ones_(block.gamma1)
        added = block(x) - x
        mix = block.norm1(block.mixer(x)) if post_norm else block.mixer(block.norm1(x))
        torch.testing.assert_close(added, mix)


def test_any_image_goes_that_the_authors_constant_forbids():
    model = VisionRWKV(dim=8, num_layers=1, img_size=32, num_classes=4).eval()
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(1, 3, 300, 310))).all()  # 380 tokens


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        ("backbone.pos_embed", "pos_embed"),
        ("backbone.patch_embed.projection.bias", "patch_embed.proj.bias"),
        ("backbone.layers.0.ln0.weight", "blocks.0.norm0.weight"),
        ("backbone.layers.11.ln1.bias", "blocks.11.norm1.bias"),
        ("backbone.layers.2.gamma2", "blocks.2.gamma2"),
        ("layers.2.att.receptance.weight", "blocks.2.mixer.receptance.weight"),
        ("layers.2.ffn.spatial_mix_r", "blocks.2.ffn.spatial_mix_r"),
        ("ln1.weight", "norm.weight"),
        ("head.fc.bias", "head.fc.bias"),
        ("head.layers.pre_logits.weight", "head.pre_logits.0.weight"),
        ("head.layers.head.weight", "head.fc.weight"),
    ],
)
def test_official_names_have_one_name_here(official, ours):
    assert rename_official_key(official) == ours
    assert rename_official_key(ours) == ours


def test_a_classifier_file_of_the_authors_toolbox_loads_with_its_head(tmp_path):
    torch.manual_seed(0)
    options = {"dim": 8, "num_layers": 1, "img_size": 32, "num_classes": 4}
    source = VisionRWKV(**options)
    names = {"blocks.": "layers.", "patch_embed.proj.": "patch_embed.projection.", "mixer.": "att.", ".norm": ".ln"}
    official = {}
    for key, value in source.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        key = key.replace("norm.", "ln1.") if key.startswith("norm.") else key
        official[key if key.startswith("head.") else f"backbone.{key}"] = value
    path = tmp_path / "latest.pth"
    torch.save({"meta": {"epoch": 300}, "state_dict": official}, path)
    model = create_model("vision_rwkv_tiny", **options)
    report = load_checkpoint(model, path)
    assert report.container == "state_dict" and len(report.loaded) == len(source.state_dict())
    assert report.set_aside == ()
    assert torch.equal(model.head.fc.weight, source.head.fc.weight)
    maps = create_model("vision_rwkv_tiny", features_only=True, out_indices=(0,), **options)
    assert set(load_checkpoint(maps, path).set_aside) == {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"}


def test_what_cannot_be_built_is_told():
    with pytest.raises(ConfigError, match="at most a quarter"):
        ChannelMix(8, shift_share=0.3)
    with pytest.raises(ConfigError, match="0 to 3"):
        SpatialMix(8, layer=4, num_layers=4)
