"""Weights reach models strictly and counted, from files that are opened without trusting them."""

from __future__ import annotations

import argparse
import fractions
import json
import os
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from statefield import load_checkpoint
from statefield.backbones import create_model
from statefield.backbones._checkpoint_files import read_checkpoint
from statefield.backbones.spatial_mamba import rename_official_key
from statefield.errors import CheckpointError

TWIN = {"dims": 8, "depths": (1, 1, 1, 1), "num_classes": 5}
GOLDENS = Path(__file__).parents[1] / "goldens"


def _official_name_of_ours() -> dict[str, str]:
    """Our names to the authors', from the key lists that goldens recorded of their models."""
    keys: list[str] = []
    for name in ("spatial_mamba_tiny_shallow", "spatial_mamba_tiny_dense"):
        with np.load(GOLDENS / f"{name}.npz") as golden:
            keys += [key for key, _, _ in json.loads(str(golden["meta"]))["keys"]]
    return {rename_official_key(key): key for key in keys}


OFFICIAL = _official_name_of_ours()


def model(seed: int = 0, **kwargs) -> torch.nn.Module:
    torch.manual_seed(seed)
    return create_model("spatial_mamba_nano", **(TWIN | kwargs)).eval()


def official_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {OFFICIAL[name]: value for name, value in state.items()}


@pytest.fixture
def official(tmp_path, monkeypatch) -> Path:
    """A training checkpoint as the authors' code writes it: two containers, settings, scores."""
    yacs = types.ModuleType("yacs.config")

    class CfgNode(dict):
        def __init__(self, values=()):
            super().__init__(values)
            self.__dict__["_immutable"] = True

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    yacs.CfgNode = CfgNode
    path = tmp_path / "official.pth"
    with monkeypatch.context() as installed:
        installed.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        installed.setitem(sys.modules, "yacs.config", yacs)
        _save_training_state(path, CfgNode)
    return path


def _save_training_state(path: Path, settings: type) -> None:
    torch.save(
        {
            "model": {f"module.{key}": value for key, value in official_names(model().state_dict()).items()},
            "model_ema": official_names(model(seed=1).state_dict()),
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]},
            "config": settings({"MODEL": settings({"NAME": "tiny"})}),
            "args": argparse.Namespace(lr=1e-3, output=Path("runs")),
            "max_accuracy": np.float64(83.5),
            "epoch": 299,
        },
        path,
    )


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def test_an_official_checkpoint_with_settings_beside_the_weights_loads_whole(official):
    target = model(seed=7)
    report = load_checkpoint(target, official)
    assert same(target, model())
    assert (report.container, len(report.loaded)) == ("model", len(target.state_dict()))
    assert report.fits
    assert "yacs.config" not in sys.modules  # nor was it needed
    load_checkpoint(target, official, container="model_ema")
    assert same(target, model(seed=1))


def test_a_container_that_the_file_lacks_is_named(official):
    with pytest.raises(CheckpointError, match=r"official.pth has no container 'ema'.*'model', 'model_ema'"):
        load_checkpoint(model(), official, container="ema")


def test_timm_loads_the_same_file_through_its_own_door(official):
    entries = read_checkpoint(official).entries
    loaded = timm.create_model(
        "spatial_mamba_nano", pretrained=True, pretrained_cfg_overlay={"state_dict": entries, "num_classes": 5}, **TWIN
    )
    assert same(loaded, model())


def test_a_features_only_model_sets_the_classifier_aside_and_counts_it(official):
    wrapped = create_model("spatial_mamba_nano", features_only=True, out_indices=(0, 1), **TWIN).eval()
    report = load_checkpoint(wrapped, official)
    assert {name.split(".")[0] for name in report.set_aside} == {"stages", "norm", "head"}
    assert len(report.loaded) + len(report.set_aside) == len(model().state_dict())
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        for ours, theirs in zip(wrapped(x), model().forward_intermediates(x)[1], strict=False):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_detection_toolbox_checkpoint_gives_its_backbone(tmp_path):
    dense = model(features_only=True, feature_norms=True)
    path = tmp_path / "mask_rcnn.pth"
    inside = {f"backbone.{key}": value for key, value in official_names(dense.model.state_dict()).items()}
    torch.save({"state_dict": inside | {"neck.lateral.weight": torch.zeros(2)}, "meta": {"epoch": 12}}, path)
    target = model(seed=5, features_only=True, feature_norms=True)
    report = load_checkpoint(target, path)
    assert same(target, dense)
    assert report.set_aside == ()
    assert list(report.ignored.values()) == [("neck.lateral.weight",)]
    assert any("1 ignored (other parts that the toolbox stored" in line for line in report.lines())


def test_dense_weights_need_the_dense_form(tmp_path):
    path = tmp_path / "dense.pth"
    torch.save({"model": official_names(model(features_only=True, feature_norms=True).model.state_dict())}, path)
    with pytest.raises(
        CheckpointError, match=r"8 unexpected \(feature_norms.*features_only=True and feature_norms=True"
    ):
        load_checkpoint(model(features_only=True), path)
    with pytest.raises(CheckpointError, match=r"missing \(norm.weight"):
        load_checkpoint(model(feature_norms=True), path)


def test_a_classifier_fills_a_dense_form_only_when_fresh_norms_are_asked_for(official):
    dense = model(seed=2, features_only=True, feature_norms=True)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"8 missing.*fresh=\('feature_norms',\)"):
        load_checkpoint(dense, official)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())
    report = load_checkpoint(dense, official, fresh=("feature_norms",))
    assert len(report.fresh) == 8
    assert torch.equal(dense.model.stages[3].blocks[0].mixer.D, model().stages[3].blocks[0].mixer.D)


def test_another_number_of_classes_is_refused_unless_a_fresh_head_is_asked_for(official):
    target = model(seed=3, num_classes=9)
    head = target.head.fc.weight.clone()
    with pytest.raises(CheckpointError, match=r"head has 5 classes: build the model with num_classes=5, or pass fresh"):
        load_checkpoint(target, official)
    report = load_checkpoint(target, official, fresh=("head",))
    assert report.fresh == ("head.fc.weight", "head.fc.bias")
    assert torch.equal(target.head.fc.weight, head)
    assert torch.equal(target.norm.weight, model().norm.weight)


@pytest.mark.parametrize("channels", [1, 5])
def test_other_image_channels_adapt_the_first_convolution_and_say_so(official, channels):
    target = model(seed=3, in_chans=channels)
    report = load_checkpoint(target, official)
    assert report.adapted == (f"stem.conv1.conv.weight: 3 -> {channels} channels",)
    original = model().stem.conv1.conv.weight
    if channels == 1:
        torch.testing.assert_close(target.stem.conv1.conv.weight, original.sum(1, keepdim=True))
    else:
        torch.testing.assert_close(target.stem.conv1.conv.weight[:, 3], original[:, 0] * 3 / 5)
    grey = torch.full((1, channels, 32, 32), 0.5)
    with torch.no_grad():  # a grey image means to the adapted model what it means to the original
        if channels == 1:
            torch.testing.assert_close(target(grey), model()(grey.expand(-1, 3, -1, -1)))


def test_a_checkpoint_of_another_size_names_both_sizes_and_the_model_that_fits(tmp_path):
    path = tmp_path / "nano.safetensors"
    save_file(create_model("spatial_mamba_nano", num_classes=7).state_dict(), path)
    with torch.device("meta"):
        tiny = create_model("spatial_mamba_tiny")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tiny, path)
    said = str(caught.value)
    assert "nano.safetensors does not fit spatial_mamba_tiny" in said
    assert "310 entries with 3.6 M values, the model 553 entries with 26.8 M values" in said
    assert "It fits spatial_mamba_nano: build that model instead." in said
    assert len(said) < 900


def test_weights_of_something_else_say_that_no_backbone_fits(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(
        CheckpointError, match=r"0 of the model's .*1 unexpected \(conv1.weight\).*No backbone here fits"
    ):
        load_checkpoint(model(), path)


class _Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": model().state_dict(), "extra": _Evil()}, "evil.pth")
    with pytest.raises(CheckpointError, match=r"evil.pth holds more than weights.*asks for \w+\.system"):
        load_checkpoint(model(), "evil.pth")
    assert not (tmp_path / "pwned").exists()


def test_a_class_that_is_not_known_to_be_inert_is_refused_by_name(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}, "x": fractions.Fraction(1, 3)}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"asks for fractions.Fraction"):
        read_checkpoint(tmp_path / "odd.pth")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_truncated_file_is_refused_by_name(tmp_path, official, kind, share):
    whole = official
    if kind == "safetensors":
        whole = tmp_path / "whole.safetensors"
        save_file(model().state_dict(), whole)
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(CheckpointError, match=rf"cut\.{kind} "):
        load_checkpoint(model(), cut)


def _safetensors(path: Path, header: bytes, claimed: int | None = None, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if claimed is None else claimed) + header + data)
    return path


@pytest.mark.parametrize("claimed", [2**63, 2**40, 17 * 2**20, 300])
def test_a_header_that_claims_more_than_the_file_is_refused_before_it_is_read(tmp_path, claimed):
    bomb = _safetensors(tmp_path / "bomb.safetensors", b"{}", claimed)
    with pytest.raises(CheckpointError, match=rf"bomb.safetensors.*claims {claimed} bytes, the file has 10"):
        read_checkpoint(bomb)


def test_a_real_header_above_the_limit_is_refused(tmp_path):
    bomb = _safetensors(tmp_path / "bomb.safetensors", b"{" + b" " * (17 * 2**20) + b"}")
    with pytest.raises(CheckpointError, match="above 16777216 bytes are refused"):
        read_checkpoint(bomb)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4000000000000]}}',
        b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 8], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": 3}',
        b"[1, 2]",
        b"\xff\xfe",
    ],
    ids=["nested", "larger than the file", "overflowing", "not a tensor", "a list", "not text"],
)
def test_a_header_that_lies_is_refused(tmp_path, header):
    with pytest.raises(CheckpointError, match=r"lie.safetensors"):
        read_checkpoint(_safetensors(tmp_path / "lie.safetensors", header, data=b"\0\0\0\0"))


def test_a_pytorch_file_with_compressed_records_is_refused(tmp_path, official):
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(official) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for item in source.infolist():
            target.writestr(item.filename, source.read(item))
    with pytest.raises(CheckpointError, match=r"bomb.pth holds compressed records"):
        read_checkpoint(bomb)


def test_a_file_without_tensors_and_a_missing_file_are_named(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match=r"empty.pth holds no state dict"):
        read_checkpoint(tmp_path / "empty.pth")
    with pytest.raises(CheckpointError, match=r"no checkpoint file .*absent.pth"):
        read_checkpoint(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text(json.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"text.pth"):
        read_checkpoint(tmp_path / "text.pth")
