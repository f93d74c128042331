"""`statefield medical evaluate` and `statefield datasets`, as a user calls them."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
from fakes.change import write_levir
from fakes.medical import blobs, write_msd, write_pairs, write_volume

from statefield.cli.main import main
from statefield.datasets import ADAPTERS
from statefield.datasets.change import CHANGE_ADAPTERS


@pytest.fixture
def folders(tmp_path):
    for index in range(3):
        _, labels = blobs((12, 12, 6), num_classes=3, seed=index)
        write_volume(tmp_path / "truth" / f"case_{index}.nii.gz", labels, dtype=np.uint8)
        predicted = np.where(labels == 1, 0, labels) if index == 2 else np.roll(labels, 1, axis=1)
        write_volume(tmp_path / "pred" / f"case_{index}.nii.gz", predicted, dtype=np.uint8)
    return str(tmp_path / "pred"), str(tmp_path / "truth")


def test_evaluate_prints_a_table_and_writes_json_and_csv(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    options = ["--labels", "ground", "small", "large", "--jobs", "1", "--tolerance-mm", "2"]
    files = ["--json", str(tmp_path / "o.json"), "--csv", str(tmp_path / "o.csv")]
    assert main(["medical", "evaluate", *folders, *options, *files]) == 0
    out = capsys.readouterr().out
    for expected in ("case_0", "small", "NSD_2mm", "2 of 3", "class mean", "missed in 1 of the 3 cases"):
        assert expected in out
    written = json.loads((tmp_path / "o.json").read_text())
    dice = written["metrics"]["Dice"]
    assert f"{dice['foreground_mean']:.4f}" in out
    assert written["cases"]["case_2"]["HD95_mm"]["small"] is None
    assert written["classes"]["small"]["num_missed"] == 1
    rows = list(csv.DictReader((tmp_path / "o.csv").read_text().splitlines()))
    assert len(rows) == 9
    by_class = [float(r["Dice"]) for r in rows if r["class"] == "large"]
    assert np.mean(by_class) == pytest.approx(dice["classes"]["large"]["case_mean"])
    assert next(r for r in rows if r["case"] == "case_2" and r["class"] == "small")["HD95_mm"] == ""


def test_evaluate_shows_every_score_on_a_narrow_screen_and_writes_lesions_and_accuracy(
    folders, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    options = ["--labels", "ground", "small", "large", "--jobs", "1", "--lesions", "small", "--lesion-iou", "0.1"]
    files = ["--json", str(tmp_path / "o.json"), "--csv", str(tmp_path / "o.csv")]
    assert main(["medical", "evaluate", *folders, *options, *files]) == 0
    out = capsys.readouterr().out
    written = json.loads((tmp_path / "o.json").read_text())
    for metric in ("sensitivity", "specificity", "precision", "lesion_F1_IoU0.1", "lesion_FP_IoU0.1"):
        mean = written["metrics"][metric]["classes"]["small"]["case_mean"]
        assert f"  {metric} " in out
        assert f"{mean:.4f}" in out
    assert f"pooled {written['accuracy']['pooled']:.4f}" in out
    assert written["lesions"] == {
        "small": {"num_true": 3, "num_detected": 2, "num_predicted": 2, "num_false_positive": 0}
    }
    assert "small: 2 of 3 true lesions detected, 0 of 2 predicted ones false" in out
    rows = {(r["case"], r["class"]): r for r in csv.DictReader((tmp_path / "o.csv").read_text().splitlines())}
    assert rows["case_2", "small"]["num_true_lesions"] == "1"
    assert rows["case_2", "small"]["num_detected_lesions"] == "0"
    assert rows["case_2", "large"]["num_true_lesions"] == ""
    assert float(rows["case_0", "large"]["accuracy_of_case"]) == written["accuracy"]["cases"]["case_0"]


def test_evaluate_takes_a_field_of_view_and_an_ignore_label(folders, tmp_path, capsys):
    predictions, truth = folders
    view = np.zeros((12, 12, 6))
    view[:, :6] = 1
    for index in range(3):
        write_volume(tmp_path / "view" / f"case_{index}.nii.gz", view, dtype=np.uint8)
    options = [
        "--classes",
        "3",
        "--mask",
        str(tmp_path / "view"),
        "--ignore-label",
        "2",
        "--no-distances",
        "--jobs",
        "1",
    ]
    assert main(["medical", "evaluate", predictions, truth, *options, "--json", str(tmp_path / "o.json")]) == 0
    assert "label 2 of the targets is scored nowhere" in capsys.readouterr().out
    written = json.loads((tmp_path / "o.json").read_text())
    assert written["classes"]["class_2"]["num_present"] == 0


@pytest.mark.parametrize("options", [["--lesions", "liver"], ["--lesions", "--lesion-iou", "2"]])
def test_evaluate_refuses_lesions_that_cannot_be_counted(folders, options, capsys):
    assert main(["medical", "evaluate", *folders, "--classes", "3", *options]) == 2
    assert "statefield: ConfigError" in capsys.readouterr().err


def test_report_of_evaluate_is_one_page_with_scores_and_pictures(folders, tmp_path, capsys):
    page = tmp_path / "reports" / "page.html"
    names = ["--labels", "ground", "small", "large", "--jobs", "1"]
    assert (
        main(["medical", "evaluate", *folders, *names, "--report", str(page), "--json", str(tmp_path / "o.json")]) == 0
    )
    assert "page.html" in capsys.readouterr().out
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
    text = page.read_text()
    dice = json.loads((tmp_path / "o.json").read_text())["metrics"]["Dice"]
    assert f"{dice['classes']['large']['case_mean']:.3f}" in text
    assert text.count("data:image/png;base64") >= 3 * 4  # best, median, worst: image, truth, prediction, errors
    assert "http" not in re.sub(r"base64,[^\"]*", "", text).replace("http://www.w3.org", "")
    assert "statefield medical evaluate" in text


def test_help_of_evaluate_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["medical", "evaluate", "--help"])
    out = capsys.readouterr().out
    assert "statefield medical evaluate predictions/ labels/ --labels background liver tumour --lesions tumour" in out
    assert all(len(line) <= 120 for line in out.splitlines())


def test_evaluate_with_an_error_exits_with_2_and_writes_nothing(folders, tmp_path, capsys):
    (tmp_path / "pred" / "case_1.nii.gz").unlink()
    assert main(["medical", "evaluate", *folders, "--json", str(tmp_path / "o.json")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "1 of the 3 cases" in message
    assert "case_1" in message
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize(
    "options", [["--classes", "1"], ["--classes", "2", "--jobs", "1"], ["--labels", "a", "a"], ["--jobs", "0"]]
)
def test_evaluate_with_settings_that_cannot_work_exits_with_2(folders, options, capsys):
    assert main(["medical", "evaluate", *folders, *options]) == 2
    assert "statefield: " in capsys.readouterr().err


def test_datasets_lists_every_layout_with_its_tree(capsys):
    assert main(["datasets"]) == 0
    out = capsys.readouterr().out
    for name, adapter in ADAPTERS.items():
        assert name in out
        assert adapter.layout.splitlines()[-1].strip() in out
        assert f"source: {adapter.about.source}" in out
        assert f"terms:  {adapter.about.terms}" in out


def test_datasets_prints_its_table_for_the_documents(capsys):
    assert main(["datasets", "--table"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("`")[1] for row in rows[2:]] == sorted(ADAPTERS)
    assert len({row.count("|") for row in rows}) == 1


def test_datasets_lists_and_recognises_pairs_of_images_apart(tmp_path, capsys):
    assert main(["datasets", "--change"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in CHANGE_ADAPTERS) and "acdc" not in out
    assert main(["datasets", "--change", "--table"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split("`")[1] for row in rows[2:]] == sorted(CHANGE_ADAPTERS)
    root = write_levir(tmp_path)
    for options in (["--change"], ["--layout", "levir_cd"]):
        assert main(["datasets", str(root), *options]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "layout levir_cd" in out and "│ train │ 6" in out and "not: change_pairs (its files are" in out
    assert main(["datasets", str(root)]) == 2  # no layout of single images


def test_datasets_tells_the_layout_and_counts_its_cases(tmp_path, capsys):
    assert main(["datasets", str(write_msd(tmp_path))]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for expected in (
        "layout msd",
        "classes: 3: 0 background, 1 small, 2 large",
        "channels: 1 (CT)",
        "│ train │ 5",
        "not: nnunet",
    ):
        assert expected in out


def test_datasets_says_why_no_layout_fits(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    assert main(["datasets", str(tmp_path)]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "pairs: there is neither masks/ nor labels/ beside images/" in message
    assert "msd: there is no dataset.json" in message


def test_datasets_names_a_damaged_dataset_instead_of_counting_it(tmp_path, capsys):
    root = write_pairs(tmp_path, num_cases=4)
    (root / "masks" / "case_001.png").unlink()
    assert main(["datasets", str(root)]) == 2
    assert "case_001.png" in capsys.readouterr().err
