"""A step whose gradient is no number is left out, counted, and survives an interruption like all else."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest
import torch
from fakes.medical import write_pairs
from lightning.pytorch import Callback

from statefield.errors import ConfigError, TrainingDiverged
from statefield.tasks.common.checkpointing import read_checkpoint, read_weights
from statefield.tasks.common.config import TrainerConfig
from statefield.tasks.common.gradients import GradientGuard, gradient_norm
from statefield.tasks.common.run_folder import RunFolder, read_history
from statefield.tasks.medical.recipe import DataConfig, ModelConfig, SegmentationRecipe
from statefield.tasks.medical.run import fit


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data"), num_cases=6)


def _recipe(dataset: Path, run: Path, **trainer) -> SegmentationRecipe:
    settings = {"max_epochs": 2, "steps_per_epoch": 4, "save_every_steps": 2, "threads": 1, "accelerator": "cpu"}
    return SegmentationRecipe(
        run=run,
        data=DataConfig(root=dataset, patch_size=(32, 32), batch_size=2),
        model=ModelConfig(
            encoder="test_convnext",
            detail_channels=2,
            decoder_args={"decoder_channels": [8, 8, 8, 8, 8]},
            warmup_steps=3,
            average_decay=0.8,
        ),
        trainer=TrainerConfig(**(settings | trainer)),
    )


class _Overflow(Callback):
    """Makes the backward pass end in an infinite gradient at some steps; the loss stays finite."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step in self.steps:
            next(pl_module.net.parameters()).grad[0] = math.inf


class _Watch(Callback):
    """Keeps, after each step, all that a step may change."""

    def __init__(self) -> None:
        self.seen: list[list[torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        optimizer = trainer.optimizers[0]
        moments = [value for state in optimizer.state.values() for value in state.values()]
        rates = [torch.tensor(group["lr"], dtype=torch.float64) for group in optimizer.param_groups]
        tensors = [*pl_module.net.parameters(), *pl_module.averaged.parameters(), *moments, *rates]
        self.seen.append([tensor.detach().clone() for tensor in tensors])


class _Stop(BaseException):
    pass


class _StopAfter(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise _Stop


def _same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_the_step_changes_nothing_and_is_counted_and_logged(dataset, tmp_path, caplog):
    watch = _Watch()
    with caplog.at_level(logging.WARNING, logger="statefield"):
        fit(_recipe(dataset, tmp_path / "run"), callbacks=[_Overflow(1, 2), watch])
    unchanged = [_same(before, after) for before, after in zip(watch.seen, watch.seen[1:], strict=False)]
    assert unchanged == [True, True, False, False, False, False, False]
    rows = read_history(RunFolder(tmp_path / "run").history)
    assert [row["skipped_steps"] for row in rows] == [2, 0]
    assert all(0 < row["gradient_norm"] < math.inf for row in rows)
    lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert lines == ["epoch 1: 2 steps left out, as their gradient was no finite number"]


def test_the_rate_and_the_average_go_on_as_if_the_step_had_not_been(dataset, tmp_path):
    """With the first step left out, the rates of the steps taken are the warm-up's: 1/3, 2/3, 3/3."""
    watch = _Watch()
    recipe = _recipe(dataset, tmp_path / "run", max_epochs=1)
    fit(recipe, callbacks=[_Overflow(0), watch])
    rates = [float(state[-1]) / recipe.model.lr for state in watch.seen]  # after the step: that of the next one
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])


def test_an_interrupted_run_keeps_its_counts_and_ends_with_the_same_bits(dataset, tmp_path):
    whole, parted = _recipe(dataset, tmp_path / "whole"), _recipe(dataset, tmp_path / "parted")
    fit(whole, callbacks=[_Overflow(1, 2, 5)])
    with pytest.raises(_Stop):
        fit(parted, callbacks=[_Overflow(1, 2, 5), _StopAfter(3)])
    assert read_checkpoint(RunFolder(parted.run).last)["gradients"]["skipped_in_epoch"] == 1  # saved at step 2
    fit(parted, resume=True, callbacks=[_Overflow(1, 2, 5)])
    for name, value in read_weights(RunFolder(whole.run).weights).items():
        assert torch.equal(value, read_weights(RunFolder(parted.run).weights)[name]), name
    histories = [read_history(RunFolder(recipe.run).history) for recipe in (whole, parted)]
    without_seconds = [[row | {"seconds": 0} for row in rows] for rows in histories]
    assert without_seconds[0] == without_seconds[1]
    assert [row["skipped_steps"] for row in histories[0]] == [2, 1]


def test_too_many_in_a_row_end_the_training_and_name_the_batches(dataset, tmp_path):
    with pytest.raises(TrainingDiverged, match=r"in 3 steps in a row.*step 3.*case_00\d\.png.*\|.*--model\.lr"):
        fit(_recipe(dataset, tmp_path / "run", max_skipped_steps=3), callbacks=[_Overflow(1, 2, 3)])


def test_the_row_is_broken_by_a_step_that_was_taken():
    guard = GradientGuard(2)
    answers = [guard.admits(norm, where="") for norm in (math.inf, 3.0, math.nan, 5.0)]
    assert answers == [False, True, False, True]
    assert (guard.skipped_in_all, guard.skipped_in_a_row, guard.mean_norm) == (2, 0, 4.0)


def test_an_accumulated_step_names_every_batch_of_it():
    guard = GradientGuard(1)
    guard.saw_batch(["a", "a"])
    guard.saw_batch(["b"])
    with pytest.raises(TrainingDiverged, match="a; b"):
        guard.admits(math.nan, where="")


def test_the_norm_is_over_all_gradients_together():
    parameters = [torch.zeros(2), torch.zeros(1), torch.zeros(1)]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert float(gradient_norm(parameters)) == 5.0


def test_a_patience_of_none_is_refused():
    with pytest.raises(ConfigError, match="max_skipped_steps = 0"):
        GradientGuard(0)
