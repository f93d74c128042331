"""Checkpoints that are whole, checked and safe to open.

A checkpoint is an ordinary torch file (a zip archive that `torch.load(path, weights_only=True)` opens anywhere) whose
zip comment holds the SHA-256 of everything before it. It is written beside its place, flushed, and renamed over it; the
file it replaces stays as `previous.ckpt`. So at every moment, a crash included, `last.ckpt` is the old file or the new.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from statefield.errors import CheckpointError
from statefield.files import atomic_path
from statefield.tasks.common.module import DensePredictionTask
from statefield.tasks.common.run_folder import RunFolder, write_history

_END_RECORD = b"PK\x05\x06"  # zip's end of central directory: 22 bytes, the last two the length of the comment
_COMMENT = b"sha256:"
_COMMENT_BYTES = len(_COMMENT) + 64


def save_checkpoint(value: Mapping[str, Any], path: Path) -> None:
    """Write `value` (tensors and plain Python values) whole, with its digest inside."""
    with atomic_path(path) as partial:
        torch.save(value, partial)
        with partial.open("rb+") as file:
            file.seek(-22, os.SEEK_END)
            if file.read(4) != _END_RECORD:
                raise CheckpointError(f"{path}: torch wrote a file that is not a zip archive; nothing was saved.")
            file.seek(-2, os.SEEK_END)
            file.write(struct.pack("<H", _COMMENT_BYTES))
        digest = _sha256(partial, partial.stat().st_size)
        with partial.open("ab") as file:
            file.write(_COMMENT + digest.encode())


def verify_checkpoint(path: Path) -> None:
    """Raise `CheckpointError` unless the file is there and its content has the digest it states."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint.")
    size = path.stat().st_size - _COMMENT_BYTES
    with path.open("rb") as file:
        file.seek(max(size, 0))
        comment = file.read()
    if size <= 0 or not comment.startswith(_COMMENT):
        raise CheckpointError(_damaged(path, "its end is missing (it is cut off, or statefield did not write it)"))
    if _sha256(path, size) != comment[len(_COMMENT) :].decode(errors="replace"):
        raise CheckpointError(_damaged(path, "its content does not have the SHA-256 it was saved with"))


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a checkpoint whose digest holds. Only tensors and plain values are read, never code.

    Raises:
        CheckpointError: no such file, a damaged file, or one that holds anything else.
    """
    verify_checkpoint(path)
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: cannot be opened safely: {error}") from error


def save_weights(state: Mapping[str, Tensor], path: Path, about: Mapping[str, str]) -> None:
    """Write a net's weights as safetensors, whole or not at all.

    `about` is kept in the header as one JSON text: safetensors writes several entries in an order of its own, and equal
    weights would not be equal files.
    """
    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in state.items()}
    with atomic_path(path) as partial:
        save_file(tensors, partial, metadata={"statefield": json.dumps(dict(about), sort_keys=True)})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a safetensors file. Raises `CheckpointError` when it is missing or damaged."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no weights there. Train first, or finish the run with --resume.")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except SafetensorError as error:
        raise CheckpointError(_damaged(path, str(error))) from error


def load_weights(net: torch.nn.Module, path: Path) -> None:
    """Fill `net` from a safetensors file, every tensor, or raise a `CheckpointError` that counts what does not fit."""
    given, needed = read_weights(path), net.state_dict()
    missing = sorted(set(needed) - set(given))
    unknown = sorted(set(given) - set(needed))
    other = [
        f"{name} {tuple(given[name].shape)} for {tuple(needed[name].shape)}"
        for name in needed
        if name in given and given[name].shape != needed[name].shape
    ]
    if missing or unknown or other:
        lists = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (("missing", missing), ("unknown", unknown), ("of another size", other))
            if names
        ]
        raise CheckpointError(
            f"{path} does not fit the net: of {len(needed)} tensors, {'; '.join(lists)}. Use the weights that were "
            "trained with this config.yaml."
        )
    net.load_state_dict(given)


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's door to the functions above."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path), map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class RunCheckpoints(Callback):
    """Keeps `last.ckpt`, `previous.ckpt`, `best.ckpt` and the history of a run.

    `last.ckpt` is written each `save_every_steps` optimiser steps and at the end of each epoch, after its validation;
    `best.ckpt` when the validation score rises. The history (a row per epoch) is part of the checkpoint, so
    `metrics.csv` after a resume is what an uninterrupted run would have written, the seconds apart.
    """

    def __init__(self, folder: RunFolder, *, save_every_steps: int | None, score: str) -> None:
        self.folder, self.save_every_steps, self.score = folder, save_every_steps, score
        self.history: list[dict[str, float]] = []
        self.best_score: float | None = None
        self.best_epoch: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [dict(row) for row in state_dict["history"]]
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.history and trainer.is_global_zero:
            write_history(self.folder.history, self.history)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop.epoch_loop
        stepped = not loop._should_accumulate()
        ends_epoch = loop.batch_progress.is_last_batch  # saved after its validation, below
        if self.save_every_steps and stepped and not ends_epoch and trainer.global_step % self.save_every_steps == 0:
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DensePredictionTask)
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "learning_rate": pl_module.current_rate(),
            **pl_module.epoch_means(),
            **pl_module.epoch_scores,
            "seconds": pl_module.train_seconds(),
        }
        pl_module.start_epoch_means()
        self.history.append(row)
        score = pl_module.epoch_scores.get(self.score)
        if score is not None and (self.best_score is None or score > self.best_score or math.isnan(self.best_score)):
            self.best_score, self.best_epoch = score, trainer.current_epoch + 1
            trainer.save_checkpoint(self.folder.best, weights_only=True)
        self._save_last(trainer)
        if trainer.is_global_zero:
            write_history(self.folder.history, self.history)

    def _save_last(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and self.folder.last.exists():
            keep_previous(self.folder.last, self.folder.previous)
        trainer.save_checkpoint(self.folder.last)


def keep_previous(last: Path, previous: Path) -> None:
    """Make `previous` the file that `last` is now; `last` stays in place all the while."""
    beside = previous.with_name(f".{previous.name}.link")
    beside.unlink(missing_ok=True)
    try:
        os.link(last, beside)
    except OSError:  # a file system without hard links
        with atomic_path(beside) as partial:
            partial.write_bytes(last.read_bytes())
    beside.replace(previous)
    beside.unlink(missing_ok=True)  # still there where both were the same file, as after a kill before the next save


def _sha256(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = size
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _damaged(path: Path, found: str) -> str:
    previous = path.with_name("previous.ckpt")
    if path.name == "last.ckpt" and previous.exists():
        remedy = f"To go on from the checkpoint before it, run `mv {previous} {path}` and then --resume."
    else:
        remedy = "Copy it again from where it came, or train again with --overwrite."
    return f"{path} is damaged: {found}. {remedy}"
