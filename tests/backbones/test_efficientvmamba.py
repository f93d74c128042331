"""EfficientVMamba beyond its goldens: published sizes, sub-grids at odd sides, names."""

from __future__ import annotations

import pytest
import torch

from statefield.backbones import create_model
from statefield.backbones._mixers.atrous import AtrousScanMixer, merge_subgrids, split_subgrids
from statefield.backbones.efficientvmamba import rename_official_key

PUBLISHED = {
    "efficientvmamba_tiny": 6_493_660,
    "efficientvmamba_small": 11_273_688,
    "efficientvmamba_base": 33_717_136,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


def test_sub_grids_are_even_even_odd_even_even_odd_odd_odd():
    cells = torch.arange(12.0).reshape(1, 3, 4, 1)
    grids = split_subgrids(cells)
    assert grids.shape == (1, 2, 2, 4, 1)
    assert [grids[0, :, :, k, 0].tolist() for k in range(4)] == [
        [[0, 2], [8, 10]],
        [[4, 6], [0, 0]],  # rows beyond the map are zero
        [[1, 3], [9, 11]],
        [[5, 7], [0, 0]],
    ]
    assert torch.equal(merge_subgrids(grids, 3, 4), cells)


def test_a_pixel_reaches_only_later_pixels_of_its_own_sub_grid():
    torch.manual_seed(0)
    mixer = AtrousScanMixer(4, d_state=2).eval()
    u = torch.randn(1, 3, 4, 4, 8)
    with torch.no_grad():
        changed = u.clone()
        changed[0, 1, 2, 1] += 1  # the second sub-grid goes column by column
        reached = (mixer.scan(changed) - mixer.scan(u)).abs().amax(-1)[0] > 0
    assert not reached[:, :, [0, 2, 3]].any()
    assert reached[:, :, 1].tolist() == [
        [False, False, False, True],
        [False, False, True, True],
        [False, False, True, True],
    ]


def test_official_names_have_one_name_here():
    for official, ours in {
        "layers.0.blocks.0.conv_branch.1.running_mean": "stages.0.blocks.0.conv_branch.depthwise.norm.running_mean",
        "layers.1.blocks.1.se.channel_select.bias": "stages.1.blocks.1.se.expand.bias",
        "layers.1.downsample.norm.weight": "stages.2.downsample.norm.weight",
        "layers.2.1.conv_pw2.1.bias": "stages.2.blocks.0.conv_pw2.norm.bias",
        "layers.2.6.norm.bias": "stages.3.downsample.norm.bias",
        "layers.3.2.se.conv_expand.bias": "stages.3.blocks.1.se.conv_expand.bias",
        "classifier.head.weight": "head.fc.weight",
    }.items():
        assert rename_official_key(official) == ours
        assert rename_official_key(ours) == ours
