"""How often each axis is halved, with which kernels, and what that keeps in memory; worked by hand."""

from __future__ import annotations

import pytest
import torch

from statefield.tasks.medical.memory import KNOWN, measured_net, numbers_kept
from statefield.tasks.medical.nets import NETS
from statefield.tasks.medical.topology import topology_of


def test_a_cube_is_halved_until_four_voxels_are_left():
    plan = topology_of((128, 128, 128), (1, 1, 1), base_features=32)
    # 128 64 32 16 8 4: five halvings, six stages
    assert plan.halvings == (5, 5, 5)
    assert plan.strides == ((1, 1, 1), *((2, 2, 2),) * 5)
    assert plan.kernel_sizes == ((3, 3, 3),) * 6
    assert plan.features == (32, 64, 128, 256, 320, 320)
    assert plan.depths == (2, 2, 2, 1, 1, 1) and plan.decoder_depths == (2, 2, 2, 1, 1)
    assert plan.patch_size == (128, 128, 128)


def test_features_of_a_net_of_slices_go_on_to_512():
    assert topology_of((512, 512), (1, 1), base_features=32).features == (32, 64, 128, 256, 512, 512, 512, 512)


def test_a_coarse_axis_waits_and_its_kernels_are_thin_until_then():
    # spacing 5 x 1 x 1: 5 against 1, 2, 4, 8: the fourth halving is the first of the slices (5 < 2 * 4)
    plan = topology_of((16, 256, 256), (5.0, 1.0, 1.0), base_features=32)
    # columns: 256 128 64 32 16 8 4; slices: 16 16 16 8 4 4 4
    assert plan.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2))
    # 5 < 2 * min(5, 4, 4) at the third stage
    assert plan.kernel_sizes == ((1, 3, 3), (1, 3, 3), *((3, 3, 3),) * 5)
    assert plan.halvings == (2, 6, 6)


def test_a_last_axis_is_halved_alone_only_from_twelve_voxels_on():
    # 8 x 16: 8 16 -> 4 8, where only columns have room, 8 < 12
    assert topology_of((8, 16), (1, 1), base_features=8).halvings == (1, 1)
    # 8 x 24: 8 24 -> 4 12, 12 >= 12 -> 4 6
    assert topology_of((8, 24), (1, 1), base_features=8).halvings == (1, 2)


def test_patches_are_rounded_up_to_what_the_net_divides_them_by():
    plan = topology_of((50, 70), (1, 1), base_features=8)
    # 50 25 13 7; 70 35 18 9 5: rows have room for three halvings, columns for four, then 9 < 12 alone
    assert plan.halvings == (3, 3)
    assert plan.patch_size == (56, 72)


def test_an_image_too_small_to_halve_has_one_stage():
    plan = topology_of((7, 6), (1, 1), base_features=8)
    assert plan.strides == ((1, 1),) and plan.decoder_depths == () and plan.patch_size == (7, 6)


@pytest.mark.parametrize(
    ("size", "spacing", "base", "blocks"),
    [((16, 16, 16), (1, 1, 1), 8, 1), ((8, 24, 24), (5, 1, 1), 8, 2), ((48, 64), (1, 1), 16, 2)],
)
@pytest.mark.parametrize("net", ["residual_unet", "u_mamba"])
def test_memory_and_weights_are_those_of_the_net_itself(net, size, spacing, base, blocks):
    plan = topology_of(size, spacing, base_features=base, blocks=blocks)
    stages = {name: getattr(plan, name) for name in ("strides", "kernel_sizes", "features", "depths", "decoder_depths")}
    built = NETS[net](len(size), 2, 3, **stages).train()
    kept = numbers_kept(built, torch.randn(1, 2, *plan.patch_size))
    assert kept == pytest.approx(plan.numbers_kept(3), rel=0.1)
    weights = sum(parameter.numel() for parameter in built.parameters())
    assert weights == pytest.approx(plan.num_parameters(2), rel=0.02 if net == "residual_unet" else 0.2)


def test_numbers_kept_counts_each_tensor_once_and_no_weights():
    layer = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Tanh())
    # kept: the input (4 x 3), and what each tanh gave (4 x 5 twice)
    assert numbers_kept(layer, torch.randn(4, 3)) == 12 + 20 + 20


def test_known_encoders_need_what_is_written_of_them():
    from statefield.tasks.medical.memory import _measured_encoder

    kept, weights = _measured_encoder("spatial_mamba_nano", "unet", 1, 3)
    assert KNOWN["spatial_mamba_nano"] == (pytest.approx(kept, rel=0.05), pytest.approx(weights, rel=0.01))


def test_other_nets_are_built_and_measured():
    kept, weights = measured_net("lightm_unet", 2, 1, 2)
    assert weights == sum(p.numel() for p in NETS["lightm_unet"](2, 1, 2).parameters())
    assert kept > 32 * 6  # more than its first stage's channels, several times
