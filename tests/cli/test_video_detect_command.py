"""`statefield video detect`: from videos and frames to files that can be scored and linked."""

import json

import numpy as np
import pytest
from fakes.videos import CLASSES, moving_shapes, write_cocovid, write_video
from PIL import Image

from statefield.cli.main import main
from statefield.tasks.common.run_folder import RunFolder

TINY = [
    *("--model.encoder", "spatial_mamba_nano"),
    *("--model.encoder_args", '{"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}'),
    *("--model.stride", "8", "--model.channels", "8", "--model.head_width", "16"),
    *("--model.anchor_sizes", "[16, 32]", "--model.anchor_ratios", "[1.0]"),
    *("--model.short_side", "[32]", "--model.long_side", "64"),
    *("--model.memory.heads", "2", "--model.memory.first_references", "2"),
    *("--model.detection.proposals", "12", "--model.detection.training_proposals", "20"),
    *("--model.detection.max_detections", "6"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`vid/` with annotations and frames of two videos, `clip.mp4`, and `run/`, a detector of two steps."""
    root = tmp_path_factory.mktemp("detect")
    annotations = write_cocovid(root / "vid", num_videos=2, num_frames=4, size=(48, 32), seed=5, suffix="png")
    write_video(root / "clip.mp4", moving_shapes(np.random.default_rng(0), 5, (48, 32), CLASSES, 0.0)[0])
    command = ["video", "train", "--data.train", str(annotations), "--data.val_videos", "[video_002]", *TINY]
    more = ["--trainer.accelerator", "cpu", "--trainer.threads", "1", "--trainer.fast_dev_run", "true"]
    assert main([*command, *more, "--run", str(root / "run")]) == 0
    assert RunFolder(root / "run").weights.exists()
    return root


def detect(place, source, output, *more):
    return main(["video", "detect", str(source), "--run", str(place / "run"), "--output", str(output), *more])


def test_annotated_frames_keep_their_numbers_and_are_scored(place, tmp_path, capsys):
    annotations, output = place / "vid" / "annotations.json", tmp_path / "found.json"
    assert detect(place, annotations, output) == 0
    assert "frames/s" in capsys.readouterr().out
    found = json.loads(output.read_text())
    images = {one["id"] for one in json.loads(annotations.read_text())["images"]}
    assert {one["image_id"] for one in found} <= images
    assert {one["category_id"] for one in found} <= {1, 2, 3}
    assert all(0 <= one["score"] <= 1 and one["bbox"][2] >= 0 for one in found)
    assert not (tmp_path / "found_images.json").exists()
    assert main(["video", "evaluate", "--gt", str(annotations), "--results", str(output)]) == 0


def test_a_video_file_is_numbered_and_its_detections_can_be_linked(place, tmp_path, capsys):
    output = tmp_path / "found.json"
    assert detect(place, place / "clip.mp4", output) == 0
    about = json.loads((tmp_path / "found_images.json").read_text())
    assert [one["frame_id"] for one in about["images"]] == [0, 1, 2, 3, 4]
    assert about["images"][2]["file_name"] == "clip/000003.jpg"
    assert (about["images"][0]["width"], about["images"][0]["height"]) == (48, 32)
    assert [one["name"] for one in about["categories"]] == list(CLASSES)
    images = str(tmp_path / "found_images.json")
    assert main(["mot", "track", str(output), "--images", images, "--output", str(tmp_path / "tracks")]) == 0
    assert (tmp_path / "tracks" / "clip.txt").exists()
    capsys.readouterr()


def test_frames_give_what_their_annotated_video_gives(place, tmp_path):
    assert detect(place, place / "vid" / "annotations.json", tmp_path / "all.json") == 0
    assert detect(place, place / "vid" / "video_002", tmp_path / "one.json") == 0
    numbered = json.loads((place / "vid" / "annotations.json").read_text())["images"]
    of_second = [one["id"] for one in numbered if one["file_name"].startswith("video_002")]
    expected = [one for one in json.loads((tmp_path / "all.json").read_text()) if one["image_id"] in of_second]
    found = json.loads((tmp_path / "one.json").read_text())
    assert [one["image_id"] for one in found] == [of_second.index(one["image_id"]) + 1 for one in expected]
    assert [one["bbox"] for one in found] == [one["bbox"] for one in expected]


def test_a_score_leaves_out_what_is_below_it(place, tmp_path):
    assert detect(place, place / "vid" / "video_001", tmp_path / "all.json") == 0
    scores = [one["score"] for one in json.loads((tmp_path / "all.json").read_text())]
    least = float(np.median(scores))
    assert detect(place, place / "vid" / "video_001", tmp_path / "some.json", "--score", str(least)) == 0
    kept = [one["score"] for one in json.loads((tmp_path / "some.json").read_text())]
    assert kept == [score for score in scores if score >= least]
    assert 0 < len(kept) < len(scores)


def test_frames_are_drawn(place, tmp_path):
    assert detect(place, place / "clip.mp4", tmp_path / "a.json", "--draw", "frames", "--draw-score", "0") == 0
    drawn = sorted((tmp_path / "a_drawn" / "clip").iterdir())
    assert [path.name for path in drawn] == [f"{number:06d}.jpg" for number in range(1, 6)]
    assert detect(place, place / "clip.mp4", tmp_path / "b.json", "--draw", "webp", "--draw-score", "1") == 0
    with Image.open(tmp_path / "b_drawn" / "clip.webp") as video:
        assert video.n_frames == 5 and video.size == (48, 32)
        plain = np.asarray(video.convert("RGB")).astype(float)
    with Image.open(drawn[0]) as frame:
        assert np.abs(np.asarray(frame).astype(float) - plain).max() > 60  # boxes


def test_what_is_there_stays_unless_told_otherwise(place, tmp_path, capsys):
    output = tmp_path / "found.json"
    output.write_text("[]")
    assert detect(place, place / "clip.mp4", output) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert output.read_text() == "[]"
    assert detect(place, place / "clip.mp4", output, "--overwrite") == 0
    assert output.read_text() != "[]"


def test_a_broken_frame_is_named_and_nothing_is_written(place, tmp_path, capsys):
    frames = tmp_path / "frames"
    frames.mkdir()
    for path in sorted((place / "vid" / "video_001").iterdir()):
        (frames / path.name).write_bytes(path.read_bytes())
    (frames / "000002.png").write_bytes((frames / "000002.png").read_bytes()[:200])
    output = tmp_path / "found.json"
    assert detect(place, frames, output, "--draw", "frames") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "000002.png" in said and "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames"]


def test_other_classes_under_the_same_numbers_are_refused(place, tmp_path, capsys):
    content = json.loads((place / "vid" / "annotations.json").read_text())
    content["categories"][1]["name"] = "star"
    (tmp_path / "other.json").write_text(json.dumps(content))
    source, output = tmp_path / "other.json", tmp_path / "found.json"
    assert detect(place, source, output, "--images", str(place / "vid")) == 2
    assert "has no class 'square' of id 2" in " ".join(capsys.readouterr().err.split())
    assert not output.exists()


@pytest.mark.parametrize(
    ("source", "more", "message"),
    [
        ("none.mp4", [], "no such file or folder"),
        ("clip.mp4", ["--score", "2"], "--score 2: a share from 0 to 1"),
        ("clip.mp4", ["--images", "vid"], "--images is of one CocoVID"),
        ("clip.mp4", ["--run", "vid"], "is not a run folder"),
        ("clip.mp4", ["--output", "found.txt"], "a name that ends in .json"),
        ("clip.mp4", ["--device", "warp"], "is no device"),
        ("empty", [], "holds no frames"),
        ("text.mp4", [], "text.mp4: this is no video"),
    ],
)
def test_what_cannot_work_is_said_in_one_paragraph(place, tmp_path, capsys, monkeypatch, source, more, message):
    monkeypatch.chdir(place)
    (place / "text.mp4").write_bytes(b"hello")
    (place / "empty").mkdir(exist_ok=True)
    assert detect(place, source, tmp_path / "found.json", *more) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
