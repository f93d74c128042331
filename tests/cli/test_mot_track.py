"""`statefield mot track`: from files of detections to files of tracks."""

import json
import subprocess
import sys

import numpy as np
import pytest

from statefield.cli.main import main


def detections(root, frames=12):
    """Two people who walk apart, one of them unseen for three frames."""
    (root / "street" / "det").mkdir(parents=True)
    rows = []
    for t in range(1, frames + 1):
        rows.append(f"{t},-1,{100 - 3 * t},50,20,40,0.9,-1,-1,-1")
        if t not in (5, 6, 7):
            rows.append(f"{t},-1,{200 + 3 * t},50,20,40,0.8,-1,-1,-1")
    (root / "street" / "det" / "det.txt").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.parametrize("tracker", ["bytetrack", "ocsort"])
def test_tracks_are_written_as_motchallenge_wants_them(tmp_path, capsys, tracker):
    root, output = detections(tmp_path / "data"), tmp_path / "tracks"
    assert main(["mot", "track", str(root), "--output", str(output), "--tracker", tracker]) == 0
    rows = np.loadtxt(output / "street.txt", delimiter=",")
    assert rows.shape[1] == 10
    assert set(rows[:, 1]) == {1, 2}  # also across the gap
    assert (np.diff(rows[:, 0]) >= 0).all()
    assert (rows[:, 7:] == -1).all()
    summary = json.loads((output / "tracking.json").read_text())
    assert summary["tracker"] == tracker
    assert summary["sequences"] == [{"name": "street", "frames": 12, "tracks": 2, "boxes": len(rows)}]
    assert "street" in capsys.readouterr().out


def test_what_is_written_can_be_evaluated(tmp_path, capsys):
    root, output = detections(tmp_path / "data"), tmp_path / "tracks"
    (root / "street" / "gt").mkdir()
    main(["mot", "track", str(root), "--output", str(output)])
    rows = (output / "street.txt").read_text().splitlines()
    truth = [",".join([*row.split(",")[:6], "1", "1", "1"]) for row in rows]
    (root / "street" / "gt" / "gt.txt").write_text("\n".join(truth) + "\n")
    assert main(["mot", "evaluate", "--gt", str(root), "--results", str(output)]) == 0
    assert "100" in capsys.readouterr().out


def test_tracks_that_are_there_stay_unless_told_otherwise(tmp_path, capsys):
    root, output = detections(tmp_path / "data"), tmp_path / "tracks"
    words = ["mot", "track", str(root), "--output", str(output)]
    assert main(words) == 0
    before = (output / "street.txt").read_text()
    assert main([*words, "--tracker", "sort"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (output / "street.txt").read_text() == before
    assert main([*words, "--tracker", "sort", "--overwrite"]) == 0
    assert (output / "street.txt").read_text() != before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tracker", "bytetrak"], "did you mean 'bytetrack'"),
        (["--motion", "kalman"], "kalman_"),
        (["--tracker", "sort", "--high", "0.5"], "sort has no setting --high"),
        (["--tracker", "mambatrack"], "needs weights"),
        (["--weights", "runs/none"], "add --motion mtp"),
        (["--tracker", "mambatrack", "--weights", "runs/none"], "not a run folder"),
        (["--max-age", "-1"], "--max-age -1"),
        (["--sequences", "lane"], "no sequence 'lane'"),
    ],
)
def test_what_cannot_work_is_said_in_one_paragraph_and_nothing_is_written(tmp_path, capsys, words, message):
    root, output = detections(tmp_path / "data"), tmp_path / "tracks"
    assert main(["mot", "track", str(root), "--output", str(output), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not output.exists()


def test_bad_rows_are_an_error_or_counted(tmp_path, capsys):
    root, output = detections(tmp_path / "data"), tmp_path / "tracks"
    path = root / "street" / "det" / "det.txt"
    path.write_text(path.read_text() + "12,-1,5,5,0,40,0.9,-1,-1,-1\n")
    words = ["mot", "track", str(root), "--output", str(output)]
    assert main(words) == 2
    assert "det.txt, line 22" in " ".join(capsys.readouterr().err.split())
    assert not output.exists()
    assert main([*words, "--on-bad", "skip"]) == 0
    assert "1 row left out, without area" in capsys.readouterr().out


def test_kalman_trackers_need_no_torch():
    """Association starts at once; torch takes seconds to import."""
    code = (
        "import sys, statefield.tasks.tracking.trackers.run, statefield.cli.mot_track, "
        "statefield.datasets.tracking.detections; assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
