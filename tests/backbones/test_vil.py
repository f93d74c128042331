"""ViL beyond its goldens: published sizes, its directions, its two norms and versions, and the authors' names."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from statefield.backbones import create_model
from statefield.backbones._mixers import MatrixMemoryMixer
from statefield.backbones._mixers.matrix_memory import BlockLinear, GainNorm, HeadwiseNorm
from statefield.backbones.checkpoints import load_entries
from statefield.backbones.vil import ViL, rename_official_key
from statefield.errors import CheckpointError, ConfigError

PUBLISHED = {"vil2_tiny": 6_391_528, "vil2_small": 23_398_696, "vil2_base": 89_263_528, "vil_tiny": 6_088_360}
BLOCKS = {"vil_tiny": 24, "vil_tiny_plus": 29, "vil_small": 24, "vil_small_plus": 26, "vil_base": 24}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", BLOCKS)
def test_the_first_version_has_its_own_number_of_blocks(name):
    with torch.device("meta"):
        model = create_model(name)
    assert model.version == 1 and len(model.blocks) == BLOCKS[name]
    assert [block.mixer.reverse for block in model.blocks[:4]] == [False, True, False, True]


def test_finetuned_models_take_overlapping_patches():
    with torch.device("meta"):
        model = create_model("vil_tiny_plus_stride8")
    assert model.learned_grid == (27, 27) and model.feature_info[0]["reduction"] == 8


def small(**kwargs) -> ViL:
    torch.manual_seed(0)
    return ViL(**({"dim": 8, "num_layers": 2, "img_size": 64, "num_classes": 4} | kwargs)).eval()


def mixer(**kwargs) -> MatrixMemoryMixer:
    torch.manual_seed(0)
    return MatrixMemoryMixer(8, **kwargs).eval()


@pytest.mark.parametrize("reverse", [False, True])
def test_the_memory_reaches_the_tokens_read_later(reverse):
    one, x = mixer(conv="causal", reverse=reverse), torch.randn(1, 9, 8)
    with torch.no_grad():
        changed = x.clone()
        changed[:, 4] += 1
        difference = (one(changed, ()) - one(x, ())).abs().amax(dim=(0, 2))
    reached = difference > 0
    assert reached.tolist() == [index <= 4 if reverse else index >= 4 for index in range(9)]


@pytest.mark.parametrize("conv", ["2d", "causal"])
def test_a_reversed_mixer_is_the_mixer_on_the_map_turned_upside_down(conv):
    x = torch.randn(2, 12, 8)
    with torch.no_grad():
        turned = mixer(conv=conv)(x.flip(1), (3, 4)).flip(1)
        torch.testing.assert_close(mixer(conv=conv, reverse=True)(x, (3, 4)), turned)


def test_only_the_second_versions_convolution_sees_the_grid():
    x = torch.randn(1, 12, 8)
    with torch.no_grad():
        assert (mixer()(x, (3, 4)) - mixer()(x, (4, 3))).abs().max() > 1e-3
        one = mixer(conv="causal")
        torch.testing.assert_close(one(x, (3, 4)), one(x, (4, 3)), rtol=0, atol=0)


def test_block_diagonal_projections_mix_within_a_block():
    torch.manual_seed(0)
    layer = BlockLinear(8, 4)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 8)
    dense = torch.block_diag(*layer.weight)
    torch.testing.assert_close(layer(x), functional.linear(x, dense, layer.bias))


def test_a_norm_stores_how_far_its_scale_lies_from_one():
    x = torch.randn(2, 3, 8)
    norm = GainNorm(8, bias=False)
    torch.testing.assert_close(norm(x), functional.layer_norm(x, (8,)))
    torch.nn.init.constant_(norm.gain, 0.5)
    torch.testing.assert_close(norm(x), 1.5 * functional.layer_norm(x, (8,)))
    heads = HeadwiseNorm(8)
    torch.nn.init.normal_(heads.gain)
    expected = functional.group_norm(x.flatten(0, 1), 2, 1 + heads.gain, heads.bias).unflatten(0, (2, 3))
    torch.testing.assert_close(heads(x.unflatten(-1, (2, 4))), expected)


def test_the_read_out_is_of_the_first_and_the_last_token():
    tokens = torch.randn(2, 16, 8)
    second, first = small(), small(version=1)
    assert torch.equal(second.read_out(tokens), torch.cat((tokens[:, 0], tokens[:, 15]), 1))
    torch.testing.assert_close(first.read_out(tokens), (tokens[:, 0] + tokens[:, 15]) / 2)
    assert (second.head.fc.in_features, first.head.fc.in_features) == (16, 8)
    with torch.no_grad():
        before = second.forward_head(tokens, pre_logits=True)
        torch.testing.assert_close(second.forward_head(tokens), second.head.fc(before))
        torch.testing.assert_close(before, functional.layer_norm(second.read_out(tokens), (16,)))


def test_a_fresh_classifier_keeps_the_norm_before_it():
    model = small()
    norm = model.head.pre_logits
    model.reset_classifier(7)
    assert model.head.pre_logits is norm and model.get_classifier().out_features == 7
    model.reset_classifier(0)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, 16)


def test_the_first_version_has_biases_in_convolutions_gates_and_head_alone():
    names = {name for name, _ in small(version=1).named_parameters() if name.endswith("bias")}
    of_blocks = {name.split(".", 2)[2] for name in names if name.startswith("blocks.")}
    assert of_blocks == {"mixer.conv.bias", "mixer.input_gate.bias", "mixer.forget_gate.bias"}
    assert names - {name for name in names if name.startswith("blocks.")} == {
        "patch_embed.proj.bias",
        "head.pre_logits.bias",
        "head.fc.bias",
    }


def test_gates_do_not_look_at_tokens_before_training():
    one = mixer()
    assert one.input_gate.weight.abs().max() == one.forget_gate.weight.abs().max() == 0
    assert one.forget_gate.bias.tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("version", "official", "ours"),
    [
        (2, "blocks.0.rowwise_from_top_left.norm.weight", "blocks.0.norm.gain"),
        (2, "blocks.11.rowwise_from_bot_right.layer.conv.weight", "blocks.23.mixer.conv.weight"),
        (2, "blocks.1.rowwise_from_top_left.layer.mlstm_cell.outnorm.bias", "blocks.2.mixer.out_norm.bias"),
        (2, "norm.weight", "norm.gain"),
        (2, "norm.bias", "norm.bias"),
        (2, "legacy_norm.weight", "head.pre_logits.weight"),
        (1, "norm.weight", "head.pre_logits.weight"),
        (1, "norm.bias", "head.pre_logits.bias"),
        (1, "legacy_norm.weight", "norm.gain"),
        (1, "blocks.5.layer.conv1d.conv.bias", "blocks.5.mixer.conv.bias"),
        (1, "blocks.5.layer.learnable_skip", "blocks.5.mixer.skip"),
        (1, "head.weight", "head.fc.weight"),
        (1, "pos_embed.embed", "pos_embed"),
        # files as the authors' trainer wrote them
        (2, "xlstm.blocks.3.xlstm.proj_down.weight", "blocks.3.mixer.out_proj.weight"),
        (2, "xlstm.blocks.3.xlstm_norm.weight", "blocks.3.norm.gain"),
        (2, "xlstm.blocks.3.xlstm.conv1d.weight", "blocks.3.mixer.conv.weight"),
        (2, "xlstm.post_blocks_norm.bias", "norm.bias"),
        (2, "head.0.weight", "head.pre_logits.weight"),
        (1, "head.1.bias", "head.fc.bias"),
    ],
)
def test_official_names_have_one_name_here(version, official, ours):
    assert rename_official_key(official, version) == ours
    assert rename_official_key(ours, version) == ours


def test_a_file_of_one_version_does_not_load_into_the_other():
    with pytest.raises(CheckpointError, match="missing"):
        load_entries(small(), small(version=1).state_dict(), source="a file of version 1")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"version": 3}, "version 3"),
        ({"pooling": "max"}, "'max'"),
        ({"dim": 9}, "block 4"),
        ({"taps": 4}, "taps 4"),
        ({"conv": "3d"}, "'3d'"),
    ],
)
def test_what_cannot_be_built_is_told(arguments, told):
    with pytest.raises(ConfigError, match=told):
        small(**arguments)
