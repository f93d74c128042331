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

Progress = Callable[[int, int], None]  # what is done, what there is to do


@dataclass(frozen=True)
class Schedule:
    """epochs, batch_size: windows a step. lr: of AdamW, constant, or falling to 0 along a cosine. weight_decay: of it.

    flips: windows are mirrored and turned at random (their pixel stays in the middle, so of odd sides only).
    jitter: deviation of what is added to a window's spectra, smooth along the bands and one for all its pixels, as
        another light or moisture would (channels have deviation 1 after preparation).
    smoothing: of the labels, in [0, 1). averaging: decay a step of the mean of the weights that is validated and kept
        in place of the last ones; 0: none. validate_every: epochs between two looks at the validation pixels, counted
        back from the last.
    """

    epochs: int = 50
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.0
    cosine: bool = False
    flips: bool = False
    jitter: float = 0.0
    smoothing: float = 0.0
    averaging: float = 0.0
    validate_every: int = 1

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.validate_every) < 1 or self.lr <= 0:
            raise ConfigError(
                f"{self}: epochs, batch_size and validate_every of 1 or more and a learning rate above 0 are needed."
            )
        if self.jitter < 0 or not 0 <= self.smoothing < 1 or not 0 <= self.averaging < 1:
            raise ConfigError(f"{self}: jitter of 0 or more, smoothing and averaging in [0, 1) are needed.")


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
    progress: Progress | None = None,
) -> nn.Module:
    """The net after the epoch (of those that are validated) in which it named the most validation pixels rightly, the
    last such, in eval mode.

    Cross entropy, plus the net's own `penalty()` where it has one. Without validation pixels the last epoch's net.
    `progress` is called before each epoch with the epochs that are done and that there are.

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
        mean = _WeightMean(net, schedule.averaging) if schedule.averaging else None
        best, kept = -1.0, net.state_dict()
        for epoch in range(schedule.epochs):
            if progress is not None:
                progress(epoch, schedule.epochs)
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
                if schedule.jitter:
                    batch = batch + _smooth(len(batch), batch.shape[1], schedule.jitter, rng).to(device)
                wanted = torch.from_numpy(train.labels[chosen]).to(device)
                loss = functional.cross_entropy(net(batch), wanted, label_smoothing=schedule.smoothing)
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
                if mean is not None:
                    mean.update(net)
            candidate = net if mean is None else mean.net
            left = schedule.epochs - epoch - 1
            if len(val.pixels) and left % schedule.validate_every == 0:
                right = float((predict_pixels(candidate, windows, val.pixels) == val.labels).mean())
                if right >= best:
                    best, kept = right, copy.deepcopy(candidate.state_dict())
            elif not len(val.pixels) and not left:
                kept = candidate.state_dict()
        net.load_state_dict(kept)
    return net.eval()


class _WeightMean:
    """A running mean of a net's weights; its first steps weigh alike, so that it soon forgets the initial weights."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net, self.decay, self.steps = copy.deepcopy(net), decay, 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        share = max(1 - self.decay, 1 / self.steps)
        for own, new in zip(self.net.state_dict().values(), net.state_dict().values(), strict=True):
            if own.is_floating_point():
                own.lerp_(new, share)
            else:
                own.copy_(new)


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


def _smooth(count: int, channels: int, deviation: float, rng: np.random.Generator) -> Tensor:
    """float32 [count, channels, 1, 1]: the first cosines along the channels, each half as strong as the one before."""
    waves = np.cos(np.pi * np.arange(4)[:, None] * (np.arange(channels) + 0.5) / channels)
    drawn = rng.normal(size=(count, 4)) * deviation * 0.5 ** np.arange(4)
    return torch.from_numpy((drawn @ waves).astype(np.float32))[:, :, None, None]


def _turned(batch: Tensor, rng: np.random.Generator) -> Tensor:
    """The batch, all of it mirrored and turned one of eight ways; by batch, since there are many."""
    if batch.shape[-1] % 2 == 0:
        raise ConfigError(f"flips of windows of side {batch.shape[-1]}: an odd side is needed, which has a middle.")
    batch = torch.rot90(batch, int(rng.integers(4)), (2, 3))
    return batch.flip(3) if rng.integers(2) else batch
