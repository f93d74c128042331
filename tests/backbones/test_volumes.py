"""Blocks and backbones on volumes: values against plain loops over cells, gradients, any size, any channels."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield import create_model
from statefield.backbones import create_encoder
from statefield.backbones._blocks import PatchMerging, PatchStem
from statefield.backbones._mixers import TRI_ORIENTED, CrossDualityMixer, CrossScanMixer, OrientedMixer
from statefield.backbones.lightm import ResidualMambaBlock, ResidualMambaLayer
from statefield.errors import ConfigError, ShapeError
from statefield.kernels import use_kernels

SHAPE = (2, 3, 4)  # D, H, W
# Cell (d, h, w) of each route, slowest loop first, written out; "~" walks it from its end.
D, H, W = (range(side) for side in SHAPE)
WALKS = {
    "volume_dhw": [(d, h, w) for d in D for h in H for w in W],
    "volume_wdh": [(d, h, w) for w in W for d in D for h in H],
    "volume_hwd": [(d, h, w) for h in H for w in W for d in D],
}
WALKS["raster"] = WALKS["volume_dhw"]
WALKS |= {f"{name}~": walk[::-1] for name, walk in WALKS.items()}


def volume(channels: int, batch: int = 2, shape: tuple[int, ...] = SHAPE) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, *shape, channels, dtype=torch.float64)


def scanned(walk: list, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """h = exp(dt A) h + dt B u, y = C h + D u, cell after cell. u, dt [b, *S, E]; B, C [b, *S, N]; A [E, N]; D [E]."""
    y, h = torch.zeros_like(u), u.new_zeros(u.shape[0], *A.shape)
    for d, h_, w in walk:
        at = (slice(None), d, h_, w)
        h = torch.exp(dt[at][..., None] * A) * h + (dt[at] * u[at])[..., None] * B[at][:, None]
        y[at] = (h * C[at][:, None]).sum(-1) + D * u[at]
    return y


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A depthwise 3 x 3 x 3 convolution with zeros around, tap by tap, [b, D, H, W, E]."""
    padded = functional.pad(x, (0, 0, 1, 1, 1, 1, 1, 1))
    depth, height, width = x.shape[1:-1]
    taps = [
        padded[:, i : i + depth, j : j + height, k : k + width] * weight[:, 0, i, j, k]
        for i, j, k in product(range(3), repeat=3)
    ]
    return sum(taps) + (0 if bias is None else bias)


@pytest.mark.parametrize("gated", [True, False])
def test_a_cross_scan_of_a_volume_is_six_loops_over_its_cells(gated):
    torch.manual_seed(0)
    mixer = CrossScanMixer(4, d_state=2, expand=2.0, gated=gated, conv_bias=gated, spatial_dims=3).double()
    nn.init.normal_(mixer.D)
    assert mixer.routes == ("volume_dhw", "volume_wdh", "volume_hwd", "volume_dhw~", "volume_wdh~", "volume_hwd~")
    x = volume(4)
    inner = mixer.in_proj(x)
    u, z = inner.chunk(2, dim=-1) if gated else (inner, None)
    u = functional.silu(depthwise(u, mixer.conv.weight, mixer.conv.bias))
    expected = torch.zeros_like(u)
    for k, name in enumerate(mixer.routes):
        step, B, C = (u @ mixer.x_proj[k].T).split((1, 2, 2), dim=-1)
        dt = functional.softplus(step @ mixer.dt_proj[k].T + mixer.dt_bias[k])
        A = -mixer.A_log.exp().unflatten(0, (6, -1))[k]
        expected += scanned(WALKS[name], u, dt, A, B, C, mixer.D.unflatten(0, (6, -1))[k])
    expected = mixer.out_norm(expected)
    expected = mixer.out_proj(expected if z is None else expected * functional.silu(z))
    torch.testing.assert_close(mixer(x), expected, rtol=1e-9, atol=1e-11)


def test_a_cross_duality_of_a_volume_is_a_loop_with_one_decay_a_head():
    torch.manual_seed(0)
    mixer = CrossDualityMixer(8, d_state=3, heads=2, spatial_dims=3).double()
    nn.init.normal_(mixer.D)
    nn.init.normal_(mixer.A_log)
    x = volume(8)
    u = functional.gelu(depthwise(mixer.in_proj(x), mixer.conv.weight, mixer.conv.bias))
    expected = torch.zeros_like(u)
    for k, name in enumerate(mixer.routes):
        step, B, C = (u @ mixer.x_proj[k].T).split((2, 3, 3), dim=-1)
        dt = functional.softplus(step + mixer.dt_bias[k]).repeat_interleave(4, dim=-1)
        A = -mixer.A_log[k].exp().repeat_interleave(4)[:, None].expand(8, 3)
        expected += scanned(WALKS[name], u, dt, A, B, C, mixer.D[k].flatten())
    expected = mixer.out_proj(mixer.out_norm(expected))
    torch.testing.assert_close(mixer(x), expected, rtol=1e-6, atol=1e-8)


def test_a_tri_oriented_mixer_is_three_loops_with_convolutions_along_them():
    torch.manual_seed(0)
    mixer = OrientedMixer(4, routes=TRI_ORIENTED, d_state=2).double()
    x = volume(4)
    inner, z = mixer.in_proj(x).chunk(2, dim=-1)
    expected = torch.zeros_like(inner)
    for name, route in TRI_ORIENTED.items():
        owner = mixer.get_submodule(name)
        u = torch.zeros_like(inner)
        for step, cell in enumerate(WALKS[route]):  # four taps: this cell and the three before it on the walk
            taps = [WALKS[route][step - back] for back in range(min(step, 3) + 1)]
            total = sum(inner[:, *at] * owner.conv1d.weight[:, 0, 3 - back] for back, at in enumerate(taps))
            u[:, *cell] = functional.silu(total + owner.conv1d.bias)
        step_size, B, C = owner.x_proj(u).split((1, 2, 2), dim=-1)
        A = -owner.A_log.exp()
        expected += scanned(WALKS[route], u, functional.softplus(owner.dt_proj(step_size)), A, B, C, owner.D)
    expected = mixer.out_proj(expected * functional.silu(z))
    torch.testing.assert_close(mixer(x), expected, rtol=1e-9, atol=1e-11)


BLOCKS = {
    "cross-scan": lambda: CrossScanMixer(2, d_state=1, expand=1.0, spatial_dims=3),
    "cross-duality": lambda: CrossDualityMixer(4, d_state=2, heads=2, spatial_dims=3),
    "oriented": lambda: OrientedMixer(2, routes=TRI_ORIENTED, d_state=1),
    "LightM": lambda: ResidualMambaLayer(2, 3, spatial_dims=3, d_state=1),
    "merging": lambda: PatchMerging(2, 3, spatial_dims=3),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_gradients_of_blocks_are_those_of_finite_differences(name):
    torch.manual_seed(0)
    block = BLOCKS[name]().double()
    channels = 4 if name == "cross-duality" else 2
    x = volume(channels, batch=1, shape=(2, 1, 3)).requires_grad_()
    parameters = [one for one in block.parameters() if one.numel() <= 16]
    names = [key for key, one in block.named_parameters() if one.numel() <= 16]
    for one in block.parameters():  # norms at their initial values would hide a gradient that is left out
        nn.init.normal_(one, std=0.5)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,))

    with use_kernels("native") if name != "cross-duality" else use_kernels("reference"):
        assert torch.autograd.gradcheck(run, (x, *parameters), eps=1e-6, atol=1e-5, rtol=1e-3)


def test_patch_merging_takes_eight_neighbours_the_first_axis_fastest():
    merging = PatchMerging(1, 8, spatial_dims=3)
    merging.norm, merging.reduction = nn.Identity(), nn.Identity()
    cells = torch.arange(1.0, 1 + 2 * 3 * 2).reshape(1, 2, 3, 2, 1)  # d h w in raster order, from 1
    merged = merging(cells)
    assert merged.shape == (1, 1, 2, 1, 8)
    assert merged[0, 0, 0, 0].tolist() == [1, 7, 3, 9, 2, 8, 4, 10]  # (d, h, w): 000 100 010 110 001 101 011 111
    assert merged[0, 0, 1, 0].tolist() == [5, 11, 0, 0, 6, 12, 0, 0]  # beyond the third row: zeros


def test_a_patch_stem_covers_a_volume_with_cubes():
    stem = PatchStem(2, 5, spatial_dims=3)
    assert stem(torch.randn(1, 2, 4, 9, 5)).shape == (1, 1, 3, 2, 5)


@pytest.mark.parametrize("block", [ResidualMambaLayer, ResidualMambaBlock])
def test_lightm_blocks_scan_maps_and_volumes_as_the_same_sequence(block):
    torch.manual_seed(0)
    on_maps, on_volumes = block(8, spatial_dims=2), block(8, spatial_dims=3)
    on_volumes.load_state_dict(on_maps.state_dict())
    x = torch.randn(1, 2, 3, 4, 8)
    torch.testing.assert_close(on_volumes(x), on_maps(x.reshape(1, 6, 4, 8)).reshape(x.shape))
    with pytest.raises(ShapeError, match="D, H, W, C"):
        ResidualMambaLayer(8, spatial_dims=3)(x[0])
    with pytest.raises(ConfigError, match="spatial_dims 4"):
        block(8, spatial_dims=4)


# Small forms of a four-stage and of an isotropic backbone, and what makes them.
ENCODERS = {
    "vmamba_tiny_s1l8": {"dims": 8, "depths": (1, 1, 1, 1)},
    "vmamba_vanilla_tiny": {"dims": 8, "depths": (1, 1, 1, 1), "d_state": 2},
    "vmamba_tiny_m2": {"dims": 16, "depths": (1, 1, 1, 1), "d_state": 4},
    "vim_tiny_pyramid": {"dim": 16, "num_layers": 4, "img_size": 32},
}


@pytest.mark.parametrize("in_chans", [1, 4])
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_of_volumes_gives_a_pyramid_and_learns_with_all_its_parameters(name, in_chans):
    torch.manual_seed(0)
    options = {"spatial_dims": 3, "in_chans": in_chans, "drop_path_rate": 0.0} | ENCODERS[name]
    encoder = create_model(name, features_only=True, **options)
    x = torch.randn(1, in_chans, 19, 33, 40, requires_grad=True)
    maps = encoder(x)
    assert [tuple(one.shape[2:]) for one in maps] == [(5, 9, 10), (3, 5, 5), (2, 3, 3), (1, 2, 2)]
    assert [one.shape[1] for one in maps] == encoder.feature_info.channels()
    sum((one * torch.randn_like(one)).sum() for one in maps).backward()
    without = [key for key, one in encoder.named_parameters() if one.grad is None or not one.grad.abs().sum() > 0]
    assert [key for key in without if "cls_token" not in key] == []
    assert x.grad is not None and bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("name", ["vmamba_tiny_s1l8", "vim_tiny"])
def test_a_classifier_of_volumes_has_the_encoder_inside_and_checkpoints_to_the_same_gradients(name):
    torch.manual_seed(0)
    options = ENCODERS.get(name) or {"dim": 16, "num_layers": 2, "img_size": 32}
    model = create_model(name, spatial_dims=3, in_chans=1, num_classes=3, **options | {"drop_path_rate": 0.0})
    x = torch.randn(2, 1, 20, 36, 24)
    scores = model(x)
    assert scores.shape == (2, 3)
    last, maps = model.forward_intermediates(x)
    torch.testing.assert_close(model.forward_head(last), scores)
    nhwc = model.forward_intermediates(x, output_fmt="NHWC", intermediates_only=True)
    assert all(torch.equal(one.movedim(-1, 1), other) for one, other in zip(nhwc, maps, strict=True))
    weight = next(iter(model.parameters()))
    plain = torch.autograd.grad(model(x).square().sum(), weight)[0]
    model.set_grad_checkpointing()
    torch.testing.assert_close(torch.autograd.grad(model(x).square().sum(), weight)[0], plain)
    with pytest.raises(ShapeError, match=r"a volume batch .* \[B, 1, D, H, W\] is needed"):
        model(x[:, :, 0])


def test_positions_of_a_volume_are_resized_to_other_sizes():
    torch.manual_seed(0)
    model = create_model("vim_tiny", spatial_dims=3, in_chans=1, num_classes=2, dim=8, num_layers=1, img_size=32)
    assert model.learned_grid == (2, 2, 2)
    assert model.pos_embed.shape == (1, 9, 8)
    tokens, grid = model.embed(torch.zeros(1, 1, 48, 16, 32))
    assert grid == (3, 1, 2)
    assert tokens.shape == (1, 7, 8)
    assert create_model("vim_tiny", spatial_dims=3, num_layers=1, dim=8).learned_grid == (6, 6, 6)


def test_encoders_are_made_with_monais_arguments_and_refused_where_a_family_has_images_only():
    small = {"dims": 8, "depths": (1, 1, 1, 1)}
    encoder = create_encoder("vmamba_tiny_s1l8", spatial_dims=3, in_channels=5, **small)
    assert encoder.feature_info.reduction() == [4, 8, 16, 32]
    assert [one.shape[1:] for one in encoder(torch.zeros(1, 5, 32, 32, 64))][-1] == (64, 1, 1, 2)
    assert create_encoder("vmamba_tiny_s1l8", in_channels=2, **small)(torch.zeros(1, 2, 32, 64))[0].ndim == 4
    with pytest.raises(ConfigError, match=r"spatial_mamba_tiny takes images only .* VMamba and Vim"):
        create_encoder("spatial_mamba_tiny", 3, 1)
    with pytest.raises(LookupError, match="did you mean 'vim_small"):
        create_encoder("vim_smal", 3, 1)


@pytest.mark.parametrize("name", ["vmamba_tiny_s1l8", "vim_tiny"])
def test_another_number_of_axes_is_refused(name):
    with pytest.raises(ConfigError, match="spatial_dims 4 is neither 2"):
        create_model(name, spatial_dims=4)


def test_an_output_stride_is_refused_for_volumes():
    with pytest.raises(ConfigError, match="output_stride 16 cannot be had of volumes"):
        create_model("vmamba_tiny_s1l8", spatial_dims=3, output_stride=16, features_only=True)


def test_an_encoder_of_volumes_exports_and_compiles_whole():
    torch.manual_seed(0)
    options = {"dims": 8, "depths": (1, 1), "output_stride": 8}
    model = create_model("vmamba_tiny_s1l8", spatial_dims=2, in_chans=1, num_classes=2, **options)  # the 2-D twin runs
    assert model.eval()(torch.randn(1, 1, 16, 16)).shape == (1, 2)
    volumes = create_model("vmamba_tiny_s1l8", spatial_dims=3, in_chans=1, num_classes=2, dims=8, depths=(1, 1, 1, 1))
    volumes.eval()
    x = torch.randn(1, 1, 8, 16, 12)
    with torch.no_grad():
        expected = volumes(x)
        torch.testing.assert_close(torch.export.export(volumes, (x,)).module()(x), expected)
        compiled = torch.compile(volumes, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected)
