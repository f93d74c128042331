"""Learning the classes of windows: one plain loop for every net.

A scene gives a few thousand windows, and a net here learns them in seconds; Lightning's trainer, which the other jobs
of this library use, would take longer to set up than to run, and what it offers (several machines, resuming) has no
use. The same seed gives the same net, to the bit, on one machine: initial weights, order of the windows, dropout and
flips follow from it, and the caller's random numbers are left alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from statefield.errors import ConfigError, TrainingDiverged
from statefield.tasks.remote_sensing.hyperspectral.windows import Windows


@dataclass(frozen=True)
class Schedule:
    """epochs, batch_size: windows a step. lr: of AdamW, constant, or falling to 0 along a cosine. weight_decay: of it.

    flips: windows are mirrored and turned at random (their pixel stays in the middle, so of odd sides only).
    """

    epochs: int = 50
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.0
    cosine: bool = False
    flips: bool = False

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1 or self.lr <= 0:
            raise ConfigError(f"{self}: epochs and batch_size of 1 or more and a learning rate above 0 are needed.")


@dataclass(frozen=True, eq=False)
class Examples:
    """pixels: int [N, 2], rows and columns. labels: int64 [N]."""

    pixels: np.ndarray
    labels: np.ndarray


def train_net(
    build: Callable[[], nn.Module],
    windows: Windows,
    train: Examples,
    val: Examples,
    schedule: Schedule,
    *,
    seed: int,
    device: str = "cpu",
) -> nn.Module:
    """The net after the epoch in which it named the most validation pixels rightly (the last such), in eval mode.

    Cross entropy, plus the net's own `penalty()` where it has one. Without validation pixels the last epoch's net.

    Raises:
        ConfigError: no training pixel. TrainingDiverged: a loss that is no number.
    """
    if not len(train.pixels):
        raise ConfigError("no training pixel given; at least one is needed.")
    with torch.random.fork_rng(devices=[] if device == "cpu" else None):
        torch.manual_seed(seed)
        net = build().to(device)
        penalty = getattr(net, "penalty", None)
        steps = math.ceil(len(train.pixels) / schedule.batch_size)
        optimiser = torch.optim.AdamW(net.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
        best, kept = -1.0, net.state_dict()
        for epoch in range(schedule.epochs):
            net.train()
            rng = np.random.default_rng([seed, epoch])
            order = rng.permutation(len(train.pixels))
            for step, chosen in enumerate(np.array_split(order, steps)):
                if schedule.cosine:
                    done = (epoch * steps + step) / (schedule.epochs * steps)
                    optimiser.param_groups[0]["lr"] = schedule.lr * (1 + math.cos(math.pi * done)) / 2
                batch = windows(train.pixels[chosen]).to(device)
                if schedule.flips:
                    batch = _turned(batch, rng)
                loss = functional.cross_entropy(net(batch), torch.from_numpy(train.labels[chosen]).to(device))
                if callable(penalty):
                    loss = loss + penalty()
                if not torch.isfinite(loss):
                    raise TrainingDiverged(
                        f"the loss is {loss.item()} in epoch {epoch + 1}, step {step + 1}: lower the learning rate "
                        f"({schedule.lr:g})."
                    )
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
            if len(val.pixels):
                right = float((predict_pixels(net, windows, val.pixels) == val.labels).mean())
                if right >= best:
                    best, kept = right, copy.deepcopy(net.state_dict())
        if len(val.pixels):
            net.load_state_dict(kept)
    return net.eval()


@torch.no_grad()
def predict_pixels(net: nn.Module, windows: Windows, pixels: np.ndarray, batch_size: int = 1024) -> np.ndarray:
    """int64 [N]: the class of each pixel [N, 2]; leaves the net in eval mode."""
    net.eval()
    device = next(net.parameters()).device
    found = [
        net(windows(pixels[first : first + batch_size]).to(device)).argmax(1).cpu().numpy()
        for first in range(0, len(pixels), batch_size)
    ]
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _turned(batch: Tensor, rng: np.random.Generator) -> Tensor:
    """The batch, all of it mirrored and turned one of eight ways; by batch, since there are many."""
    if batch.shape[-1] % 2 == 0:
        raise ConfigError(f"flips of windows of side {batch.shape[-1]}: an odd side is needed, which has a middle.")
    batch = torch.rot90(batch, int(rng.integers(4)), (2, 3))
    return batch.flip(3) if rng.integers(2) else batch
