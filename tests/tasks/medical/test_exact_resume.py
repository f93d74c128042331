"""A run that is killed and resumed ends with the very bits of one that was never interrupted."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from fakes.medical import write_nnunet
from lightning.pytorch import Callback

from statefield.errors import CheckpointError, ConfigError
from statefield.tasks.common.checkpointing import read_checkpoint
from statefield.tasks.common.config import TrainerConfig
from statefield.tasks.common.run_folder import RunFolder, read_history
from statefield.tasks.medical.recipe import DataConfig, ModelConfig, SegmentationRecipe, recipe_text
from statefield.tasks.medical.run import fit, train

STEPS_PER_EPOCH = 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_nnunet(tmp_path_factory.mktemp("data"), num_cases=6, num_test=0, shape=(20, 24, 4))


def _recipe(dataset: Path, run: Path, **trainer) -> SegmentationRecipe:
    settings = {"max_epochs": 2, "steps_per_epoch": STEPS_PER_EPOCH, "save_every_steps": 3, "threads": 1}
    return SegmentationRecipe(
        run=run,
        seed=5,
        data=DataConfig(root=dataset, patch_size=(24, 24), batch_size=2, slice_context=1),
        model=ModelConfig(
            encoder="test_convnext",
            detail_channels=2,
            decoder_args={"decoder_channels": [8, 8, 8, 8, 8]},
            encoder_args={"drop_path_rate": 0.3},  # random numbers inside the net as well
            warmup_steps=2,
            average_decay=0.8,
        ),
        trainer=TrainerConfig(accelerator="cpu", **(settings | trainer)),
    )


def _digest(run: Path) -> str:
    """Of the last weights and optimiser state, and of the best weights' file."""
    folder = RunFolder(run)
    content = read_checkpoint(folder.last)
    digest = hashlib.sha256(folder.weights.read_bytes())
    for name, value in sorted(content["state_dict"].items()):
        digest.update(name.encode() + value.numpy().tobytes())
    for index, state in sorted(content["optimizer_states"][0]["state"].items()):
        for name, value in sorted(state.items()):
            digest.update(f"{index}{name}".encode() + torch.as_tensor(value).numpy().tobytes())
    return digest.hexdigest()


def _history(run: Path) -> list[dict[str, float | None]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_history(RunFolder(run).history)]


@pytest.fixture(scope="module")
def uninterrupted(dataset, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    fit(_recipe(dataset, run))
    return run


class _Stop(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


class _StopAt(Callback):
    def __init__(self, hook: str, step: int) -> None:
        self.hook, self.step = hook, step

    def _reached(self, hook: str, trainer) -> None:
        if hook == self.hook and trainer.global_step == self.step:
            raise _Stop

    def on_train_batch_start(self, trainer, *_) -> None:
        self._reached("batch start", trainer)

    def on_train_batch_end(self, trainer, *_) -> None:
        self._reached("batch end", trainer)

    def on_validation_batch_end(self, trainer, *_) -> None:
        self._reached("validation", trainer)

    def on_train_epoch_end(self, trainer, *_) -> None:
        self._reached("epoch end", trainer)


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("batch end", 2),  # before any checkpoint was written
        ("batch end", 8),  # in the middle of an epoch, two steps after a checkpoint
        ("batch start", 6),  # at once after a checkpoint in the middle of an epoch
        ("batch end", 5),  # the epoch's steps are done, its validation is not
        ("validation", 5),  # within a validation
        ("epoch end", 5),  # at once after the checkpoint of an epoch
        ("epoch end", 10),  # everything trained, the weights' own file not written
    ],
)
def test_stopped_anywhere_and_resumed_it_ends_with_the_same_bits(dataset, uninterrupted, tmp_path, hook, step):
    recipe = _recipe(dataset, tmp_path / "run")
    with pytest.raises(_Stop):
        fit(recipe, callbacks=[_StopAt(hook, step)])
    assert not RunFolder(recipe.run).weights.exists()
    fit(recipe, resume=True)
    assert _digest(recipe.run) == _digest(uninterrupted)
    assert _history(recipe.run) == _history(uninterrupted)


def test_killed_with_signal_9_in_the_middle_of_an_epoch_and_resumed_it_ends_with_the_same_bits(
    dataset, uninterrupted, tmp_path
):
    recipe = _recipe(dataset, tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(recipe_text(recipe))
    program = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from lightning.pytorch import Callback
        from statefield.tasks.medical.recipe import read_recipe
        from statefield.tasks.medical.run import fit, train

        class Kill(Callback):
            def on_train_batch_end(self, trainer, *_):
                if trainer.global_step == 8:
                    os.kill(os.getpid(), signal.SIGKILL)

        fit(read_recipe(Path(sys.argv[1])), callbacks=[Kill()])
    """)
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "recipe.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert read_checkpoint(RunFolder(recipe.run).last)["global_step"] == 6
    fit(recipe, resume=True)
    assert _digest(recipe.run) == _digest(uninterrupted)
    assert _history(recipe.run) == _history(uninterrupted)


@pytest.mark.parametrize(
    "change",
    [
        {"accumulate": 2, "save_every_steps": 2, "steps_per_epoch": 12},
        {"precision": "bf16-mixed", "steps_per_epoch": 8},
    ],
)
def test_the_same_holds_with_accumulated_batches_and_in_half_precision(dataset, tmp_path, change):
    change = change | {"max_epochs": 1}
    whole, parted = _recipe(dataset, tmp_path / "whole", **change), _recipe(dataset, tmp_path / "parted", **change)
    fit(whole)
    with pytest.raises(_Stop):
        fit(parted, callbacks=[_StopAt("batch end", 5)])
    fit(parted, resume=True)
    assert _digest(parted.run) == _digest(whole.run)


def test_the_same_holds_for_our_own_kernels_and_for_patches_prepared_by_other_processes(dataset, tmp_path):
    def recipe(run: Path, workers: int) -> SegmentationRecipe:
        base = _recipe(dataset, run, max_epochs=1, steps_per_epoch=4, save_every_steps=2)
        model = dataclasses.replace(base.model, encoder="spatial_mamba_nano", encoder_args={"drop_path_rate": 0.1})
        data = dataclasses.replace(base.data, workers=workers, patch_size=(32, 32))
        return dataclasses.replace(base, model=model, data=data)

    whole, parted = recipe(tmp_path / "whole", 0), recipe(tmp_path / "parted", 1)
    fit(whole)
    with pytest.raises(_Stop):
        fit(parted, callbacks=[_StopAt("batch end", 3)])
    fit(parted, resume=True)
    assert _digest(parted.run) == _digest(whole.run)


def test_resuming_a_finished_run_trains_nothing_and_tests_again(dataset, uninterrupted):
    before = _digest(uninterrupted)
    assert not RunFolder(uninterrupted).metrics.exists()
    train(_recipe(dataset, uninterrupted), resume=True, callbacks=[_StopAt("batch start", 0)])
    assert _digest(uninterrupted) == before
    assert RunFolder(uninterrupted).metrics.exists()


def test_resuming_with_other_settings_is_refused_and_names_them(dataset, uninterrupted):
    other = dataclasses.replace(_recipe(dataset, uninterrupted), seed=6)
    with pytest.raises(ConfigError, match=r"other settings \(seed\)"):
        fit(other, resume=True)


def test_resuming_on_a_dataset_that_gained_a_case_is_refused_and_names_it(dataset, uninterrupted, tmp_path):
    grown = write_nnunet(tmp_path / "data", num_cases=7, num_test=0, shape=(20, 24, 4))
    run = tmp_path / "run"
    shutil.copytree(uninterrupted, run)
    recipe = _recipe(grown, run)
    (run / "config.yaml").write_text(recipe_text(recipe))
    with pytest.raises(ConfigError, match=r"other cases in the split .*fake_00"):
        fit(recipe, resume=True)


def test_there_must_be_something_to_resume(dataset, tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        fit(_recipe(dataset, tmp_path / "nothing"), resume=True)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_leads_to_the_same_bits(dataset, uninterrupted, tmp_path):
    recipe = _recipe(dataset, tmp_path / "run")
    with pytest.raises(_Stop):
        fit(recipe, callbacks=[_StopAt("batch end", 8)])
    folder = RunFolder(recipe.run)
    folder.last.write_bytes(folder.last.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"damaged.*mv .*previous\.ckpt"):
        fit(recipe, resume=True)
    folder.previous.rename(folder.last)  # what the message says
    fit(recipe, resume=True)
    assert _digest(recipe.run) == _digest(uninterrupted)
