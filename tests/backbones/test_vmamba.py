"""VMamba beyond its goldens: published sizes, older files, and downsampling at odd sides and à trous."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from statefield.backbones import create_model
from statefield.backbones._blocks import PatchMerging
from statefield.backbones._mixers import CrossDualityMixer, CrossScanMixer
from statefield.backbones.checkpoints import load_entries
from statefield.backbones.vmamba import VMamba, rename_official_key

PUBLISHED = {  # parameters of the authors' models
    "vmamba_vanilla_tiny": 22_893_448,
    "vmamba_vanilla_small": 44_417_416,
    "vmamba_vanilla_base": 76_254_056,
    "vmamba_tiny_s2l5": 30_705_832,
    "vmamba_small_s2l15": 50_147_752,
    "vmamba_base_s2l15": 88_557_800,
    "vmamba_tiny_s1l8": 30_249_064,
    "vmamba_small_s1l20": 49_012_840,
    "vmamba_base_s1l20": 86_614_504,
    "vmamba_tiny_m2": 25_340_296,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


def small(**kwargs) -> VMamba:
    torch.manual_seed(0)
    return VMamba(**({"dims": 8, "depths": (1, 1, 1, 1), "num_classes": 0} | kwargs)).eval()


@pytest.mark.parametrize("conv_stem", [True, False])
@pytest.mark.parametrize(("output_stride", "spacings"), [(16, (1, 1, 1, 2)), (8, (1, 1, 2, 4))])
@pytest.mark.parametrize("size", [(64, 96), (52, 76)])
def test_a_smaller_output_stride_computes_the_same_at_every_pixel_that_both_have(
    output_stride, spacings, size, conv_stem
):
    plain, dense = small(conv_stem=conv_stem), small(conv_stem=conv_stem, output_stride=output_stride)
    dense.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        _, coarse_maps = plain.forward_intermediates(x)
        _, fine_maps = dense.forward_intermediates(x)
    for coarse, fine, spacing in zip(coarse_maps, fine_maps, spacings, strict=True):
        torch.testing.assert_close(fine[:, :, ::spacing, ::spacing], coarse)


def test_patch_merging_takes_the_neighbour_below_before_the_one_to_the_right():
    merging = PatchMerging(1, 4)
    merging.norm = nn.Identity()
    with torch.no_grad():
        merging.reduction.weight.copy_(torch.eye(4))
        found = merging(torch.arange(1.0, 7.0).reshape(1, 2, 3, 1))
    assert found.tolist() == [[[[1, 4, 2, 5], [3, 6, 0, 0]]]]


def test_a_dual_mixer_is_a_scan_whose_channels_share_their_decay():
    """The same weights, written out for every channel, in the mixer of the second generation."""
    torch.manual_seed(0)
    dual = CrossDualityMixer(32, d_state=3, heads=2, act=functional.silu)
    plain = CrossScanMixer(32, d_state=3, expand=1.0, dt_rank=2, gated=False, conv_bias=False)
    with torch.no_grad():
        for parameter in dual.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name in ("in_proj.weight", "conv.weight", "out_norm.weight", "out_norm.bias", "out_proj.weight", "x_proj"):
            plain.get_parameter(name).copy_(dual.get_parameter(name))
        plain.D.copy_(dual.D.flatten())
        plain.A_log.copy_(dual.A_log.repeat_interleave(16, 1).reshape(-1, 1).expand(-1, 3))
        plain.dt_bias.copy_(dual.dt_bias.repeat_interleave(16, 1))
        plain.dt_proj.copy_(torch.eye(2).repeat_interleave(16, 0).expand(4, -1, -1))
        x = torch.randn(2, 3, 5, 32)
        torch.testing.assert_close(dual(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        ("patch_embed.0.weight", "stem.conv1.weight"),
        ("patch_embed.proj.bias", "stem.conv1.bias"),
        ("patch_embed.7.weight", "stem.norm2.weight"),
        ("layers.2.blocks.8.op.x_proj_weight", "stages.2.blocks.8.mixer.x_proj"),
        ("layers.2.blocks.8.self_attention.Ds", "stages.2.blocks.8.mixer.D"),
        ("layers.2.blocks.8.ln_1.bias", "stages.2.blocks.8.norm1.bias"),
        ("layers.0.blocks.0.norm.bias", "stages.0.blocks.0.norm1.bias"),
        ("layers.0.blocks.0.op.conv2d.1.weight", "stages.0.blocks.0.mixer.conv.weight"),
        ("layers.1.downsample.reduction.weight", "stages.2.downsample.reduction.weight"),
        ("layers.1.downsample.1.bias", "stages.2.downsample.conv.bias"),
        ("classifier.norm.weight", "norm.weight"),
        ("norm.weight", "norm.weight"),
        ("classifier.head.bias", "head.fc.bias"),
        ("head.weight", "head.fc.weight"),
        ("outnorm3.weight", "feature_norms.3.weight"),
    ],
)
def test_official_names_old_and_new_have_one_name_here(official, ours):
    assert rename_official_key(official) == ours
    assert rename_official_key(ours) == ours


def test_linear_layers_stored_as_1x1_convolutions_load():
    first, second = small(), small()
    stored = {
        name: value[:, :, None, None] if name.endswith("_proj.weight") else value
        for name, value in first.state_dict().items()
    }
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.normal_()
    load_entries(second, stored, source="a channels-first file")
    assert all(torch.equal(second.state_dict()[name], value) for name, value in first.state_dict().items())
