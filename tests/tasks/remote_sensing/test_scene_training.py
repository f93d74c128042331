"""Training of scene classifiers: what a run writes, what is refused, exact resumption, and that textures are learnt."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.scenes import CLASSES, write_class_folders
from lightning.pytorch import Callback
from torch.nn import functional

from statefield.datasets.scenes import open_scenes
from statefield.errors import CheckpointError, ConfigError, DataError
from statefield.tasks.common.checkpointing import load_weights, read_checkpoint, read_weights, save_weights
from statefield.tasks.common.config import TrainerConfig
from statefield.tasks.common.run_folder import RunFolder, read_history
from statefield.tasks.remote_sensing.scene_recipe import (
    SceneAugmentConfig,
    SceneControlConfig,
    SceneDataConfig,
    SceneLossConfig,
    SceneModelConfig,
    SceneRecipe,
    read_recipe,
    require_sound,
)
from statefield.tasks.remote_sensing.scene_run import build_task, fit, load_run, train
from statefield.tasks.remote_sensing.scene_run import test as score
from statefield.tasks.remote_sensing.scene_task import SceneTask

TINY = {"size": [16, 2]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data") / "scenes", per_class=10)


def _recipe(dataset: Path, run: Path, **trainer) -> SceneRecipe:
    settings = {"max_epochs": 2, "steps_per_epoch": 4, "save_every_steps": 3, "threads": 1, "accelerator": "cpu"}
    return SceneRecipe(
        run=run,
        seed=5,
        data=SceneDataConfig(
            root=dataset, image_size=24, batch_size=6, augment=SceneAugmentConfig(auto_augment=True, gain=0.1)
        ),
        model=SceneModelConfig(
            net_args=TINY,
            loss=SceneLossConfig(mixup=0.8, cutmix=1.0),
            warmup_steps=2,
            average_decay=0.8,
        ),
        trainer=TrainerConfig(**(settings | trainer)),
    )


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory) -> Path:
    """A run with a control, from end to end."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    train(dataclasses.replace(_recipe(dataset, run), control=SceneControlConfig(without_scan=True)))
    return run


def test_run_folder_holds_everything(whole):
    folder = RunFolder(whole)
    said = json.loads(folder.metrics.read_text())
    assert said["classes"] == list(CLASSES) and np.sum(said["confusion"]) == said["model"]["num_scenes"] == 8
    assert [row["role"] for row in said["comparison"]] == ["model", "control"]
    assert said["model"]["parameters"] > said["controls"][0]["parameters"] > 0
    assert {"OA", "AA", "kappa", "F1/macro", "F1/houses", "Precision/trees"} <= set(said["model"]["test"])
    rows = list(csv.DictReader((folder.predictions / "scenes.csv").read_text().splitlines()))
    assert len(rows) == 8 and all(row["case"].startswith(row["class"]) for row in rows)
    for row in rows:
        shares = [float(row[f"p({name})"]) for name in CLASSES]
        assert sum(shares) == pytest.approx(1, abs=1e-5) and CLASSES[int(np.argmax(shares))] == row["given"]
        assert Path(row["file"]).is_file() and float(row["probability"]) == max(shares)
    right = np.mean([row["class"] == row["given"] for row in rows])
    assert said["model"]["test"]["OA"] == pytest.approx(right)
    page = folder.report.read_text()
    assert "Confusion matrix" in page and "Scores per class" in page and "the model itself with every scan" in page
    assert "statefield scene train" in page
    assert "http" not in re.sub(r"base64,[^\"]*", "", page).replace("http://www.w3.org", "")
    assert (folder.figures / "confusion.png").is_file() and (folder.figures / "scenes.png").is_file()
    history = read_history(folder.history)
    assert [row["epoch"] for row in history] == [1, 2] and all(0 <= row["F1/macro"] <= 1 for row in history)


def test_normalisation_of_the_run_is_that_of_its_training_scenes(whole):
    stored = json.loads(RunFolder(whole).dataset.read_text())
    run = load_run(whole)
    assert run.info.mean == tuple(stored["mean"]) and all(100 < value < 140 for value in run.info.mean)
    assert all(20 < value < 80 for value in run.info.std)
    assert not run.task.training


def test_testing_again_gives_the_same_scores(whole, tmp_path):
    before = json.loads(RunFolder(whole).metrics.read_text())["model"]["test"]
    result = score(whole, output=tmp_path / "again")
    assert result.summary["OA"] == before["OA"] and result.report.is_file()
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["model"]["test"] == before
    assert read_recipe(tmp_path / "again" / "config.yaml") == load_run(whole).recipe


def test_testing_on_other_classes_is_refused(whole, tmp_path):
    other = write_class_folders(tmp_path / "other", ("a", "b"))
    with pytest.raises(ConfigError, match=r"classes \('a', 'b'\)"):
        score(whole, root=other)
    same = write_class_folders(tmp_path / "same", seed=1)
    assert score(whole, root=same, output=tmp_path / "out").summary["num_cases"] == 8


class _Stop(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


class _StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step:
            raise _Stop


def _digest(run: Path) -> str:
    folder = RunFolder(run)
    digest = hashlib.sha256(folder.weights.read_bytes())
    content = read_checkpoint(folder.last)
    for name, value in sorted(content["state_dict"].items()):
        digest.update(name.encode() + value.numpy().tobytes())
    for index, state in sorted(content["optimizer_states"][0]["state"].items()):
        for name, value in sorted(state.items()):
            digest.update(f"{index}{name}".encode() + torch.as_tensor(value).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("step", [2, 5])
def test_resumed_run_ends_with_the_bits_of_the_uninterrupted_one(dataset, whole, tmp_path, step):
    recipe = _recipe(dataset, tmp_path / "run", save_every_steps=1)
    with pytest.raises(_Stop):
        fit(recipe, callbacks=[_StopAt(step)])
    assert not RunFolder(tmp_path / "run").weights.exists()
    fit(recipe, resume=True)
    assert _digest(tmp_path / "run") == _digest(whole)
    ours, theirs = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_history(RunFolder(run).history)]
        for run in (tmp_path / "run", whole)
    )
    assert ours == theirs


def test_resuming_with_other_scenes_or_settings_is_refused(tmp_path):
    root = write_class_folders(tmp_path / "data", per_class=5)
    recipe = dataclasses.replace(_recipe(root, tmp_path / "run", max_epochs=1, steps_per_epoch=1))
    fit(recipe)
    with pytest.raises(ConfigError, match="holds a run already"):
        fit(recipe)
    changed = dataclasses.replace(recipe, seed=6)
    with pytest.raises(ConfigError, match=r"other settings \(seed\)"):
        fit(changed, resume=True)
    (root / "water" / "water_003.png").unlink()
    with pytest.raises(ConfigError, match="other cases in the split"):
        fit(recipe, resume=True)


def test_broken_scene_stops_a_run_before_anything_is_written(tmp_path):
    root = write_class_folders(tmp_path / "data", per_class=5)
    broken = root / "trees" / "trees_002.png"
    broken.write_bytes(broken.read_bytes()[:80])
    with pytest.raises(DataError, match=r"1 of 20 scenes cannot be used.*\n.*trees_002.png"):
        train(_recipe(root, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_mixing_is_the_same_for_the_same_seed_and_changes_the_loss(dataset, tmp_path):
    recipe = _recipe(dataset, tmp_path / "run")
    task = build_task(recipe, open_scenes(dataset)[1], total_steps=10)
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(size=(6, 3, 24, 24)).astype(np.float32))
    batch = {"image": image, "label": torch.tensor([0, 1, 2, 3, 0, 1]), "origin": ["x"] * 6, "number": torch.arange(6)}
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(task.batch_loss(batch).item())
    assert losses[0] == losses[1] != losses[2]
    plain = build_task(
        dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, loss=SceneLossConfig(label_smoothing=0.1))),
        open_scenes(dataset)[1],
        total_steps=10,
    )
    plain.eval().requires_grad_(False)
    # smoothed cross-entropy by its definition: 0.9 of the class's own and 0.1 of the mean over classes
    logits = plain.net(image).log_softmax(1)
    expected = -(0.9 * logits.gather(1, batch["label"][:, None])[:, 0] + 0.1 * logits.mean(1)).mean()
    assert float(plain.batch_loss(batch)) == pytest.approx(float(expected), rel=1e-5)
    assert float(functional.cross_entropy(plain.net(image), batch["label"])) != pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("data", {"image_size": 4}, "side of 8 pixels"),
        ("data", {"short_edge": 20}, "short_edge = 20 is below"),
        ("data", {"mean": (1.0, 2.0, 3.0)}, "one of data.mean and data.std"),
        ("data", {"mean": (1.0, 2.0, 3.0), "std": (1.0, 0.0, 1.0)}, "numbers above 0"),
        ("data", {"augment": SceneAugmentConfig(crop_scale=(0.0, 1.0))}, "crop_scale"),
        ("data", {"augment": SceneAugmentConfig(gain=1.5)}, "gain 1.5"),
        ("model", {"loss": SceneLossConfig(mixup=-1.0)}, "mixup -1.0"),
        ("model", {"new_classifier": True}, "without model.weights"),
    ],
)
def test_settings_that_cannot_work_are_said(dataset, tmp_path, part, changes, said):
    recipe = _recipe(dataset, tmp_path / "run")
    broken = dataclasses.replace(recipe, **{part: dataclasses.replace(getattr(recipe, part), **changes)})
    with pytest.raises(ConfigError, match=said):
        require_sound(broken)
    with pytest.raises(ConfigError, match=said):
        train(broken)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "control", "said"),
    [
        ({"net_args": {"size": "giant"}}, None, "no size 'giant'"),
        ({"net_args": {"sise": "base"}}, None, "cannot be built with net_args"),
        ({"net": None, "encoder": "test_convnext", "encoder_args": {"depth": 3}}, None, "of test_convnext"),
        ({}, SceneControlConfig(), "set one of the two"),
        ({}, SceneControlConfig(encoder="test_convnext", without_scan=True), "set one of the two"),
        ({"without_scan": True}, SceneControlConfig(without_scan=True), "the control would be the model"),
    ],
)
def test_nets_that_cannot_be_built_are_said_before_scenes_are_read(dataset, tmp_path, model, control, said):
    recipe = _recipe(dataset, tmp_path / "run")
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, **model), control=control)
    with pytest.raises(ConfigError, match=said):
        train(recipe)
    assert not (tmp_path / "run").exists()


def _task(**model) -> SceneTask:
    config = SceneModelConfig(**({"net_args": TINY} | model))
    return SceneTask(config, classes=("a", "b"), num_channels=3, image_size=24, seed=0, total_steps=1)


@pytest.mark.parametrize("net", [{}, {"net": None, "encoder": "test_convnext"}])
def test_weights_of_other_classes_fill_all_but_the_classifier(dataset, tmp_path, net):
    saved = _task(**net)
    path = tmp_path / "weights.safetensors"
    save_weights(saved.net.state_dict(), path, {})
    recipe = _recipe(dataset, tmp_path / "run")
    model = dataclasses.replace(recipe.model, **net, weights=path, new_classifier=True)
    info = open_scenes(dataset)[1]
    task = build_task(dataclasses.replace(recipe, model=model), info, total_steps=1)
    stored = read_weights(path)
    same = {
        name for name, value in task.net.state_dict().items() if torch.equal(value, stored.get(name, torch.empty(0)))
    }
    left = set(task.net.state_dict()) - same
    assert left and all("head" in name or "fc" in name for name in left) and len(same) > 5
    with pytest.raises(CheckpointError):
        build_task(
            dataclasses.replace(recipe, model=dataclasses.replace(model, new_classifier=False)), info, total_steps=1
        )
    load_weights(_task(**net).net, path)


def test_grey_and_many_bands_train_too(tmp_path):
    for number, (channels, suffix) in enumerate(((1, ".png"), (4, ".tif"))):
        root = write_class_folders(tmp_path / f"d{number}", per_class=4, num_channels=channels, suffix=suffix)
        recipe = _recipe(root, tmp_path / f"run{number}", fast_dev_run=True)
        data = dataclasses.replace(recipe.data, augment=SceneAugmentConfig(turns=True, shift=0.1))
        (run,) = fit(dataclasses.replace(recipe, data=data))
        assert len(run.info.mean) == channels and run.task.net(torch.zeros(1, channels, 24, 24)).shape == (1, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("net", "steps"), [("rsmamba", 20), ("spatial_mamba", 8)])
def test_textures_are_learnt_far_beyond_chance(tmp_path, net, steps):
    root = write_class_folders(tmp_path / "data", per_class=40, size=(32, 32))
    model = SceneModelConfig(net_args={"size": [32, 3]}, lr=2e-3, warmup_steps=20)
    if net == "spatial_mamba":
        model = dataclasses.replace(
            model,
            net=None,
            encoder="spatial_mamba_nano",
            encoder_args={"dims": [16, 24, 32, 48], "depths": [1, 1, 1, 1]},
        )
    recipe = SceneRecipe(
        run=tmp_path / "run",
        data=SceneDataConfig(root=root, image_size=32, batch_size=16, cache="memory"),
        model=model,
        trainer=TrainerConfig(
            max_epochs=6,
            steps_per_epoch=steps,
            threads=1,
            accelerator="cpu",
            val_every_epochs=6,  # so the last weights are tested: the validation scenes are few, and soon all right
        ),
    )
    result = train(recipe)
    assert result is not None and result.summary["num_cases"] == 32
    assert result.summary["OA"] > 0.85  # chance: 0.25
    assert result.summary["F1/macro"] > 0.85
