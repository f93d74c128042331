"""Exported files compute what their nets do, say what they are, and appear whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from statefield.errors import ConfigError, ExportError
from statefield.kernels import selective_scan
from statefield.tasks.common.export import TOLERANCE, Subject, agreement, backbone_subject, export, files

SMALL = {"image": torch.zeros(2, 3, 32, 32)}
VIM = {"dim": 8, "num_layers": 1, "d_state": 4, "img_size": 32}
QUICK = {  # scans along routes, and the control; every other family is among the slow tests
    "Vim": ("vim_tiny", VIM),
    "MambaOut": ("mambaout_femto_pyramid", {"dims": 8, "depths": (1, 1, 1, 1)}),
}


def moved(subject: Subject) -> Subject:
    """Its weights off their initial values, many of which give zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in subject.net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return subject


@pytest.mark.parametrize("family", QUICK)
def test_a_backbone_runs_in_onnxruntime_with_any_number_of_images(family, tmp_path):
    name, arguments = QUICK[family]
    subject = moved(backbone_subject(name, size=(32, 32), num_classes=5, **arguments))
    found = export(subject, tmp_path / "model.onnx", timed=False)
    assert found.agreement.passed and found.agreement.batches == (1, 2, 3)
    assert found.num_bytes == found.path.stat().st_size
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(str(found.path), providers=["CPUExecutionProvider"])
    images = torch.randn(4, 3, 32, 32)
    logits = session.run(None, {"image": images.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(logits, subject.net(images).numpy(), atol=TOLERANCE)


def test_the_file_says_what_it_is(tmp_path):
    subject = Subject("a net", _Sum().eval(), SMALL, ("sum",), about={"model": "a net", "classes": '["a", "b"]'})
    export(subject, tmp_path / "model.onnx", timed=False)
    model = onnx.load(tmp_path / "model.onnx")
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert said["model"] == "a net" and json.loads(said["classes"]) == ["a", "b"]
    assert json.loads(said["inputs"]) == {"image": ["any", 3, 32, 32]} and json.loads(said["outputs"]) == ["sum"]
    assert model.producer_name == "statefield"
    assert {entry.domain: entry.version for entry in model.opset_import}[""] >= 18
    assert [entry.name for entry in model.graph.input] == ["image"]
    assert [entry.name for entry in model.graph.output] == ["sum"]


def test_a_program_runs_where_statefield_is_not(tmp_path):
    subject = Subject("a scan", _Scan().eval(), {"x": torch.zeros(2, 21, 3)}, ("y",))
    export(subject, tmp_path / "model.pt2", timed=False)
    x = torch.randn(3, 21, 3)
    torch.save(x, tmp_path / "x.pt")
    code = (
        "import sys, torch\n"
        "sys.modules['statefield'] = None\n"  # an import of it is an ImportError now
        f"folder = {str(tmp_path)!r}\n"
        "program = torch.export.load(folder + '/model.pt2')\n"
        "with torch.no_grad(): y = program.module()(torch.load(folder + '/x.pt', weights_only=True))\n"
        "torch.save(y, folder + '/y.pt')\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    with torch.no_grad():
        wanted = subject.net(x)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt", weights_only=True), wanted, rtol=0, atol=TOLERANCE)


def test_a_net_without_scans_is_exported_for_any_size(tmp_path):
    subject = Subject("a net", _Sum().eval(), SMALL, ("sum",), spatial={"image": (2, 3)})
    found = export(subject, tmp_path / "model.onnx", any_size=True, timed=False)
    run = agreement.load(found.path, ["image"])
    about = {entry.key: entry.value for entry in onnx.load(found.path).metadata_props}
    assert json.loads(about["inputs"]) == {"image": ["any", 3, ">= 2", ">= 2"]}
    image = torch.randn(1, 3, 47, 21)
    torch.testing.assert_close(run([image])[0], subject.net(image), rtol=0, atol=TOLERANCE)


def test_a_net_that_chooses_by_the_size_is_not_exported_for_any(tmp_path):
    class Even(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return -image if image.shape[2] % 2 else image.relu()

    subject = Subject("a net", Even().eval(), SMALL, ("y",), spatial={"image": (2, 3)})
    with pytest.raises(ExportError, match="at another size than the example's: the net's own code chooses by"):
        export(subject, tmp_path / "model.onnx", any_size=True)
    assert not list(tmp_path.iterdir())


def test_an_example_with_a_single_pixel_is_too_small_for_any_size(tmp_path):
    class Halves(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            deepest = nn.functional.avg_pool2d(image, 32, ceil_mode=True)
            return deepest * deepest.flatten(2).softmax(2).sum(2)[..., None, None]

    subject = Subject("a net", Halves().eval(), SMALL, ("deepest",), spatial={"image": (2, 3)})
    with pytest.raises(
        ExportError, match=r"example of \[2, 3, 32, 32\]: a map inside has a single pixel .* to 32 alone"
    ):
        export(subject, tmp_path / "model.onnx", any_size=True)


def test_a_scan_is_not_exported_for_any_size_and_is_named(tmp_path):
    subject = backbone_subject("vim_tiny", size=(32, 48), features=True, **VIM)
    assert subject.outputs == ("map_0",)
    with pytest.raises(ExportError, match=r"cannot be exported for any size: .* its operator routed_scan is for one"):
        export(subject, tmp_path / "model.onnx", any_size=True)
    assert not list(tmp_path.iterdir())


def test_a_file_of_one_size_is_found_out_with_other_sizes(tmp_path):
    subject = Subject("a net", _Sum().eval(), SMALL, ("sum",), spatial={"image": (2, 3)})
    path = export(subject, tmp_path / "model.onnx", timed=False).path
    with pytest.raises(ExportError, match=r"of a net cannot be run with image \[1, 3, 42, 35\], as the net can"):
        agreement.compare(subject, path, least={"image": {2: 2, 3: 2}}, timed=False)


def test_a_net_of_one_size_is_not_exported_for_any(tmp_path):
    subject = Subject("a tracker", _Sum().eval(), SMALL, ("sum",))
    with pytest.raises(ExportError, match="a tracker takes inputs of one size"):
        export(subject, tmp_path / "model.onnx", any_size=True)


def test_what_cannot_be_traced_is_refused_and_named(tmp_path):
    subject = Subject("a net", _Branching().eval(), SMALL, ("sum",))
    with pytest.raises(ExportError, match=r"torch\.export cannot trace a net with any batch"):
        export(subject, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_text("the one before")
    monkeypatch.setattr(agreement, "_net", lambda subject, inputs: [subject.net(*inputs) + 1e-3])
    with pytest.raises(ExportError, match=r"differs from the net by .*1e-04 is allowed"):
        export(Subject("a net", _Sum().eval(), SMALL, ("sum",)), tmp_path / "model.onnx", timed=False)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["the one before"]


def test_nan_is_a_difference():
    assert not agreement.Agreement(float("nan"), (1,), None, None, 1).passed
    assert agreement._difference([torch.zeros(2)], [torch.tensor([0.0, float("nan")])]) == float("inf")


def test_large_outputs_may_differ_by_a_share_of_their_largest():
    wanted = torch.tensor([100.0, 1.0])
    assert agreement._difference([wanted], [wanted + 5e-3]) == pytest.approx(5e-5, rel=1e-2)


def test_both_are_timed_in_one_run(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "_SECONDS", 0.05)
    found = export(Subject("a net", _Sum().eval(), SMALL, ("sum",)), tmp_path / "model.onnx").agreement
    assert found.torch_ms is not None and found.torch_ms > 0
    assert found.runtime_ms is not None and found.runtime_ms > 0


@pytest.mark.parametrize("name", ["model.pth", "model"])
def test_another_ending_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match=r"name a file that ends in \.onnx"):
        files.require_packages(tmp_path / name)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(files, "_PACKAGES", ("onnx", "surely_not_there"))
    with pytest.raises(ConfigError, match=r"needs surely_not_there, .*statefield\[export\]"):
        files.require_packages(Path("model.onnx"))
    files.require_packages(Path("model.pt2"))


class _Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image).relu().mean((2, 3))


class _Scan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(-torch.rand(3, 2, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return selective_scan(x, x, self.A, x[..., :2], x[..., 1:], delta_softplus=True, layout="bld")


class _Branching(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image if bool(image.sum() > 0) else -image
