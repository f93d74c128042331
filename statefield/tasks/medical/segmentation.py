"""`SegmentationTask`: trains a net on patches and validates it on whole cases."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from statefield.tasks.common.config import InferenceConfig
from statefield.tasks.common.data import CaseItem, PatchItem
from statefield.tasks.common.losses import SegmentationLoss
from statefield.tasks.common.module import DensePredictionTask
from statefield.tasks.common.network import SegmentationNet
from statefield.tasks.common.segmentation_metrics import SegmentationMetrics, SegmentationState
from statefield.tasks.medical.nets.whole import WholeNet
from statefield.tasks.medical.predict import segment_volume
from statefield.tasks.medical.recipe import ModelConfig

VALIDATION_SCORE = "Dice/foreground mean"


class SegmentationTask(DensePredictionTask):
    """2-D segmentation of pictures, or of volumes slice by slice.

    After each validation `epoch_scores` holds Dice per class, pooled over all voxels of the validation cases, and
    `VALIDATION_SCORE`, the mean over the classes after the first (the background) that those cases show.

    Args:
        config: net, loss and optimiser.
        inference: how whole slices are predicted in validation (without mirroring, which would cost four times).
        classes: names by label value. num_channels: image channels of the dataset.
        slice_context: neighbours on each side that the net sees as further channels.
        roi: the inference window in pixels; None: whole slices.
        seed, total_steps, max_skipped_steps: see `DensePredictionTask`.
    """

    def __init__(
        self,
        config: ModelConfig,
        inference: InferenceConfig,
        *,
        classes: tuple[str, ...],
        num_channels: int,
        slice_context: int,
        roi: tuple[int, ...] | None,
        seed: int,
        total_steps: int,
        max_skipped_steps: int = 10,
    ) -> None:
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
        self.classes, self.slice_context, self.roi = classes, slice_context, roi
        self.inference = dataclasses.replace(inference, mirror=False)
        self.net = _net(config, num_channels * (2 * slice_context + 1), len(classes))
        self.loss = SegmentationLoss(config.loss, len(classes))
        self.metrics = SegmentationMetrics(classes, distances=False)
        self._state = SegmentationState()

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.net.parameters())

    def forward(self, image: Tensor) -> Tensor:
        """Raw logits [B, K, H, W] of normalised slices [B, (2k+1) * C, H, W]."""
        return self.net(image)

    def batch_loss(self, batch: PatchItem) -> Tensor:
        return self.loss(self.net(batch["image"]), batch["mask"])

    def on_validation_epoch_start(self) -> None:
        self._state = SegmentationState()

    def validation_step(self, case: CaseItem, batch_idx: int) -> None:
        prediction = segment_volume(
            self.evaluated,
            case["volume"],
            slice_context=self.slice_context,
            roi=self.roi,
            inference=self.inference,
        )
        self._state += self.metrics.observe(prediction.labels, case["mask"], case=case["case"], spacing=(1.0, 1.0, 1.0))

    def on_validation_epoch_end(self) -> None:
        summary = self.metrics.summarise(self._state, intervals=False)["metrics"]["Dice"]
        pooled = {name: entry["pooled"] for name, entry in summary["classes"].items()}
        self.epoch_scores = {f"Dice/{name}": pooled[name] for name in self.classes[1:]}
        self.epoch_scores[VALIDATION_SCORE] = summary["foreground_pooled"]

    def on_train_epoch_start(self) -> None:
        self.epoch_scores = {}  # an epoch without validation has no scores

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["classes"] = list(self.classes)


def _net(config: ModelConfig, in_channels: int, num_classes: int) -> nn.Module:
    """A whole net by its name, or a decoder on an encoder."""
    if config.net is not None:
        return WholeNet(config.net, in_channels=in_channels, num_classes=num_classes, net_args=config.net_args)
    return SegmentationNet(
        config.encoder,
        config.decoder,
        in_channels=in_channels,
        num_classes=num_classes,
        detail_channels=config.detail_channels,
        decoder_args=config.decoder_args,
        encoder_args=config.encoder_args,
        shuffle_rate=config.shuffle_rate,
    )
