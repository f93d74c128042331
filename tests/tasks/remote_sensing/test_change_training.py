"""Training, testing and loading of change detection, each kind end to end on fakes of a published layout; and a run
that is stopped and resumed, which ends with the bits of one that was not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.change import write_change_pairs, write_levir, write_oscd, write_second, write_split_folders, write_xbd
from lightning.pytorch import Callback
from PIL import Image

from statefield.errors import CheckpointError, ConfigError
from statefield.tasks.common.checkpointing import read_checkpoint
from statefield.tasks.common.config import TrainerConfig
from statefield.tasks.common.recipes import recipe_text
from statefield.tasks.common.run_folder import RunFolder, read_history
from statefield.tasks.remote_sensing.change_recipe import (
    BandScalingConfig,
    ChangeControlConfig,
    ChangeDataConfig,
    ChangeInferenceConfig,
    ChangeModelConfig,
    ChangeRecipe,
    PairAugmentConfig,
    read_recipe,
)
from statefield.tasks.remote_sensing.change_run import load_change_run
from statefield.tasks.remote_sensing.change_training import fit, train
from statefield.tasks.remote_sensing.change_training import test as run_test

SMALL = ChangeModelConfig(encoder="test_convnext", net_args={"width": 8}, warmup_steps=2)


def _recipe(root: Path, run: Path, *, model: ChangeModelConfig = SMALL, data=None, trainer=None, **settings):
    steps = {"max_epochs": 2, "steps_per_epoch": 3, "threads": 1, "accelerator": "cpu"} | (trainer or {})
    pairs = {"patch_size": (32, 32), "batch_size": 2} | (data or {})
    return ChangeRecipe(
        run=run,
        seed=5,
        data=ChangeDataConfig(root=root, **pairs),
        model=model,
        trainer=TrainerConfig(**steps),
        **settings,
    )


def _net(net: str) -> ChangeModelConfig:
    return dataclasses.replace(SMALL, net=net)


@pytest.fixture(scope="module")
def levir(tmp_path_factory) -> Path:
    return write_levir(tmp_path_factory.mktemp("data") / "LEVIR-CD")


@pytest.fixture(scope="module")
def trained(levir, tmp_path_factory) -> Path:
    """A binary run with a control and a threshold that was chosen."""
    run = tmp_path_factory.mktemp("runs") / "levir"
    recipe = _recipe(
        levir,
        run,
        data={"augment": PairAugmentConfig(swap_dates=True)},
        model=dataclasses.replace(SMALL, average_decay=0.5),
        inference=ChangeInferenceConfig(threshold="val", mirror=True),
        control=ChangeControlConfig(net="fc_siam_diff", net_args={"width": 4}),
    )
    train(recipe)
    return run


def test_a_run_folder_has_everything_with_the_control_beside_the_model(trained):
    folder = RunFolder(trained)
    stored = json.loads(folder.metrics.read_text())
    assert [row["role"] for row in stored["comparison"]] == ["model", "control"]
    assert [row["name"] for row in stored["comparison"]] == ["mamba_bcd test_convnext", "fc_siam_diff"]
    for entry in (stored["model"], *stored["controls"]):
        assert set(entry["test"]["cases"]) == {"test_1", "test_2", "test_3"}
        assert 0 <= entry["test"]["scores"]["F1/change (pooled)"] <= 1
    report = folder.report.read_text()
    for word in (
        "fc_siam_diff",
        "false alarm",
        "Thresholds of probability were chosen on the validation pairs",
        "kappa",
    ):
        assert word in report
    assert {path.name for path in folder.figures.glob("best_case_*")} == {
        f"best_case_{name}.png" for name in ("before", "after", "truth", "outcome")
    }
    maps = sorted(folder.predictions.glob("*.png"))
    assert [path.stem for path in maps] == ["test_1", "test_2", "test_3"]
    assert set(np.unique(np.asarray(Image.open(maps[0])))) <= {0, 255}


def test_the_written_maps_are_those_that_were_scored(trained, levir):
    from statefield.tasks.remote_sensing.change_evaluate import evaluate_maps

    stored = json.loads(RunFolder(trained).metrics.read_text())["model"]["test"]["scores"]
    again = evaluate_maps(trained / "predictions", levir / "test" / "label").scores.values
    assert again == pytest.approx(stored)


def test_a_loaded_run_decides_as_the_test_did(trained, levir):
    run = load_change_run(trained)
    assert run.layers[0].classes == ("unchanged", "changed") and run.channels == ("red", "green", "blue")
    assert run.bands == (0, 1, 2) and run.roi == (32, 32)
    assert run.threshold == json.loads((trained / "threshold.json").read_text())["threshold"]
    assert not run.net.training
    bias = run.net(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)) - run.net.net(
        torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    )
    expected = -np.log(run.threshold / (1 - run.threshold))
    torch.testing.assert_close(bias[0, 1], torch.full((32, 32), float(expected)))
    assert (bias[0, 0] == 0).all()


def test_a_run_is_tested_on_other_splits_and_other_data(trained, tmp_path):
    result = run_test(trained, split="val", output=tmp_path / "val")
    assert set(json.loads(result.folder.metrics.read_text())["model"]["test"]["cases"]) == {"val_1", "val_2"}
    other = write_change_pairs(tmp_path / "other")
    result = run_test(trained, root=other, output=tmp_path / "result")
    assert result.summary["OA (pooled)"] > 0
    assert len(list(result.folder.predictions.glob("*.png"))) == 2
    with pytest.raises(ConfigError, match="classes and channels must be equal"):
        run_test(trained, root=write_xbd(tmp_path / "xbd"), output=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_semantic_change_trains_and_is_tested(tmp_path):
    root = write_second(tmp_path / "SECOND")
    augment = PairAugmentConfig(swap_dates=True, noise=0.1)
    control = ChangeControlConfig(encoder="test_efficientnet")
    result = train(_recipe(root, tmp_path / "run", model=_net("mamba_scd"), data={"augment": augment}, control=control))
    assert "SeK (pooled)" in result.summary
    names = {path.name for path in result.folder.predictions.glob("00001_*.png")}
    assert names == {"00001_change.png", "00001_before.png", "00001_after.png"}
    changed, before = (
        np.asarray(Image.open(result.folder.predictions / f"00001_{n}.png")) for n in ("change", "before")
    )
    assert ((before > 0) == (changed > 0)).all()  # a class wherever something changed, and nowhere else
    assert "truth after" in result.report.read_text()
    history = read_history(RunFolder(tmp_path / "run").history)
    assert "Fscd/transitions (pooled)" in history[0]


def test_building_damage_trains_and_is_tested(tmp_path):
    root = write_xbd(tmp_path / "xBD")
    control = ChangeControlConfig(without_scan=True)
    result = train(_recipe(root, tmp_path / "run", model=_net("mamba_bda"), control=control))
    assert "F1/overall (0.3 building + 0.7 damage)" in result.summary
    assert [row.name for row in result.comparison] == [
        "mamba_bda test_convnext",
        "mamba_bda test_convnext without scan",
    ]
    assert result.comparison[0].values["parameters"] > result.comparison[1].values["parameters"]
    assert {path.stem.rsplit("_", 1)[1] for path in result.folder.predictions.glob("*.png")} == {"building", "damage"}


def test_georeferenced_pairs_give_maps_at_their_place(tmp_path):
    import rasterio

    root = write_split_folders(tmp_path / "data", suffix=".tif", changed_value=1)
    result = train(_recipe(root, tmp_path / "run", trainer={"fast_dev_run": True}))
    (written,) = result.folder.predictions.glob("*.tif")
    with rasterio.open(written) as ours, rasterio.open(next((root / "test" / "A").glob("*.tif"))) as given:
        assert (ours.crs, ours.transform, ours.shape) == (given.crs, given.transform, given.shape)
        assert set(np.unique(ours.read(1))) <= {0, 1}


def test_chosen_bands_of_oscd_and_cities_set_apart_by_name(tmp_path):
    root = write_oscd(tmp_path / "OSCD", form="bands")
    options = {"test_cities": ["paris"], "val_cities": ["bercy", "nantes"], "bands": "all"}
    data = {"options": options, "bands": ["B08", "B04"], "scaling": BandScalingConfig("image"), "cache": "disk"}
    result = train(_recipe(root, tmp_path / "run", data=data, trainer={"fast_dev_run": True}))
    stored = json.loads(result.folder.dataset.read_text())
    assert stored["splits"]["val"] == ["bercy", "nantes"] and "paris" in stored["splits"]["test"]
    assert stored["scaling"] is None
    run = load_change_run(tmp_path / "run")
    assert run.channels == ("B08", "B04") and run.bands == (7, 3) and run.scaler.fixed is None
    assert not result.folder.cache.exists()


def test_the_loss_falls_and_the_change_is_found(tmp_path):
    root = write_levir(tmp_path / "data")
    model = dataclasses.replace(SMALL, lr=3e-3, warmup_steps=5)
    result = train(_recipe(root, tmp_path / "run", model=model, trainer={"max_epochs": 4, "steps_per_epoch": 15}))
    history = read_history(result.folder.history)
    assert history[-1]["train_loss"] < 0.6 * history[0]["train_loss"]
    assert result.summary["F1/change (pooled)"] > 0.6


class _Stop(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


class _StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            raise _Stop


def _digest(run: Path) -> str:
    folder = RunFolder(run)
    digest = hashlib.sha256(folder.weights.read_bytes())
    for name, value in sorted(read_checkpoint(folder.last)["state_dict"].items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def _history(run: Path) -> list[dict[str, float | None]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_history(RunFolder(run).history)]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_stopped_and_resumed_it_ends_with_the_same_bits(levir, tmp_path, workers):
    def recipe(name: str, workers: int) -> ChangeRecipe:
        model = dataclasses.replace(SMALL, encoder_args={"drop_path_rate": 0.3}, average_decay=0.8)
        data = {"augment": PairAugmentConfig(swap_dates=True, noise=0.1), "workers": workers}
        trainer = {"steps_per_epoch": 4, "save_every_steps": 3}
        return _recipe(levir, tmp_path / name, model=model, data=data, trainer=trainer)

    fit(recipe("whole", 0))
    stopped = recipe("stopped", workers)
    with pytest.raises(_Stop):
        fit(stopped, callbacks=[_StopAt(5)])
    fit(stopped, resume=True)
    assert _digest(tmp_path / "stopped") == _digest(tmp_path / "whole")
    rows = [
        [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in read_history(RunFolder(run).history)
        ]
        for run in (tmp_path / "stopped", tmp_path / "whole")
    ]
    assert rows[0] == rows[1]


def test_a_stored_recipe_is_the_recipe(tmp_path):
    recipe = _recipe(
        tmp_path / "data",
        tmp_path / "run",
        data={"bands": ["B04"], "options": {"seed": 1}},
        inference=ChangeInferenceConfig(threshold="val", roi=(64, 96)),
        control=ChangeControlConfig(encoder="convnext_atto"),
        model=dataclasses.replace(SMALL, loss={"lovasz": 0.5}),
    )
    (tmp_path / "recipe.yaml").write_text(recipe_text(recipe))
    assert read_recipe(tmp_path / "recipe.yaml") == recipe


def test_a_run_is_neither_replaced_nor_continued_with_other_settings(trained, levir):
    recipe = read_recipe(trained / "config.yaml")
    with pytest.raises(ConfigError, match="holds a run already"):
        fit(recipe)
    changed = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, lr=1.0))
    with pytest.raises(ConfigError, match=r"other settings \(model.lr\)"):
        fit(changed, resume=True)
    lines: list[str] = []
    fit(recipe, resume=True, announce=lines.append)
    assert len(lines) == 2 and all("already trained" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": dataclasses.replace(SMALL, net_args={"wdth": 8})}, "wdth"),
        ({"model": dataclasses.replace(SMALL, encoder="vim_tiny")}, "vim_tiny_pyramid"),
        ({"model": dataclasses.replace(SMALL, loss={"dice": 1.0})}, "cross_entropy, lovasz"),
        ({"model": dataclasses.replace(SMALL, net="mamba_bda")}, "needs 5"),
        ({"inference": ChangeInferenceConfig(threshold=1.5)}, "between 0 and 1"),
        ({"control": ChangeControlConfig()}, "set one of them"),
        ({"control": ChangeControlConfig(net="mamba_scd")}, "another question"),
        ({"data": {"augment": PairAugmentConfig(gain=-1.0)}}, "0 or more"),
        ({"data": {"batch_size": 0}}, "data.batch_size"),
        ({"data": {"bands": ["infrared"]}}, "red, green, blue"),
    ],
)
def test_settings_that_cannot_work_leave_nothing_behind(levir, tmp_path, change, said):
    with pytest.raises(ConfigError, match=said):
        fit(_recipe(levir, tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_one_patch_of_one_coarse_pixel_is_an_error_that_says_what_to_do(levir, tmp_path):
    with pytest.raises(ConfigError, match="batch of 2 or more"):
        fit(_recipe(levir, tmp_path / "run", data={"batch_size": 1}))


def test_a_folder_that_is_no_run_and_missing_weights_are_refused(tmp_path, trained):
    with pytest.raises(ConfigError, match="not a run folder"):
        load_change_run(tmp_path)
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "dataset.json"):
        (tmp_path / "run" / name).write_bytes((trained / name).read_bytes())
    with pytest.raises(CheckpointError, match="no weights there"):
        load_change_run(tmp_path / "run")
