"""`statefield sot train` and `sot track`: a run is a function of its recipe, and follows what it has not seen."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.moving_targets import write_otb

from statefield.cli.main import main
from statefield.tasks.common.checkpointing import read_weights
from statefield.tasks.tracking.single_object.recipe import read_recipe
from statefield.tasks.tracking.single_object.training import load_tracker

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[4] / "../shared/data"))
PEDRO = DATA / "events/pedro_person_detection"
BAG, VOT2018 = DATA / "sot/bag_video/bag.avi", DATA / "sot/vot_gt/vot2018/VOT2018.json"
RECIPES = Path(__file__).parents[4] / "recipes" / "tracking"
CROPS = {"template_size": 16, "search_size": 32, "patch_size": 8}
TINY = CROPS | {"dim": 8, "num_layers": 1, "d_state": 2, "head_channels": 8, "lr": 1e-3}
SHORT = {"max_epochs": 2, "steps_per_epoch": 3, "accelerator": "cpu", "val_every_epochs": 2}


def words(**groups):
    return [
        word for group in groups for name in groups[group] for word in (f"--{group}.{name}", str(groups[group][name]))
    ]


def training(root, run, *more):
    data = {"root": root, "val": "[c]", "test": "[d]", "templates": 1, "batch_size": 2}
    return ["sot", "train", *words(data=data, model=TINY, trainer=SHORT), "--run", str(run), *more]


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    return write_otb(tmp_path_factory.mktemp("otb"), {"a": 1, "b": 2, "c": 3, "d": 4}, 5)


@pytest.fixture(scope="module")
def run(sequences, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(training(sequences, folder, "--control.without_scan", "true")) == 0
    return folder


def test_a_run_ends_with_a_comparison_results_and_pictures(run):
    scores = json.loads((run / "metrics.json").read_text())
    rows = {row["name"]: row for row in scores["comparison"]}
    assert list(rows) == ["mamba_evt", "mamba_evt without scan", "mamba_evt, first template alone", "the first box"]
    assert {row["frames"] for row in rows.values()} == {4}
    assert all(0 <= row["AUC"] <= 1 for row in rows.values())
    assert set(scores["sequences"]) == {"d"}
    assert np.loadtxt(run / "predictions/d.txt", delimiter=",").shape == (5, 4)
    assert (run / "figures/success.png").exists() and (run / "figures/sequence_1.png").exists()
    history = (run / "metrics.csv").read_text().splitlines()
    assert len(history) == 3 and "AUC/success" in history[0]


def test_the_control_of_convolutions_is_trained_the_same_way(sequences, tmp_path):
    more = ["--control.without_scan", "false", "--control.convolution", "true"]
    assert main(training(sequences, tmp_path / "run", *more)) == 0
    rows = json.loads((tmp_path / "run/metrics.json").read_text())["comparison"]
    assert [(row["name"], row["role"]) for row in rows[:2]] == [
        ("mamba_evt", "model"),
        ("mamba_evt of convolutions", "control"),
    ]
    trained, control = (load_tracker(folder).net for folder in (tmp_path / "run", tmp_path / "run/control"))
    convolved = [name for name in control.state_dict() if name.endswith("mixer.conv1d.weight")]
    assert len(convolved) == 1 and not any("forwards" in name for name in control.state_dict())
    sizes = [sum(value.numel() for value in net.state_dict().values()) for net in (trained, control)]
    assert 0 <= sizes[0] - sizes[1] < 2 * 16


def test_a_run_that_was_stopped_ends_with_the_same_bits(sequences, run, tmp_path, monkeypatch):
    from statefield.tasks.tracking.single_object.task import SotTask

    loss, calls = SotTask.batch_loss, []

    def killed(self, batch):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(SotTask, "batch_loss", killed)
    assert main(training(sequences, tmp_path / "stopped")) == 130
    monkeypatch.undo()
    assert main(training(sequences, tmp_path / "stopped", "--resume")) == 0
    whole, stopped = (read_weights(folder / "weights.safetensors") for folder in (run, tmp_path / "stopped"))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_the_head_learns_faster_than_what_is_before_it():
    from statefield.tasks.tracking.single_object.recipe import SotModelConfig, TrackerConfig
    from statefield.tasks.tracking.single_object.task import SotTask

    task = SotTask(SotModelConfig(**TINY), TrackerConfig(), [], seed=0, total_steps=10)
    task.trainer = type("Trainer", (), {"precision": "32-true"})()
    optimizer = task.configure_optimizers()["optimizer"]
    rates = {id(one): group["lr"] for group in optimizer.param_groups for one in group["params"]}
    names = dict(task.net.named_parameters())
    assert rates[id(names["head.score.0.0.weight"])] == pytest.approx(1e-3)
    assert rates[id(names["blocks.0.mixer.out_proj.weight"])] == pytest.approx(1e-4)
    assert len(rates) == len(names)


def test_tracking_writes_what_the_evaluator_reads(sequences, run, tmp_path, capsys):
    output = tmp_path / "results"
    track = ["sot", "track", str(sequences), "--run", str(run), "--output", str(output), "--device", "cpu"]
    assert main([*track, "--names", "c", "d", "--draw", "webp"]) == 0
    told = capsys.readouterr().out
    assert "frames/s" in told
    boxes = np.loadtxt(output / "c.txt", delimiter=",")
    assert boxes.shape == (5, 4) and (boxes[:, 2:] > 0).all()
    truth = np.loadtxt(sequences / "c/groundtruth_rect.txt", delimiter=",")
    assert np.array_equal(boxes[0], truth[0])
    assert (output / "drawn/c.webp").stat().st_size > 0
    assert len(np.loadtxt(output / "c_scores.txt")) == len(np.loadtxt(output / "c_time.txt")) == 5
    summary = json.loads((output / "tracking.json").read_text())
    assert [one["name"] for one in summary["sequences"]] == ["c", "d"]
    assert main(["sot", "evaluate", "--gt", str(sequences), "--results", str(output), "--sequences", "c", "d"]) == 0
    assert main(track) == 2  # results are there
    assert "--resume" in capsys.readouterr().err
    assert main([*track, "--resume"]) == 0
    assert sorted(path.stem for path in output.glob("?.txt")) == ["a", "b", "c", "d"]
    again = np.loadtxt(run / "predictions/d.txt", delimiter=",")
    assert np.array_equal(np.loadtxt(output / "d.txt", delimiter=","), again)


def test_a_first_box_can_be_given_and_weights_be_a_file(sequences, run, tmp_path):
    output = tmp_path / "results"
    weights = ["--weights", str(run / "weights.safetensors"), "--output", str(output), "--device", "cpu"]
    track = ["sot", "track", str(sequences / "a/img"), *weights]
    assert main([*track, "--init", "20", "20", "15", "15", "--lost-below", "0.99"]) == 0
    boxes = np.loadtxt(output / "img.txt", delimiter=",")
    assert (boxes == [20, 20, 15, 15]).all()  # never so sure
    assert json.loads((output / "tracking.json").read_text())["sequences"][0]["frames_lost"] == 4


def test_events_are_followed_by_the_same_tracker(run, tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"{t},{rng.integers(40)},{rng.integers(30)},{t % 2}" for t in range(0, 4000, 2)]
    (tmp_path / "fly.csv").write_text("t,x,y,p\n" + "\n".join(rows) + "\n")
    track = ["sot", "track", str(tmp_path / "fly.csv"), "--run", str(run), "--output", str(tmp_path / "out")]
    assert main([*track, "--init", "5", "5", "9", "9", "--window-us", "1000", "--events", "voxels"]) == 0
    assert np.loadtxt(tmp_path / "out/fly.txt", delimiter=",").shape == (4, 4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--init", "1", "1", "5", "5"], "--init is the first box of one sequence, and there are 4"),
        (["--names", "zebra"], "zebra"),
        (["--names", "a", "--init", "1", "1", "-5", "5"], "above 0"),
        (["--names", "a", "--init", "500", "1", "5", "5"], "beyond the frame of 128 x 96 pixels"),
        (["--weights", "x.safetensors"], "give one of them"),
        (["--window", "3"], "tracker.window = 3"),
        (["--interval", "0"], "--interval 0"),
    ],
)
def test_what_cannot_be_tracked_is_one_paragraph_and_no_file(sequences, run, tmp_path, capsys, more, message):
    track = ["sot", "track", str(sequences), "--run", str(run), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*track, *more]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("out/*"))


def test_a_broken_frame_is_named_and_leaves_no_part_of_a_result(run, tmp_path, capsys):
    root = write_otb(tmp_path / "otb", {"a": 1}, 4)
    (root / "a/img/0003.png").write_bytes(b"\x89PNG cut off")
    track = ["sot", "track", str(root), "--run", str(run), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(track) == 2
    assert "0003.png" in "".join(capsys.readouterr().err.split())
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.val", "[zebra]"], "no sequence 'zebra'"),
        (["--data.test", "[c]"], "in data.val and in data.test"),
        (["--data.time_split", "[0.5, 0.2]"], "nothing to choose"),
        (["--model.dims", "8"], "Did you mean"),
        (["--model.search_size", "33"], "multiple of patch_size"),
        (["--data.templates", "0"], "data.templates = 0"),
        (["--control.without_scan", "true", "--control.convolution", "true"], "control.convolution"),
        (["--model.without_scan", "true", "--model.convolution", "true"], "model.convolution"),
    ],
)
def test_settings_that_cannot_work_are_said_before_anything_is_written(sequences, tmp_path, capsys, more, message):
    assert main(training(sequences, tmp_path / "run", *more)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_the_papers_recipe_is_the_papers_net():
    recipe = read_recipe(RECIPES / "mambaevt.yaml")
    assert (recipe.model.dim, recipe.model.num_layers, recipe.data.templates) == (384, 24, 7)
    assert recipe.trainer.steps_per_epoch * recipe.data.batch_size == 60_000


def recipe_words(name, run, *more):
    return ["sot", "train", "--config", str(RECIPES / name), "--run", str(run), *words(model=TINY), *more]


@pytest.mark.parametrize("name", ["mambaevt.yaml", "mambaevt_video.yaml", "mambaevt_pedro.yaml"])
def test_recipes_run(tmp_path, name):
    splits = ["--data.time_split", "[0.34, 0.33]"]
    data = {"root": write_otb(tmp_path / "otb", {"a": 1}, 6), "templates": 1, "batch_size": 2, "workers": 0}
    trainer = {"fast_dev_run": "true", "accelerator": "cpu"}
    assert main(recipe_words(name, tmp_path / "run", *words(data=data, trainer=trainer), *splits)) == 0
    assert (tmp_path / "run/report.html").exists() and (tmp_path / "run/weights.safetensors").exists()


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["mambaevt_pedro.yaml", "mambaevt_video.yaml"])
def test_real_events_and_a_real_video_train_without_nan(tmp_path, name):
    if not (PEDRO.is_dir() and BAG.is_file()):
        pytest.skip(f"no PEDRo and no bag at {DATA} (STATEFIELD_DATA)")
    data = {"root": PEDRO} if "pedro" in name else {"root": BAG, "truth": VOT2018}
    trainer = {"max_epochs": 2, "steps_per_epoch": 100, "val_every_epochs": 2, "threads": 1}
    small = CROPS | {"dim": 16, "num_layers": 2, "d_state": 4, "head_channels": 16}
    more = words(data=data | {"batch_size": 4, "templates": 1, "val_frames": 6}, trainer=trainer, model=small)
    assert main(["sot", "train", "--config", str(RECIPES / name), "--run", str(tmp_path / "run"), *more]) == 0
    rows = np.genfromtxt(tmp_path / "run/metrics.csv", delimiter=",", names=True)
    assert np.isfinite(rows["train_loss"]).all() and rows["train_loss"][-1] < rows["train_loss"][0]
    assert rows["skipped_steps"].sum() == 0
    assert all(torch.isfinite(value).all() for value in read_weights(tmp_path / "run/weights.safetensors").values())
    assert np.isfinite(json.loads((tmp_path / "run/metrics.json").read_text())["model"]["AUC"])
    assert load_tracker(tmp_path / "run").net.template_size == 16
