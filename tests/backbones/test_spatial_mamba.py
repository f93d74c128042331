"""Spatial-Mamba beyond its goldens: sizes, names, initial values, and what the paper's code cannot do."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from statefield.backbones import create_model
from statefield.backbones._mixers import StructureAwareMixer
from statefield.backbones.cost import model_cost
from statefield.backbones.spatial_mamba import SpatialMamba, rename_official_key
from statefield.errors import ConfigError, ShapeError

PUBLISHED = {  # parameters and state-dict entries, counted on the authors' models; G multiply-adds at 224 x 224
    "spatial_mamba_tiny": (26_748_862, 553, 4.43),
    "spatial_mamba_small": (43_074_280, 931, 7.07),
    "spatial_mamba_base": (95_745_592, 931, 15.72),
}


def small(**kwargs) -> SpatialMamba:
    torch.manual_seed(0)
    return SpatialMamba(**({"dims": 8, "depths": (1, 1, 1, 1), "num_classes": 0} | kwargs)).eval()


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_entries_and_multiply_adds_are_the_published_ones(name):
    parameters, entries, giga_macs = PUBLISHED[name]
    cost = model_cost(name)
    assert cost.parameters == parameters
    assert cost.multiply_adds / 1e9 == pytest.approx(giga_macs, rel=0.01)  # the scan is counted 4.5 to 7 a state
    with torch.device("meta"):
        assert len(create_model(name).state_dict()) == entries


def test_the_dense_form_of_tiny_has_the_published_size():
    with torch.device("meta"):
        dense = create_model("spatial_mamba_tiny", features_only=True, feature_norms=True)
    assert sum(parameter.numel() for parameter in dense.parameters()) == 26_236_758


def test_nano_is_of_the_size_that_its_docstring_gives():
    with torch.device("meta"):
        encoder = create_model("spatial_mamba_nano", features_only=True)
    assert sum(parameter.numel() for parameter in encoder.parameters()) / 1e6 == pytest.approx(3.6, abs=0.05)


def test_several_states_a_channel_are_read_out_with_their_own_weight():
    """With N = 3 the mixer is the sum of three scans, each fused by the same kernels: written out as loops here."""
    torch.manual_seed(3)
    mixer = StructureAwareMixer(4, d_state=3).eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        x = image(2, 3, 4, 4)
        scanned, gate = mixer.in_proj(x).chunk(2, dim=-1)
        u, delta, B, C = mixer.scan_inputs(scanned)
        step, A = functional.softplus(delta + mixer.dt_bias), mixer.decay()
        state = torch.zeros(2, 8, 3)
        states = torch.zeros(2, 3, 4, 8, 3)
        for i in range(3):
            for j in range(4):
                gain = step[:, i, j, :, None]
                state = torch.exp(gain * A) * state + gain * B[:, i, j, None, :] * u[:, i, j, :, None]
                states[:, i, j] = state
        y = mixer.D * u
        for kernel, alpha, dilation in zip(mixer.fusion.weight(), mixer.fusion.alpha, (1, 3, 5), strict=True):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    rows = (torch.arange(3) + di * dilation).clamp(0, 2)
                    columns = (torch.arange(4) + dj * dilation).clamp(0, 3)
                    neighbour = states[:, rows][:, :, columns]
                    y = y + alpha * kernel[:, di + 1, dj + 1] * (neighbour * C.unsqueeze(-2)).sum(-1)
        expected = mixer.out_proj(mixer.out_norm(y) * functional.silu(gate))
        torch.testing.assert_close(mixer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("output_stride", "spacings"), [(16, (1, 1, 1, 2)), (8, (1, 1, 2, 4))])
@pytest.mark.parametrize("size", [(64, 96), (52, 76)])
def test_a_smaller_output_stride_computes_the_same_at_every_pixel_that_both_have(output_stride, spacings, size):
    """À trous: on the sub-grid of the first pixel the dense map is the published one, odd sizes included."""
    plain, dense, x = small(), small(output_stride=output_stride), image(1, 3, *size)
    dense.load_state_dict(plain.state_dict())
    with torch.no_grad():
        _, coarse_maps = plain.forward_intermediates(x)
        _, fine_maps = dense.forward_intermediates(x)
    for coarse, fine, spacing in zip(coarse_maps, fine_maps, spacings, strict=True):
        torch.testing.assert_close(fine[:, :, ::spacing, ::spacing], coarse)
        assert fine.shape[-1] >= coarse.shape[-1] * spacing - spacing + 1


def test_the_scan_runs_row_by_row_from_the_first_pixel():
    """What lies beyond the last neighbourhood of a pixel, in raster order, cannot reach it through one mixer."""
    torch.manual_seed(0)
    mixer = StructureAwareMixer(4).eval()
    x = image(1, 20, 3, 4)
    with torch.no_grad():
        before = mixer(x)
        x[:, 15] += 1.0
        change = (mixer(x) - before).abs().amax(dim=(0, 2, 3))
    assert (change[:9] == 0).all()  # 15 - 5 (fusion) - 1 (convolution) = 9
    assert (change[9:] > 0).all()


def test_feature_norms_normalise_each_map_and_leave_the_classifier_alone():
    plain, dense, x = small(num_classes=5), small(num_classes=5, feature_norms=True), image(1, 3, 64, 64)
    dense.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(dense(x), plain(x), rtol=0, atol=0)
        for raw, normed in zip(
            plain.forward_intermediates(x, intermediates_only=True),
            dense.forward_intermediates(x, intermediates_only=True),
            strict=True,
        ):
            expected = functional.layer_norm(raw.permute(0, 2, 3, 1), raw.shape[1:2]).permute(0, 3, 1, 2)
            torch.testing.assert_close(normed, expected)


def test_pruned_feature_norms_leave_no_parameter_without_a_use():
    wrapped = create_model(
        "spatial_mamba_nano", dims=8, depths=(1,) * 4, features_only=True, feature_norms=True, out_indices=(1,)
    )
    wrapped.train()(image(2, 3, 32, 32))[0].square().sum().backward()
    assert {name for name, parameter in wrapped.named_parameters() if parameter.grad is None} == set()


def test_initial_values_follow_the_authors_rule():
    model = small(num_classes=10, d_state=2)
    mixer = model.stages[3].blocks[0].mixer
    step = functional.softplus(mixer.dt_bias)
    assert step.min() >= 1e-4
    assert step.max() <= 0.1 + 1e-6
    torch.testing.assert_close(mixer.A_log, torch.tensor([0.0, math.log(2)]).expand(128, 2))
    assert (mixer.D == 1).all()
    assert (mixer.fusion.weight() == 1).all()
    assert (mixer.fusion.alpha == 1).all()
    assert mixer.dt_proj.weight.abs().max() <= mixer.dt_rank**-0.5
    assert mixer.x_proj.weight.abs().max() <= 128**-0.5  # torch's default for 128 inputs
    for linear in (mixer.in_proj, mixer.out_proj, model.head.fc):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert (model.head.fc.bias == 0).all()


def test_stochastic_depth_rises_linearly_over_all_blocks():
    model = small(depths=(1, 2, 1, 1), drop_path_rate=0.4)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_wrong_arguments_and_images_are_named():
    with pytest.raises(ConfigError, match="same number of stages"):
        SpatialMamba(dims=(8, 16), depths=(1, 1, 1))
    with pytest.raises(ShapeError, match=r"\(1, 4, 32, 32\).*\[B, 3, H, W\]"):
        small()(image(1, 4, 32, 32))
    with pytest.raises(ConfigError, match="'NLC'"):
        small().forward_intermediates(image(1, 3, 32, 32), output_fmt="NLC")


@pytest.mark.parametrize(
    ("official", "ours"),
    [
        ("patch_embed.conv3.1.norm.running_var", "stem.conv3.1.norm.running_var"),
        ("layers.0.downsample.conv.1.conv.bias", "stages.1.downsample.conv.1.conv.bias"),
        ("layers.2.blocks.10.self_attention.conv2d.weight", "stages.2.blocks.10.mixer.conv.weight"),
        ("layers.2.blocks.10.self_attention.dt_projs_bias", "stages.2.blocks.10.mixer.dt_bias"),
        ("self_attention.state_fusion.kernel_3_2", "mixer.fusion.kernel_d5"),
        ("kernel_3", "kernel_d1"),
        ("outnorm2.bias", "feature_norms.2.bias"),
        ("head.weight", "head.fc.weight"),
        ("norm.weight", "norm.weight"),
    ],
)
def test_official_names_have_one_name_here(official, ours):
    assert rename_official_key(official) == ours
    assert rename_official_key(ours) == ours
