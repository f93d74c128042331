"""`statefield scene train`, `test` and `predict` as a user calls them."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.scenes import CLASSES, texture, write_class_folders
from PIL import Image

from statefield.cli.main import main

SETTINGS = (
    "--model.net_args", '{"size": [16, 2]}', "--data.image_size", "24", "--data.batch_size", "4",
    "--trainer.fast_dev_run", "true", "--trainer.accelerator", "cpu", "--trainer.threads", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run that was trained by the command."""
    root = write_class_folders(tmp_path_factory.mktemp("data"), per_class=5)
    place = tmp_path_factory.mktemp("runs") / "run"
    assert main(["scene", "train", "--data.root", str(root), "--run", str(place), *SETTINGS]) == 0
    return place


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "tiles"
    (folder / "east").mkdir(parents=True)
    for index, path in enumerate((folder / "b.png", folder / "a.jpg", folder / "east" / "c.tif")):
        Image.fromarray(texture(index, seed=9).astype("uint8")).save(path)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.parametrize("verb", ["train", "test", "predict"])
def test_help_answers_with_examples_and_without_torch(verb):
    code = (
        "import sys\nfrom statefield.cli.main import main\n"
        f"try: main(['scene', {verb!r}, '--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"statefield scene {verb}" in shown and "examples:" in shown


def test_train_prints_the_scores_and_where_everything_is(run, capsys):
    root = json.loads((run / "metrics.json").read_text())
    assert root["classes"] == list(CLASSES)
    assert main(["scene", "train", "--config", str(run / "config.yaml")]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main(["scene", "train", "--config", str(run / "config.yaml"), "--resume"]) == 0
    out = capsys.readouterr().out
    assert "rsmamba" in out and "F1/macro" in out and "report.html" in out and "scene predict --run" in out


def test_test_scores_another_split(run, tmp_path, capsys):
    assert main(["scene", "test", "--run", str(run), "--split", "val", "--output", str(tmp_path / "val")]) == 0
    assert "kappa" in capsys.readouterr().out
    assert json.loads((tmp_path / "val" / "metrics.json").read_text())["model"]["num_scenes"] == 4


def test_predict_writes_a_row_for_each_image_of_files_and_folders(run, images, tmp_path, capsys):
    out = tmp_path / "classes.csv"
    assert main(["scene", "predict", "--run", str(run), str(images), str(images / "b.png"), "--output", str(out)]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [Path(row["file"]).name for row in rows] == ["a.jpg", "b.png", "c.tif"]
    assert all(row["class"] in CLASSES and 1 / 4 <= float(row["probability"]) <= 1 for row in rows)
    assert "3 images classified" in capsys.readouterr().out


def test_predict_ranks_the_likeliest_classes(run, images, tmp_path):
    tables = {}
    for ending in (".csv", ".json"):
        out = tmp_path / f"top{ending}"
        words = ["scene", "predict", "--run", str(run), str(images), "--top", "3", "--batch-size", "2"]
        assert main([*words, "--output", str(out), "--device", "cpu"]) == 0
        tables[ending] = out.read_text()
    said = json.loads(tables[".json"])
    for row, answer in zip(csv.DictReader(tables[".csv"].splitlines()), said, strict=True):
        assert row["file"] == answer["file"] and not row["error"]
        assert [row["class"], row["class_2"], row["class_3"]] == [one["class"] for one in answer["classes"]]
        shares = [one["probability"] for one in answer["classes"]]
        assert shares == sorted(shares, reverse=True) and sum(shares) <= 1 + 1e-6
        assert float(row["probability_2"]) == pytest.approx(shares[1], abs=1e-6)


def test_broken_image_stops_the_prediction_or_has_a_row_that_says_why(run, images, tmp_path, capsys):
    broken, out = images / "broken.png", tmp_path / "classes.csv"
    broken.write_bytes((images / "b.png").read_bytes()[:50])
    words = ["scene", "predict", "--run", str(run), str(images), "--output", str(out)]
    assert main(words) == 2
    assert "broken.png" in capsys.readouterr().err and not out.exists()
    assert main([*words, "--on-bad", "skip"]) == 0
    rows = {Path(row["file"]).name: row for row in csv.DictReader(out.read_text().splitlines())}
    assert len(rows) == 4 and "damaged" in rows["broken.png"]["error"] and not rows["broken.png"]["class"]
    assert "3 images classified, 1 could not be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{images}", "--output", "{tmp}/classes.txt"], "ends in .csv or .json"),
        (["{images}", "--output", "{tmp}/a.csv", "--top", "5"], "from 1 to the 4 classes"),
        (["{images}/notes.txt", "--output", "{tmp}/a.csv"], "not an image by its name"),
        (["{images}/absent.png", "--output", "{tmp}/a.csv"], "no such file or folder"),
        (["{images}/../empty", "--output", "{tmp}/a.csv"], "no image in this folder"),
        (["{images}", "--output", "{tmp}/a.csv", "--device", "tpu9"], "--device"),
        (["{images}", "--output", "{tmp}/a.csv", "--batch-size", "0"], "1 or more"),
    ],
)
def test_predictions_that_cannot_be_made_are_one_paragraph(run, images, tmp_path, capsys, words, said):
    (tmp_path / "empty").mkdir()
    given = [word.format(images=images, tmp=tmp_path) for word in words]
    assert main(["scene", "predict", "--run", str(run), *given]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert said in shown and "Traceback" not in shown and not list(tmp_path.glob("a.*"))


def test_folder_that_is_no_run_is_named(images, tmp_path, capsys):
    words = ["scene", "predict", "--run", str(tmp_path / "nowhere"), str(images), "--output", str(tmp_path / "a.csv")]
    assert main(words) == 2
    assert "nowhere is not a run folder" in " ".join(capsys.readouterr().err.split())


def test_unknown_setting_is_answered_with_the_nearest(tmp_path, capsys):
    assert main(["scene", "train", "--data.root", str(tmp_path), "--model.encodr", "x"]) == 2
    assert "Did you mean model.encoder" in " ".join(capsys.readouterr().err.split())
