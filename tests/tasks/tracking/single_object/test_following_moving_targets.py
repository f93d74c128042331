"""A small MambaEVT learns to follow: targets, grounds and paths of the test are none that it was trained on."""

import json

import pytest
from fakes.moving_targets import write_otb

from statefield.cli.main import main

TRAIN, VAL, TEST = range(1000, 1192), range(100, 101), range(200, 204)
# The region is moved by up to half a side, as a target moves by 0.37 at most. Its sides vary by more than those of a
# box that is well followed: with a deviation of 0.1 the net learned that a target fills 0.4 of the region, and of an
# error of the region's side a good three quarters stayed in the box that it found there.
DATA = {"templates": 1, "search_shift": 1.0, "search_scale": 0.2, "grey": 0, "brightness": 0, "batch_size": 8}
MODEL = {
    "template_size": 32,
    "search_size": 64,
    "patch_size": 8,
    "template_factor": 1.5,
    "search_factor": 2.5,
    "dim": 64,
    "num_layers": 2,
    "d_state": 4,
    "head_channels": 64,
    "drop_path_rate": 0,
    "lr": 3e-3,
    "backbone_lr": 1,
    "warmup_steps": 20,
    "schedule": "cosine",
    "average_decay": 0.99,
}
TRACKER = {"short_templates": 2, "long_templates": 4}
TRAINER = {"max_epochs": 1, "steps_per_epoch": 2000, "threads": 1, "accelerator": "cpu"}


def words(**groups):
    pairs = [(f"--{group}.{name}", str(groups[group][name])) for group in groups for name in groups[group]]
    return [word for pair in pairs for word in pair]


@pytest.mark.slow
def test_unseen_targets_are_followed_to_the_end(tmp_path):
    """Recorded: AUC 82.9 and precision 100, and 84.8 on twelve other sequences, of one training of five minutes.

    What it took: 24 targets and 1,200 steps of a net of 48 channels came to 79.6 here, 96 targets and 1,300 steps of
    this one to 76.8.

    The target is a textured square or disc of 18 to 26 pixels in frames of 96 x 128, on textured ground, with noise. In
    40 frames it goes 150 to 190 pixels on a curve, by a fifth of its side a frame and by 0.37 of it at most, and its
    side changes by up to a third. A box that stays where it was has an AUC of 6.
    """
    names = {"train": TRAIN, "val": VAL, "test": TEST}
    for split, frames in (("train", 10), ("val", 40), ("test", 40)):
        root = write_otb(tmp_path / "otb", {f"{split}{seed}": seed for seed in names[split]}, frames)
    held_out = {split: f"[{', '.join(f'{split}{seed}' for seed in names[split])}]" for split in ("val", "test")}
    run, results = tmp_path / "run", tmp_path / "results"
    settings = words(data={"root": root} | held_out | DATA, model=MODEL, tracker=TRACKER, trainer=TRAINER)
    assert main(["sot", "train", *settings, "--run", str(run)]) == 0
    tested = [f"test{seed}" for seed in TEST]
    track = ["sot", "track", str(root), "--names", *tested, "--run", str(run), "--output", str(results)]
    assert main([*track, "--device", "cpu"]) == 0
    scores = tmp_path / "scores.json"
    evaluate = ["sot", "evaluate", "--gt", str(root), "--results", str(results), "--sequences", *tested]
    assert main([*evaluate, "--json", str(scores)]) == 0
    (tracker,) = json.loads(scores.read_text())["evaluations"][0]["trackers"].values()
    assert tracker["overall"]["P"] >= 95
    assert tracker["overall"]["AUC"] >= 80
    rows = {row["name"]: row["AUC"] for row in json.loads((run / "metrics.json").read_text())["comparison"]}
    assert rows["the first box"] < 0.2
