"""Two processes (gloo, CPU) train the net that one process trains; the programs run as a user would start them."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from fakes.medical import write_nnunet

from statefield.errors import ConfigError
from statefield.tasks.common.checkpointing import read_checkpoint, read_weights
from statefield.tasks.common.config import LossConfig, TrainerConfig
from statefield.tasks.common.run_folder import RunFolder, read_history
from statefield.tasks.medical.recipe import DataConfig, ModelConfig, SegmentationRecipe, recipe_text
from statefield.tasks.medical.run import fit

PROGRAM = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    import torch
    from lightning.pytorch import Callback
    from statefield.tasks.medical.recipe import read_recipe
    from statefield.tasks.medical.run import fit, train

    class Watch(Callback):
        def on_train_batch_end(self, trainer, task, outputs, batch, index):
            line = f"{trainer.global_step} {trainer.global_rank} {float(outputs['loss'])!r} {batch['number'].tolist()}"
            with open(f"{sys.argv[1]}.{trainer.global_rank}", "a") as file:
                print(line, file=file)
            if "--kill" in sys.argv and trainer.global_step == 5:
                os.kill(os.getpid(), signal.SIGKILL)

    if __name__ == "__main__":
        recipe = read_recipe(Path(sys.argv[1]))
        verb = train if "--test" in sys.argv else fit
        result = verb(recipe, resume="--resume" in sys.argv, callbacks=[Watch()])
        assert (result is None) == (verb is train and os.environ.get("LOCAL_RANK", "0") != "0")
""")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_nnunet(tmp_path_factory.mktemp("data"), num_cases=8, num_test=0, shape=(20, 24, 3), channels=("T1",))


def _recipe(dataset: Path, run: Path, *, devices: int, **trainer) -> SegmentationRecipe:
    """Without BatchNorm, which sees each process's patches alone on CPU, and without random numbers in the net."""
    settings = {"max_epochs": 2, "steps_per_epoch": 4, "save_every_steps": 3, "threads": 1, "accelerator": "cpu"}
    return SegmentationRecipe(
        run=run,
        seed=5,
        data=DataConfig(root=dataset, patch_size=(32, 32), batch_size=4, options={"fractions": (0.5, 0.4, 0.1)}),
        model=ModelConfig(
            encoder="test_convnext",
            detail_channels=0,  # the path has BatchNorm
            decoder_args={"decoder_channels": [8, 8, 8, 8, 8], "decoder_use_norm": "identity"},
            loss=LossConfig(class_weights=(1.0, 2.0, 3.0)),
            warmup_steps=2,
            average_decay=0.8,
        ),
        trainer=TrainerConfig(devices=devices, **(settings | trainer)),
    )


def _run(recipe: SegmentationRecipe, place: Path, *flags: str, torchrun: bool = False) -> subprocess.CompletedProcess:
    (place / "program.py").write_text(PROGRAM)
    (place / "recipe.yaml").write_text(recipe_text(recipe))
    launcher = [sys.executable]
    if torchrun:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    return subprocess.run(
        [*launcher, str(place / "program.py"), str(place / "recipe.yaml"), *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=400,
    )


def _steps(place: Path, rank: int) -> list[tuple[int, float, list[int]]]:
    lines = (place / f"recipe.yaml.{rank}").read_text().splitlines()
    return [
        (int(step), float(loss), json.loads(numbers)) for step, _, loss, numbers in (x.split(" ", 3) for x in lines)
    ]


@pytest.fixture(scope="module")
def alone(dataset, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("alone")
    done = _run(_recipe(dataset, place / "run", devices=1), place)
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def together(dataset, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("together")
    done = _run(_recipe(dataset, place / "run", devices=2), place, "--test")
    assert done.returncode == 0, done.stderr
    return place


def _assert_same_training(one: Path, two: Path) -> None:
    """Sums in another order differ in their last bits, and AdamW turns that into at most some 1e-5 of a weight."""
    weights = [read_weights(RunFolder(place / "run").weights) for place in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    histories = [read_history(RunFolder(place / "run").history) for place in (one, two)]
    for left, right in zip(*histories, strict=True):
        for key in left.keys() - {"seconds"}:
            assert right[key] == pytest.approx(left[key], rel=1e-4, abs=1e-6), key


@pytest.mark.slow
def test_each_step_has_the_patches_and_the_loss_of_one_process(alone, together):
    whole, parts = _steps(alone, 0), [_steps(together, rank) for rank in range(2)]
    assert len(whole) == 8
    for (step, loss, numbers), *shares in zip(whole, *parts, strict=True):
        assert [number for _, _, part in shares for number in part] == numbers
        for _, part_loss, _ in shares:
            assert part_loss == pytest.approx(loss, rel=2e-5), step


@pytest.mark.slow
def test_the_weights_and_the_history_are_those_of_one_process(alone, together):
    _assert_same_training(alone, together)


@pytest.mark.slow
def test_the_first_process_tests_and_writes_for_all(together):
    assert (together / "run" / "report.html").exists()
    assert [path for path in (together / "run").rglob("*") if ".partial" in path.name] == []


@pytest.mark.slow
def test_under_torchrun_killed_and_resumed_it_is_the_same_training(dataset, alone, tmp_path):
    recipe = _recipe(dataset, tmp_path / "run", devices=2)
    killed = _run(recipe, tmp_path, "--kill", torchrun=True)
    assert killed.returncode != 0
    assert read_checkpoint(RunFolder(recipe.run).last)["global_step"] in (4, 5)
    resumed = _run(recipe, tmp_path, "--resume", torchrun=True)
    assert resumed.returncode == 0, resumed.stderr
    _assert_same_training(alone, tmp_path)


@pytest.mark.slow
def test_sharded_weights_are_trained_and_resumed_to_those_of_one_process(dataset, tmp_path):
    """FSDP2: without the moving average, which is not sharded."""

    def recipe(place: Path, **trainer) -> SegmentationRecipe:
        place.mkdir()
        whole = _recipe(dataset, place / "run", **trainer)
        return dataclasses.replace(whole, model=dataclasses.replace(whole.model, average_decay=None))

    one, two = tmp_path / "one", tmp_path / "two"
    fit(recipe(one, devices=1))
    sharded = recipe(two, devices=2, strategy="fsdp")
    assert _run(sharded, two, "--kill").returncode != 0
    resumed = _run(sharded, two, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    _assert_same_training(one, two)


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    from statefield.tasks.common import parallel

    monkeypatch.setattr(parallel, "num_processes", lambda: 3)
    assert parallel.share_of_batch(6) == 2
    with pytest.raises(ConfigError, match=r"batch_size = 4 .* 3 processes"):
        parallel.share_of_batch(4)


@pytest.mark.parametrize("settings", [{"devices": 0}, {"num_nodes": 0}])
def test_no_device_is_refused(dataset, tmp_path, settings):
    recipe = _recipe(dataset, tmp_path / "run", devices=1)
    recipe = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, **settings))
    with pytest.raises(ConfigError, match="1 or more"):
        fit(recipe)
