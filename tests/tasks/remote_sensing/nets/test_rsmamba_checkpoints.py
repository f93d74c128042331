"""Official files of RSMamba, in mmpretrain's container, become weights that a recipe takes."""

from __future__ import annotations

import re

import pytest
import torch

from statefield.cli.main import main
from statefield.errors import CheckpointError, ConfigError
from statefield.tasks.common.checkpointing import load_weights
from statefield.tasks.remote_sensing.nets import RSMamba
from statefield.tasks.remote_sensing.nets.scene_checkpoints import convert_rsmamba

SMALL = {"size": (16, 2), "image_size": 32}


def official_key(name: str) -> str:
    """The authors' name of a parameter of ours, by the table of keys in their repository (commit 3fa3056)."""
    for pattern, theirs in (
        (r"^head\.", "head.fc."),
        (r"^patch_embed\.", "backbone.patch_embed.projection."),
        (r"^norm\.", "backbone.ln1."),
        (r"^pooled_norm\.", "backbone.ln2."),
        (r"^layers\.(\d+)\.gate\.", r"backbone.gate_layers.\1.0."),
        (r"^layers\.(\d+)\.mixer\.(?:forwards\.)?", r"backbone.layers.\1."),
    ):
        if re.match(pattern, name):
            return re.sub(pattern, theirs, name)
    return f"backbone.{name}"


def _official(path, **form):
    """A file as mmpretrain writes it, of an RSMamba with random weights."""
    torch.manual_seed(0)
    net = RSMamba(3, 5, **(SMALL | form))
    state = {official_key(name): value for name, value in net.state_dict().items()}
    torch.save(
        {"meta": {"epoch": 1, "dataset_meta": {"classes": ("a",)}}, "state_dict": state, "message_hub": {}}, path
    )
    return net, state


def test_official_names_are_those_of_the_repository(tmp_path):
    _, state = _official(tmp_path / "net.pth")
    assert state["backbone.layers.1.A_log"].shape == (32, 16)
    assert state["backbone.layers.0.conv1d.weight"].shape == (32, 1, 4)
    assert state["backbone.layers.0.in_proj.weight"].shape == (64, 16)
    assert state["backbone.gate_layers.1.0.weight"].shape == (3, 48)
    assert state["backbone.pos_embed"].shape == (1, 16, 16) and state["head.fc.bias"].shape == (5,)


@pytest.mark.parametrize("paths", [("forward", "reverse", "shuffle"), ("forward", "reverse")])
def test_converted_file_fills_the_net_entry_by_entry(tmp_path, paths, capsys):
    net, state = _official(tmp_path / "net.pth", paths=paths)
    target = tmp_path / "net.safetensors"
    assert main(["convert", str(tmp_path / "net.pth"), str(target), "--model", "rsmamba"]) == 0
    assert re.search(rf"{len(state)} loaded", capsys.readouterr().out)
    again = RSMamba(3, 5, **SMALL, paths=paths)
    load_weights(again, target)
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(net.eval()(image), again.eval()(image))


def test_backbone_alone_becomes_a_net_without_classifier(tmp_path):
    _, state = _official(tmp_path / "net.pth")
    torch.save({k: v for k, v in state.items() if not k.startswith("head.")}, tmp_path / "body.pth")
    report = convert_rsmamba(tmp_path / "body.pth", tmp_path / "body.safetensors")
    assert len(report.loaded) == len(state) - 2
    load_weights(RSMamba(3, 0, **SMALL), tmp_path / "body.safetensors")


def test_file_without_gates_has_to_be_told_its_paths(tmp_path):
    _official(tmp_path / "net.pth", fusion="mean")
    with pytest.raises(ConfigError, match="has no gates"):
        convert_rsmamba(tmp_path / "net.pth", tmp_path / "net.safetensors")
    assert not (tmp_path / "net.safetensors").exists()
    orders = ("forward", "reverse", "shuffle")
    convert_rsmamba(tmp_path / "net.pth", tmp_path / "net.safetensors", fusion="mean", paths=orders)
    load_weights(RSMamba(3, 5, **SMALL, fusion="mean"), tmp_path / "net.safetensors")


def test_file_of_another_net_or_with_an_entry_missing_is_refused(tmp_path):
    torch.save({"state_dict": {"conv.weight": torch.zeros(3, 3)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="of another net"):
        convert_rsmamba(tmp_path / "other.pth", tmp_path / "out.safetensors")
    _, state = _official(tmp_path / "net.pth")
    del state["backbone.layers.1.D"]
    torch.save({"state_dict": state}, tmp_path / "less.pth")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mixer\.forwards\.D"):
        convert_rsmamba(tmp_path / "less.pth", tmp_path / "out.safetensors")
    with pytest.raises(ConfigError, match="does not take these arguments"):
        convert_rsmamba(tmp_path / "net.pth", tmp_path / "out.safetensors", depth=3)
    assert not (tmp_path / "out.safetensors").exists()
