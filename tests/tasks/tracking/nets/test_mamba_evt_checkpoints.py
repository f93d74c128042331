"""MambaEVT's files: the authors' container with what they store beside it, and where a training may begin."""

import sys
import types

import pytest
import torch

from statefield.backbones import create_model
from statefield.cli.main import main
from statefield.errors import CheckpointError
from statefield.tasks.tracking.nets import MambaEVT
from statefield.tasks.tracking.nets.mamba_evt_checkpoints import form_of, load_initial_weights, load_mamba_evt

SMALL = {"template_size": 32, "search_size": 64, "dim": 16, "num_layers": 2, "d_state": 4, "head_channels": 16}
RENAMES = (
    ("pos_embed_search", "pos_embed_x"),
    ("pos_embed_static", "pos_embed_z"),
    ("pos_embed_dynamic", "pos_embed_dynamic_z"),
    ("blocks.", "layers."),
    ("backwards.A_log", "A_b_log"),
    ("backwards.D", "D_b"),
    ("backwards.conv1d", "conv1d_b"),
    ("backwards.x_proj", "x_proj_b"),
    ("backwards.dt_proj", "dt_proj_b"),
    ("forwards.", ""),
)


def official(net):
    """The net's entries under the authors' names."""
    entries = {"backbone.cls_token": torch.zeros(1, 1, 16)}
    for name, value in net.state_dict().items():
        if name.startswith("head."):
            _, branch, layer, rest = name.split(".", 3)
            entries[f"box_head.conv{int(layer) + 1}_{'ctr' if branch == 'score' else branch}.{rest}"] = value
            continue
        for ours, theirs in RENAMES:
            name = name.replace(ours, theirs)
        entries[f"backbone.{'norm_f.weight' if name == 'norm.weight' else name}"] = value
    return entries


@pytest.fixture
def net():
    torch.manual_seed(0)
    return MambaEVT(**SMALL)


def stored(net, path, monkeypatch):
    """A checkpoint as the authors' trainer writes it: settings and means of losses are objects of its own classes."""
    for parent in ("lib", "lib.train", "lib.train.admin"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    module = types.ModuleType("lib.train.admin.settings")
    settings = type("Settings", (), {"__module__": module.__name__})
    module.Settings = settings
    monkeypatch.setitem(sys.modules, module.__name__, module)
    one = settings()
    one.batchsize = 32
    torch.save({"epoch": 50, "net": official(net), "settings": one, "optimizer": {"state": {}}}, path)
    return path


def test_the_authors_file_is_converted_strictly_and_counted(net, tmp_path, monkeypatch, capsys):
    source = stored(net, tmp_path / "MambaEVT_ep0050.pth.tar", monkeypatch)
    target = tmp_path / "mamba_evt.safetensors"
    assert main(["convert", str(source), str(target), "--model", "mamba_evt"]) == 0
    told = capsys.readouterr().out
    assert "container 'net'" in told and f"{len(net.state_dict())} loaded" in told and "cls_token" in told
    loaded, report = load_mamba_evt(target)
    assert report.fits and loaded.search_size == 64
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert main(["convert", str(source), str(target), "--model", "mamba_evt"]) == 2
    assert "exists" in capsys.readouterr().err


def test_the_form_follows_from_the_file(net):
    assert form_of(net.state_dict(), "here") == SMALL | {"in_channels": 3, "patch_size": 16, "expand": 2.0}


def test_a_file_that_lacks_an_entry_or_is_of_another_net_is_refused(net, tmp_path):
    entries = official(net)
    del entries["backbone.layers.1.norm.weight"]
    torch.save({"net": entries}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"blocks\.1\.norm\.weight"):
        load_mamba_evt(tmp_path / "part.pth")
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="another net"):
        load_mamba_evt(tmp_path / "other.pth")


def test_a_training_begins_with_a_whole_net_or_with_the_blocks_of_a_vim(net, tmp_path):
    torch.save({"net": official(net)}, tmp_path / "whole.pth")
    fresh = MambaEVT(**SMALL)
    load_initial_weights(fresh, tmp_path / "whole.pth")
    assert torch.equal(fresh.head.size[4].bias, net.head.size[4].bias)

    vim = create_model("vim_tiny", dim=16, num_layers=2, d_state=4)
    torch.save({"model": vim.state_dict()}, tmp_path / "vim.pth")
    torch.manual_seed(1)
    begun = MambaEVT(**SMALL)
    before = {name: value.clone() for name, value in begun.state_dict().items()}
    report = load_initial_weights(begun, tmp_path / "vim.pth")
    assert torch.equal(begun.blocks[1].mixer.out_proj.weight, vim.blocks[1].mixer.out_proj.weight)
    assert torch.equal(begun.norm.weight, vim.norm.weight)
    for name, value in begun.state_dict().items():
        if name.startswith(("head.", "pos_embed")):
            assert torch.equal(value, before[name])
    assert set(report.ignored["of an image classifier"]) == {"pos_embed", "cls_token", "head.weight", "head.bias"}
    shallow = MambaEVT(**(SMALL | {"num_layers": 3}))
    with pytest.raises(CheckpointError, match=r"blocks\.2"):
        load_initial_weights(shallow, tmp_path / "vim.pth")
