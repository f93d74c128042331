"""ViM2 against its equations, written out: its authors publish no code, so there are no goldens."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from statefield.backbones import create_model
from statefield.backbones._mixers import ChannelScanMixer
from statefield.backbones.vim2 import AveragingStage, MambaMixerBlock
from statefield.kernels import selective_scan, use_kernels

ABOUT = {"vim2_tiny": 20e6, "vim2_small": 43e6, "vim2_base": 74e6}  # the paper's numbers of parameters


@pytest.mark.parametrize("name", ABOUT)
def test_sizes_have_about_as_many_parameters_as_the_paper_tells(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(ABOUT[name], rel=0.06)


def mixer(**kwargs) -> ChannelScanMixer:
    torch.manual_seed(0)
    one = ChannelScanMixer(8, **({"d_state": 3, "expand": 1.0, "summary": 2} | kwargs)).eval()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return one


def block(position: int = 1) -> MambaMixerBlock:
    torch.manual_seed(position)
    return MambaMixerBlock(6, position, d_state=2, summary=2).eval()


def test_the_scan_is_two_selective_scans_of_the_transposed_map():
    """Of 2 x 2 tokens and as many cells: the summary is the map, so B and C are linear in all tokens, as in S6."""
    one, u = mixer(), torch.randn(2, 2, 2, 8)
    features = u.flatten(1, 2)  # [B, L, E]: features, then steps
    expected = torch.zeros_like(features)
    with torch.no_grad(), use_kernels("reference"):
        for k, turn in enumerate((lambda x: x, lambda x: x.flip(-1))):
            read = torch.einsum("rl,ble->bre", one.x_proj[k], features)
            delta = read[:, :1] + one.dt_proj[k] * features
            y = selective_scan(
                turn(features),
                turn(delta),
                -one.A_log[k].exp().expand(4, 3),
                turn(read[:, 1:4]),
                turn(read[:, 4:]),
                one.D[k].expand(4),
                delta_bias=one.dt_bias[k].expand(4),
                delta_softplus=True,
            )
            expected += turn(y)
        torch.testing.assert_close(one.scan(u), expected.unflatten(1, (2, 2)))


def test_the_mixer_gates_what_it_scans_behind_a_convolution_along_the_channels():
    one, x = mixer(), torch.randn(1, 3, 2, 8)
    with torch.no_grad():
        u, gate = one.in_proj(x).chunk(2, dim=-1)
        taps = one.conv.weight.flatten()
        padded = functional.pad(u, (1, 1))
        u = sum(taps[i] * padded[..., i : i + 8] for i in range(3)) + one.conv.bias
        y = one.out_norm(one.scan(functional.silu(u))) * functional.silu(gate)
        torch.testing.assert_close(one(x), one.out_proj(y))


def test_every_channel_reaches_every_other_and_tokens_only_speak_through_the_summary():
    one, u = mixer(), torch.randn(1, 4, 4, 8)
    moved = u.clone()
    moved[0, 1, 1, 4] += 1
    with torch.no_grad():
        change = (one.scan(moved) - one.scan(u)).abs()[0]
        one.x_proj.zero_()  # B = C = 0: only the skip is left
        skip = (one.scan(moved) - one.scan(u)).abs()[0]
    assert (change[1, 1] > 1e-6).all()
    assert (change[0, 0, 4:] > 1e-7).any() and (change[3, 3, :] > 1e-7).any()
    assert torch.equal(skip.nonzero(), torch.tensor([[1, 1, 4]]))


def test_with_one_cell_the_order_of_tokens_does_not_matter():
    one, x = mixer(summary=1), torch.randn(2, 3, 4, 8)
    order = torch.randperm(12)
    with torch.no_grad():
        shuffled = one(x.flatten(1, 2)[:, order].unflatten(1, (3, 4)))
        torch.testing.assert_close(shuffled.flatten(1, 2), one(x).flatten(1, 2)[:, order])


def test_a_map_of_equal_parts_is_mixed_as_one_of_them():
    """Every parameter is shared by the tokens: enlarging a map by repeated pixels repeats what it gives."""
    one, x = mixer(), torch.randn(1, 2, 2, 8)

    def enlarge(y: torch.Tensor) -> torch.Tensor:
        return y.repeat_interleave(3, 1).repeat_interleave(3, 2)

    with torch.no_grad():
        torch.testing.assert_close(one(enlarge(x)), enlarge(one(x)))


def test_a_new_stage_is_a_plain_chain_of_residuals():
    stage = AveragingStage(torch.nn.Identity(), [block(1), block(2), block(3)]).eval()
    y = x = torch.randn(1, 4, 3, 6)
    with torch.no_grad():
        for one in stage.blocks:
            y = y + one.token_mixer(one.norm1(y))
            y = y + one.channel_mixer(one.norm2(y))
        torch.testing.assert_close(stage(x), y)


def test_a_block_weighs_all_outputs_before_it():
    """Equations 8 and 9 for the second block."""
    torch.manual_seed(0)
    one = block(2)
    t0, t1, c0, c1 = torch.randn(4, 1, 4, 3, 6)
    with torch.no_grad():
        for weights in (one.alpha, one.beta, one.theta, one.gamma):
            weights.normal_()
        x = one.alpha[0] * t0 + one.alpha[1] * t1 + one.beta[0] * c0 + one.beta[1] * c1
        t2 = x + one.token_mixer(one.norm1(x))
        x = one.theta[0] * t0 + one.theta[1] * t1 + one.theta[2] * t2 + one.gamma[0] * c0 + one.gamma[1] * c1
        c2 = x + one.channel_mixer(one.norm2(x))
        found = one([t0, t1], [c0, c1])
    torch.testing.assert_close(found, (t2, c2))


def test_weights_of_the_sums_are_spared_by_weight_decay_and_reached_by_gradients():
    torch.manual_seed(0)
    model = create_model("vim2_tiny", dims=8, depths=(1, 2, 1, 1), d_state=2, num_classes=3, drop_path_rate=0.0)
    spared = model.no_weight_decay()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name in ("alpha", "beta", "theta", "gamma"):
        assert f"stages.1.blocks.1.{name}" in spared
        weights = model.get_parameter(f"stages.1.blocks.1.{name}")
        assert weights.shape == ((3,) if name == "theta" else (2,)) and weights.grad.all()
