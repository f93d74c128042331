"""`statefield mot evaluate`: from folders to tables, files and pictures, and what it says of input that is none."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes.mot import random_case, write_cases, write_ground_truth
from PIL import Image

from statefield.cli.main import main

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[2] / "../shared/data")) / "mot"
GT = "1,1,10,10,20,40,1,1,1\n2,1,12,10,20,40,1,1,1\n3,1,14,10,20,40,1,1,1\n4,1,16,10,20,40,1,1,1\n"
RESULTS = "".join(f"{frame},{7 if frame < 3 else 8},{8 + 2 * frame},10,20,40,1,-1,-1,-1\n" for frame in range(1, 5))


@pytest.fixture
def folders(tmp_path):
    """One sequence of four frames and a tracker that switches once: HOTA sqrt(1/2), MOTA 3/4, IDF1 1/2."""
    write_ground_truth(tmp_path / "gt", "camera", GT, 4)
    (tmp_path / "sort").mkdir()
    (tmp_path / "sort" / "camera.txt").write_text(RESULTS)
    return tmp_path


def run(folders: Path, *options: str) -> int:
    return main(["mot", "evaluate", "--gt", str(folders / "gt"), "--results", str(folders / "sort"), *options])


def test_the_table_on_screen(folders, capsys):
    assert run(folders) == 0
    shown = capsys.readouterr().out
    assert "plain, 1 sequence; recognised by names of no benchmark" in shown
    for number in ("70.71", "100.00", "50.00", "75.00"):  # HOTA, DetA, AssA and IDF1, MOTA
        assert number in shown
    assert run(folders, "--details", "--metrics", "all") == 0
    shown = capsys.readouterr().out
    for heading in ("SFDA", "mAP", "CLR_Re", "FP_per_frame", "GT_Dets"):
        assert heading in shown


@pytest.mark.shared_data
def test_figures_that_motmetrics_publishes_for_tud(tmp_path, capsys):
    root = DATA / "motmetrics_tud"
    if not root.is_dir():
        pytest.skip(f"{root} is not there (STATEFIELD_DATA)")
    out = tmp_path / "out"
    assert main(["mot", "evaluate", "--gt", str(root), "--results", str(root), "--output", str(out)]) == 0
    scores = json.loads((out / "scores.json").read_text())["trackers"]["motmetrics_tud"]["pedestrian"]
    published = json.loads((DATA.parent / "REFERENCE.json").read_text())["tud_motmetrics"]
    for name, expected in published.items():
        if name not in ("TUD-Campus", "TUD-Stadtmitte", "OVERALL"):
            continue
        ours = scores["combined"] if name == "OVERALL" else scores["sequences"][name]
        clear, identity = ours["CLEAR"], ours["Identity"]
        figures = {
            "IDF1": 100 * identity["IDF1"],
            "IDP": 100 * identity["IDP"],
            "IDR": 100 * identity["IDR"],
            "Rcll": 100 * clear["CLR_Re"],
            "Prcn": 100 * clear["CLR_Pr"],
            "FP": clear["CLR_FP"],
            "FN": clear["CLR_FN"],
            "IDs": clear["IDSW"],
            "FM": clear["Frag"],
            "MOTA": 100 * clear["MOTA"],
            "MOTP": 1 - clear["MOTP"],  # motmetrics gives the distance
        }
        for figure in set(expected) & set(figures):
            rounding = 0.0006 if figure == "MOTP" else 0.0501
            assert figures[figure] == pytest.approx(expected[figure], abs=rounding), f"{name} {figure}"
    assert np.mean(scores["combined"]["HOTA"]["HOTA"]) == pytest.approx(
        published["OVERALL"]["HOTA_mmtracking"], abs=5e-4
    )


def test_everything_is_written(folders, capsys):
    shutil.copytree(folders / "sort", folders / "better")
    (folders / "better" / "camera.txt").write_text(RESULTS.replace(",8,", ",7,"))
    out = folders / "out"
    assert run(folders, str(folders / "better"), "--output", str(out), "--metrics", "all") == 0
    scores = json.loads((out / "scores.json").read_text())
    assert list(scores["trackers"]) == ["sort", "better"]
    combined = scores["trackers"]["sort"]["pedestrian"]["combined"]
    assert combined["HOTA"]["AssA"] == [0.5] * 19
    assert combined["Count"] == {"Dets": 4, "GT_Dets": 4, "IDs": 2, "GT_IDs": 1, "Frames": 4}
    rows = list(csv.DictReader((out / "scores.csv").read_text().splitlines()))
    assert {"table": "plain, pedestrian", "row": "better", "score": "MOTA", "value": "100.0"} in rows
    assert r"sort & 70.71" in (out / "tables.tex").read_text()
    assert r"\textbf{100.00}" in (out / "tables.tex").read_text()
    page = (out / "report.html").read_text()
    assert "data:image/png" in page
    assert "statefield mot evaluate" in page
    with Image.open(out / "curves" / "HOTA.png") as picture:
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20)) > 20
    summary = (out / "trackeval" / "sort" / "pedestrian_summary.txt").read_text().splitlines()
    fields = dict(zip(summary[0].split(), summary[1].split(), strict=True))
    assert (fields["HOTA"], fields["MOTA"], fields["IDSW"], fields["GT_IDs"]) == ("70.711", "75", "1", "1")
    detailed = list(csv.DictReader((out / "trackeval" / "sort" / "pedestrian_detailed.csv").read_text().splitlines()))
    assert [row["seq"] for row in detailed] == ["camera", "COMBINED"]
    assert float(detailed[0]["HOTA___AUC"]) == pytest.approx(0.5**0.5)
    assert {"HOTA___5", "HOTA___95", "HOTA_TP___50", "MOTA", "IDTP"} <= set(detailed[0])


def test_rows_that_cannot_be_meant_stop_it_or_are_counted(folders, capsys):
    results = folders / "sort" / "camera.txt"
    results.write_text(RESULTS + "5,8,1,1,20,40,1,-1,-1,-1\n4,8,1,1,20,40,1,-1,-1,-1\n4,9,nan,1,20,40,1,-1,-1,-1\n")
    assert run(folders) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{results}, line 7: column 3 is nan" in said
    assert "--on-bad skip" in said
    assert run(folders, "--on-bad", "skip", "--output", str(folders / "out")) == 0
    shown = capsys.readouterr().out
    assert f"{results}: 1 row left out, frame beyond the sequence (line 5)" in shown
    assert "70.71" in shown, "scored as without them"
    notes = json.loads((folders / "out" / "scores.json").read_text())["notes"]
    assert len(notes) == 3


@pytest.mark.parametrize("empty", [True, False], ids=["empty file", "no file"])
def test_a_sequence_without_results(empty, folders, capsys):
    write_ground_truth(folders / "gt", "other", GT, 4)
    if empty:
        (folders / "sort" / "other.txt").write_text("")
    assert run(folders) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert ("line 1: the file is empty" if empty else "no results of other") in said
    assert run(folders, "--on-bad", "skip") == 0
    shown = capsys.readouterr().out
    assert "found nothing" in shown
    assert "37.50" in shown, "MOTA: of 8 boxes 4 are found, with a switch: (4 - 1) / 8"


def test_unsorted_frames_are_fine_and_said(folders, capsys):
    (folders / "sort" / "camera.txt").write_text("".join(reversed(RESULTS.splitlines(keepends=True))))
    assert run(folders) == 0
    shown = capsys.readouterr().out
    assert "70.71" in shown
    assert "not sorted by frame, which is fine" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--benchmark", "MOT99"], "MOT15"),
        (["--classes", "car"], "unknown class of plain 'car'"),
        (["--sequences", "nowhere"], "--sequences nowhere"),
        (["--split", "val"], "--split val"),
        (["--draw", "frames"], "--draw needs --output"),
    ],
)
def test_options_that_cannot_be_meant(options, words, folders, capsys):
    assert run(folders, *options) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_single_sequence_without_a_class_column_is_scored_as_mot15(tmp_path, capsys):
    (tmp_path / "gt").mkdir()
    (tmp_path / "gt" / "camera.txt").write_text(GT.replace(",1,1,1\n", ",1,-1,-1,-1\n"))
    (tmp_path / "sort").mkdir()
    (tmp_path / "sort" / "camera.txt").write_text(RESULTS + "9,8,1,1,20,40,1,-1,-1,-1\n")
    assert run(tmp_path) == 2, "nothing says that there is a frame 9"
    assert "last frame is 4" in " ".join(capsys.readouterr().err.split())
    assert run(tmp_path, "--on-bad", "skip") == 0
    assert "scored as MOT15 is" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["frames", "webp"])
def test_boxes_are_drawn_into_frames(form, folders, capsys):
    for frame in range(1, 5):
        picture = folders / "gt" / "camera" / "img1" / f"{frame:06d}.jpg"
        picture.parent.mkdir(exist_ok=True)
        Image.new("RGB", (160, 120), "#808080").save(picture)
    assert run(folders, "--output", str(folders / "out"), "--draw", form) == 0
    assert "4 frames" in capsys.readouterr().out
    drawn = folders / "out" / "drawn" / "sort"
    path = drawn / "camera" / "000001.jpg" if form == "frames" else drawn / "camera.webp"
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=int)
    assert np.abs(pixels[30, 9:12].mean(0) - 128).max() > 30, "the left side of the box at x = 10"
    assert np.abs(pixels[100, 100] - 128).max() < 8, "nothing where there is no box"


def test_drawing_without_frames_or_ffmpeg(folders, capsys, monkeypatch):
    assert run(folders, "--output", str(folders / "out"), "--draw", "frames") == 2
    assert "--images" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert run(folders, "--output", str(folders / "out"), "--draw", "mp4") == 2
    assert "Install ffmpeg" in " ".join(capsys.readouterr().err.split())


def test_neither_torch_nor_the_libraries_of_other_fields_are_imported(folders):
    write_cases(folders / "cases", [random_case(0)])
    code = (
        "import sys; from statefield.cli.main import main; "
        f"words = ['--gt', {str(folders / 'gt')!r}, '--results', {str(folders / 'sort')!r}]; "
        "assert main(['mot', 'evaluate', *words]) == 0; "
        "heavy = {'torch', 'matplotlib', 'nibabel', 'h5py', 'scipy.optimize', 'jinja2'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
