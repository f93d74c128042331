"""`statefield video train`: what a run writes, what is refused, exact resumption, and that shapes are learned."""

import json
from pathlib import Path

import pytest
import torch
from fakes.videos import write_cocovid

from statefield.cli.main import main
from statefield.datasets.tracking.video_objects import open_videos
from statefield.errors import ConfigError, DataError
from statefield.tasks.common.checkpointing import read_weights, save_weights
from statefield.tasks.common.module import rate_factor
from statefield.tasks.tracking.video_detection.examples import KeyFrames, VideoData
from statefield.tasks.tracking.video_detection.recipe import MemoryConfig, VideoDataConfig, VideoModelConfig
from statefield.tasks.tracking.video_detection.training import load_detector

HOME = Path(__file__).parents[4] / "recipes" / "tracking"
RECIPES = sorted(HOME.glob("mamba_vod_*.yaml"))
TINY = [
    *("--model.encoder", "spatial_mamba_nano"),
    *("--model.encoder_args", '{"dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}'),
    *("--model.stride", "8", "--model.channels", "8", "--model.head_width", "16", "--model.maps", "single"),
    *("--model.anchor_sizes", "[16, 32]", "--model.anchor_ratios", "[1.0]"),
    *("--model.short_side", "[32]", "--model.long_side", "64"),
    *("--model.memory.heads", "2", "--model.memory.key_length", "40", "--model.memory.max_length", "80"),
    *("--model.detection.proposals", "12", "--model.detection.training_proposals", "20"),
    *("--model.detection.sampled_proposals", "16", "--model.detection.max_detections", "10"),
]
SHORT = [
    *("--trainer.max_epochs", "2", "--trainer.steps_per_epoch", "3", "--trainer.accelerator", "cpu"),
    *("--trainer.threads", "1", "--trainer.save_every_steps", "2"),
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Four videos of six frames."""
    return write_cocovid(tmp_path_factory.mktemp("vid"), num_videos=4, num_frames=6, size=(48, 32), seed=3)


def words(videos, run, *more):
    splits = ["--data.val_videos", "[video_002]", "--data.test_videos", "[video_003]"]
    return ["video", "train", "--data.train", str(videos), *splits, *TINY, *SHORT, "--run", str(run), *more]


def test_a_run_ends_with_scores_beside_its_control_and_detects(videos, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(words(videos, run, "--control.without_memory", "true")) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert [row["role"] for row in metrics["comparison"]] == ["model", "control"]
    assert metrics["comparison"][1]["name"] == "spatial_mamba_nano, each frame alone"
    assert metrics["comparison"][0]["parameters"] > metrics["comparison"][1]["parameters"]
    assert metrics["videos"] == ["video_003"]
    assert metrics["model"]["num_frames"] == 6
    assert "video_003" in (run / "report.html").read_text()
    assert (run / "figures" / "overview.png").exists() or (run / "figures" / "best_case_truth.png").exists()
    history = (run / "metrics.csv").read_text().splitlines()
    assert len(history) == 3 and "AP50" in history[0]
    capsys.readouterr()
    evaluation = ["video", "evaluate", "--gt", str(run / "predictions" / "truth.json"), "--json", str(run / "o.json")]
    assert main([*evaluation, "--results", str(run / "predictions" / "detections.json")]) == 0
    scored = json.loads((run / "o.json").read_text())["coco"]["bbox"]["detections"]["overall"]
    assert scored["AP50"] == metrics["model"]["test"]["AP50"]
    detector = load_detector(run)
    assert detector.classes == ("disc", "square", "triangle") and detector.category_ids == (1, 2, 3)


def test_a_run_that_was_stopped_ends_with_the_same_bits(videos, tmp_path, monkeypatch):
    assert main(words(videos, tmp_path / "whole")) == 0
    from statefield.tasks.tracking.video_detection.task import VideoDetectionTask

    loss, calls = VideoDetectionTask.batch_loss, []

    def killed(self, batch):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(VideoDetectionTask, "batch_loss", killed)
    assert main(words(videos, tmp_path / "stopped")) == 130
    monkeypatch.undo()
    assert main(words(videos, tmp_path / "stopped", "--resume")) == 0
    whole, stopped = (read_weights(tmp_path / name / "weights.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    predictions = [(tmp_path / name / "predictions" / "detections.json").read_text() for name in ("whole", "stopped")]
    assert predictions[0] == predictions[1]


def test_sgd_with_a_step_and_weights_of_another_run(videos, tmp_path):
    more = ["--model.memory", "null", "--model.optimizer", "sgd", "--model.lr", "0.01", "--model.schedule", "late_step"]
    assert main(words(videos, tmp_path / "first", *more, "--model.warmup_steps", "1")) == 0
    weights = str(tmp_path / "first" / "weights.safetensors")
    still = [*more, "--model.weights", weights, "--model.lr", "0", "--trainer.max_epochs", "1"]
    assert main(words(videos, tmp_path / "second", *still)) == 0
    first, second = (read_weights(tmp_path / name / "weights.safetensors") for name in ("first", "second"))
    learned = [name for name in first if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(first[name], second[name]) for name in learned)
    assert main(words(videos, tmp_path / "third", "--model.weights", weights)) == 2  # has a memory
    assert not (tmp_path / "third").exists()
    factors = [rate_factor(step, total=6, warmup=1, schedule="late_step") for step in range(6)]
    assert factors == [1, 1, 1, 1, 0.1, 0.1]


def test_enhancements_learn_at_their_share_of_the_rate():
    from statefield.tasks.tracking.video_detection.task import VideoDetectionTask

    config = VideoModelConfig(
        encoder="spatial_mamba_nano",
        encoder_args={"dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1)},
        channels=8,
        head_width=16,
        memory=MemoryConfig(heads=2, rate_share=0.1),
        lr=0.5,
    )
    task = VideoDetectionTask(config, num_classes=3, seed=0, total_steps=10)
    names = {id(parameter): name for name, parameter in task.net.named_parameters()}
    rates = {names[id(one)]: group["lr"] for group in task.parameter_groups() for one in group["params"]}
    slow = {name for name, rate in rates.items() if rate == pytest.approx(0.05)}
    assert slow == {name for name in names.values() if "aggregation" in name} and len(slow) == 3 * 8
    assert all(rate == 0.5 for name, rate in rates.items() if name not in slow)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_run(videos, tmp_path, recipe):
    run = tmp_path / "run"
    more = ["--data.val", str(videos), "--data.test", str(videos), "--data.workers", "0"]
    small = TINY if "shapes" not in recipe.stem else []
    command = ["video", "train", "--config", str(recipe), "--data.train", str(videos), "--data.images", "null"]
    assert main([*command, *more, *small, "--run", str(run), "--trainer.fast_dev_run", "true"]) == 0
    assert (run / "weights.safetensors").exists() and (run / "report.html").exists()


def test_there_are_recipes():
    assert len(RECIPES) >= 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.val_videos", "[video_9]"], "no video 'video_9'"),
        (["--data.test_videos", "[video_002]"], "name it in one of them"),
        (["--data.val_videos", "[]"], "data.val = None and data.val_videos = []"),
        (["--data.train", "none.json"], "none.json: no such file"),
        (["--data.references", "0"], "data.references = 0: 1 or more"),
        (["--model.memory.pixels", "false", "--model.memory.instances", "false"], "neither pixels nor instances"),
        (["--model.memory.heads", "3"], "does not divide into model.memory.heads = 3"),
        (["--model.memory.key_length", "81"], "holds 80 and looks at 81"),
        (["--model.memory.rate_share", "0"], "model.memory.rate_share = 0.0: a share above 0"),
        (["--model.memory.rate_share", "1.5"], "up to 1 is needed"),
        (["--model.short_side", "[8]"], "sides of 32 pixels or more"),
        (["--model.encoder", "spatial_mamba_nanno"], "did you mean"),
        (["--model.memory", "null", "--control.without_memory", "true"], "the control would be the model"),
        (["--model.anchors", "3"], "Did you mean"),
    ],
)
def test_settings_that_cannot_work_are_said_before_anything_is_written(videos, tmp_path, capsys, more, message):
    assert main(words(videos, tmp_path / "run", *more)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_classes_must_be_equal_everywhere(videos, tmp_path, capsys):
    other = write_cocovid(tmp_path / "other", num_videos=1, num_frames=2, size=(48, 32), classes=("disc", "square"))
    more = ["--data.val", str(other), "--data.val_videos", "[]", "--run", str(tmp_path / "run")]
    assert main(words(videos, tmp_path / "run", *more)) == 2
    assert "they must be equal" in " ".join(capsys.readouterr().err.split())


def test_an_example_depends_on_its_number_alone(videos):
    opened = open_videos(videos)
    config = VideoDataConfig(reference_range=2)
    one, other = (KeyFrames(opened, config, references=2, seed=4) for _ in range(2))
    later = [one[number] for number in range(30)][17]
    again = other[17]
    assert later["origin"] == again["origin"]
    assert torch.equal(later["frame"], again["frame"])
    assert all(torch.equal(a, b) for a, b in zip(later["references"], again["references"], strict=True))
    assert {one[number]["origin"] for number in range(len(one))} == {
        one[number]["origin"] for number in range(len(one), 2 * len(one))
    }


def test_a_mirrored_example_has_mirrored_boxes(videos):
    opened = open_videos(videos)
    plain = KeyFrames(opened, VideoDataConfig(flip=False), references=1, seed=4)
    turned = KeyFrames(opened, VideoDataConfig(flip=True), references=1, seed=4)
    mirrored = 0
    for number in range(12):
        one, other = plain[number], turned[number]
        if torch.equal(one["frame"], other["frame"]):
            assert torch.equal(one["target"]["boxes"], other["target"]["boxes"])
            continue
        mirrored += 1
        assert torch.equal(one["frame"].flip(2), other["frame"])
        assert torch.equal(one["references"][0].flip(2), other["references"][0])
        boxes = other["target"]["boxes"]
        assert torch.allclose(48 - boxes[:, [2, 0]], one["target"]["boxes"][:, [0, 2]])
        assert torch.equal(boxes[:, [1, 3]], one["target"]["boxes"][:, [1, 3]])
    assert 0 < mirrored < 12


def test_the_only_frame_of_a_video_is_its_own_reference(tmp_path):
    opened = open_videos(write_cocovid(tmp_path, num_videos=1, num_frames=1))
    example = KeyFrames(opened, VideoDataConfig(), references=2, seed=0)[0]
    assert all(torch.equal(one, example["frame"]) for one in example["references"])


def test_nothing_to_learn_from_is_said(tmp_path):
    path = write_cocovid(tmp_path, num_videos=1, num_frames=2)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    opened = open_videos(path)
    with pytest.raises(DataError, match="none of its frames has an object"):
        KeyFrames(opened, VideoDataConfig(), references=1, seed=0)
    with_empty = KeyFrames(opened, VideoDataConfig(with_empty=True), references=1, seed=0)
    assert with_empty[1]["target"]["boxes"].shape == (0, 4)
    with pytest.raises(ConfigError, match=r"data\.batch_size = 0"):
        VideoData(opened, opened, VideoDataConfig(batch_size=0, with_empty=True), references=1, steps=1, seed=0)


def test_weights_of_another_detector_are_refused(videos, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(words(videos, run, "--trainer.fast_dev_run", "true")) == 0
    state = read_weights(run / "weights.safetensors")
    state.pop("heads.box_head.layers.0.bias")
    save_weights(state, run / "weights.safetensors", {})
    capsys.readouterr()
    frames = str(videos.parent / "video_001")
    assert main(["video", "detect", frames, "--run", str(run), "--output", str(tmp_path / "d.json")]) == 2
    assert "does not fit the net" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "d.json").exists()
