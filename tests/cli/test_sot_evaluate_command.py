"""`statefield sot evaluate` from end to end."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from statefield.cli.main import main

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[2] / "../shared/data"))


def _boxes(rows):
    return "\n".join(",".join(f"{value:g}" for value in row) for row in rows) + "\n"


@pytest.fixture
def otb(tmp_path):
    """Two sequences of four frames; `near` is off by 5 of 20 px once, `far` is lost after the first frame."""
    truth = np.array([[10.0, 10, 20, 20]] * 4)
    for name in ("Car", "Dog"):
        (tmp_path / "gt" / name).mkdir(parents=True)
        (tmp_path / "gt" / name / "groundtruth_rect.txt").write_text(_boxes(truth))
        (tmp_path / "gt" / name / "attrs.txt").write_text("OCC, FM" if name == "Car" else "FM")
    near, far = truth.copy(), truth.copy()
    near[2, 0] += 5
    far[1:, 0] += 500
    for tracker, boxes in (("near", near), ("far", far)):
        (tmp_path / "results" / tracker).mkdir(parents=True)
        for name in ("Car", "Dog"):
            (tmp_path / "results" / tracker / f"{name}.txt").write_text(_boxes(boxes))
    return tmp_path


def _run(*words):
    return main(["sot", "evaluate", *map(str, words)])


def test_two_trackers_in_every_form(otb, capsys):
    code = _run(
        "--gt", otb / "gt", "--results", otb / "results",
        "--json", otb / "o.json", "--csv", otb / "o.csv", "--latex", otb / "o.tex",
        "--plots", otb / "plots", "--report", otb / "o.html",
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert code == 0
    assert shown.index("near") < shown.index("far")
    (evaluation,) = json.loads((otb / "o.json").read_text())["evaluations"]
    assert evaluation["protocol"] == "otb"
    # frames: three with overlap 1, 20 of 21 thresholds, and one with 300 / 500 = 0.6, above 12 of them
    wanted = 100 * (3 * 20 + 12) / (4 * 21)
    near = evaluation["trackers"]["near"]
    assert near["overall"]["AUC"] == pytest.approx(wanted, rel=1e-6)  # the toolkit's single precision
    assert near["overall"]["P"] == 100.0
    assert near["attributes"]["FM (2)"]["AUC"] == near["overall"]["AUC"]
    assert set(near["sequences"]) == {"Car", "Dog"}
    assert evaluation["trackers"]["far"]["overall"]["P"] == 25.0  # the first frame alone
    rows = list(csv.DictReader((otb / "o.csv").read_text().splitlines()))
    assert {row["row"] for row in rows} >= {"near", "far", "Car", "OCC (1)"}
    assert r"\textbf{" in (otb / "o.tex").read_text()
    assert sorted(path.name for path in (otb / "plots").iterdir())[:2] == ["otb_normalised.pdf", "otb_normalised.png"]
    assert "data:image/png" in (otb / "o.html").read_text()


def test_a_missing_sequence_is_an_error_or_left_out_and_told(otb, capsys):
    (otb / "results/far/Dog.txt").unlink()
    assert _run("--gt", otb / "gt", "--results", otb / "results") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "results/far: 1 of 2 sequences have no result, the first is 'Dog'" in said
    assert _run("--gt", otb / "gt", "--results", otb / "results", "--on-bad", "skip") == 0
    shown = capsys.readouterr().out
    assert "OTB: 1 sequence" in shown
    assert "1 sequence was left out for all trackers. Dog: no result of far." in shown
    assert _run("--gt", otb / "gt", "--results", otb / "results", "--sequences", "Car") == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10,10,20,20\n1,2,3\n", "line 2: 3 columns"),
        ("10,10,20,20\n10,10,nan,20\n10,10,20,20\n10,10,20,20\n", "line 2: NaN in a predicted box"),
        ("10,10,20,20\n10,10,20,20\n10,10,20,-1\n10,10,20,20\n", "line 3: a negative width or height"),
    ],
)
def test_broken_results_name_file_and_line_and_write_nothing(otb, capsys, text, said):
    (otb / "results/near/Car.txt").write_text(text)
    assert _run("--gt", otb / "gt", "--results", otb / "results", "--json", otb / "o.json") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "near/Car.txt" in error
    assert said in error
    assert not (otb / "o.json").exists()
    assert _run("--gt", otb / "gt", "--results", otb / "results", "--on-bad", "skip", "--json", otb / "o.json") == 0
    (evaluation,) = json.loads((otb / "o.json").read_text())["evaluations"]
    assert evaluation["num_sequences"] == 1
    assert said in " ".join(evaluation["notes"])


def test_several_protocols_give_a_table_each(otb, capsys):
    assert _run("--gt", otb / "gt", "--results", otb / "results", "--protocol", "lasot-got10k", "got10k") == 0
    shown = capsys.readouterr().out
    assert "LaSOT, by the GOT-10k toolkit: 2 sequences" in shown
    assert "SR75" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--protocol", "lasott"], "did you mean 'lasot'"),
        (["--eao-interval", "1", "3"], "belongs to VOT"),
        (["--protocol", "otb", "vot2018"], "stand alone"),
        (["--sequences", "Cat"], "'Cat'"),
    ],
)
def test_arguments_that_cannot_work_are_a_paragraph(otb, capsys, words, said):
    assert _run("--gt", otb / "gt", "--results", otb / "results", *words) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def vot(tmp_path):
    """Two sequences of 12 frames; the tracker fails once, in `b`."""
    square = "10,10,29,10,29,29,10,29"
    for name in ("a", "b"):
        folder = tmp_path / "VOT2018" / name
        folder.mkdir(parents=True)
        (folder / "groundtruth.txt").write_text(f"{square}\n" * 12)
        (folder / "occlusion.tag").write_text("0\n" * 10 + "1\n" * 2)
        (folder / "sequence").write_text("width=64\nheight=64\n")
        run = tmp_path / "ours/baseline" / name
        run.mkdir(parents=True)
        half = "10,10,10,20"
        lines = ["1", *[half] * 11] if name == "a" else ["1", *[half] * 2, "2", *["0"] * 4, "1", *["10,10,20,20"] * 3]
        (run / f"{name}_001.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "VOT2018/list.txt").write_text("a\nb\n")
    return tmp_path


def test_vot_with_resets(vot, capsys):
    code = _run(
        "--gt", vot / "VOT2018", "--results", vot / "ours", "--eao-interval", "2", "2",
        "--json", vot / "o.json", "--plots", vot / "p",
    )  # fmt: skip
    assert code == 0
    (evaluation,) = json.loads((vot / "o.json").read_text())["evaluations"]
    ours = evaluation["trackers"]["ours"]
    # runs of two frames: a at 0.5, b's first at 0.5, its second at 1
    assert ours["overall"]["EAO"] == pytest.approx(2 / 3)
    # burn-in of ten frames leaves two of a, at 0.5, and none of b, which counts as 0
    assert ours["overall"]["A"] == 0.25
    assert ours["overall"]["failures"] == 1
    assert ours["overall"]["R"] == pytest.approx(100 / 24)
    assert ours["attributes"]["occlusion (4)"]["A"] == 0.5
    assert (vot / "p/vot2018_eao.png").exists()
    capsys.readouterr()
    assert _run("--gt", vot / "VOT2018", "--results", vot / "ours") == 0
    assert "No run is as long as 100 frames" in capsys.readouterr().out


def test_vot_without_a_year_or_without_anchors_says_what_is_needed(vot, capsys):
    (vot / "VOT2018").rename(vot / "frames")
    assert _run("--gt", vot / "frames", "--results", vot / "ours") == 2
    assert "does not tell the year" in " ".join(capsys.readouterr().err.split())
    assert _run("--gt", vot / "frames", "--results", vot / "ours", "--protocol", "vot2021") == 2
    assert "has none (SEQ/anchor.value)" in " ".join(capsys.readouterr().err.split())


def test_vot_with_anchors(vot, capsys):
    for name in ("a", "b"):
        (vot / "VOT2018" / name / "anchor.value").write_text("1\n" + "0\n" * 10 + "-1\n")
        for frame in (0, 11):
            path = vot / "ours/baseline" / name / f"{name}_{frame:08d}.txt"
            path.write_text("1\n" + "10,10,10,20\n" * 11)
    words = ["--protocol", "vot2020", "--eao-interval", "3", "8", "--json", vot / "o.json"]
    assert _run("--gt", vot / "VOT2018", "--results", vot / "ours", *words) == 0
    (evaluation,) = json.loads((vot / "o.json").read_text())["evaluations"]
    overall = evaluation["trackers"]["ours"]["overall"]
    assert overall["EAO"] == pytest.approx(0.5)
    assert overall["R"] == 1.0
    assert overall["A"] == pytest.approx(0.5 * 11 / 12)  # the frame that starts a run has no overlap
    capsys.readouterr()


def test_one_pass_results_on_vot_are_scored_on_upright_boxes(vot, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("a", "b"):
        (flat / f"{name}.txt").write_text("10,10,19,19\n" * 12)
    assert _run("--gt", vot / "VOT2018", "--results", flat, "--protocol", "otb", "--json", vot / "o.json") == 0
    (evaluation,) = json.loads((vot / "o.json").read_text())["evaluations"]
    assert evaluation["trackers"]["flat"]["overall"]["P"] == 100.0


def test_data_laid_out_alike_are_scored_under_their_own_name(tmp_path, capsys):
    for name in ("COESOT", "EventVOT"):
        folder = tmp_path / name / "test/rec"
        folder.mkdir(parents=True)
        (folder / "groundtruth.txt").write_text("10,10,20,20\n" * 3)
        (folder / "absent.txt").write_text("1\n1\n0\n")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/rec.txt").write_text("10,10,20,20\n" * 3)
    for name in ("COESOT", "EventVOT"):
        assert _run("--gt", tmp_path / name, "--results", tmp_path / "ours") == 0
        shown = capsys.readouterr().out
        assert f"{name}: 1 sequence" in shown
        assert "66.67" in shown  # of three frames, one is absent
        assert "Frames with a target alone: 1 sequence" in shown


def test_json_of_other_benchmarks_is_scored_by_its_name(otb, capsys):
    truth = {name: {"gt_rect": [[10, 10, 20, 20]] * 4, "width": 640, "height": 480} for name in ("Car", "Dog")}
    (otb / "OTB100.json").write_text(json.dumps(truth))
    assert _run("--gt", otb / "OTB100.json", "--results", otb / "results") == 0
    assert "OTB: 2 sequences" in capsys.readouterr().out
    (otb / "annos.zip").write_text("")
    assert _run("--gt", otb / "annos.zip", "--results", otb / "results") == 2
    assert "annos.zip: a file; unpack archives first" in " ".join(capsys.readouterr().err.split())


def test_scoring_imports_no_torch(otb):
    code = (
        "import sys; from statefield.cli.main import main; "
        f"assert main(['sot', 'evaluate', '--gt', r'{otb / 'gt'}', '--results', r'{otb / 'results'}', "
        "]) == 0; assert not {'torch', 'matplotlib'} & set(sys.modules); "
        f"assert main(['sot', 'evaluate', '--gt', r'{otb / 'gt'}', '--results', r'{otb / 'results'}', "
        f"'--report', r'{otb / 'r.html'}']) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.shared_data
def test_ceutrack_on_visevent(tmp_path):
    root = DATA / "events/visevent_annos"
    if not root.is_dir():
        pytest.skip(f"no VisEvent at {root} (STATEFIELD_DATA)")
    for archive, folder in ((root / "annos/annos.zip", "gt"), (next(root.glob("ceutrack*.zip")), "results")):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(tmp_path / folder)
    words = ["--on-bad", "skip", "--json", tmp_path / "o.json"]
    assert _run("--gt", tmp_path / "gt", "--results", tmp_path / "results", *words) == 0
    evaluations = {one["protocol"]: one for one in json.loads((tmp_path / "o.json").read_text())["evaluations"]}
    assert evaluations["visible"]["num_sequences"] == 172
    visible = evaluations["visible"]["trackers"]["ceutrack_visevent"]["overall"]
    assert round(visible["SR"], 2) == 59.19
    assert round(visible["PR"], 2) == 77.84
    toolkit = evaluations["visevent"]["trackers"]["ceutrack_visevent"]["overall"]
    assert toolkit["SR"] < visible["SR"]  # its frames without a target stay in the number that is divided by


@pytest.mark.shared_data
def test_the_one_pass_fixture_of_mmtracking(tmp_path):
    root = DATA / "sot/mmtracking_demo_sot/trackingnet/TRAIN_0"
    if not root.is_dir():
        pytest.skip(f"no SOT fixtures at {root} (STATEFIELD_DATA)")
    for folder, file in (("gt", "gt_for_eval.txt"), ("ours", "track_results.txt")):
        (tmp_path / folder).mkdir()
        for name in ("video-1", "video-2"):
            (tmp_path / folder / f"{name}.txt").write_bytes((root / name / file).read_bytes())
    words = ["--protocol", "mmtracking", "--boxes", "xyxy", "--json", tmp_path / "o.json"]
    assert _run("--gt", tmp_path / "gt", "--results", tmp_path / "ours", *words) == 0
    (evaluation,) = json.loads((tmp_path / "o.json").read_text())["evaluations"]
    overall = evaluation["trackers"]["ours"]["overall"]
    assert round(overall["success"], 3) == 67.524
    assert overall["norm_precision"] == 70.0
    assert overall["precision"] == 50.0
