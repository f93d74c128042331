"""`statefield mot train`: a run is a function of its recipe, ends with a comparison, and makes a motion model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from statefield.cli.main import main
from statefield.errors import ConfigError
from statefield.tasks.common.checkpointing import read_weights
from statefield.tasks.tracking.motion.training import load_motion

SEQINFO = "[Sequence]\nname={}\nseqLength=40\nimWidth=640\nimHeight=480\n"
NAMES = ("MOT17-02-FRCNN", "MOT17-10-FRCNN", "MOT17-09-FRCNN", "MOT17-11-FRCNN")
RECIPE = Path(__file__).parents[4] / "recipes" / "tracking" / "mtp_mot17.yaml"
TINY = ["--model.dim", "8", "--model.num_layers", "1", "--model.d_state", "4", "--model.history", "4"]
SHORT = ["--trainer.max_epochs", "2", "--trainer.steps_per_epoch", "3", "--trainer.accelerator", "cpu"]


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """Four sequences of people who walk in waves."""
    root = tmp_path_factory.mktemp("mot") / "train"
    for place, name in enumerate(NAMES):
        (root / name / "gt").mkdir(parents=True)
        (root / name / "seqinfo.ini").write_text(SEQINFO.format(name))
        rows = [
            f"{t},{number},{100 + 40 * number + 15 * np.sin(0.4 * t + number + place):.2f},50,20,40,1,1,1"
            for number in range(1, 4)
            for t in range(1, 31)
        ]
        (root / name / "gt" / "gt.txt").write_text("\n".join(rows) + "\n")
    return root


def words(truth, run, *more):
    splits = ["--data.val", f"[{NAMES[1]}]", "--data.test", f"[{NAMES[2]}]"]
    return ["mot", "train", "--data.root", str(truth), *splits, *TINY, *SHORT, "--run", str(run), *more]


def test_a_run_ends_with_the_comparison_and_tracks(truth, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(words(truth, run, "--control.without_scan", "true")) == 0
    rows = {row["name"]: row for row in json.loads((run / "metrics.json").read_text())["comparison"]}
    assert list(rows)[:2] == ["mtp", "mtp without scan"]
    assert {row["role"] for row in rows.values()} == {"model", "control", "baseline"}
    assert {row["boxes"] for row in rows.values()} == {3 * 28}
    assert all(0 < row["IoU"] <= 1 for row in rows.values())
    assert set(json.loads((run / "metrics.json").read_text())["sequences"]) == {NAMES[2]}
    assert NAMES[2] in (run / "report.html").read_text()
    out = capsys.readouterr().out
    assert "Kalman (ByteTrack)" in out
    history = (run / "metrics.csv").read_text().splitlines()
    assert len(history) == 3
    assert "IoU/next box" in history[0]
    detections = tmp_path / "street.txt"
    detections.write_text("".join(f"{t},-1,{100 + 2 * t},50,20,40,0.9,-1,-1,-1\n" for t in range(1, 9)))
    output = tmp_path / "tracks"
    tracking = ["mot", "track", str(detections), "--output", str(output), "--weights", str(run)]
    assert main([*tracking, "--tracker", "mambatrack"]) == 0
    assert np.loadtxt(output / "street.txt", delimiter=",").shape == (8, 10)


@pytest.mark.parametrize(
    "more", [[], ["--model.from_last_step", "true", "--data.jitter", "0.02", "--data.clean", "0.5"]]
)
def test_the_control_of_convolutions_is_trained_the_same_way(truth, tmp_path, more):
    run = tmp_path / "run"
    control = ["--control.without_scan", "false", "--control.convolution", "true", "--model.loss", "overlap"]
    assert main(words(truth, run, *control, *more)) == 0
    rows = json.loads((run / "metrics.json").read_text())["comparison"]
    assert [(row["name"], row["role"]) for row in rows[:2]] == [("mtp", "model"), ("mtp of convolutions", "control")]
    weights = read_weights(run / "control" / "weights.safetensors")
    assert not any(name.endswith("A_log") for name in weights)
    assert torch.equal(read_weights(run / "weights.safetensors")["spread"], weights["spread"])


def test_the_recipe_runs(truth, tmp_path):
    run = tmp_path / "run"
    more = ["--data.root", str(truth), "--run", str(run), "--trainer.fast_dev_run", "true"]
    assert main(["mot", "train", "--config", str(RECIPE), *more]) == 0
    rows = json.loads((run / "metrics.json").read_text())["comparison"]
    assert {row["boxes"] for row in rows} == {2 * 3 * 28}
    assert (run / "weights.safetensors").exists()
    assert (run / "control" / "weights.safetensors").exists()


def test_a_run_that_was_stopped_ends_with_the_same_bits(truth, tmp_path, monkeypatch):
    assert main(words(truth, tmp_path / "whole")) == 0
    from statefield.tasks.tracking.motion.task import MotionTask

    loss, calls = MotionTask.batch_loss, []

    def killed(self, batch):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(MotionTask, "batch_loss", killed)
    assert main(words(truth, tmp_path / "stopped")) == 130
    monkeypatch.undo()
    assert main(words(truth, tmp_path / "stopped", "--resume")) == 0
    whole, stopped = (read_weights(tmp_path / name / "weights.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert torch.equal(load_motion(tmp_path / "whole").net.spread, whole["spread"])
    assert not torch.equal(whole["spread"], torch.ones(4))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.val", "[MOT17-99]"], "no sequence 'MOT17-99'"),
        (["--data.test", f"[{NAMES[1]}]"], "none of them in both"),
        (["--control.without_scan", "true", "--model.without_scan", "true"], "control.without_scan"),
        (["--control.without_scan", "true", "--control.convolution", "true"], "control.convolution"),
        (["--model.loss", "overlap", "--model.unit", "image"], "Set model.unit to box"),
        (["--model.dims", "8"], "Did you mean"),
    ],
)
def test_settings_that_cannot_work_are_said_before_anything_is_written(truth, tmp_path, capsys, more, message):
    assert main(words(truth, tmp_path / "run", *more)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_gives_no_motion_model(tmp_path):
    with pytest.raises(ConfigError, match="not a run folder"):
        load_motion(tmp_path)
