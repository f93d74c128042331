"""VSSD beyond its goldens: published sizes, a state without order, groups of heads, attention as timm has it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from statefield.backbones import create_model
from statefield.backbones._mixers import MapAttention, NonCausalDualityMixer
from statefield.backbones.vssd import VSSD, checkpoint_filter_fn, rename_official_key
from statefield.errors import ConfigError

PUBLISHED = {  # parameters of the authors' models
    "vssd_micro": 13_512_964,
    "vssd_tiny": 24_270_724,
    "vssd_small": 40_075_650,
    "vssd_base": 88_823_151,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]
    if name == "vssd_tiny":
        assert len(model.state_dict()) == 421


def small(**kwargs) -> VSSD:
    torch.manual_seed(0)
    return VSSD(**({"dims": 16, "depths": (1, 1, 1, 1), "d_state": 4, "num_classes": 0} | kwargs)).eval()


def spread(module: nn.Module) -> nn.Module:
    """The module with parameters far from their initial values, so that every part has an effect."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def test_the_duality_has_no_order():
    """Behind the convolution, pixels in another order give the same results in that order."""
    torch.manual_seed(0)
    mixer = spread(NonCausalDualityMixer(8, heads=4, d_state=3))
    with torch.no_grad():
        mixer.conv.weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0  # each pixel by itself
        x = torch.randn(2, 3, 5, 8)
        torch.testing.assert_close(mixer(x.flip(1).transpose(1, 2)), mixer(x).flip(1).transpose(1, 2))


@pytest.mark.parametrize(("groups", "positive"), [(1, True), (2, True), (2, False)])
def test_the_mixer_equals_its_formula(groups, positive):
    """Weights dt exp(A_log) without decay between pixels, LayerNorm, then the gate without an activation."""
    torch.manual_seed(0)
    mixer = spread(NonCausalDualityMixer(8, heads=4, d_state=3, groups=groups, positive_decay=positive))
    x = torch.randn(1, 2, 3, 8)
    with torch.no_grad():
        z, xBC, dt = mixer.in_proj(x).split((16, 16 + 6 * groups, 4), dim=-1)
        u, B, C = functional.silu(mixer.conv(xBC)).flatten(1, 2)[0].split((16, 3 * groups, 3 * groups), dim=-1)
        weight = functional.softplus(dt.flatten(1, 2)[0] + mixer.dt_bias) * torch.exp(mixer.A_log)
        heads = []
        for head, u_head in enumerate(u.split(4, dim=-1)):
            group = slice(3 * (head % groups), 3 * (head % groups) + 3)
            state = B[:, group].T @ (weight[:, head, None] * u_head) * (1 if positive else -1)
            heads.append(C[:, group] @ state + mixer.D[head] * u_head)
        y = functional.layer_norm(torch.cat(heads, -1), (16,), mixer.norm.weight, mixer.norm.bias)
        expected = mixer.out_proj(y.unflatten(0, (1, 2, 3)) * z)
        torch.testing.assert_close(mixer(x), expected)


def test_float16_maps_of_many_pixels_stay_finite():
    """A head's sum over the map leaves float16's range, which the authors' code overflows; its results do not."""
    torch.manual_seed(0)
    mixer = NonCausalDualityMixer(8, heads=2, d_state=4)
    with torch.no_grad():
        mixer.in_proj.weight.abs_()
        mixer.conv.weight.abs_()
        mixer.dt_bias.fill_(5.0)
        x = torch.rand(1, 64, 64, 8) * 4
        _, xBC, dt = mixer.in_proj(x).split((16, 24, 2), dim=-1)
        u, B, _ = functional.silu(mixer.conv(xBC)).flatten(1, 2).split((16, 4, 4), dim=-1)
        weight = functional.softplus(dt.flatten(1, 2) + mixer.dt_bias) * torch.exp(mixer.A_log)
        state = B[0].T @ (weight[0].repeat_interleave(8, -1) * u[0])
        assert state.max() > torch.finfo(torch.float16).max
        with torch.autocast("cpu", dtype=torch.float16):
            found = mixer(x)
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found.float(), mixer(x), rtol=0.02, atol=0.02)


def test_attention_over_a_map_is_the_written_out_one():
    torch.manual_seed(0)
    attention, x = MapAttention(8, 2), torch.randn(2, 3, 4, 8)
    with torch.no_grad():
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in attention.qkv(x.flatten(1, 2)).chunk(3, -1))
        y = (q @ k.mT / 2).softmax(-1) @ v
        torch.testing.assert_close(attention(x), attention.proj(y.transpose(1, 2).flatten(2)).unflatten(1, (3, 4)))
    assert attention.qkv.bias is None and attention.proj.bias is not None


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


def test_stages_that_do_not_fit_together_are_refused():
    for wrong, told in (
        ({"heads": (2, 4)}, "must be as many as depths"),
        ({"mixers": ("duality", "mamba", "duality", "attention")}, "'mamba' is not one of"),
        ({"heads": (3, 4, 8, 16)}, "heads 3 has to divide the 32 inner channels"),
        ({"heads": (2, 4, 8, 24)}, "heads 24 has to divide the 128 channels"),
        ({"heads": (2, 4, 8, 16), "groups": 4}, "groups 4 the heads"),
    ):
        with pytest.raises(ConfigError, match=told):
            small(**wrong)


def test_official_names_have_one_name_here():
    for official, ours in {
        "patch_embed.conv2.1.norm.running_var": "stem.conv2.1.norm.running_var",
        "layers.1.blocks.0.attn.conv2d.bias": "stages.1.blocks.0.mixer.conv.bias",
        "layers.1.downsample.conv.1.conv.weight": "stages.2.downsample.conv.1.conv.weight",
        "layers.3.blocks.0.attn.to_out.bias": "stages.3.blocks.0.mixer.proj.bias",
        "attn.A_log": "mixer.A_log",
        "outnorm2.weight": "feature_norms.2.weight",
        "norm.weight": "norm.weight",
        "head.bias": "head.fc.bias",
    }.items():
        assert rename_official_key(official) == ours
        assert rename_official_key(ours) == ours
    assert list(checkpoint_filter_fn({"attn.dt_bias": torch.zeros(2)}, nn.Identity())) == ["mixer.dt_bias"]
