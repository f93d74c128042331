"""Whole nets by name: slices of any size, arguments checked, and a run that trains, predicts and tells the control."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.medical import write_pairs

from statefield.errors import ConfigError, ShapeError, UnknownName
from statefield.tasks.common.checkpointing import read_weights
from statefield.tasks.common.config import TrainerConfig
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.medical.nets import NETS
from statefield.tasks.medical.nets.whole import WholeNet
from statefield.tasks.medical.recipe import ControlConfig, DataConfig, ModelConfig, SegmentationRecipe
from statefield.tasks.medical.run import load_run, train

TINY = {
    "dynunet": {"features": [4, 8, 8]},
    "lightm_unet": {"filters": 8, "depths": [1, 1], "decoder_depths": [1]},
    "mhs_vm": {"dims": 8, "depths": [1, 1], "decoder_depths": [1, 1], "d_state": 2},
    "residual_unet": {"features": [4, 8], "depths": [1, 1], "decoder_depths": [1]},
    "segresnet": {"filters": 8, "depths": [1, 1], "decoder_depths": [1]},
    "spatial_mamba_unet": {"features": [4, 8], "depths": [1, 1]},
    "u_mamba": {"features": [4, 8], "depths": [1, 1], "decoder_depths": [1]},
    "vm_unet": {"dims": 8, "depths": [1, 1], "decoder_depths": [1, 1], "d_state": 2},
    "xlstm_unet": {"features": [4, 8], "depths": [1, 1], "decoder_depths": [1]},
}


def test_every_net_in_two_dimensions_is_tried_here():
    assert set(TINY) == set(NETS) - {"segmamba"}


def test_the_documents_tell_of_every_net_its_class_dimensions_and_parameters():
    text = (Path(__file__).parents[4] / "docs" / "medical.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (`\w+` \| [23, ]+ \| [^|]+) \|", text, flags=re.MULTILINE))
    assert set(rows) == set(NETS)
    plans: dict[str, dict[str, Any]] = {  # what a row says of its size where the net has no one default
        "u_mamba": {"features": (32, 64, 128, 256, 512, 512, 512)},
        "xlstm_unet": {"features": (32, 64, 128, 256, 512)},
    }
    for name, cls in NETS.items():
        shown, dimensions, size = rows[name].split(" | ")
        assert (shown, dimensions) == (f"`{cls.__name__}`", ", ".join(map(str, cls.dimensions)))
        with torch.device("meta"):
            nets = [cls(dims, 1, 2, **plans.get(name, {})) for dims in cls.dimensions]
        counts = [f"{sum(parameter.numel() for parameter in net.parameters()) / 1e6:.1f} M" for net in nets]
        assert name == "residual_unet" or any(size.startswith(count) for count in (", ".join(counts), counts[0])), name


@pytest.mark.parametrize("name", TINY)
def test_slices_of_any_size_are_padded_and_cropped(name):
    net = WholeNet(name, in_channels=2, num_classes=3, net_args=TINY[name]).eval()
    with torch.no_grad():
        assert net(torch.randn(1, 2, 9, 21)).shape == (1, 3, 9, 21)
        whole = torch.randn(1, 2, 16, 24)
        torch.testing.assert_close(net(whole), net.body(whole))
    assert all(part in dict(net.named_parameters()) for part in net.no_weight_decay())
    with pytest.raises(ShapeError, match=r"needs \[B, 2, H, W\]"):
        net(torch.zeros(1, 1, 16, 16))


def test_names_and_arguments_are_checked():
    with pytest.raises(UnknownName, match="did you mean 'vm_unet'"):
        WholeNet("vmunet", in_channels=1, num_classes=2, net_args={})
    with pytest.raises(ConfigError, match="takes no width here; net_args may hold dims, depths"):
        WholeNet("vm_unet", in_channels=1, num_classes=2, net_args={"width": 3})
    with pytest.raises(ConfigError, match="takes no spatial_dims"):
        WholeNet("lightm_unet", in_channels=1, num_classes=2, net_args={"spatial_dims": 3})
    with pytest.raises(ConfigError, match="spatial_dims=2 cannot be had: choose 3"):
        WholeNet("segmamba", in_channels=1, num_classes=2, net_args={})


def _recipe(root: Path, run: Path, control: ControlConfig | None) -> SegmentationRecipe:
    return SegmentationRecipe(
        run=run,
        data=DataConfig(root=root, patch_size=(32, 32), batch_size=2),
        model=ModelConfig(net="vm_unet", net_args=TINY["vm_unet"]),
        trainer=TrainerConfig(accelerator="cpu", threads=1, fast_dev_run=True),
        control=control,
    )


def test_a_whole_net_trains_beside_its_control_and_is_loaded_again(tmp_path):
    control = ControlConfig(net="residual_unet", net_args=TINY["residual_unet"])
    train(_recipe(write_pairs(tmp_path / "data", num_cases=6), tmp_path / "run", control))
    folder = RunFolder(tmp_path / "run")
    names = [row["name"] for row in json.loads(folder.metrics.read_text())["comparison"]]
    assert names[:2] == ["vm_unet", "residual_unet"]
    run = load_run(tmp_path / "run")
    weights = read_weights(folder.weights)
    assert {name: value.shape for name, value in run.net.state_dict().items()} == {
        name: value.shape for name, value in weights.items()
    }
    report = folder.report.read_text()
    assert "vm_unet" in report and "it is another net" in report


def test_the_control_may_be_the_model_without_its_scans(tmp_path):
    train(_recipe(write_pairs(tmp_path / "data", num_cases=6), tmp_path / "run", ControlConfig(without_scan=True)))
    folder = RunFolder(tmp_path / "run")
    model, control = json.loads(folder.metrics.read_text())["comparison"][:2]
    assert [model["name"], control["name"]] == ["vm_unet", "vm_unet without scan"]
    whole, local = read_weights(folder.weights), read_weights(folder.control.weights)
    assert {name.rsplit(".")[-1] for name in whole.keys() - local.keys()} == {
        "x_proj", "dt_proj", "dt_bias", "A_log", "D"
    }  # fmt: skip
    assert {name: value.shape for name, value in local.items()} == {name: whole[name].shape for name in local}
    assert load_run(folder.control.root).recipe.model.without_scan
    assert "every scan replaced by the identity" in folder.report.read_text()


def test_a_net_that_has_no_scan_has_no_control_without_it(tmp_path):
    recipe = _recipe(write_pairs(tmp_path / "data", num_cases=6), tmp_path / "run", ControlConfig(without_scan=True))
    model = ModelConfig(net="segresnet", net_args=TINY["segresnet"])
    with pytest.raises(ConfigError, match="no scan that could be left out"):
        train(dataclasses.replace(recipe, model=model))
    with pytest.raises(ConfigError, match="the control would be the model"):
        train(dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, without_scan=True)))


@pytest.mark.parametrize(
    "control",
    [
        ControlConfig(),
        ControlConfig("test_convnext", net="residual_unet"),
        ControlConfig("test_convnext", without_scan=True),
    ],
)
def test_a_control_is_an_encoder_or_a_net_or_the_model_without_its_scans(tmp_path, control):
    with pytest.raises(ConfigError, match="set one of them"):
        train(_recipe(write_pairs(tmp_path / "data", num_cases=6), tmp_path / "run", control))
    assert not (tmp_path / "run").exists()
