"""HRVMamba beyond its goldens: published sizes, official names, and what is its own."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torch.nn import functional

from statefield.backbones import create_model
from statefield.backbones._mixers.deformable import DeformableConv, DeformableScanMixer
from statefield.backbones.checkpoints import load_entries
from statefield.backbones.hrvmamba import HRVMamba, HRVMambaBlock, MultiScaleConv, enlarge, rename_official_key
from statefield.errors import CheckpointError, ConfigError

PUBLISHED = {  # parameters of the authors' models: with the classifier, and of the maps alone
    "hrvmamba_nano": (12_284_240, 687_336),
    "hrvmamba_tiny": (14_066_728, 2_361_024),
    "hrvmamba_small": (20_101_976, 8_178_672),
    "hrvmamba_base": (60_548_520, 47_972_416),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        whole, maps = create_model(name), create_model(name, features_only=True)
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in (whole, maps)]
    assert tuple(counts) == PUBLISHED[name]


def small(**kwargs) -> HRVMamba:
    torch.manual_seed(0)
    options = {"dims": 4, "units": (1, 1, 2), "depths": (1, 1, 1), "num_bottlenecks": 1, "bottleneck_dim": 4}
    return HRVMamba(**(options | {"fusion_dims": (4, 8, 8, 8), "num_classes": 3} | kwargs)).eval()


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        ("conv1.weight", "stem.conv1.conv.weight"),
        ("bn2.running_mean", "stem.conv2.norm.running_mean"),
        ("layer1.0.conv3.weight", "stages.0.0.conv3.conv.weight"),
        ("layer1.0.bn1.bias", "stages.0.0.conv1.norm.bias"),
        ("layer1.0.downsample.0.weight", "stages.0.0.shortcut.conv.weight"),
        ("layer1.0.downsample.1.running_var", "stages.0.0.shortcut.norm.running_var"),
        ("transition1.0.0.weight", "stages.1.widen.0.conv.weight"),
        ("transition1.1.0.1.num_batches_tracked", "stages.1.widen.1.norm.num_batches_tracked"),
        ("transition3.3.0.0.weight", "stages.3.widen.3.conv.weight"),
        ("stage3.2.branches.1.0.conv2d.3.bias", "stages.2.units.2.branches.1.blocks.0.conv.convs.3.bias"),
        ("stage3.2.branches.1.0.norm0.bias", "stages.2.units.2.branches.1.blocks.0.norm0.bias"),
        ("stage3.2.branches.1.0.norm.bias", "stages.2.units.2.branches.1.blocks.0.norm1.bias"),
        ("stage3.2.branches.1.0.op.Ds", "stages.2.units.2.branches.1.blocks.0.mixer.D"),
        (
            "stage2.0.branches.0.1.op.conv2d.offset_mask_dw.weight",
            "stages.1.units.0.branches.0.blocks.1.mixer.conv.offset_mask_dw.weight",
        ),
        ("stage2.0.branches.0.1.op.se.fc.2.weight", "stages.1.units.0.branches.0.blocks.1.mixer.se.expand.weight"),
        ("stage4.1.fuse_layers.0.3.0.weight", "stages.3.units.1.exchanges.0.paths.3.conv.weight"),
        ("stage4.1.fuse_layers.0.3.1.bias", "stages.3.units.1.exchanges.0.paths.3.norm.bias"),
        ("stage4.1.fuse_layers.3.0.2.3.weight", "stages.3.units.1.exchanges.3.paths.0.2.1.norm.weight"),
        ("neck.increase_layers.2.0.bn3.weight", "fusion.increase.2.conv3.norm.weight"),
        ("neck.downsample_layers.1.conv.weight", "fusion.halve.1.conv.weight"),
        ("neck.final_layer.bn.running_var", "fusion.final.norm.running_var"),
        ("head.weight", "head.fc.weight"),
        ("outnorm2.bias", "feature_norms.2.bias"),
    ],
)
def test_official_names_have_names_here(official, ours):
    assert rename_official_key(official) == ours
    assert rename_official_key(ours) == ours


def test_the_residual_round_the_convolutions_adds_the_input_without_its_positions():
    """As in the authors' code: what cpe1 adds is seen by the convolutions alone."""
    torch.manual_seed(0)
    block, x = HRVMambaBlock(8, positional=True), torch.randn(1, 4, 5, 8)
    for part in (block.mixer.out_proj, block.cpe2, block.mlp.fc2):  # leaves the first of the three parts
        for parameter in part.parameters():
            nn.init.zeros_(parameter)
    with torch.no_grad():
        wanted = x + functional.gelu(block.conv(block.norm0(x + block.cpe1(x))))
        torch.testing.assert_close(block(x), wanted)


def test_convolutions_take_a_quarter_each_and_their_channels_are_dealt_out_in_turn():
    conv = MultiScaleConv(12)
    with torch.no_grad():
        for one in conv.convs:  # the pixel itself
            nn.init.dirac_(one.weight, groups=3)
            nn.init.zeros_(one.bias)
        found = conv(torch.arange(12.0).reshape(1, 1, 1, 12))
    assert [one.kernel_size for one in conv.convs] == [(3, 3), (5, 5), (7, 7), (9, 9)]
    assert found.flatten().tolist() == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]
    with pytest.raises(ConfigError, match="10 channels"):
        MultiScaleConv(10)


def test_a_new_deformable_convolution_gives_nothing_and_learns_its_weights_first():
    conv, x = DeformableConv(32, 2), torch.randn(1, 4, 4, 32)
    y = conv(x)
    assert not y.any()
    (gradient,) = torch.autograd.grad(y.sum(), [conv.offset_mask.bias])
    offsets, weights = gradient[:54].unflatten(0, (2, 27)).split((18, 9), dim=1)
    assert not offsets.any() and weights.all() and not gradient[54:].any()


def test_offsets_come_through_a_convolution_where_80_divides_the_channels():
    with torch.device("meta"):
        assert isinstance(DeformableScanMixer(64).conv.offset_mask_dw, nn.Identity)
        base = DeformableScanMixer(160).conv
    assert base.offset_mask_dw.weight.shape == (320, 1, 3, 3)
    assert base.offset_mask.weight.shape == (272, 320)  # 27 for each of 10 groups, rounded up to eights


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(ConfigError, match="80 channels cannot have 3 equal groups"):
        DeformableScanMixer(40)
    with pytest.raises(ConfigError, match="has to be odd"):
        DeformableConv(16, 1, kernel_size=4)


def test_maps_are_enlarged_by_the_power_of_two_before_they_are_fitted():
    x = torch.randn(1, 2, 3, 4)

    def resize(x: torch.Tensor, *size: int) -> torch.Tensor:
        x = x.permute(0, 3, 1, 2)
        return functional.interpolate(x, size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)

    torch.testing.assert_close(enlarge(x, 4, 8, 12), resize(x, 8, 12))
    torch.testing.assert_close(enlarge(x, 4, 7, 9), resize(resize(x, 8, 12), 7, 9))
    assert not torch.allclose(enlarge(x, 4, 7, 9), resize(x, 7, 9))


def test_branches_of_a_stage_drop_at_equal_rates_that_rise_from_block_to_block():
    model = small(units=(1, 2, 1), depths=(2, 1, 1), drop_path_rate=0.4)
    rates = [
        [
            [block.drop_path.drop_prob if isinstance(block.drop_path, DropPath) else 0.0 for block in branch.blocks]
            for branch in unit.branches
        ]
        for stage in model.stages[1:]
        for unit in stage.units
    ]
    for unit, wanted in zip(rates, ([0, 0.1], [0.2], [0.3], [0.4]), strict=True):
        assert all(branch == pytest.approx(wanted) for branch in unit)


def test_without_its_head_only_exchanges_that_the_maps_need_are_left():
    whole, part = small(), small()
    part.load_state_dict(whole.state_dict())
    assert part.prune_intermediate_layers([0, 2]) == [0, 2]
    kept = {name.split(".exchanges.")[1][0] for name in part.state_dict() if "stages.3.units.1.exchanges" in name}
    assert kept == {"0", "2"}
    assert not any(name.startswith(("fusion", "head")) for name in part.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = whole.forward_intermediates(x, [0, 2], intermediates_only=True)
        found = part.forward_intermediates(x, [0, 2], intermediates_only=True)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_without_classes_the_vector_is_that_of_all_branches():
    model = small(num_classes=0)
    with torch.no_grad():
        vector = model(torch.randn(2, 3, 40, 33))
    assert vector.shape == (2, 16) and model.num_features == 16


def test_weights_of_the_operators_linear_layers_are_taken_where_the_model_has_them():
    """The published files lack them; a file that has them is refused by a model without them, by name."""
    with_layers = small(pointwise=True)
    entries = {name: torch.rand_like(value.float()) for name, value in with_layers.state_dict().items()}
    assert len(load_entries(small(pointwise=True), entries, source="a file").loaded) == len(entries)
    with pytest.raises(CheckpointError, match="value_proj"):
        load_entries(small(), entries, source="a file")


def test_linear_layers_stored_as_1x1_convolutions_load():
    first, second = small(positional=True), small(positional=True)
    stored = {
        name: value[:, :, None, None] if name.endswith(("_proj.weight", "fc1.weight", "fc2.weight")) else value
        for name, value in first.state_dict().items()
    }
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.normal_()
    load_entries(second, stored, source="a channels-first file")
    assert all(torch.equal(second.state_dict()[name], value) for name, value in first.state_dict().items())
