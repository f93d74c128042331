"""`statefield export` as a user calls it: runs of the fields, backbones by name, and what it refuses."""

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

from statefield.cli.main import main
from statefield.files import write_text
from statefield.tasks.common.recipes import recipe_text
from statefield.tasks.tracking.motion.recipe import MotionModelConfig, MotionRecipe

TINY = MotionModelConfig(history=4, dim=8, num_layers=1, d_state=4)


@pytest.fixture(scope="module")
def motion_run(tmp_path_factory) -> Path:
    """A run folder of `mot train` with weights that were drawn in place of trained."""
    from safetensors.torch import save_file

    from statefield.tasks.tracking.motion.task import build_net

    folder = tmp_path_factory.mktemp("runs") / "mtp"
    write_text(folder / "config.yaml", recipe_text(MotionRecipe(run=folder, model=TINY)))
    torch.manual_seed(0)
    net = build_net(TINY)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, folder / "weights.safetensors")
    return folder


def test_help_answers_with_examples_and_without_torch():
    code = (
        "import sys\nfrom statefield.cli.main import main\n"
        "try: main(['export', '--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "examples:" in shown and "--any-size" in shown


def test_the_motion_of_tracks_becomes_a_file(motion_run, tmp_path, capsys):
    from statefield.tasks.tracking.motion.training import load_motion

    output = tmp_path / "mtp.onnx"
    assert main(["export", str(motion_run), "-o", str(output), "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "mtp.onnx" in said and "onnxruntime" in said and "ms a call" in said and "1e-4 is allowed" in said
    model = onnx.load(output)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["task"] == "multi-object tracking, motion" and about["unit"] == "box"
    assert json.loads(about["inputs"]) == {"steps": ["any", 4, 4], "lengths": ["any"]}
    steps, lengths = torch.randn(5, 4, 4), torch.tensor([4, 3, 2, 1, 4])
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    found = session.run(None, {"steps": steps.numpy(), "lengths": lengths.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(found, load_motion(motion_run).net(steps, lengths).numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (["runs/none", "-o", "a.onnx"], "runs/none does not exist"),
        (["vmamba_tiny_s1l9", "-o", "a.onnx"], "did you mean"),
        (["vim_tiny", "-o", "a.pth"], "name a file that ends in .onnx"),
        (["vim_tiny", "-o", "a.onnx", "--size", "7"], "rows and columns"),
        (["vim_tiny", "-o", "a.onnx", "--size", "8", "8", "8"], "two numbers"),
        (["vim_tiny", "-o", "a.onnx", "--batch", "0"], "--batch 0"),
        ([".", "-o", "a.onnx"], "is not a run folder"),
    ],
)
def test_what_cannot_work_is_a_paragraph_and_nothing_is_written(words, needed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) == 2
    said = capsys.readouterr().err
    assert needed in " ".join(said.split()) and "Traceback" not in said
    assert not list(tmp_path.iterdir())


def test_options_of_backbones_are_refused_for_runs(motion_run, tmp_path, capsys):
    assert main(["export", str(motion_run), "-o", str(tmp_path / "a.onnx"), "--features"]) == 2
    assert "has its own weights and outputs" in " ".join(capsys.readouterr().err.split())
    assert main(["export", str(motion_run), "-o", str(tmp_path / "a.onnx"), "--size", "8", "8"]) == 2
    assert "leave it out" in " ".join(capsys.readouterr().err.split())


def test_a_run_of_another_kind_is_named(tmp_path, capsys):
    write_text(tmp_path / "run" / "config.yaml", "layout: indian_pines\nseeds: 3\n")
    assert main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "a.onnx")]) == 2
    assert "of no run that can be exported" in " ".join(capsys.readouterr().err.split())
