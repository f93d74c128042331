"""Folders of ground truth and results are found and recognised as their benchmarks ship them."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.mot import kitti_case, write_kitti_cases

from statefield.datasets.tracking.bad_rows import BadRows
from statefield.datasets.tracking.kitti_text import read_kitti_tracks
from statefield.datasets.tracking.mot_text import read_mot_ground_truth, read_mot_results
from statefield.datasets.tracking.multi_object import open_ground_truth, tracker_folders
from statefield.errors import ConfigError, DataError, DatasetLayoutError

GT_17 = "1,1,10,10,20,40,1,1,1\n2,1,12,10,20,40,1,1,0.5\n"
GT_15 = "1,1,10,10,20,40,1,-1,-1,-1\n2,1,12,10,20,40,1,4.5,3.2,0\n"


def mot(folder: Path, name: str, text: str = GT_17, length: int | None = 2, inner: str = "gt/gt.txt") -> None:
    path = folder / name / inner
    path.parent.mkdir(parents=True)
    path.write_text(text)
    if length is not None:
        (folder / name / "seqinfo.ini").write_text(f"[Sequence]\nname={name}\nseqLength={length}\nframeRate=30\n")


@pytest.mark.parametrize(
    ("name", "benchmark"),
    [
        ("MOT16-02", "MOT16"),
        ("MOT17-02-FRCNN", "MOT17"),
        ("MOT20-05", "MOT20"),
        ("dancetrack0004", "DanceTrack"),
        ("v_1LwtoLPw2TU_c006", "SportsMOT"),
        ("my_camera", "plain"),
    ],
)
def test_the_names_of_sequences_tell_the_benchmark(name, benchmark, tmp_path):
    mot(tmp_path, name)
    found = open_ground_truth(tmp_path)
    assert found.benchmark == benchmark
    assert found.has_classes
    assert (found.sequences[0].num_frames, found.sequences[0].frame_rate) == (2, 30)


def test_the_folder_of_one_sequence_can_be_named(tmp_path, monkeypatch):
    mot(tmp_path, "MOT20-05")
    mot(tmp_path, "MOT20-06")
    for root in (tmp_path / "MOT20-05", Path()):
        monkeypatch.chdir(tmp_path / "MOT20-05")
        found = open_ground_truth(root)
        assert found.benchmark == "MOT20"
        assert [(one.name, one.num_frames) for one in found.sequences] == [("MOT20-05", 2)]


def test_mot15_has_no_classes_and_neither_has_a_plain_folder_without_them(tmp_path):
    mot(tmp_path / "a", "TUD-Campus", GT_15)
    mot(tmp_path / "b", "camera", GT_15, length=None)
    assert (open_ground_truth(tmp_path / "a").benchmark, open_ground_truth(tmp_path / "a").has_classes) == (
        "MOT15",
        False,
    )
    plain = open_ground_truth(tmp_path / "b")
    assert (plain.benchmark, plain.has_classes, plain.sequences[0].num_frames) == ("plain", False, None)
    assert "as MOT15" in plain.recognised_by


@pytest.mark.parametrize("inner", ["gt.txt", "gt/gt.txt"])
def test_plain_folders_a_folder_or_a_file_a_sequence(inner, tmp_path):
    mot(tmp_path / "folders", "one", inner=inner, length=None)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "one.txt").write_text(GT_17)
    for root in (tmp_path / "folders", tmp_path / "files"):
        assert [each.name for each in open_ground_truth(root).sequences] == ["one"]


def test_splits_and_seqmaps(tmp_path):
    mot(tmp_path / "MOT17-train", "MOT17-02-SDP")
    mot(tmp_path / "MOT17-train", "MOT17-04-SDP")
    only = open_ground_truth(tmp_path)
    assert len(only.sequences) == 2
    (tmp_path / "seqmaps").mkdir()
    (tmp_path / "seqmaps" / "MOT17-train.txt").write_text("name\nMOT17-04-SDP\n")
    assert [each.name for each in open_ground_truth(tmp_path).sequences] == ["MOT17-04-SDP"]
    mot(tmp_path / "MOT17-val", "MOT17-09-SDP")
    with pytest.raises(ConfigError, match="MOT17-train, MOT17-val"):
        open_ground_truth(tmp_path)
    assert [each.name for each in open_ground_truth(tmp_path, split="val").sequences] == ["MOT17-09-SDP"]
    with pytest.raises(ConfigError, match="--split tests"):
        open_ground_truth(tmp_path, split="tests")
    (tmp_path / "seqmaps" / "MOT17-val.txt").write_text("name\nMOT17-99-SDP\n")
    with pytest.raises(DatasetLayoutError, match="MOT17-99-SDP"):
        open_ground_truth(tmp_path, split="val")


def test_kitti_with_its_seqmap(tmp_path):
    write_kitti_cases(tmp_path, [kitti_case(3), kitti_case(4)])
    found = open_ground_truth(tmp_path / "gt")
    assert found.benchmark == "KITTI"
    assert [each.num_frames for each in found.sequences] == [kitti_case(3).length, kitti_case(4).length]
    assert open_ground_truth(tmp_path / "gt" / "label_02").benchmark == "KITTI"


def test_several_benchmarks_at_once_are_an_error(tmp_path):
    mot(tmp_path, "MOT17-02-FRCNN")
    mot(tmp_path, "MOT20-01")
    with pytest.raises(ConfigError, match="several benchmarks"):
        open_ground_truth(tmp_path)
    assert open_ground_truth(tmp_path, benchmark="MOT17").benchmark == "MOT17"
    assert open_ground_truth(tmp_path, sequences=["MOT20-01"]).benchmark == "MOT20"


@pytest.mark.parametrize("inner", ["", "data/"])
def test_results_of_one_tracker_or_of_several(inner, tmp_path):
    mot(tmp_path / "gt", "one")
    for tracker in ("a", "b"):
        path = tmp_path / "results" / tracker / f"{inner}one.txt"
        path.parent.mkdir(parents=True)
        path.write_text("1,1,1,1,9,9,1,-1,-1,-1\n")
    truth = open_ground_truth(tmp_path / "gt")
    assert list(tracker_folders([tmp_path / "results"], truth)) == ["a", "b"]
    assert list(tracker_folders([tmp_path / "results" / "b"], truth)) == ["b"]
    with pytest.raises(ConfigError, match="two trackers are named 'b'"):
        tracker_folders([tmp_path / "results", tmp_path / "results" / "b"], truth)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "two.txt").write_text("")
    with pytest.raises(DatasetLayoutError, match=r"two\.txt"):
        tracker_folders([tmp_path / "other"], truth)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no seqinfo.ini"),
        ("[Sequence]\nname=x\n", "no seqLength"),
        ("[Sequence]\nseqLength=many\n", "no seqinfo.ini"),
    ],
)
def test_a_seqinfo_that_is_none(text, words, tmp_path):
    mot(tmp_path, "one")
    (tmp_path / "one" / "seqinfo.ini").write_text(text)
    with pytest.raises(DataError, match=words):
        open_ground_truth(tmp_path)


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(DatasetLayoutError, match="holds no ground truth"):
        open_ground_truth(tmp_path)
    with pytest.raises(DatasetLayoutError, match="is no folder"):
        open_ground_truth(tmp_path / "missing")
    with pytest.raises(ConfigError, match="MOT99"):
        open_ground_truth(tmp_path, benchmark="MOT99")


@pytest.mark.parametrize(
    ("row", "kind", "words"),
    [
        ("3,1,1,1,9,9,1,-1,-1,-1", "frame beyond the sequence", "whose last frame is 2"),
        ("0,1,1,1,9,9,1,-1,-1,-1", "frame below 1", "counted from 1"),
        ("1.5,1,1,1,9,9,1,-1,-1,-1", "frame not whole", "frame 1.5"),
        ("1,2.5,1,1,9,9,1,-1,-1,-1", "id not whole", "id 2.5"),
        ("1,2,1,1,-9,9,1,-1,-1,-1", "negative width", "width -9 is negative"),
        ("1,2,1,1,9,-1,1,-1,-1,-1", "negative height", "height -1 is negative"),
        ("1,1,5,5,9,9,1,-1,-1,-1", "the same id twice in a frame", "frame 1 again (before: line 1)"),
        ("1,2,5,5,9,9,1,3,-1,-1", "class other than pedestrian", "class 3"),
    ],
)
def test_rows_of_results_that_cannot_be_meant(row, kind, words, tmp_path):
    path = tmp_path / "one.txt"
    path.write_text(f"1,1,1,1,9,9,0.9,-1,-1,-1\n{row}\n2,1,1,1,9,9,0.9,-1,-1,-1\n")
    with pytest.raises(DataError) as raised:
        read_mot_results(path, num_frames=2, bad=BadRows(path))
    assert f"{path}, line 2: " in str(raised.value)
    assert words in str(raised.value)
    bad = BadRows(path, "skip")
    assert read_mot_results(path, num_frames=2, bad=bad).lines.tolist() == [1, 3]
    assert dict(bad.counts) == {kind: 1}


def test_a_file_of_detections_is_told_from_tracks(tmp_path):
    path = tmp_path / "det.txt"
    path.write_text("1,-1,1,1,9,9,0.9\n1,-1,30,1,9,9,0.9\n")
    with pytest.raises(DataError, match="as in a file of detections"):
        read_mot_results(path, num_frames=2, bad=BadRows(path))


def test_a_ground_truth_with_an_unknown_class_names_the_way_out(tmp_path):
    path = tmp_path / "gt.txt"
    path.write_text("1,1,1,1,9,9,1,14,1\n")
    with pytest.raises(DataError, match="class 14 in column 8"):
        read_mot_ground_truth(path, num_frames=1, has_classes=True, bad=BadRows(path))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("0 1 Car 0 0 -10 1 1", "8 columns"),
        ("0 1 Ship 0 0 -10 1 1 9 9", "type 'Ship'"),
        ("0 1 Car 0 0 -10 1 x 9 9", "no number"),
        ("0 1 Car 0 0 -10 nan 1 9 9", "not finite"),
        ("0 1 Car 0 0 -10 9 1 1 9", "width -8 is negative"),
        ("7 1 Car 0 0 -10 1 1 9 9", "beyond the sequence"),
    ],
)
def test_rows_of_kitti_that_cannot_be_meant(row, words, tmp_path):
    path = tmp_path / "0000.txt"
    path.write_text(f"0 0 Car 0 0 -10 1 1 9 9\n{row}\n")
    with pytest.raises(DataError, match=f"line 2: .*{words}"):
        read_kitti_tracks(path, num_frames=2, is_ground_truth=True, bad=BadRows(path))
    bad = BadRows(path, "skip")
    assert len(read_kitti_tracks(path, num_frames=2, is_ground_truth=True, bad=bad)) == 1
    assert bad.counts.total() == 1
