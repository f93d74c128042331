"""The guard before each optimiser step: a gradient that is no number must not reach the weights.

One overflow in half precision, or one odd batch, would otherwise turn every weight into NaN, and the moving averages of
the optimiser with them. A step whose gradient norm is infinite or NaN is left out and counted; many in a row are no
accident, and end the training.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from statefield.errors import ConfigError, TrainingDiverged

_BATCHES_NAMED = 3


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together, a scalar; infinite or NaN where any gradient is.

    With sharded parameters (FSDP2) it is the norm of the whole, the same on every process.
    """
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class GradientGuard:
    """Decides whether a step is taken, and keeps what the history says about gradients.

    Args:
        patience: so many left-out steps in a row raise `TrainingDiverged`.
    """

    def __init__(self, patience: int) -> None:
        if patience < 1:
            raise ConfigError(f"trainer.max_skipped_steps = {patience}: 1 or more is needed.")
        self.patience = patience
        self.skipped_in_all = 0
        self.skipped_in_a_row = 0
        self._batch: list[str] = []
        self._skipped_batches: deque[str] = deque(maxlen=_BATCHES_NAMED)
        self.start_epoch()

    def start_epoch(self) -> None:
        """Begin new means for the history; runs of left-out steps go on across epochs."""
        self.skipped_in_epoch = 0
        self._norm_sum, self._norm_count = 0.0, 0

    @property
    def mean_norm(self) -> float:
        """The mean gradient norm of the epoch's steps that were taken; NaN before the first."""
        return self._norm_sum / self._norm_count if self._norm_count else math.nan

    def saw_batch(self, origins: Iterable[str]) -> None:
        """Remember the files of a batch that adds to the next step's gradient."""
        self._batch.extend(sorted(set(origins)))

    def admits(self, norm: float, *, where: str) -> bool:
        """Whether a step with this gradient norm may be taken; counts it either way.

        Raises:
            TrainingDiverged: this is the `patience`-th step in a row that may not; `where` says which.
        """
        batch, self._batch = "; ".join(self._batch), []
        if math.isfinite(norm):
            self._norm_sum, self._norm_count = self._norm_sum + norm, self._norm_count + 1
            self.skipped_in_a_row = 0
            self._skipped_batches.clear()
            return True
        self.skipped_in_epoch += 1
        self.skipped_in_a_row += 1
        self.skipped_in_all += 1
        self._skipped_batches.append(batch)
        if self.skipped_in_a_row >= self.patience:
            raise TrainingDiverged(
                f"the gradient was no finite number in {self.skipped_in_a_row} steps in a row (its norm is {norm} at "
                f"{where}), so these steps were left out and the net no longer learns. The last batches: "
                f"{' | '.join(self._skipped_batches)}. If the batches differ, lower --model.lr, lengthen "
                "--model.warmup_steps, or use --trainer.precision 32-true; if it is always one file, look into that "
                "file. --trainer.max_skipped_steps says how many are borne."
            )
        return False

    def state_dict(self) -> dict[str, Any]:
        return {
            "skipped_in_all": self.skipped_in_all,
            "skipped_in_a_row": self.skipped_in_a_row,
            "skipped_in_epoch": self.skipped_in_epoch,
            "norm_sum": self._norm_sum,
            "norm_count": self._norm_count,
            "batch": list(self._batch),
            "skipped_batches": list(self._skipped_batches),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped_in_all, self.skipped_in_a_row = state["skipped_in_all"], state["skipped_in_a_row"]
        self.skipped_in_epoch = state["skipped_in_epoch"]
        self._norm_sum, self._norm_count = state["norm_sum"], state["norm_count"]
        self._batch = list(state["batch"])
        self._skipped_batches = deque(state["skipped_batches"], maxlen=_BATCHES_NAMED)
