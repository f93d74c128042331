"""MambaEVT: its size, what its dynamic template depends on, and how a box is read from the head's maps."""

import pytest
import torch

from statefield.backbones.checkpoints import load_entries
from statefield.errors import CheckpointError, ConfigError, ShapeError
from statefield.tasks.tracking.nets import CenterMaps, MambaEVT
from statefield.tasks.tracking.nets.mamba_evt import rename_official_key


def small(**options):
    torch.manual_seed(0)
    sizes = {"template_size": 32, "search_size": 64, "dim": 16, "num_layers": 2, "head_channels": 16}
    return MambaEVT(**(sizes | options))


def test_the_paper_net_has_the_published_number_of_parameters():
    with torch.device("meta"):
        net = MambaEVT()
    of_head = sum(parameter.numel() for parameter in net.head.parameters())
    assert of_head == 3_819_909
    class_token = 384  # the authors' backbone has one that nothing reads
    assert sum(parameter.numel() for parameter in net.parameters()) - of_head == 25_483_392 - class_token


def test_every_parameter_gets_a_gradient():
    net = small(drop_path_rate=0.0).train()
    maps = net(torch.rand(2, 3, 32, 32), net.encode_templates(torch.rand(2, 3, 3, 32, 32)), torch.rand(2, 3, 64, 64))
    (maps.score.sum() + maps.size.sum() + maps.offset.sum()).backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []


def test_a_dynamic_template_depends_on_the_order_of_templates_only_through_the_recurrence():
    net, templates = small().eval(), torch.rand(1, 3, 3, 32, 32)
    with torch.no_grad():
        in_order, turned = net.encode_templates(templates), net.encode_templates(templates.flip(1))
        again = net.encode_templates(templates)
    assert in_order.shape == (1, 4, 16)
    assert torch.equal(in_order, again)
    assert not torch.allclose(in_order, turned)


def test_training_draws_an_order_of_templates_for_every_sample():
    net, templates = small(drop_path_rate=0.0).train(), torch.rand(1, 4, 3, 32, 32).expand(8, -1, -1, -1, -1)
    found = net.encode_templates(templates)
    assert len({round(one.sum().item(), 4) for one in found}) > 1


def test_the_control_has_convolutions_and_as_many_weights():
    def count(**options):
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in MambaEVT(**options).parameters())

    assert not any(name.endswith("A_log") for name, _ in small(convolution=True).named_parameters())
    for options in ({}, {"dim": 96, "num_layers": 4, "d_state": 8, "template_size": 64, "search_size": 128}):
        blocks, inner = options.get("num_layers", 24), 2 * options.get("dim", 384)
        assert 0 <= count(**options) - count(**options, convolution=True) < 2 * blocks * inner


def test_the_control_sees_the_templates_where_it_searches():
    """As far as its taps reach: every parameter learns, and the last search token still tells another template."""
    net = small(convolution=True, drop_path_rate=0.0)
    static, search = torch.rand(2, 3, 32, 32), torch.rand(1, 3, 64, 64).expand(2, -1, -1, -1)
    templates = torch.rand(1, 3, 3, 32, 32).expand(2, -1, -1, -1, -1)
    maps = net.train()(static, net.encode_templates(templates), search)
    (maps.score.sum() + maps.size.sum() + maps.offset.sum()).backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is None] == []
    with torch.no_grad():
        tokens = net.eval().joint_tokens(static, net.encode_templates(templates), search)
    assert not torch.allclose(tokens[0, -1], tokens[1, -1])


def test_a_box_is_read_at_the_best_cell():
    """Cell (row 1, column 2) of 4 x 4, a quarter right and half below its corner: x = 2.25 / 4, y = 1.5 / 4."""
    score, size, offset = torch.full((1, 1, 4, 4), 0.1), torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    score[0, 0, 1, 2] = 0.9
    size[0, :, 1, 2] = torch.tensor([0.3, 0.6])
    offset[0, :, 1, 2] = torch.tensor([0.25, 0.5])
    maps = CenterMaps(score, size, offset)
    assert torch.allclose(maps.boxes(), torch.tensor([[0.5625, 0.375, 0.3, 0.6]]))
    elsewhere = torch.zeros_like(score)
    elsewhere[0, 0, 3, 0] = 1.0
    assert torch.allclose(maps.boxes(elsewhere), torch.tensor([[0.0, 0.75, 0.0, 0.0]]))


def test_official_entries_load_strictly_and_it_is_said_what_nothing_reads():
    net = small()
    entries = {_official(name): value for name, value in net.state_dict().items()}
    entries["backbone.cls_token"] = torch.zeros(1, 1, 16)
    other = small().requires_grad_(False)
    other.norm.weight.zero_()
    report = load_entries(other, entries, source="here")
    assert report.fits
    assert list(report.ignored.values()) == [("backbone.cls_token",)]
    assert torch.equal(other.norm.weight, net.norm.weight)
    del entries["backbone.norm_f.weight"]
    with pytest.raises(CheckpointError, match=r"norm\.weight"):
        load_entries(small(), entries, source="here")


def _official(ours):
    """The authors' name of a parameter of ours, by search: each of theirs has one of ours."""
    import re

    name = ours.replace("blocks.", "layers.").replace("forwards.", "").replace("norm.weight", "norm.weight")
    name = re.sub(r"backwards\.(conv1d|x_proj|dt_proj)", r"\1_b", name).replace("backwards.A_log", "A_b_log")
    name = name.replace("backwards.D", "D_b")
    if found := re.fullmatch(r"head\.(score|size|offset)\.(\d)\.(.*)", name):
        branch, layer, rest = found.groups()
        return f"box_head.conv{int(layer) + 1}_{'ctr' if branch == 'score' else branch}.{rest}"
    positions = {"pos_embed_search": "pos_embed_x", "pos_embed_static": "pos_embed_z"}
    positions["pos_embed_dynamic"] = "pos_embed_dynamic_z"
    name = "norm_f.weight" if name == "norm.weight" else positions.get(name, name)
    assert rename_official_key(f"backbone.{name}") == ours
    return f"backbone.{name}"


def test_what_cannot_be_searched_is_refused():
    with pytest.raises(ConfigError, match="search_size 60"):
        small(search_size=60)
    net = small()
    with pytest.raises(ShapeError, match=r"\[1, 3, 48, 48\]"):
        net(torch.rand(1, 3, 48, 48), torch.rand(1, 4, 16), torch.rand(1, 3, 64, 64))
    with pytest.raises(ShapeError, match=r"\[B, M, C, H, W\]"):
        net.encode_templates(torch.rand(1, 3, 32, 32))
