"""Nets of volumes: they train, stop, resume with the same bits, test, predict and report through the same commands."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from fakes.medical import blobs, write_msd, write_nnunet, write_pairs, write_volume
from lightning.pytorch import Callback

from statefield.cli.main import main
from statefield.errors import ConfigError, DataError
from statefield.tasks.common.checkpointing import read_checkpoint
from statefield.tasks.common.config import InferenceConfig, TrainerConfig, TransformConfig
from statefield.tasks.common.run_folder import RunFolder, read_history
from statefield.tasks.medical.recipe import DataConfig, ModelConfig, SegmentationRecipe, recipe_text
from statefield.tasks.medical.run import fit, load_run, train

PATCH = (8, 16, 16)
SPACING = (2.0, 1.0, 1.0)  # of the fakes: 3.0, 0.8, 0.8 in Decathlon's layout
RESIDUAL = {"features": [4, 8, 8], "depths": [1, 1, 1], "decoder_depths": [1, 1]}
NETS = {
    "lightm_unet": {"filters": 8, "depths": [1, 1, 1], "decoder_depths": [1, 1]},
    "u_mamba": RESIDUAL | {"place": "encoder"},
    "xlstm_unet": RESIDUAL,
    "residual_unet": RESIDUAL,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_msd(tmp_path_factory.mktemp("data"), num_cases=6, num_test=0, shape=(20, 24, 8))


def _recipe(dataset: Path, run: Path, net: str = "residual_unet", **trainer) -> SegmentationRecipe:
    settings = {"max_epochs": 1, "steps_per_epoch": 4, "save_every_steps": 2, "threads": 1}
    return SegmentationRecipe(
        run=run,
        seed=5,
        data=DataConfig(root=dataset, spacing=SPACING, patch_size=PATCH, batch_size=2, foreground=0.5),
        model=ModelConfig(net=net, net_args=NETS[net], warmup_steps=2, lr=3e-3),
        trainer=TrainerConfig(accelerator="cpu", **(settings | trainer)),
        inference=InferenceConfig(overlap=0.25, batch_size=4),
    )


def _supervised(recipe: SegmentationRecipe) -> SegmentationRecipe:
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, deep_supervision=True))


def _digest(run: Path) -> str:
    """Of the last weights and optimiser state, and of the best weights' file."""
    content = read_checkpoint(RunFolder(run).last)
    digest = hashlib.sha256(RunFolder(run).weights.read_bytes())
    for name, value in sorted(content["state_dict"].items()):
        digest.update(name.encode() + value.numpy().tobytes())
    for index, state in sorted(content["optimizer_states"][0]["state"].items()):
        for name, value in sorted(state.items()):
            digest.update(f"{index}{name}".encode() + torch.as_tensor(value).numpy().tobytes())
    return digest.hexdigest()


class _Stop(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


class _StopAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            raise _Stop


def test_stopped_between_steps_and_resumed_it_ends_with_the_same_bits(dataset, tmp_path):
    """Deep supervision, averaged weights and patches prepared by other processes included."""

    def recipe(run: Path, workers: int) -> SegmentationRecipe:
        base = _supervised(_recipe(dataset, run))
        model = dataclasses.replace(base.model, average_decay=0.8)
        return dataclasses.replace(base, model=model, data=dataclasses.replace(base.data, workers=workers))

    whole, parted = recipe(tmp_path / "whole", 0), recipe(tmp_path / "parted", 0)
    fit(whole)
    with pytest.raises(_Stop):
        fit(parted, callbacks=[_StopAfter(3)])
    assert read_checkpoint(RunFolder(parted.run).last)["global_step"] == 2
    # the number of workers belongs to the machine, but a recipe is compared whole: change the stored one, too
    changed = recipe(tmp_path / "parted", 1)
    RunFolder(parted.run).config.write_text(recipe_text(changed))
    fit(changed, resume=True)
    assert _digest(parted.run) == _digest(whole.run)
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_history(RunFolder(run).history)]
        for run in (whole.run, parted.run)
    ]
    assert rows[0] == rows[1]


def test_cases_on_disk_give_the_same_weights(dataset, tmp_path):
    memory = _recipe(dataset, tmp_path / "memory", fast_dev_run=True)
    disk = dataclasses.replace(memory, run=tmp_path / "disk", data=dataclasses.replace(memory.data, cache="disk"))
    fit(memory)
    fit(disk)
    assert RunFolder(memory.run).weights.read_bytes() == RunFolder(disk.run).weights.read_bytes()
    assert not RunFolder(disk.run).cache.exists()


@pytest.mark.slow
def test_a_net_of_volumes_learns_bright_balls(tmp_path):
    root = write_msd(tmp_path / "data", num_cases=10, num_test=0, shape=(24, 24, 10), num_classes=2)
    recipe = _supervised(_recipe(root, tmp_path / "run", max_epochs=6, steps_per_epoch=15, save_every_steps=None))
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, lr=1e-2))
    result = train(recipe)
    assert result.summary["metrics"]["Dice"]["foreground_pooled"] > 0.85
    losses = [row["train_loss"] for row in read_history(RunFolder(recipe.run).history)]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("net", NETS)
def test_in_half_precision_losses_and_weights_stay_finite(dataset, tmp_path, net):
    recipe = _recipe(dataset, tmp_path / "run", net, precision="bf16-mixed")
    recipe = recipe if net == "lightm_unet" else _supervised(recipe)

    kinds = set()

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, *_) -> None:
            kinds.add(outputs["loss"].dtype)

    fit(recipe, callbacks=[Look()])
    assert kinds == {torch.float32}
    state = read_checkpoint(RunFolder(recipe.run).last)["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())
    assert all(np.isfinite(row["train_loss"]) for row in read_history(RunFolder(recipe.run).history))


JOBS = {
    "lightm_unet in 3-D": ("lightm_unet", NETS["lightm_unet"], PATCH),
    "xlstm_unet in 3-D": ("xlstm_unet", NETS["xlstm_unet"] | {"place": "encoder"}, PATCH),
    "vm_unet": ("vm_unet", {"dims": 8, "depths": [1, 1], "decoder_depths": [1, 1], "d_state": 2}, (32, 32)),
    "xlstm_unet in 2-D": ("xlstm_unet", NETS["xlstm_unet"], (16, 16)),
}


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_a_net_trains_resumes_predicts_and_reports_through_the_same_commands(dataset, tmp_path, job, capsys):
    net, net_args, patch = JOBS[job]
    base = _recipe(dataset, tmp_path / "run")
    recipe = dataclasses.replace(
        base,
        data=dataclasses.replace(base.data, patch_size=patch),
        model=dataclasses.replace(base.model, net=net, net_args=net_args),
    )
    with pytest.raises(_Stop):
        fit(recipe, callbacks=[_StopAfter(3)])
    assert main(["medical", "train", "--config", str(recipe.run / "config.yaml"), "--resume"]) == 0
    folder = RunFolder(recipe.run)
    assert folder.report.stat().st_size > 10_000
    assert net in folder.report.read_text()
    stored = json.loads(folder.metrics.read_text())["model"]["test"]
    assert stored["metrics"]["Dice"]["foreground_pooled"] is not None

    case = json.loads(folder.dataset.read_text())["splits"]["test"][0]
    image = dataset / "imagesTr" / f"{case}.nii.gz"
    output = tmp_path / "out.nii.gz"
    assert main(["medical", "predict", "--run", str(recipe.run), str(image), "--output", str(output)]) == 0
    predicted, source = nib.load(output), nib.load(image)
    assert predicted.shape == source.shape
    np.testing.assert_array_equal(predicted.affine, source.affine)
    tested = nib.load(folder.predictions / f"{case}.nii.gz")
    np.testing.assert_array_equal(predicted.get_fdata(), tested.get_fdata())
    assert main(["medical", "test", "--run", str(recipe.run)]) == 0
    again = json.loads((recipe.run / "test_test" / "metrics.json").read_text())["model"]["test"]
    assert again["metrics"] == stored["metrics"]
    capsys.readouterr()


def test_cases_of_several_spacings_are_trained_and_tested_on_their_own_grids(tmp_path):
    root = tmp_path / "data"
    for index in range(6):
        shape, mm = ((20, 24, 8), (0.8, 0.8, 3.0)) if index % 2 else ((16, 20, 12), (1.0, 1.0, 2.0))
        image, labels = blobs(shape, seed=index)
        write_volume(root / "images" / f"case_{index}.nii.gz", image[..., 0], np.diag([*mm, 1.0]))
        write_volume(root / "labels" / f"case_{index}.nii.gz", labels, np.diag([*mm, 1.0]), np.uint8)
    recipe = _recipe(root, tmp_path / "run", fast_dev_run=True)
    result = train(recipe)
    for path in result.folder.predictions.iterdir():
        assert nib.load(path).shape == nib.load(root / "images" / path.name).shape
    assert load_run(recipe.run).roi == PATCH


# What is said when it cannot work, before anything is written.


@pytest.mark.parametrize(
    ("data", "model", "inference", "message"),
    [
        ({}, {"net": None}, {}, r"encoders with decoders .*'spatial_mamba_tiny'.*model\.net to one of .*segmamba"),
        ({}, {"net": "vm_unet", "net_args": {}}, {}, "spatial_dims=3 cannot be had: choose 2"),
        ({"augment": [TransformConfig("HorizontalFlip")]}, {}, {}, r"data\.augment .*for slices.*none, flips"),
        ({"slice_context": 1}, {}, {}, "slice_context = 1"),
        ({}, {}, {"roi": (16, 16)}, r"inference\.roi = \(16, 16\) has 2 numbers.*windows of 3"),
        ({"patch_size": (16, 16)}, {}, {"roi": (8, 16, 16)}, r"has 3 numbers.*windows of 2"),
        (
            {},
            {"net": "lightm_unet", "net_args": NETS["lightm_unet"], "deep_supervision": True},
            {},
            "'lightm_unet' has one output only.*residual_unet, .*u_mamba",
        ),
        (
            {"patch_size": (8, 16, 18)},
            {"deep_supervision": True},
            {},
            r"16, 18\) are not multiples of \(4, 4, 4\)",
        ),
        (
            {"patch_size": (8, 16, 18)},
            {"net": "u_mamba", "net_args": NETS["u_mamba"]},
            {},
            r"place='encoder' is built for one size.*\(8, 16, 18\) are not multiples",
        ),
        (
            {},
            {"net": "u_mamba", "net_args": NETS["u_mamba"]},
            {"roi": (8, 16, 24)},
            r"roi = \(8, 16, 24\).*images of \(8, 16, 16\) only",
        ),
        (
            {"patch_size": (32, 32)},
            {"net": None, "encoder": "test_convnext", "deep_supervision": True},
            {},
            "a decoder on an encoder has one output only.*residual_unet",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(
    dataset, tmp_path, data, model, inference, message
):
    recipe = _recipe(dataset, tmp_path / "run", fast_dev_run=True)
    recipe = dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, **data),
        model=dataclasses.replace(recipe.model, **model),
        inference=dataclasses.replace(recipe.inference, **inference),
    )
    with pytest.raises(ConfigError, match=message):
        fit(recipe)
    assert not recipe.run.exists()


def test_a_picture_without_spacing_is_refused_where_one_is_asked_for(tmp_path):
    recipe = _recipe(write_pairs(tmp_path / "data", num_cases=6), tmp_path / "run", fast_dev_run=True)
    with pytest.raises(DataError, match=r"case_00\d\.png.*does not state the distance"):
        fit(recipe)
    assert not recipe.run.exists()


def test_two_channels_reach_the_net(tmp_path):
    root = write_nnunet(tmp_path / "data", num_cases=5, num_test=0, shape=(20, 24, 8))
    recipe = _recipe(root, tmp_path / "run", fast_dev_run=True)
    fit(recipe)
    assert load_run(recipe.run).net.body.stem[0].conv1.weight.shape == (4, 2, 3, 3, 3)
