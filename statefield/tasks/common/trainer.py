"""Lightning's `Trainer` as a run needs it: what it is given, what it keeps quiet about, what it cannot do."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from statefield.errors import ConfigError
from statefield.tasks.common.checkpointing import AtomicCheckpointIO, RunCheckpoints, verify_checkpoint
from statefield.tasks.common.config import TrainerConfig
from statefield.tasks.common.parallel import num_processes, strategy_of
from statefield.tasks.common.run_folder import RunFolder


def require_possible(settings: TrainerConfig) -> None:
    """Raise `ConfigError` for settings that cannot work, or not here."""
    counts = ("max_epochs", "steps_per_epoch", "accumulate", "val_every_epochs", "save_every_steps", "threads")
    for name in (*counts, "max_skipped_steps", "devices", "num_nodes"):
        value = getattr(settings, name)
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"trainer.{name} = {value}: 1 or more is needed.")
    if settings.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            "trainer.accelerator is 'gpu', but torch finds no GPU here (`statefield doctor` says why): use auto or cpu."
        )
    if settings.max_epochs % settings.val_every_epochs and not settings.fast_dev_run:
        raise ConfigError(
            f"trainer.val_every_epochs = {settings.val_every_epochs} does not divide trainer.max_epochs = "
            f"{settings.max_epochs}: the last epoch would go without validation."
        )


def run_training(
    task: LightningModule,
    data: LightningDataModule,
    settings: TrainerConfig,
    folder: RunFolder,
    *,
    score: str,
    resume: bool,
    callbacks: Sequence[Callback],
) -> None:
    """Train `task` on `data`, with checkpoints and history in `folder`; with `resume`, from its last checkpoint on.

    Args:
        score: the entry of the task's `epoch_scores` by which the best epoch is chosen.
    """
    checkpoint = folder.last if resume and (folder.last.exists() or folder.previous.exists()) else None
    if checkpoint is not None:
        verify_checkpoint(checkpoint)
    with _quiet_lightning():
        trainer = Trainer(
            default_root_dir=folder.root,
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            strategy=strategy_of(settings),
            sync_batchnorm=num_processes() > 1 and torch.cuda.is_available() and settings.accelerator != "cpu",
            precision=settings.precision,
            max_epochs=settings.max_epochs,
            gradient_clip_val=settings.gradient_clip,
            accumulate_grad_batches=settings.accumulate,
            check_val_every_n_epoch=settings.val_every_epochs,
            limit_val_batches=1 if settings.fast_dev_run else None,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            plugins=[AtomicCheckpointIO()],
            callbacks=[RunCheckpoints(folder, save_every_steps=settings.save_every_steps, score=score), *callbacks],
        )
        try:
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as stop:  # how Lightning passes on Ctrl-C
            raise KeyboardInterrupt from stop


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without the lines of Lightning's that a user of ours can do nothing about; each is named."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in (
            "The 'train_dataloader' does not have many workers",  # patches take a small part of a step
            "The 'val_dataloader' does not have many workers",
            "You're resuming from a checkpoint that ended before the epoch ended",  # our sampler knows its position
            r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # between Lightning and torch
            "GPU available but not used",  # was asked for
            "FSDP2-wrapped module .* returned a view tensor",  # the losses change nothing in place
            "find_unused_parameters=True was specified",  # see parallel.strategy_of
            r"Found \d+ module\(s\) in eval mode at the start of training",  # after a resume
        ):
            warnings.filterwarnings("ignore", message=message)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
