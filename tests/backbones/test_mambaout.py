"""MambaOut: timm's numbers from timm's and the authors' names, and the output stride that timm's lacks."""

from __future__ import annotations

import re

import pytest
import timm
import torch

from statefield.backbones import create_model
from statefield.backbones._register import has_hosted_weights
from statefield.backbones.checkpoints import load_entries

PUBLISHED = {  # parameters of the authors' models
    "mambaout_femto": 7_304_536,
    "mambaout_kobe": 9_141_208,
    "mambaout_tiny": 26_545_096,
    "mambaout_small": 48_488_072,
    "mambaout_base": 84_813_092,
}
SMALL = {"dims": (8, 12, 16, 20), "depths": (1, 2, 1, 1), "drop_path_rate": 0.0}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones_and_named_as_timm_names_them(name):
    with torch.device("meta"):
        ours, theirs = create_model(f"{name}_pyramid"), timm.create_model(name)
    assert sum(parameter.numel() for parameter in ours.parameters()) == PUBLISHED[name]
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    assert has_hosted_weights(f"{name}_pyramid") and ours.pretrained_cfg["hf_hub_id"] == f"timm/{name}.in1k"


def small(**kwargs) -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model("mambaout_femto_pyramid", **(SMALL | kwargs)).eval()


def test_class_scores_and_maps_are_those_of_timms_model():
    ours, theirs = small(num_classes=5), timm.create_model("mambaout_femto", num_classes=5, **SMALL).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 70, 41)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
        found = ours.forward_intermediates(x, intermediates_only=True)
        for mine, other in zip(found, theirs.forward_intermediates(x, intermediates_only=True), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_the_authors_file_fills_every_entry():
    model = small(num_classes=5)
    to_theirs = (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^head\.norm\.", "norm."),
        (r"^head\.pre_logits\.fc\.", "head.fc1."),
        (r"^head\.pre_logits\.norm\.", "head.norm."),
        (r"^head\.fc\.", "head.fc2."),
    )
    theirs = {}
    for name, value in model.state_dict().items():
        pattern, replacement = next((pair for pair in to_theirs if re.search(pair[0], name)), ("", ""))
        theirs[re.sub(pattern, replacement, name)] = value + 1
    assert theirs["head.fc1.weight"].shape == (80, 20) and theirs["norm.weight"].shape == (20,)
    assert theirs["stages.1.1.conv.weight"].shape == (12, 1, 7, 7)
    report = load_entries(model, theirs, source="the authors")
    assert len(report.loaded) == len(theirs) == len(model.state_dict())


@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_map_with_an_output_stride_holds_the_plain_one_at_every_second_or_fourth_place(output_stride):
    plain, dilated = small(num_classes=0), small(num_classes=0, output_stride=output_stride)
    dilated.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        wanted = plain.forward_intermediates(x, intermediates_only=True)
        found = dilated.forward_intermediates(x, intermediates_only=True)
    for mine, other in zip(found, wanted, strict=True):
        step = mine.shape[-1] // other.shape[-1]
        torch.testing.assert_close(mine[..., ::step, ::step], other)
    assert found[-1].shape[-2:] == (96 // output_stride, 128 // output_stride)


def test_the_gates_width_is_rounded_down():
    with torch.device("meta"):
        model = create_model("mambaout_base_pyramid")
    assert [stage.blocks[0].fc2.in_features for stage in model.stages] == [341, 682, 1365, 2048]


def test_resetting_to_no_classes_and_no_pooling_leaves_nothing_of_the_head():
    model = small(num_classes=5)
    model.reset_classifier(0, "")
    assert not list(model.head.parameters())
    assert model.forward_features(torch.randn(1, 3, 32, 32)).shape == model(torch.randn(1, 3, 32, 32)).shape
