"""PlainMamba beyond its goldens: published sizes, its routes and their directions, and the habits that it keeps."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from statefield.backbones import create_model
from statefield.backbones._mixers import DirectionAwareMixer
from statefield.backbones._mixers.direction_aware import CONTINUOUS, steps_and_directions
from statefield.backbones.checkpoints import backbone_of, load_entries
from statefield.backbones.plainmamba import PlainMamba, PlainMambaBlock, rename_official_key
from statefield.errors import ConfigError
from statefield.kernels import selective_scan
from statefield.kernels.routes import route_order

PUBLISHED = {"plainmamba_l1": 7_358_656, "plainmamba_l2": 25_760_832, "plainmamba_l3": 50_507_456}  # without a head
EXAMPLES = {  # the authors' routes as tokens, and the moves into them: 1 right, 2 left, 3 up, 4 down
    (3, 4): {
        "snake": ([0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11], [0, 1, 1, 1, 4, 2, 2, 2, 4, 1, 1, 1]),
        "snake~": ([11, 10, 9, 8, 4, 5, 6, 7, 3, 2, 1, 0], [0, 2, 2, 2, 3, 1, 1, 1, 3, 2, 2, 2]),
        "column_snake": ([0, 4, 8, 9, 5, 1, 2, 6, 10, 11, 7, 3], [0, 4, 4, 1, 3, 3, 1, 4, 4, 1, 3, 3]),
        "column_snake~": ([3, 7, 11, 10, 6, 2, 1, 5, 9, 8, 4, 0], [0, 4, 4, 2, 3, 3, 2, 4, 4, 2, 3, 3]),
    },
    (2, 3): {
        "snake~": ([3, 4, 5, 2, 1, 0], [0, 1, 1, 3, 2, 2]),
        "column_snake~": ([5, 2, 1, 4, 3, 0], [0, 3, 2, 4, 2, 3]),
    },
    (3, 1): {"snake": ([0, 1, 2], [0, 4, 4]), "column_snake~": ([2, 1, 0], [0, 3, 3])},
    (1, 3): {"snake~": ([2, 1, 0], [0, 2, 2]), "column_snake": ([0, 1, 2], [0, 1, 1])},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_without_the_head_are_the_published_ones(name):
    with torch.device("meta"):
        model = create_model(name, num_classes=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("grid", EXAMPLES)
def test_routes_and_moves_are_the_authors(grid):
    for route, (tokens, moves) in EXAMPLES[grid].items():
        order = route_order(route, grid)
        assert route in CONTINUOUS and order.tolist() == tokens
        steps, directions = steps_and_directions(order[None], grid[1])
        assert directions[order, 0].tolist() == moves
        assert steps[order, 0].tolist() == list(range(len(tokens)))


def small(**kwargs) -> PlainMamba:
    torch.manual_seed(0)
    return PlainMamba(**({"dim": 16, "num_layers": 3, "d_state": 2, "img_size": 64, "num_classes": 4} | kwargs)).eval()


def test_the_mixer_equals_one_scan_a_route_written_out():
    """Tokens along the route; step sizes, B and C in raster order; the bias of the step sizes twice."""
    torch.manual_seed(0)
    mixer = DirectionAwareMixer(8, d_state=3)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        x = torch.randn(2, 3, 4, 8)
        u, gate = mixer.in_proj(x).chunk(2, dim=-1)
        u = functional.silu(mixer.conv(u)).flatten(1, 2)
        step, B, C = mixer.x_proj(u).split((1, 3, 3), dim=-1)
        delta = mixer.dt_proj(step)
        y = torch.zeros_like(u)
        for tokens, moves in EXAMPLES[3, 4].values():
            scanned = selective_scan(
                u[:, tokens],
                delta,
                -torch.exp(mixer.A_log),
                B + mixer.direction_Bs[moves],
                C,
                mixer.D,
                delta_bias=mixer.dt_proj.bias,
                delta_softplus=True,
                layout="bld",
            )
            y[:, tokens] += scanned
        expected = mixer.out_proj(y.unflatten(1, (3, 4)) * functional.silu(gate))
        torch.testing.assert_close(mixer(x), expected)


def test_the_convolution_behind_a_block_takes_the_sum_and_adds_nothing():
    torch.manual_seed(0)
    block, x = PlainMambaBlock(8, d_state=2, depthwise=True).eval(), torch.randn(1, 6, 8)
    with torch.no_grad():
        block.mixer.out_proj.weight.zero_()
        block.mixer.out_proj.bias.zero_()
        block.dw[0].weight.zero_()
        block.dw[0].weight[:, :, 1, 1] = 1.0  # the identity; BatchNorm as new divides by sqrt(1 + eps)
        torch.testing.assert_close(block(x, (2, 3)), functional.gelu(x / (1 + 1e-5) ** 0.5))
    model = create_model("plainmamba_l1", num_layers=2, dim=8)
    assert [block.dw is not None for block in model.blocks] == [True, False]


def test_patches_at_the_sides_are_filled_with_zeros_behind_the_convolutions():
    embed, image = small().patch_embed, torch.randn(1, 3, 40, 70)
    with torch.no_grad():
        found = embed(image)
        assert found.shape == (1, 3, 5, 16)
        inner = embed.convs(embed.stem(image))[:, :, 16:20, 32:35]
        corner = functional.pad(inner, (0, 5, 0, 4))
        torch.testing.assert_close(found[:, -1, -1], embed.projection(corner)[:, :, 0, 0])


def test_step_sizes_begin_as_mambas():
    steps = functional.softplus(small().blocks[1].mixer.dt_proj.bias)
    assert steps.min() >= 1e-4 and steps.max() <= 0.1001


def test_norms_of_maps_are_the_dense_backbones():
    whole = small(feature_norms=(0, 2), num_classes=0)
    wrapped = create_model(
        "plainmamba_l2",
        features_only=True,
        out_indices=(0, 2),
        dim=16,
        num_layers=3,
        d_state=2,
        img_size=64,
        feature_norms=(0, 2),
    ).eval()
    official = {f"backbone.{name}": value for name, value in whole.state_dict().items()}
    official = {name.replace("feature_norms.0", "norm_layer0"): value for name, value in official.items()}
    official = {name.replace("backbone.norm.", "backbone.ln1."): value for name, value in official.items()}
    load_entries(wrapped, official, source="the authors' dense backbone")
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        tokens, plain = whole.forward_intermediates(x)
        first, last = wrapped(x)
        torch.testing.assert_close(last, tokens.mT.unflatten(2, (4, 4)))
        torch.testing.assert_close(first, plain[0])
        torch.testing.assert_close(first.mean(1), torch.zeros_like(first[:, 0]), atol=1e-6, rtol=0)
    assert list(backbone_of(wrapped).feature_norms) == ["0"]
    with pytest.raises(ConfigError, match="numbered 0 to 2"):
        small(feature_norms=(3,))


def test_official_names_have_one_name_here():
    for official, ours in {
        "backbone.layers.0.mamba.direction_Bs": "blocks.0.mixer.direction_Bs",
        "backbone.layers.0.dw.1.running_mean": "blocks.0.dw.1.running_mean",
        "layers.5.norm.weight": "blocks.5.norm.weight",
        "backbone.ln1.bias": "norm.bias",
        "backbone.norm_layer11.bias": "feature_norms.11.bias",
        "head.fc.weight": "head.weight",
        "conv2d.weight": "conv.weight",
        "backbone.patch_embed.projection.bias": "patch_embed.projection.bias",
    }.items():
        assert rename_official_key(official) == ours
        assert rename_official_key(ours) == ours


def test_official_weights_fill_the_body_of_a_pyramid():
    whole = small(num_layers=4)
    pyramid = create_model("plainmamba_l2_pyramid", dim=16, num_layers=4, d_state=2, img_size=64, num_classes=4)
    own = tuple(name for name in pyramid.state_dict() if name.startswith("neck."))
    load_entries(pyramid, whole.state_dict(), source="a PlainMamba", fresh=own)
    assert torch.equal(pyramid.body.blocks[3].mixer.D, whole.blocks[3].mixer.D)
