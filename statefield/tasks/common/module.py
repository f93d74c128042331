"""`DensePredictionTask`: the LightningModule that every field's task extends.

It owns what does not depend on the field: AdamW with warm-up and a decaying rate, the seed of each step, the guards
against a loss and a gradient that are no longer numbers, and the means that go into the training history.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import time
from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from statefield.errors import ConfigError, TrainingDiverged
from statefield.tasks.common.gradients import GradientGuard, gradient_norm
from statefield.tasks.common.parallel import rank

log = logging.getLogger(__name__)
_SHARDED_PART = 1_000_000
Schedule = Literal["cosine", "poly", "constant", "step", "late_step"]


def rate_factor(step: int, *, total: int, warmup: int, schedule: Schedule, floor: float = 0.01) -> float:
    """The share of the learning rate at optimiser step `step` (0-based) of `total`.

    Linear from 1/warmup to 1 over the first `warmup` steps, then down: "cosine" to `floor`, "poly" as
    `(1 - progress) ** 0.9` and never below `floor`, "constant", or a tenth from half of the way
    on ("step") or from two thirds of all steps on ("late_step").

    >>> [round(rate_factor(s, total=10, warmup=2, schedule="cosine"), 3) for s in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.505, 0.048]
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 1.0 if progress < 0.5 else 0.1
    if schedule == "late_step":
        return 1.0 if 3 * step < 2 * total else 0.1
    if schedule == "poly":
        return max((1 - progress) ** 0.9, floor)
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def step_seed(seed: int, batch: int, rank: int = 0) -> int:
    """The seed of the torch generators for training batch `batch` in process `rank`: 63 bits that neighbouring numbers
    do not share.
    """
    name = f"{seed}:{batch}" if rank == 0 else f"{seed}:{batch}:{rank}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1


def _is_called(module: nn.Module) -> bool:
    """Whether a module computes as one; a list of modules is taken apart by its owner, and cannot be gathered whole."""
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict))


class DensePredictionTask(LightningModule):
    """Subclasses set `self.net`, implement `batch_loss` and validation, and write `self.epoch_scores`.

    Args:
        lr: the largest learning rate. weight_decay: of matrices and kernels; vectors (norms, biases) have none.
        warmup_steps: optimiser steps of linear warm-up. schedule: what follows it.
        seed: of dropout and stochastic depth: batch n is seeded with (seed, n), so a resumed run draws the same.
        total_steps: optimiser steps of the whole training.
        average_decay: keep a moving average of the weights with this decay, and validate and test with it; None: do
            not. Early on the decay is `(1 + step) / (10 + step)`, so that the first weights are soon forgotten.
        max_skipped_steps: a step whose gradient is not finite is left out: weights, optimiser, rate and average stay as
            they are; so many in a row raise `TrainingDiverged`.
    """

    net: nn.Module

    def __init__(
        self,
        *,
        lr: float,
        weight_decay: float,
        warmup_steps: int,
        schedule: Schedule,
        seed: int,
        total_steps: int,
        average_decay: float | None = None,
        max_skipped_steps: int = 10,
    ) -> None:
        super().__init__()
        for name, value, least in (("lr", lr, 0.0), ("weight_decay", weight_decay, 0.0)):
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(f"model.{name} = {value}: a finite value of {least} or more is needed.")
        self.lr, self.weight_decay, self.warmup_steps, self.schedule = lr, weight_decay, warmup_steps, schedule
        if average_decay is not None and not 0 < average_decay < 1:
            raise ConfigError(f"model.average_decay = {average_decay}: a number between 0 and 1, or null, is needed.")
        self.seed, self.total_steps, self.average_decay = seed, total_steps, average_decay
        self.averaged: nn.Module | None = None
        self.epoch_scores: dict[str, float] = {}
        self.gradients = GradientGuard(max_skipped_steps)
        self._step_taken = True
        self._loss_sum, self._loss_count = 0.0, 0
        self._seconds_before, self._started = 0.0, time.monotonic()

    def batch_loss(self, batch: Any) -> Tensor:
        """The scalar loss of one batch."""
        raise NotImplementedError

    def rate_share(self, name: str) -> float:
        """The share of the learning rate that the net's parameter `name` has."""
        return 1.0

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        loss = self.batch_loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the loss became {value} at step {self.global_step} (epoch {self.current_epoch}, learning rate "
                f"{self.current_rate():.3g}), on this batch: {'; '.join(sorted(set(batch['origin'])))}. If it happens "
                "early, lower --model.lr or lengthen --model.warmup_steps; if it always happens on one file, look into "
                "that file. The checkpoints written before this step are whole."
            )
        self._loss_sum, self._loss_count = self._loss_sum + value, self._loss_count + 1
        self.gradients.saw_batch(batch["origin"])
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the batch. Nothing of the generators needs saving, and nothing drawn in between can shift them."""
        torch.manual_seed(step_seed(self.seed, self.trainer.fit_loop.epoch_loop.total_batch_idx, rank()))

    def on_train_start(self) -> None:
        self._started = time.monotonic()

    def setup(self, stage: str) -> None:
        # Here, so that a task for prediction alone does not carry it; a resumed run then fills it from its checkpoint.
        if stage == "fit" and self.average_decay is not None and self.averaged is None:
            self.averaged = copy.deepcopy(self.net).requires_grad_(False)

    def configure_model(self) -> None:
        """With FSDP2, shard the net: its parts of a million parameters or more each by itself, the rest with the whole.

        A part is gathered when it computes, so that a process holds one part's weights in full at a time.
        """
        if not isinstance(self.trainer.strategy, ModelParallelStrategy) or isinstance(self.net, FSDPModule):
            return
        if self.average_decay is not None:
            raise ConfigError(
                f"model.average_decay = {self.average_decay} with trainer.strategy fsdp: the moving average is not "
                "sharded. Set average_decay to null, or use strategy ddp."
            )
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        for parameter in self.net.parameters():
            parameter.data = parameter.data.contiguous()  # some layers keep theirs channels last, which FSDP2 refuses
        for part in self.net.children():
            if sum(parameter.numel() for parameter in part.parameters()) >= _SHARDED_PART and _is_called(part):
                fully_shard(part, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    @property
    def evaluated(self) -> nn.Module:
        """The net that validation and test look at: the averaged one where there is one."""
        return self.net if self.averaged is None else self.averaged

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measure the gradient, scale it down to `gradient_clip_val`, or drop it where it is no number.

        Lightning calls this between the backward pass and each optimiser step. Without gradients AdamW leaves weights
        and moments as they are.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm = gradient_norm(parameters)
        where = f"step {self.global_step} (epoch {self.current_epoch}, learning rate {self.current_rate():.3g})"
        self._step_taken = self.gradients.admits(float(norm), where=where)
        if not self._step_taken:
            optimizer.zero_grad(set_to_none=True)
        elif gradient_clip_val is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.averaged is not None and self._step_taken:
            self._average()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if self._step_taken:
            super().lr_scheduler_step(scheduler, metric)

    @torch.no_grad()
    def _average(self) -> None:
        assert self.averaged is not None and self.average_decay is not None
        # Lightning has counted this step already, and those that were left out
        steps = self.global_step - self.gradients.skipped_in_all
        decay = min(self.average_decay, (1 + steps) / (10 + steps))
        mean, latest = self.averaged.state_dict(), self.net.state_dict()
        floating = [name for name, value in mean.items() if value.is_floating_point()]
        torch._foreach_lerp_([mean[name] for name in floating], [latest[name] for name in floating], 1 - decay)
        for name in mean.keys() - set(floating):
            mean[name].copy_(latest[name])

    def train_loss(self) -> float:
        """The mean loss of the current epoch so far; NaN before its first batch."""
        return self._loss_sum / self._loss_count if self._loss_count else math.nan

    def epoch_means(self) -> dict[str, float]:
        """What the history says of the epoch's steps: loss, gradient norm (before clipping), and steps left out."""
        return {
            "train_loss": self.train_loss(),
            "gradient_norm": self.gradients.mean_norm,
            "skipped_steps": self.gradients.skipped_in_epoch,
        }

    def start_epoch_means(self) -> None:
        if skipped := self.gradients.skipped_in_epoch:
            log.warning(
                "epoch %d: %d steps left out, as their gradient was no finite number", self.current_epoch + 1, skipped
            )
        self._loss_sum, self._loss_count = 0.0, 0
        self.gradients.start_epoch()

    def train_seconds(self) -> float:
        """Wall time spent in training and validation, those of earlier runs that this one resumed included."""
        return self._seconds_before + time.monotonic() - self._started

    def current_rate(self) -> float:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return optimizer.param_groups[0]["lr"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epoch_means"] = {"loss_sum": self._loss_sum, "loss_count": self._loss_count}
        checkpoint["gradients"] = self.gradients.state_dict()
        checkpoint["train_seconds"] = self.train_seconds()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        means = checkpoint["epoch_means"]
        self._loss_sum, self._loss_count = means["loss_sum"], means["loss_count"]
        self.gradients.load_state_dict(checkpoint["gradients"])
        self._seconds_before = checkpoint["train_seconds"]

    def configure_optimizers(self) -> Any:
        # The fused step takes a fifth of the time on CPU (6 against 29 ms for 4 M parameters on one core), but in mixed
        # precision Lightning will not clip gradients for it.
        fused = self.trainer.precision == "32-true"
        return self.scheduled(AdamW(self.parameter_groups(), lr=self.lr, fused=fused))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The parameters that learn, by their rate and by whether `weight_decay` pulls them."""
        declared = getattr(self.net, "no_weight_decay", None)
        exempt: set[str] = declared() if callable(declared) else set()
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}  # by share of the rate, and whether there is decay
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad:
                decays = parameter.ndim > 1 and name not in exempt
                groups.setdefault((self.rate_share(name), decays), []).append(parameter)
        # the full rate first, as `current_rate` tells the first group's
        ordered = sorted(groups.items(), key=lambda group: group[0], reverse=True)
        return [
            {"params": parameters, "lr": share * self.lr, "weight_decay": self.weight_decay if decays else 0.0}
            for (share, decays), parameters in ordered
        ]

    def scheduled(self, optimizer: Optimizer) -> dict[str, Any]:
        """An optimiser with the task's warm-up and schedule, as Lightning wants the two."""
        scheduler = LambdaLR(
            optimizer,
            lambda step: rate_factor(step, total=self.total_steps, warmup=self.warmup_steps, schedule=self.schedule),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
