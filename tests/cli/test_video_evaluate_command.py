"""`statefield video evaluate` from end to end."""

from __future__ import annotations

import json

import pytest

from statefield.cli.main import main


@pytest.fixture
def files(tmp_path):
    truth = {
        "videos": [{"id": 1, "name": "v"}],
        "images": [{"id": n, "video_id": 1, "frame_id": n, "width": 100, "height": 100} for n in (1, 2, 3)],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "instance_id": 1, "bbox": [10, 10, 20, 20]} for n in (1, 2, 3)
        ],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    entries = [{"image_id": n, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9} for n in (1, 2, 3)]
    (tmp_path / "good.json").write_text(json.dumps(entries))
    (tmp_path / "poor.json").write_text(json.dumps(entries[:1]))
    return tmp_path


def test_two_detectors_in_every_form(files, capsys):
    words = ["video", "evaluate", "--gt", files / "truth.json", "--results", files / "good.json", files / "poor.json"]
    words += ["--json", files / "o.json", "--csv", files / "o.csv", "--latex", files / "o.tex"]
    words += ["--plots", files / "p", "--report", files / "o.html"]
    assert main([str(word) for word in words]) == 0
    assert "AP50 by speed, FGFA" in capsys.readouterr().out
    scores = json.loads((files / "o.json").read_text())
    assert scores["coco"]["bbox"]["good"]["overall"]["AP"] == pytest.approx(1.0)
    assert scores["coco"]["bbox"]["poor"]["overall"]["AR100"] == pytest.approx(1 / 3)
    assert scores["speed"]["FGFA"]["good"]["mean"] == {"all": 1.0, "slow": 1.0, "medium": None, "fast": None}
    assert scores["speed"]["FGFA"]["poor"]["classes"]["car"]["slow"] == pytest.approx(1 / 3)
    assert (files / "p/precision_recall_bbox.png").exists()
    assert "data:image/png" in (files / "o.html").read_text()
    assert "car,good AP50" in (files / "o.csv").read_text()


def test_broken_files_are_a_paragraph(files, capsys):
    (files / "poor.json").write_text('[{"image_id": 9}]')
    words = ["video", "evaluate", "--gt", str(files / "truth.json"), "--results", str(files / "poor.json")]
    assert main([*words, "--json", str(files / "o.json")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "poor.json: entry 0: image_id is not among the images: 9" in said
    assert not (files / "o.json").exists()
    assert main([*words, "--on-bad", "skip"]) == 0
    assert "1 entries left out" in capsys.readouterr().out
