"""Keeps a run's plan and fingerprint in its folder, as soon as there is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from statefield.files import write_text


class PlanKeeper(Callback):
    """Writes texts to files when training begins: the run folder is made anew just before."""

    def __init__(self, texts: Mapping[Path, str]) -> None:
        self.texts = dict(texts)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            for path, text in self.texts.items():
                if not path.exists():
                    write_text(path, text)
