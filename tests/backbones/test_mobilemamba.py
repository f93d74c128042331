"""MobileMamba beyond its goldens: published sizes, channel splits, wavelets, maps at every stride, names."""

from __future__ import annotations

import pytest
import torch

from statefield.backbones import create_model
from statefield.backbones._mixers.wavelet import (
    MultiReceptiveFieldMixer,
    RasterScanMixer,
    WaveletScanMixer,
    split_channels,
)
from statefield.backbones.checkpoints import load_entries
from statefield.backbones.mobilemamba import (
    MobileMambaBlock,
    MobileMambaMerging,
    checkpoint_filter_fn,
    rename_official_key,
)
from statefield.errors import ConfigError

PUBLISHED = {  # with the wavelets' frozen filters
    "mobilemamba_t2": 8_836_890,
    "mobilemamba_t4": 14_176_090,
    "mobilemamba_s6": 15_036_632,
    "mobilemamba_b1": 17_122_849,
    "mobilemamba_b2": 17_122_849,
    "mobilemamba_b4": 17_122_849,
}
TINY = {"dims": (24, 32, 32), "depths": (1, 1, 1), "expand": 0.5}


def tiny(**kwargs) -> torch.nn.Module:
    """A small model that is far from its initial state, where every block only doubles its input."""
    torch.manual_seed(0)
    model = create_model("mobilemamba_t2", num_classes=5, **(TINY | kwargs))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


def test_the_wavelets_filters_are_counted_but_not_trained():
    with torch.device("meta"):
        model = create_model("mobilemamba_t2")
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 8_806_682
    frozen = {name.rsplit(".", 1)[1] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"wt_filter", "iwt_filter"}


@pytest.mark.parametrize(
    ("dims", "splits"),
    [
        ((144, 272, 368), [(112, 28, 4), (192, 54, 26), (224, 110, 34)]),
        ((176, 368, 448), [(144, 32, 0), (256, 73, 39), (272, 134, 42)]),
        ((192, 384, 448), [(160, 32, 0), (272, 76, 36), (272, 134, 42)]),
        ((200, 376, 448), [(160, 40, 0), (256, 75, 45), (272, 134, 42)]),
    ],
)
def test_channels_are_split_as_in_the_published_sizes(dims, splits):
    shares = zip(dims, (0.8, 0.7, 0.6), (0.2, 0.2, 0.3), strict=True)
    assert [split_channels(*share) for share in shares] == splits


def test_a_share_halfway_between_two_multiples_of_sixteen_goes_up_and_too_large_a_one_is_refused():
    assert split_channels(40, 0.6, 0.2) == (32, 8, 0)  # 24 lies between 16 and 32
    assert split_channels(16, 0.4, 0.5) == (0, 8, 8)
    with pytest.raises(ConfigError, match=r"a global part of 16 channels.*does not fit into 12"):
        split_channels(12, 0.8, 0.2)


def test_a_mixer_without_a_global_or_a_local_part_works():
    x = torch.randn(2, 5, 4, 32)
    for ratios in ({"global_ratio": 0.0, "local_ratio": 0.5}, {"global_ratio": 0.5, "local_ratio": 0.0}):
        mixer = MultiReceptiveFieldMixer(32, **ratios).eval()
        y = mixer(x)
        assert y.shape == x.shape and torch.isfinite(y).all()


def test_an_even_kernel_is_refused():
    with pytest.raises(ConfigError, match="kernel_size 4"):
        MultiReceptiveFieldMixer(32, kernel_size=4)


def test_the_bands_are_mean_rows_columns_diagonals_and_their_synthesis_is_the_inverse():
    mixer = WaveletScanMixer(2)
    x = torch.zeros(1, 2, 2, 2)
    x[0, :, :, 1] = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    bands = mixer.analysis(x)
    assert bands.shape == (1, 8, 1, 1)
    # (1+2+4+8)/2, (1+2-4-8)/2, (1-2+4-8)/2, (1-2-4+8)/2: behind the four of the first channel
    assert bands.flatten().tolist() == [0, 0, 0, 0, 7.5, -4.5, -2.5, 1.5]
    odd = torch.randn(2, 5, 3, 2)
    torch.testing.assert_close(mixer.synthesis(mixer.analysis(odd), 5, 3), odd)


def test_the_low_pass_band_is_filtered_too():
    """Nothing of the transform is passed on as it is: without the convolutions only the scan is left."""
    torch.manual_seed(0)
    mixer, x = WaveletScanMixer(16).eval(), torch.randn(1, 4, 6, 16)
    with torch.no_grad():
        mixer.wavelet_conv.weight.zero_()
        torch.testing.assert_close(mixer(x), mixer.scan(x))
        mixer.base_scale.zero_()
        assert mixer(x).abs().max() == 0


def test_a_new_block_doubles_its_input_and_initial_values_are_the_authors():
    torch.manual_seed(0)
    block = MobileMambaBlock(32, global_ratio=0.5)
    x = torch.randn(2, 3, 5, 32)
    torch.testing.assert_close(block(x), 2 * x)  # the shortcut is added twice
    torch.testing.assert_close(block.eval()(x), 2 * x)
    wavelets = block.mixer.global_op
    assert (wavelets.base_scale == 1).all() and torch.equal(wavelets.wavelet_scale, torch.full((1, 64, 1, 1), 0.1))
    assert (wavelets.scan.D == 1).all() and (wavelets.scan.A_log == 0).all()
    for values in (wavelets.scan.dt_proj, wavelets.scan.dt_bias):
        assert values.min() >= 0 and 0.08 < values.max() <= 0.1
    down = create_model("mobilemamba_t2", **TINY).stages[1].downsample
    assert (down.dw0.norm.weight == 1).all() and (down.dw1.norm.weight == 1).all()
    assert (down.ffn0.pw2.norm.weight == 0).all()


def test_scans_go_row_by_row_and_back():
    """A later pixel in raster order is reached by the first route alone, an earlier one by the second alone."""
    torch.manual_seed(0)
    mixer = RasterScanMixer(4, expand=1.0)
    u = torch.randn(1, 2, 3, 4)
    changed = u.clone()
    changed[0, 1, 0] += 1
    with torch.no_grad():
        reached = (mixer.scan(changed, merge=False) - mixer.scan(u, merge=False)).abs().amax(-1)[0] > 0
    assert reached[..., 0].tolist() == [[False, False, False], [True, True, True]]
    assert reached[..., 1].tolist() == [[True, True, True], [True, False, False]]


def test_images_of_a_batch_do_not_meet():
    """The authors' fallback without a GPU mixes them (see the golden's builder); their kernels do not, nor do we."""
    model, x = tiny(), torch.randn(3, 3, 70, 64)
    with torch.no_grad():
        together = model(x)
        for index in range(3):
            torch.testing.assert_close(together[index : index + 1], model(x[index : index + 1]))


def test_maps_are_the_stems_and_the_stages_and_the_last_holds_two():
    model, x = tiny(), torch.randn(2, 3, 90, 128)
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        quarter, eighth, first, both, coarse = model.stage_maps(x)
    assert [tuple(m.shape[1:]) for m in maps] == [(6, 23, 32), (12, 12, 16), (24, 6, 8), (64, 3, 4)]
    assert quarter.min() == eighth.min() == 0  # behind the ReLU
    assert first.min() < 0
    torch.testing.assert_close(last, coarse)
    assert coarse.shape == (2, 2, 2, 32)
    torch.testing.assert_close(both[:, 1::2, 1::2, 32:], coarse[:, :1])  # each pixel twice, the odd side cut
    torch.testing.assert_close(both[:, ::2, ::2, 32:], coarse)
    assert [info["num_chs"] for info in model.feature_info] == [6, 12, 24, 64]


@pytest.mark.parametrize("indices", [(0,), (1,), (2,), (0, 3)])
def test_what_maps_do_not_need_is_pruned(indices):
    whole, x = tiny(), torch.randn(1, 3, 64, 64)
    wrapped = create_model("mobilemamba_t2", features_only=True, out_indices=indices, **TINY).eval()
    report = load_entries(wrapped, whole.state_dict(), source="the whole model")
    expected = {(0,): {"conv1", "conv2"}, (1,): {"conv1", "conv2", "conv3"}}
    convs = {name for name, _ in wrapped.model.stem.named_children()}
    assert convs == expected.get(indices, {"conv1", "conv2", "conv3", "conv4"})
    assert len(wrapped.model.stages) == {0: 0, 1: 0, 2: 1, 3: 3}[indices[-1]]
    assert any(name.startswith("stages.2") for name in report.set_aside) == (indices[-1] < 3)
    with torch.no_grad():
        maps = whole.forward_intermediates(x, intermediates_only=True)
        for index, ours in zip(indices, wrapped(x), strict=True):
            torch.testing.assert_close(ours, maps[index])


@pytest.mark.parametrize(("output_stride", "every"), [(16, 2), (8, 4)])
@pytest.mark.parametrize("size", [(128, 64), (70, 131)])
def test_a_smaller_output_stride_keeps_the_values_between_which_it_puts_more(output_stride, every, size):
    plain, x = tiny(), torch.randn(1, 3, *size)
    dense = tiny(output_stride=output_stride)
    load_entries(dense, plain.state_dict(), source="the plain model")
    with torch.no_grad():
        expected = plain.forward_intermediates(x, [3], intermediates_only=True)[0]
        last, (found,) = dense.forward_intermediates(x, [3])
        scores = dense(x)
    assert found.shape[-2:] == tuple(-(-side // output_stride) for side in size)
    torch.testing.assert_close(found[:, :, ::every, ::every], expected)
    torch.testing.assert_close(scores, dense.forward_head(last))


def test_merging_without_stride_deals_out_what_it_would_leave_away():
    torch.manual_seed(0)
    strided, dealt = MobileMambaMerging(8, 12).eval(), MobileMambaMerging(8, 12, stride=1).eval()
    dealt.load_state_dict(strided.state_dict())
    x = torch.randn(2, 5, 6, 8)
    with torch.no_grad():
        y = dealt(x)
        assert y.shape == (8, 3, 3, 12)
        torch.testing.assert_close(y[::4], strided(x))


def test_two_heads_are_averaged_and_can_be_had_apart():
    model, x = tiny(distillation=True), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = model.forward_features(x)
        first, second = model.head.heads(features)
        torch.testing.assert_close(model(x), (first + second) / 2)
        assert (first - second).abs().max() > 0
        assert model.forward_head(features, pre_logits=True).shape == (2, 32)
    entries = {"head_dist.bn.weight": 0, "head_dist.l.bias": 0, "head.bn.bias": 0, "head.l.weight": 0}
    renamed = checkpoint_filter_fn(entries, model)
    assert set(renamed) == {"head.norm_dist.weight", "head.fc_dist.bias", "head.norm.bias", "head.fc.weight"}
    assert set(renamed) <= set(model.state_dict())
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert model(x).shape == (2, 32) and not any(name.startswith("head.") for name in model.state_dict())


def test_other_than_three_stages_are_refused():
    with pytest.raises(ConfigError, match=r"depths \(1, 2\): one value for each of the three stages"):
        create_model("mobilemamba_t2", depths=(1, 2))
    with pytest.raises(ConfigError, match="8 at least"):
        create_model("mobilemamba_t2", dims=(4, 32, 32))


def test_official_names_have_one_name_here():
    mixer = "mixer.global_op"
    for official, ours in {
        "patch_embed.6.bn.running_mean": "stem.conv4.norm.running_mean",
        "blocks1.0.dw0.m.c.weight": "stages.0.blocks.0.dw0.conv.weight",
        "blocks1.0.mixer.m.attn.local_op.dwconv3x3.weight": "stages.0.blocks.0.mixer.local_op.spatial.conv.weight",
        "blocks1.0.mixer.m.attn.local_op.bn2.bias": "stages.0.blocks.0.mixer.local_op.channel.norm.bias",
        "blocks1.0.mixer.m.attn.proj.1.bn.weight": "stages.0.blocks.0.mixer.proj.norm.weight",
        "blocks2.0.0.m.c.weight": "stages.1.downsample.dw0.conv.weight",
        "blocks2.0.1.m.pw2.bn.bias": "stages.1.downsample.ffn0.pw2.norm.bias",
        "blocks2.1.se.fc1.bias": "stages.1.downsample.merge.se.fc1.bias",
        "blocks2.1.conv2.c.weight": "stages.1.downsample.merge.conv2.conv.weight",
        "blocks3.2.0.m.bn.weight": "stages.2.downsample.dw1.norm.weight",
        "blocks3.3.mixer.m.attn.global_op.wt_filter": f"stages.2.blocks.0.{mixer}.wt_filter",
        "blocks3.3.mixer.m.attn.global_op.base_scale.weight": f"stages.2.blocks.0.{mixer}.base_scale",
        "blocks3.3.mixer.m.attn.global_op.wavelet_scale.0.weight": f"stages.2.blocks.0.{mixer}.wavelet_scale",
        "blocks3.3.mixer.m.attn.global_op.wavelet_convs.0.weight": f"stages.2.blocks.0.{mixer}.wavelet_conv.weight",
        "blocks3.3.mixer.m.attn.global_op.global_atten.conv2d.bias": f"stages.2.blocks.0.{mixer}.scan.conv.bias",
        "blocks3.3.mixer.m.attn.global_op.global_atten.dt_projs_bias": f"stages.2.blocks.0.{mixer}.scan.dt_bias",
        "head.bn.weight": "head.norm.weight",
    }.items():
        assert rename_official_key(official) == ours
        assert rename_official_key(ours) == ours
