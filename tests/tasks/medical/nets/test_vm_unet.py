"""VM-UNet and MHS-VM: published sizes, the authors' names, and how the nets answer."""

import pytest
import torch
from monai.inferers import sliding_window_inference

from statefield.backbones.checkpoints import load_entries
from statefield.errors import CheckpointError, ConfigError, ShapeError
from statefield.tasks.medical.nets import MultiHeadScanUNet, VMUNet, vm_unet

PUBLISHED = [  # verified by building the authors' code
    (VMUNet, 1, {}, 27_427_561),
    (VMUNet, 9, {}, 27_427_761),
    (VMUNet, 1, {"depths": (2, 2, 9, 2), "decoder_depths": (2, 9, 2, 2)}, 44_273_833),
    (MultiHeadScanUNet, 1, {"heads": 3}, 17_386_153),
    (MultiHeadScanUNet, 1, {"heads": 4}, 17_257_129),
]
SMALL = {"dims": 8, "depths": (1, 1, 2), "decoder_depths": (1, 1, 1), "d_state": 2}
every_net = pytest.mark.parametrize("net_cls", [VMUNet, MultiHeadScanUNet])


@pytest.mark.parametrize("net_cls, classes, options, count", PUBLISHED)
def test_parameters_are_as_many_as_the_authors_code_has(net_cls, classes, options, count):
    with torch.device("meta"):
        net = net_cls(2, 3, classes, **options)
    assert sum(parameter.numel() for parameter in net.parameters()) == count


@every_net
def test_logits_have_the_size_of_the_image_and_every_parameter_learns(net_cls):
    net = net_cls(2, 2, 3, **SMALL, drop_path_rate=0.0)
    logits = net(torch.randn(2, 2, 32, 48))
    assert logits.shape == (2, 3, 32, 48)
    logits.square().sum().backward()
    silent = [name for name, parameter in net.named_parameters() if parameter.grad is None]
    assert silent == []


@every_net
def test_works_inside_monais_sliding_window(net_cls):
    net = net_cls(2, 1, 2, **SMALL).eval()
    image = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(sliding_window_inference(image, (16, 16), 1, net), net(image))
        assert sliding_window_inference(image.repeat(1, 1, 2, 3), (16, 16), 2, net).shape == (1, 2, 32, 48)


@every_net
def test_refuses_what_it_cannot_do(net_cls):
    with pytest.raises(ConfigError, match="spatial_dims=3"):
        net_cls(3, 1, 2)
    with pytest.raises(ConfigError, match="differ in length"):
        net_cls(2, 1, 2, depths=(1, 1), decoder_depths=(1,))
    net = net_cls(2, 1, 2, **SMALL)
    with pytest.raises(ShapeError, match="multiples of 16"):
        net(torch.zeros(1, 1, 24, 32))
    with pytest.raises(ShapeError, match=r"needs \[B, 1, H, W\]"):
        net(torch.zeros(1, 2, 32, 32))


def test_stochastic_depth_rises_down_and_falls_up():
    net = VMUNet(2, 1, 1, dims=4, depths=(1, 1), decoder_depths=(1, 2), d_state=1, drop_path_rate=0.2)
    down = [getattr(block.drop_path1, "drop_prob", 0.0) for stage in net.stages for block in stage.blocks]
    up = [getattr(block.drop_path1, "drop_prob", 0.0) for stage in net.decoder for block in stage.blocks]
    assert down == pytest.approx([0.0, 0.2])
    assert up == pytest.approx([0.2, 0.1, 0.0])


def _authors_file(net: MultiHeadScanUNet) -> dict[str, torch.Tensor]:
    """The net's entries, of which one tensor has the two names that files of the authors give it."""
    entries = dict(net.state_dict())
    value = entries.pop("stages.0.blocks.0.mixer.scan.heads.1.D")
    path = "layers.0.blocks.0.self_attention.mhs.scanhead_X"
    return entries | {f"{path}.mambaeng.Ds": value, f"{path}.scanning.seq2seq_engine.Ds": value.clone()}


def test_second_names_of_a_tensor_are_counted_and_have_to_agree():
    net = MultiHeadScanUNet(2, 1, 1, **SMALL)
    entries = _authors_file(net)
    report = load_entries(net, entries, source="file")
    assert len(report.loaded) == len(net.state_dict())
    assert [len(names) for names in report.ignored.values()] == [1]
    first = "layers.0.blocks.0.self_attention.mhs.scanhead_X.mambaeng.Ds"
    with pytest.raises(CheckpointError, match=r"file holds .*seq2seq_engine.Ds, a second name .* with other values"):
        load_entries(net, entries | {first: entries[first] + 1}, source="file")
    del entries[first]
    with pytest.raises(CheckpointError, match="not there under its first name"):
        load_entries(net, entries, source="file")


def test_a_head_suppresses_what_its_routes_agree_on():
    head = MultiHeadScanUNet(2, 1, 1, **SMALL).stages[0].blocks[0].mixer.scan.heads[0]
    agreeing = torch.ones(1, 2, 2, 4, 3)
    assert head.fuse(agreeing).abs().max() == 0
    apart = agreeing.clone()
    apart[..., 0, :] = 5.0  # std 2 over a mean of 1 above the least: 8 * (2 - 0.5)
    torch.testing.assert_close(head.fuse(apart), torch.full((1, 2, 2, 3), 8 * 1.5), rtol=1e-4, atol=0)


def test_more_heads_than_routes_are_refused():
    with pytest.raises(ConfigError, match="5 heads"):
        MultiHeadScanUNet(2, 1, 1, **SMALL, heads=5)


def test_official_names_are_renamed_and_ours_are_left_alone():
    for name in VMUNet(2, 1, 1, **SMALL).state_dict():
        assert vm_unet.rename_official_key(name) == name
