"""`statefield convert` takes ChangeMamba's files: the names and shapes that goldens recorded of the authors' nets."""

from __future__ import annotations

import ast
from pathlib import Path

import case
import pytest
import torch
from safetensors.torch import safe_open
from torch import Tensor

from statefield.cli.main import main
from statefield.errors import CheckpointError, ConfigError
from statefield.tasks.remote_sensing.nets import MambaBCD
from statefield.tasks.remote_sensing.nets.checkpoints import convert_change_net, load_change_net

HERE = Path(__file__).parent
SIZES = {"mamba_bcd": (514, 32_613_506), "mamba_scd": (802, 37_125_641), "mamba_bda": (659, 34_869_767)}


def official(name: str) -> dict[str, Tensor]:
    """A state dict with the authors' names and shapes; the values are the recipe's where it has any."""
    recorded = case.read_case(HERE / f"change_{name}_tiny.npz")
    return {key: recorded.weights.get(key, torch.ones(shape)) for key, shape in recorded.shapes.items()}


@pytest.mark.parametrize(
    "name", ["mamba_bcd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mamba_scd", "mamba_bda"))]
)
def test_an_official_file_is_told_by_its_shapes_converted_strictly_and_counted(name, tmp_path, capsys):
    entries = official(name)
    num_entries, num_parameters = SIZES[name]
    assert len(entries) == num_entries
    source, target = tmp_path / "official.pth", tmp_path / "ours.safetensors"
    torch.save(entries, source)
    assert main(["convert", str(source), str(target), "--model", name]) == 0
    said = capsys.readouterr().out
    assert f"{num_entries:5d} loaded\n" in said and "    0 missing in the file\n" in said
    with safe_open(target, framework="pt") as written:
        form = dict(part.split("=") for part in written.metadata()["model_arguments"].split(", "))
        # renamed and reshaped, no more: the same values, however they are called
        ours = sorted(float(written.get_tensor(key).double().sum()) for key in written.keys())  # noqa: SIM118
    assert form["encoder"] == "tiny" and ast.literal_eval(form["in_channels"]) == 3
    assert ours == sorted(float(value.double().sum()) for value in entries.values())
    found, net, report = load_change_net(target)
    assert found == name and not net.training and len(report.loaded) == num_entries
    assert sum(parameter.numel() for parameter in net.parameters()) == num_parameters


@pytest.fixture
def small(tmp_path):
    """A file of a small net of our own, under our names."""
    net = MambaBCD(13, encoder="test_resnet", width=8)
    torch.save(net.state_dict(), tmp_path / "small.pth")
    return tmp_path / "small.pth"


def test_an_encoder_that_is_not_the_authors_has_to_be_named(small, tmp_path):
    with pytest.raises(ConfigError, match=r"small\.pth: its encoder is none of ChangeMamba's own"):
        load_change_net(small, "mamba_bcd")
    with pytest.raises(ConfigError, match=r"does not say which net it is of.*--model"):
        load_change_net(small)
    convert_change_net(small, tmp_path / "ours.safetensors", "mamba_bcd", encoder="test_resnet", in_channels=13)
    _, net, _ = load_change_net(tmp_path / "ours.safetensors", encoder="test_resnet")
    assert net.in_channels == 13
    with pytest.raises(ConfigError, match="was converted with encoder='test_resnet'"):
        load_change_net(tmp_path / "ours.safetensors", encoder="tiny")


def test_files_of_other_nets_are_refused_and_nothing_is_written(small, tmp_path):
    with pytest.raises(CheckpointError, match=r"no semantic_classifier\.weight of a mamba_scd"):
        convert_change_net(small, tmp_path / "ours.safetensors", "mamba_scd", encoder="test_resnet")
    with pytest.raises(CheckpointError, match=r"small\.pth does not fit MambaBCD"):
        convert_change_net(small, tmp_path / "ours.safetensors", "mamba_bcd", encoder="resnet18", in_channels=13)
    with pytest.raises(ConfigError, match="does not take these arguments"):
        convert_change_net(small, tmp_path / "ours.safetensors", "mamba_bcd", encoder="test_resnet", colour="red")
    assert not (tmp_path / "ours.safetensors").exists()
