"""ShuffleMamba beyond its goldens: published sizes, places of class tokens, initial values, the shuffle itself."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from statefield.backbones import create_model
from statefield.backbones._isotropic import resize_positions
from statefield.backbones.checkpoints import load_entries
from statefield.backbones.shufflemamba import ShuffleMamba, order_with_registers, rename_official_key
from statefield.backbones.vim import Vim
from statefield.errors import ConfigError

PUBLISHED = {  # parameters and entries of the authors' models
    "shufflemamba_tiny": (7_148_008, 415),
    "shufflemamba_middle": (74_236_456, 584),
    "shufflemamba_base": (97_598_440, 415),
    "shufflemamba_reg_tiny": (9_264_232, 416),
    "shufflemamba_reg_small": (27_801_064, 418),
    "shufflemamba_reg_base": (99_301_096, 418),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_entries_are_the_published_ones(name):
    with torch.device("meta"):
        model = create_model(name)
    found = sum(parameter.numel() for parameter in model.parameters()), len(model.state_dict())
    assert found == PUBLISHED[name]


def small(**kwargs) -> ShuffleMamba:
    torch.manual_seed(0)
    options = {"dim": 8, "num_layers": 4, "d_state": 2, "img_size": 64, "num_classes": 3, "drop_path_rate": 0.0}
    return ShuffleMamba(**(options | kwargs)).eval()


@pytest.mark.parametrize(
    ("patches", "registers", "places"),
    [(16, 4, [3, 7, 11, 15]), (196, 12, [15 + 16 * k for k in range(12)]), (4, 12, list(range(12))), (1, 1, [0])],
)
def test_registers_follow_groups_of_patches(patches, registers, places):
    """(16, 4) and (196, 12) are the authors' examples; with fewer patches than groups registers come first."""
    order = order_with_registers(patches, registers, torch.device("cpu"))
    assert (order >= patches).nonzero().flatten().tolist() == places
    assert order[order >= patches].tolist() == list(range(patches, patches + registers))
    assert order[order < patches].tolist() == list(range(patches))


def test_one_class_token_comes_first():
    model, x = small(), torch.randn(2, 3, 48, 64)
    tokens, grid = model.embed(x)
    assert grid == (3, 4) and tokens.shape == (2, 13, 8)
    torch.testing.assert_close(tokens[1, 0], model.cls_token[0, 0] + model.pos_embed[0, 0])
    expected = model.patch_embed(x).flatten(1, 2) + resize_positions(model.pos_embed[:, 1:], (4, 4), grid)
    torch.testing.assert_close(model.patches(tokens), expected)
    assert torch.equal(model.read_out(tokens), tokens[:, :1])


def test_registers_are_read_side_by_side_and_narrowed():
    model, x = small(registers=3, reduce=2), torch.randn(2, 3, 64, 48)
    tokens, grid = model.embed(x)
    torch.testing.assert_close(tokens[1, [3, 7, 11]], (model.cls_token + model.pos_embed_cls)[0])
    expected = model.patch_embed(x).flatten(1, 2) + resize_positions(model.pos_embed, (4, 4), grid)
    torch.testing.assert_close(model.patches(tokens), expected)
    assert torch.equal(model.read_out(tokens), tokens[:, [3, 7, 11]])
    with torch.no_grad():
        narrowed = model.forward_head(tokens, pre_logits=True)
        by_hand = torch.cat([tokens[:, place] @ model.head.pre_logits.proj.weight.T for place in (3, 7, 11)], dim=1)
        torch.testing.assert_close(narrowed, by_hand / by_hand.square().mean(1, keepdim=True).add(1e-5).sqrt())
        assert small(registers=3).forward_head(tokens, pre_logits=True).shape == (2, 24)


def test_impossible_forms_are_refused():
    with pytest.raises(ConfigError, match="reduce 2"):
        small(reduce=2)
    with pytest.raises(ConfigError, match="reduce 3"):
        small(registers=2, reduce=3)
    with pytest.raises(ConfigError, match="'batch'"):
        small(norm="batch")


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_a_shuffle_rate_is_a_probability(rate):
    with pytest.raises(ConfigError, match="shuffle_rate"):
        small(shuffle_rate=rate)


def test_initial_values_are_the_authors_step_biases_of_zero_included():
    mixer = small().blocks[0].mixer
    assert not mixer.forwards.dt_proj.bias.any() and not small().cls_token.any()
    registered = small(registers=2)
    assert registered.blocks[0].mixer.forwards.dt_proj.bias.abs().min() > 0 and registered.cls_token.all()


def test_probabilities_rise_linearly_from_the_first_block():
    assert small(shuffle_rate=0.1).shuffle_rates == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])


@pytest.mark.parametrize("build", [small, lambda **kwargs: Vim(dim=8, num_layers=4, d_state=2, img_size=64, **kwargs)])
def test_each_shuffled_block_gets_one_order_for_the_batch_and_all_its_tokens(build):
    """With every draw below its rate: 3 of 4 blocks are shuffled (the first has rate 0), each by its own order."""
    model = build(shuffle_rate=0.5).train()
    seen = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        block.register_forward_hook(lambda _, given, __: given[0] + 0)  # no exchange between tokens
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(17, generator=generator) for _ in range(3)]
    with (
        mock.patch("torch.rand", return_value=torch.tensor(0.0)),
        mock.patch("torch.randperm", side_effect=orders) as drawn,
        torch.no_grad(),
    ):
        tokens, grid = model.embed(torch.randn(2, 3, 64, 64))
        last = tokens
        for index in range(4):
            last = model.run_block(index, last, grid)
    assert [call.args for call in drawn.call_args_list] == [(17,)] * 3
    assert torch.equal(seen[0], tokens) and torch.equal(last, tokens)
    for order, given in zip(orders, seen[1:], strict=True):
        assert torch.equal(given, tokens[:, order])


def test_how_often_blocks_are_shuffled_is_their_rate():
    model = small(shuffle_rate=0.4).train()
    model.blocks[3].forward = lambda tokens, grid: tokens
    torch.manual_seed(0)
    tokens = torch.randn(1, 9, 8)
    with mock.patch("torch.randperm", wraps=torch.randperm) as drawn:
        for _ in range(1000):
            model.run_block(3, tokens, (2, 4))
    assert 340 < drawn.call_count < 460  # 400 expected, four standard deviations of 15


def test_official_names_have_one_name_here():
    for official, ours in {
        "layers.0.mixer.A_b_log": "blocks.0.mixer.backwards.A_log",
        "layers.2.norm.bias": "blocks.2.norm.bias",
        "norm_f.weight": "norm.weight",
        "norm_neck.weight": "head.pre_logits.norm.weight",
        "head.bias": "head.fc.bias",
        "pos_embed_cls": "pos_embed_cls",
    }.items():
        assert rename_official_key(official) == ours
        assert rename_official_key(ours) == ours


def test_official_weights_fill_the_body_of_a_pyramid():
    whole = small(registers=2, reduce=2)
    options = {"dim": 8, "num_layers": 4, "d_state": 2, "img_size": 64, "num_classes": 3, "registers": 2, "reduce": 2}
    pyramid = create_model("shufflemamba_reg_tiny_pyramid", **options)
    own = tuple(name for name in pyramid.state_dict() if name.startswith("neck."))
    load_entries(pyramid, whole.state_dict(), source="a ShuffleMamba", fresh=own)
    assert torch.equal(pyramid.body.head.pre_logits.proj.weight, whole.head.pre_logits.proj.weight)


def test_a_new_classifier_keeps_the_neck():
    model = small(registers=2, reduce=2)
    neck = model.head.pre_logits
    model.reset_classifier(7)
    assert model.head.pre_logits is neck and model(torch.randn(1, 3, 32, 32)).shape == (1, 7)
