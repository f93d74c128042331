"""`MotionTask`: trains MTP on windows of true tracks, and validates it by the overlap of its predictions."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision.ops import generalized_box_iou_loss

from statefield.backbones import without_scan
from statefield.errors import ConfigError
from statefield.tasks.common.module import DensePredictionTask
from statefield.tasks.common.parallel import of_all
from statefield.tasks.tracking.motion.accuracy import paired_overlap
from statefield.tasks.tracking.motion.model import corners
from statefield.tasks.tracking.motion.recipe import MotionModelConfig
from statefield.tasks.tracking.motion.steps import steps_of, unit_of
from statefield.tasks.tracking.motion.windows import SequenceTracks
from statefield.tasks.tracking.nets import MotionPredictor

VALIDATION_SCORE = "IoU/next box"
_BATCH = 4096
_LEAST_SIDE = 1e-3

__all__ = ["VALIDATION_SCORE", "MotionTask", "SequenceCases", "build_net"]


def build_net(config: MotionModelConfig) -> MotionPredictor:
    """The net of a recipe, with initial weights."""
    net = MotionPredictor(
        config.history,
        dim=config.dim,
        num_layers=config.num_layers,
        d_state=config.d_state,
        from_last_step=config.from_last_step,
        convolution=config.convolution,
        residual=config.residual,
    )
    return without_scan(net) if config.without_scan else net


def _next_corners(steps: Tensor) -> Tensor:
    """The next box [B, 4] (x1, y1, x2, y2) after steps [B, 4] in the sides of the last one, which is 1 by 1 about 0."""
    half = (1 + steps[:, 2:].float()).clamp(min=_LEAST_SIDE) / 2
    centre = steps[:, :2].float()
    return torch.cat((centre - half, centre + half), dim=1)


class SequenceItem(TypedDict):
    """All windows of a sequence without noise: steps [M, q, 4], known steps [M], unit [M, 4], boxes [M, 4]: the last
    and the next (centres and sides).
    """

    case: str
    steps: NDArray[np.float64]
    lengths: NDArray[np.int64]
    unit: NDArray[np.float64]
    last: NDArray[np.float64]
    next: NDArray[np.float64]


class SequenceCases(Dataset[SequenceItem]):
    """The validation sequences."""

    def __init__(self, tracks: list[SequenceTracks], config: MotionModelConfig) -> None:
        self.tracks, self.config = tracks, config

    def __len__(self) -> int:
        return len(self.tracks)

    def __getitem__(self, index: int) -> SequenceItem:
        each = self.tracks[index]
        at = each.present
        boxes, lengths = each.window(at, self.config.history)
        unit = unit_of(self.config.unit, boxes[:, -1], each.image_size)
        return {
            "case": each.case,
            "steps": steps_of(boxes, lengths, unit),
            "lengths": lengths,
            "unit": unit,
            "last": boxes[:, -1],
            "next": each.boxes[at + 1],
        }


class MotionTask(DensePredictionTask):
    """MTP on windows.

    Args:
        config: net, loss and optimiser. spread: standard deviation of the training's steps, [4], for a new net.
        seed, total_steps, max_skipped_steps: see `DensePredictionTask`.

    After each validation `epoch_scores` holds `VALIDATION_SCORE`, the mean IoU of the predicted and the next box over
    all boxes of the validation sequences together.
    """

    def __init__(
        self,
        config: MotionModelConfig,
        *,
        spread: NDArray[np.float32],
        seed: int,
        total_steps: int,
        max_skipped_steps: int = 10,
    ) -> None:
        if config.loss == "overlap" and config.unit != "box":
            raise ConfigError(
                f"model.loss overlap and model.unit {config.unit}: how much boxes overlap follows from steps in their "
                "own sides alone. Set model.unit to box, or model.loss to smooth_l1."
            )
        super().__init__(
            lr=config.lr,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup_steps,
            schedule=config.schedule,
            seed=seed,
            total_steps=total_steps,
            average_decay=config.average_decay,
            max_skipped_steps=max_skipped_steps,
        )
        self.net = build_net(config)
        self.net.spread.copy_(torch.from_numpy(spread))
        self.loss, self.beta = config.loss, config.beta
        self._sums: dict[str, tuple[float, int]] = {}

    def batch_loss(self, batch: Any) -> Tensor:
        """Smooth L1 of the step in standard deviations, the mean over its numbers (the paper's loss); or 1 - GIoU."""
        found = self.net(batch["steps"], batch["length"])
        if self.loss == "overlap":
            return generalized_box_iou_loss(_next_corners(found), _next_corners(batch["target"]), reduction="mean")
        return functional.smooth_l1_loss(found / self.net.spread, batch["target"] / self.net.spread, beta=self.beta)

    def on_validation_epoch_start(self) -> None:
        self._sums = {}

    def validation_step(self, case: SequenceItem, batch_idx: int) -> None:
        device = self.net.spread.device
        found = [
            self.evaluated(steps.float().to(device), lengths.to(device)).double().cpu()
            for steps, lengths in zip(
                torch.from_numpy(case["steps"]).split(_BATCH),
                torch.from_numpy(case["lengths"]).split(_BATCH),
                strict=True,
            )
        ]
        steps = torch.cat(found).numpy() if found else np.zeros((0, 4))
        expected = case["last"] + steps * case["unit"]
        overlap = paired_overlap(corners(expected), corners(case["next"]))
        self._sums[case["case"]] = (float(overlap.sum()), len(overlap))

    def on_validation_epoch_end(self) -> None:
        sums = {case: one for part in of_all(self._sums) for case, one in part.items()}
        total = sum(count for _, count in sums.values())
        self.epoch_scores = {VALIDATION_SCORE: sum(overlap for overlap, _ in sums.values()) / max(total, 1)}

    def on_train_epoch_start(self) -> None:
        self.epoch_scores = {}
