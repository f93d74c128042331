"""Res-VMamba beyond its golden: determinism, what its residuals add, files without them, and odd and dilated maps."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from statefield.backbones import create_model
from statefield.backbones.checkpoints import load_entries
from statefield.backbones.res_vmamba import PooledResidual, ResVMamba, rename_official_key
from statefield.backbones.vmamba import VMamba
from statefield.errors import CheckpointError

VANILLA = {"d_state": 16, "expand": 2.0, "gated": True, "conv_bias": True, "mlp_ratio": 0.0, "conv_stem": False}


@pytest.mark.parametrize(
    ("options", "parameters", "entries"),
    [
        ({"residuals": False}, 44_417_416, 446),  # what an official file holds
        ({"residuals": False, "num_classes": 241}, 43_833_745, 446),
        # three 1 x 1 convolutions: 96 -> 192 -> 384 -> 768 channels
        ({}, 44_417_416 + 97 * 192 + 193 * 384 + 385 * 768, 446 + 6),
    ],
)
def test_parameters_are_the_published_ones_and_the_residuals(options, parameters, entries):
    with torch.device("meta"):
        model = create_model("res_vmamba_small", **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == entries


def small(**kwargs) -> ResVMamba:
    torch.manual_seed(0)
    return ResVMamba(**({"dims": 8, "depths": (1, 1, 1, 1), "num_classes": 4} | kwargs)).eval()


def vanilla(**kwargs) -> VMamba:
    torch.manual_seed(0)
    return VMamba(**({"dims": 8, "depths": (1, 1, 1, 1), "num_classes": 4} | VANILLA | kwargs)).eval()


def test_two_evaluations_agree_and_training_reaches_the_residuals():
    model, x = small(), torch.randn(1, 3, 64, 64)
    assert torch.equal(model(x), model(x))
    model(x).sum().backward()
    for name in model.residual_names:
        assert model.get_parameter(f"{name}.conv.weight").grad.abs().max() > 0


def test_with_silent_residuals_or_without_them_it_is_vanilla_vmamba():
    plain, without, silent, x = vanilla(), small(residuals=False), small(), torch.randn(2, 3, 40, 56)
    without.load_state_dict(plain.state_dict())
    load_entries(silent, plain.state_dict(), source="a VMamba", fresh=silent.residual_names)
    with torch.no_grad():
        assert (silent(x) - plain(x)).abs().max() > 0
        for name in silent.residual_names:
            silent.get_parameter(f"{name}.conv.weight").zero_(), silent.get_parameter(f"{name}.conv.bias").zero_()
        assert torch.equal(without(x), plain(x))
        torch.testing.assert_close(silent(x), plain(x))


def test_an_official_file_does_not_fit_the_residuals_unless_they_stay_as_they_are():
    official = vanilla().state_dict()
    with pytest.raises(CheckpointError, match="6 missing"):
        load_entries(small(), official, source="the authors' file")
    report = load_entries(small(residuals=False), official, source="the authors' file")
    assert len(report.loaded) == len(official)


def test_a_residual_takes_the_largest_neighbour_also_at_odd_sides():
    residual = PooledResidual(1, 1)
    with torch.no_grad():
        residual.conv.weight.fill_(1), residual.conv.bias.zero_()
        x = -torch.arange(15.0).reshape(1, 3, 5, 1)
        found = residual(x)[0, :, :, 0]
    assert found.tolist() == [[0, -2, -4], [-10, -12, -14]]  # nothing beyond the sides is larger than what is negative


def test_a_residual_is_added_where_the_next_stage_begins():
    model, x = small(), torch.randn(1, 3, 32, 32)
    begins = []
    model.stages[0].blocks.register_forward_pre_hook(lambda _, given: begins.append(given[0]))
    model.stages[1].blocks.register_forward_pre_hook(lambda _, given: begins.append(given[0]))
    with torch.no_grad():
        first, _ = model.stage_maps(x, 1)
        conv = model.stages[1].residual.conv
        pooled = functional.max_pool2d(begins[0].permute(0, 3, 1, 2), 2)
        expected = model.stages[1].downsample(first) + conv(pooled).permute(0, 2, 3, 1)
    torch.testing.assert_close(begins[1], expected)


@pytest.mark.parametrize(("output_stride", "spacings"), [(16, (1, 1, 1, 2)), (8, (1, 1, 2, 4))])
@pytest.mark.parametrize("size", [(64, 96), (52, 76)])
def test_a_smaller_output_stride_computes_the_same_at_every_pixel_that_both_have(output_stride, spacings, size):
    plain, dense = small(), small(output_stride=output_stride)
    dense.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        _, coarse_maps = plain.forward_intermediates(x)
        _, fine_maps = dense.forward_intermediates(x)
    for coarse, fine, spacing in zip(coarse_maps, fine_maps, spacings, strict=True):
        torch.testing.assert_close(fine[:, :, ::spacing, ::spacing], coarse)


def test_official_names_have_one_name_here():
    for official, ours in {
        "fuse.2.bias": "stages.3.residual.conv.bias",
        "layers.0.downsample.reduction.weight": "stages.1.downsample.reduction.weight",
        "layers.2.blocks.26.op.A_logs": "stages.2.blocks.26.mixer.A_log",
        "head.weight": "head.fc.weight",
    }.items():
        assert rename_official_key(official) == ours
        assert rename_official_key(ours) == ours
