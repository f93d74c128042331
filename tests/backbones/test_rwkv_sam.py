"""RWKV-SAM's backbone beyond its goldens: published sizes, its two forms, output strides, and the authors' names."""

from __future__ import annotations

import pytest
import torch

from statefield.backbones import create_model
from statefield.backbones.checkpoints import load_entries
from statefield.backbones.rwkv_sam import RWKVSAM, MBConv, rename_official_key
from statefield.errors import ConfigError

PUBLISHED = {  # parameters of the authors' backbones by mlp_ratio
    ("rwkv_sam_tiny", 2): 4_957_664,
    ("rwkv_sam_tiny", 4): 7_022_048,
    ("rwkv_sam_small", 2): 19_727_296,
    ("rwkv_sam_small", 4): 27_984_832,
    ("rwkv_sam_base", 2): 78_702_464,
    ("rwkv_sam_base", 4): 111_732_608,
}


@pytest.mark.parametrize(("name", "mlp_ratio"), PUBLISHED)
def test_parameters_are_the_published_ones(name, mlp_ratio):
    with torch.device("meta"):
        model = create_model(name, mlp_ratio=mlp_ratio, final_layer=False, features_only=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name, mlp_ratio]
    assert len(model.state_dict()) == 342


def small(**kwargs) -> RWKVSAM:
    torch.manual_seed(0)
    return RWKVSAM(**({"dims": (8, 16, 24), "depths": (1, 2), "num_layers": 4, "num_classes": 3} | kwargs)).eval()


def test_the_released_form_gives_two_maps_at_stride_16_of_the_middle_and_the_end():
    model, x = small(final_layer=False), torch.randn(1, 3, 64, 48)
    assert [info["reduction"] for info in model.feature_info] == [4, 8, 16, 16]
    assert [len(stage.blocks) for stage in model.stages] == [1, 2, 3, 1]  # the middle one of 4 is number 2
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
        assert [tuple(m.shape[1:]) for m in maps] == [(8, 16, 12), (16, 8, 6), (24, 4, 3), (24, 4, 3)]
        last = model.stages[3].blocks(maps[2].permute(0, 2, 3, 1))
        torch.testing.assert_close(model.stages[3].norm(last).permute(0, 3, 1, 2), maps[3])


def test_the_final_layer_halves_the_normalised_map():
    model, x = small(), torch.randn(1, 3, 64, 48)
    assert [info["reduction"] for info in model.feature_info] == [4, 8, 16, 32]
    released = small(final_layer=False)
    common = {
        key: value for key, value in model.state_dict().items() if key.startswith(("stem", "stages.0", "stages.1"))
    }
    assert set(common) <= set(released.state_dict())
    with torch.no_grad():
        maps = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
        assert maps[3].shape == (1, 2, 2, 48)
        assert maps[2].mean(-1).abs().max() < 1e-5  # what LayerNorm with fresh weights leaves
        torch.testing.assert_close(model.stages[3].blocks[0](maps[2]), maps[3])


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilated_maps_hold_the_undilated_ones(output_stride):
    """At every place that the undilated net keeps, the dilated one has its value: convolutions, WKV and all."""
    plain, dilated = small(), small(output_stride=output_stride)
    dilated.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        few = plain.forward_intermediates(x, intermediates_only=True)
        many = dilated.forward_intermediates(x, intermediates_only=True)
    for sparse, dense, reduction in zip(few, many, (4, 8, 16, 32), strict=True):
        step = max(reduction // output_stride, 1)
        torch.testing.assert_close(dense[..., ::step, ::step], sparse, rtol=1e-4, atol=1e-5)


def test_the_shortcut_averages_what_lies_in_the_map_and_keeps_channels_without_a_layer():
    block = MBConv(8, 8, stride=2)
    assert {name for name, _ in block.named_parameters() if name.startswith("shortcut")} == set()
    ones = torch.ones(1, 3, 5, 8)
    torch.testing.assert_close(block.shortcut(ones), torch.ones(1, 2, 3, 8))
    assert MBConv(8, 16).shortcut.weight.shape == (16, 8, 1, 1)
    assert MBConv(8, 6).conv1_1x1.out_channels == 24 and MBConv(8, 7).conv1_1x1.out_channels == 32


def test_positions_are_resized_to_the_map():
    model = small(positions=True, img_size=(64, 32))
    assert model.stages[2].downsample.pos_embed.shape == (1, 8, 24)
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(1, 3, 50, 70))).all()
        before = model(torch.zeros(1, 3, 64, 32))
        model.stages[2].downsample.pos_embed.add_(torch.randn(1, 8, 24))
        assert (model(torch.zeros(1, 3, 64, 32)) - before).abs().max() > 0


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        ("stem.norm1.weight", "stem.norm1.weight"),
        ("conv_stages.1.0.shortcut.expand.bias", "stages.1.blocks.0.shortcut.expand.bias"),
        ("conv_final_pool.norm.weight", "stages.2.downsample.norm.weight"),
        ("pos_embed", "stages.2.downsample.pos_embed"),
        ("layers.7.layer_scale_2", "stages.2.blocks.7.gamma2"),
        ("layers.8.attn.spatial_mix_v", "stages.3.blocks.0.mixer.spatial_mix_v"),
        ("layers.13.mlp.receptance.weight", "stages.3.blocks.5.ffn.receptance.weight"),
    ],
)
def test_official_names_have_one_name_here(official, ours):
    assert rename_official_key(official, num_early_layers=8) == ours
    assert rename_official_key(ours, num_early_layers=8) == ours


@pytest.mark.parametrize(("final_layer", "home"), [(True, "stages.2.norm"), (False, "stages.3.norm")])
def test_the_final_norm_stands_behind_the_last_rwkv_block(final_layer, home):
    model = small(final_layer=final_layer, num_classes=0)
    entries = model.state_dict()
    official = {key.replace(home, "final_norm"): value + 1 for key, value in entries.items()}
    load_entries(model, official, source="a file with the authors' name of it")
    assert torch.equal(model.get_submodule(home).weight, torch.full((24,), 2.0))


def test_what_cannot_be_built_is_told():
    with pytest.raises(ConfigError, match="three widths"):
        small(dims=(8, 16))
    with pytest.raises(ConfigError, match="output_stride 32"):
        small(final_layer=False, output_stride=32)
