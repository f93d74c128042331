"""`SegmentationTask`: trains a net on patches and validates it on whole cases."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from torch import Tensor, nn

from statefield.backbones import without_scan
from statefield.errors import ConfigError
from statefield.tasks.common.config import InferenceConfig
from statefield.tasks.common.data import CaseItem
from statefield.tasks.common.losses import DeepSupervisionLoss, SegmentationLoss
from statefield.tasks.common.module import DensePredictionTask
from statefield.tasks.common.network import SegmentationNet
from statefield.tasks.common.parallel import of_all
from statefield.tasks.common.patches import PatchItem
from statefield.tasks.common.segmentation_metrics import SegmentationMetrics, SegmentationState
from statefield.tasks.medical.logit_rows import bands_needed, same_grid
from statefield.tasks.medical.nets.whole import WholeNet, nets_of, nets_with_deep_supervision
from statefield.tasks.medical.predict import segment_volume
from statefield.tasks.medical.recipe import ModelConfig

VALIDATION_SCORE = "Dice/foreground mean"
_BYTES_OF_LOGITS = 2_000_000_000  # that validation holds at once; above it volumes are done in bands of columns


class SegmentationTask(DensePredictionTask):
    """Segmentation of pictures, of volumes slice by slice, or of volumes whole.

    After each validation `epoch_scores` holds Dice per class, pooled over all voxels of the validation cases, and
    `VALIDATION_SCORE`, the mean over the classes after the first (the background) that those cases show.

    Args:
        config: net, loss and optimiser.
        inference: how whole cases are predicted in validation (without mirroring, which would cost four times).
        classes: names by label value. num_channels: image channels of the dataset.
        slice_context: neighbours on each side that the net sees as further channels.
        patch_size: of a training patch: two numbers for a net of slices (None: whole slices), three for one of volumes.
            The window of validation is `inference.roi`, or the patch.
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
        patch_size: tuple[int, ...] | None,
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
        self.classes, self.slice_context = classes, slice_context
        self.roi: tuple[int, ...] | None = inference.roi or patch_size
        self.inference = dataclasses.replace(inference, mirror=False)
        self.net = _net(config, num_channels * (2 * slice_context + 1), len(classes), patch_size)
        if config.without_scan:
            without_scan(self.net)
        _require_window(self.net, patch_size, self.roi)
        loss = SegmentationLoss(config.loss, len(classes))
        self.loss = DeepSupervisionLoss(loss) if config.deep_supervision else loss
        self.metrics = SegmentationMetrics(classes, distances=False)
        self._state = SegmentationState()

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.net.parameters())

    def forward(self, image: Tensor) -> Tensor:
        """Raw logits of normalised patches: [B, (2k+1) * C, H, W] -> [B, K, H, W], or the same with slices D.

        With deep supervision, in training, a list of them.
        """
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
            # a limit of its own, not what is free just now: scores must not depend on that
            num_bands=bands_needed(same_grid(case["volume"].shape[1:]), self.roi, len(self.classes), _BYTES_OF_LOGITS),
        )
        self._state += self.metrics.observe(prediction.labels, case["mask"], case=case["case"], spacing=(1.0, 1.0, 1.0))

    def on_validation_epoch_end(self) -> None:
        # a case that two processes saw, so that each has equally many, counts once
        states = of_all(self._state)
        self._state = SegmentationState({case: scores for one in states for case, scores in one.cases.items()})
        summary = self.metrics.summarise(self._state, intervals=False)["metrics"]["Dice"]
        pooled = {name: entry["pooled"] for name, entry in summary["classes"].items()}
        self.epoch_scores = {f"Dice/{name}": pooled[name] for name in self.classes[1:]}
        self.epoch_scores[VALIDATION_SCORE] = summary["foreground_pooled"]

    def on_train_epoch_start(self) -> None:
        self.epoch_scores = {}  # an epoch without validation has no scores

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["classes"] = list(self.classes)


def _net(config: ModelConfig, in_channels: int, num_classes: int, patch_size: tuple[int, ...] | None) -> nn.Module:
    """A whole net by its name, or a decoder on an encoder."""
    spatial_dims: Literal[2, 3] = 3 if patch_size is not None and len(patch_size) == 3 else 2
    if config.net is not None:
        return WholeNet(
            config.net,
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            num_classes=num_classes,
            net_args=config.net_args,
            image_size=patch_size,
            deep_supervision=config.deep_supervision,
        )
    if spatial_dims == 3:
        raise ConfigError(
            f"data.patch_size = {patch_size} asks for a net of volumes, and encoders with decoders ({config.encoder!r} "
            f"with {config.decoder!r}) are for slices. Set model.net to one of {', '.join(nets_of(3))}, or give "
            "patch_size two numbers."
        )
    if config.deep_supervision:
        raise ConfigError(
            "model.deep_supervision is true, but a decoder on an encoder has one output only. Set it to false, or set "
            f"model.net to one of {', '.join(nets_with_deep_supervision(2))}."
        )
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


def _require_window(net: nn.Module, patch_size: tuple[int, ...] | None, roi: tuple[int, ...] | None) -> None:
    """Raise `ConfigError` where the net cannot predict windows of `roi`."""
    sides = 2 if patch_size is None else len(patch_size)
    if roi is not None and len(roi) != sides:
        raise ConfigError(
            f"inference.roi = {roi} has {len(roi)} numbers, and a net with data.patch_size = {patch_size} sees windows "
            f"of {sides}: give inference.roi {sides} numbers, or null."
        )
    fixed = getattr(net, "image_size", None)
    if fixed is not None and roi is not None and tuple(roi) != tuple(fixed):
        raise ConfigError(
            f"inference.roi = {roi}, but this net is built for images of {fixed} only: leave inference.roi null, or "
            "set it to that."
        )
