"""EfficientViM beyond its goldens: timm's model and names, the authors' shapes, and the maps that timm has not."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import nn

from statefield.backbones import create_model
from statefield.backbones._register import has_hosted_weights
from statefield.backbones.checkpoints import load_entries
from statefield.backbones.efficientvim import EfficientViM, EfficientViMDistilled, checkpoint_filter_fn
from statefield.errors import CheckpointError, ConfigError

PUBLISHED = {  # parameters of the authors' models
    "efficientvim_m1": 6_679_458,
    "efficientvim_m2": 13_903_842,
    "efficientvim_m3": 16_604_174,
    "efficientvim_m4": 19_606_505,
    "efficientvim_m1_dist": 7_643_462,
    "efficientvim_m2_dist": 15_315_846,
    "efficientvim_m3_dist": 18_176_178,
    "efficientvim_m4_dist": 21_178_509,
}
SMALL = {"embed_dim": (16, 8, 12), "depths": (1, 2, 1), "state_dim": (4, 3, 2), "num_classes": 5}


def small(cls: type[nn.Module] = EfficientViM, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return cls(**(SMALL | kwargs)).eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones_and_named_as_timm_names_them(name):
    with torch.device("meta"):
        ours, theirs = create_model(f"{name}_pyramid"), timm.create_model(name)
    assert sum(parameter.numel() for parameter in ours.parameters()) == PUBLISHED[name]
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    if name == "efficientvim_m1":
        assert len(ours.state_dict()) == 307
    assert has_hosted_weights(f"{name}_pyramid")
    assert ours.pretrained_cfg["hf_hub_id"].startswith(f"timm/{name}.")
    assert ours.pretrained_cfg["input_size"] == theirs.pretrained_cfg["input_size"]


@pytest.mark.parametrize("kind", ["", "_dist"])
@pytest.mark.parametrize("size", [(64, 64), (70, 41)])
def test_class_scores_and_stage_maps_are_those_of_timms_model(kind, size):
    ours = small(EfficientViMDistilled if kind else EfficientViM)
    theirs = timm.create_model(f"efficientvim_m1{kind}", **SMALL).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
        maps = ours.forward_intermediates(x, intermediates_only=True)
        at_16, at_32, at_64 = theirs.forward_intermediates(x, intermediates_only=True)
    torch.testing.assert_close(maps[2], at_16)
    torch.testing.assert_close(maps[3][:, :8], at_32)
    torch.testing.assert_close(maps[3][:, 8:, ::2, ::2], at_64)
    torch.testing.assert_close(maps[3][:, 8:, 1::2], maps[3][:, 8:, : 2 * (at_32.shape[2] // 2) : 2])


def test_the_first_maps_are_the_stems():
    model, x = small(), torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        maps = model.forward_intermediates(x, intermediates_only=True)
        quarter = model.patch_embed.conv[:2](x)
        torch.testing.assert_close(maps[0], quarter)
        torch.testing.assert_close(maps[1], model.patch_embed.conv[2](quarter))
    assert [tuple(m.shape[1:]) for m in maps] == [(4, 8, 12), (8, 4, 6), (16, 2, 3), (20, 1, 2)]


@pytest.mark.parametrize(("last", "stages", "convs"), [(0, 0, 2), (1, 0, 3), (2, 1, 4), (3, 3, 4)])
def test_pruning_keeps_no_more_than_the_maps_need(last, stages, convs):
    model, x = small(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = model.forward_intermediates(x, [last], intermediates_only=True)[0]
        model.prune_intermediate_layers([last], prune_norm=True)
        torch.testing.assert_close(model.forward_intermediates(x, [last], intermediates_only=True)[0], wanted)
    assert (len(model.stages), len(model.patch_embed.conv)) == (stages, convs)
    assert not any(name.startswith(("heads", "weights", "norm")) for name, _ in model.named_parameters())


def test_the_authors_norms_lose_their_empty_axes_and_nothing_else_changes():
    model = small()
    theirs = {}
    for name, value in model.state_dict().items():
        is_layer_norm = re.fullmatch(r"(stages\.\d\.blocks\.\d\.)?norm\.(\d\.)?(weight|bias)", name)
        axes = (1, -1, 1, 1) if name.startswith("norm.3.") else (1, -1, 1)
        theirs[name] = value.reshape(axes) if is_layer_norm else value
    assert theirs["norm.3.weight"].shape == (1, 12, 1, 1) and theirs["stages.0.blocks.0.norm.bias"].shape == (1, 16, 1)
    assert theirs["stages.0.blocks.0.dwconv1.norm.weight"].shape == (16,)
    assert checkpoint_filter_fn(theirs, model).keys() == theirs.keys()
    assert len(load_entries(small(), theirs, source="the authors").loaded) == len(theirs)


def test_a_distilled_checkpoint_is_refused_by_the_plain_classifier_and_fills_a_dense_backbone():
    distilled = small(EfficientViMDistilled).state_dict()
    with pytest.raises(CheckpointError, match="heads_dist"):
        load_entries(small(), distilled, source="distilled")
    dense = create_model("efficientvim_m1_pyramid", features_only=True, **{**SMALL, "num_classes": 0})
    report = load_entries(dense, distilled, source="distilled")
    assert any(name.startswith("heads_dist") for name in report.set_aside)


def test_the_distilled_score_is_the_mean_of_both_sets_of_heads():
    model, x = small(EfficientViMDistilled), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        model.weights_dist.copy_(torch.tensor([1.0, -1.0, 0.5, 2.0]))
        pooled = [part.mean(-1) for part in model.forward_features(x)]
        scores = []
        for weights, heads in ((model.weights, model.heads), (model.weights_dist, model.heads_dist)):
            parts = zip(weights.softmax(0), heads, pooled, strict=True)
            scores.append(sum(weight * head(vector) for weight, head, vector in parts))
        torch.testing.assert_close(model(x), (scores[0] + scores[1]) / 2)


def test_a_has_no_gradient_and_alpha_starts_at_an_even_mix():
    """A cancels in the softmax; alpha is small, but goes through a sigmoid."""
    model = small().train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        if name.endswith("mixer.A"):
            assert parameter.min() >= 1 and parameter.max() <= 16
            assert parameter.grad.abs().max() == 0
        if name.endswith("alpha"):
            assert torch.sigmoid(parameter).sub(0.5).abs().max() < 1e-4


def test_other_numbers_of_stages_are_refused():
    with pytest.raises(ConfigError, match="2 stages"):
        small(embed_dim=(16, 8), depths=(1, 1), state_dim=(4, 3))
