"""The progress of a training: a bar on a terminal, a line per epoch in a log file."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from statefield.tasks.common.module import DensePredictionTask


class TrainingBar(Callback):
    """One bar over all steps, with loss and validation scores; without a terminal, one line per validated epoch."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.console.is_terminal or not trainer.is_global_zero:
            return
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[scores]}"),
            console=self.console,
            transient=True,
        )
        self._bar.start()
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        done = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        self._task = self._bar.add_task("", total=total, completed=done, epoch=trainer.current_epoch + 1, scores="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            done = trainer.fit_loop.epoch_loop.batch_progress.total.ready
            epoch = f"{trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._bar.update(self._task, completed=done, epoch=epoch, scores=_scores(pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        line = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {_scores(pl_module)}"
        if self._bar is None and trainer.is_global_zero:
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _scores(module: LightningModule) -> str:
    assert isinstance(module, DensePredictionTask)
    scores = "".join(f"  {name} {value:.4f}" for name, value in module.epoch_scores.items())
    return f"loss {module.train_loss():.4f}{scores}"
