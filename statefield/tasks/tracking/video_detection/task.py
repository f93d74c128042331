"""`VideoDetectionTask`: trains a detector on key frames and validates it on whole videos, frame by frame."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import SGD

from statefield.datasets.readers.video import read_frame
from statefield.datasets.tracking.coco_json import Detections, Entry
from statefield.datasets.tracking.video_objects import LabelledVideo, VideoSet
from statefield.tasks.common.module import DensePredictionTask
from statefield.tasks.common.parallel import of_all
from statefield.tasks.tracking.video.coco_scores import coco_scores
from statefield.tasks.tracking.video_detection.detector import VideoDetector
from statefield.tasks.tracking.video_detection.examples import FrameBatch
from statefield.tasks.tracking.video_detection.follow import entries_of, follow, spread
from statefield.tasks.tracking.video_detection.recipe import VideoModelConfig

VALIDATION_SCORE = "AP50"
_MOMENTUM = 0.9

__all__ = ["VALIDATION_SCORE", "VideoDetectionTask"]


class VideoDetectionTask(DensePredictionTask):
    """Detection in videos. After each validation `epoch_scores` holds COCO's AP50 and AP of the validation videos.

    Args:
        config: detector and optimiser. num_classes: of objects. val: the validation videos; None where there is none.
        seed, total_steps, max_skipped_steps: see `DensePredictionTask`.

    Raises: ConfigError, UnknownName, CheckpointError: a detector that cannot be built so.
    """

    def __init__(
        self,
        config: VideoModelConfig,
        *,
        num_classes: int,
        seed: int,
        total_steps: int,
        val: VideoSet | None = None,
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
        self.net = VideoDetector(config, num_classes)
        self.config, self.val = config, val
        self._of_enhancements = self.net.parameters_of_enhancements()
        self._entries: dict[str, list[Entry]] = {}

    def rate_share(self, name: str) -> float:
        return self.config.memory.rate_share if self.config.memory and name in self._of_enhancements else 1.0

    def batch_loss(self, batch: FrameBatch) -> Tensor:
        """The sum of Faster R-CNN's four losses."""
        assert isinstance(self.net, VideoDetector)
        losses = self.net.losses(
            [one.float() / 255 for one in batch["frames"]],
            batch["targets"],
            [[one.float() / 255 for one in group] for group in batch["references"]],
        )
        return sum(losses.values(), start=losses["loss_classifier"].new_zeros(()))

    def on_validation_epoch_start(self) -> None:
        self._entries = {}

    def validation_step(self, video: LabelledVideo, batch_idx: int) -> None:
        self._entries[video.case] = detect_labelled(self.evaluated, video, self.config, self.category_ids, self.seed)

    @property
    def category_ids(self) -> tuple[int | str, ...]:
        assert self.val is not None
        return self.val.category_ids

    def on_validation_epoch_end(self) -> None:
        assert self.val is not None
        # a video that two processes saw, so that each has equally many, counts once
        entries = {case: rows for one in of_all(self._entries) for case, rows in one.items()}
        truth = self.val.only(sorted(entries)).truth
        rows = [row for case in sorted(entries) for row in entries[case]]
        scores = coco_scores(truth, Detections(truth.path, rows, ("bbox",)), "bbox").overall
        # where the validation videos hold no object pycocotools says -1, and no epoch is better than another
        self.epoch_scores = {name: max(scores[name], 0.0) for name in (VALIDATION_SCORE, "AP")}

    def on_train_epoch_start(self) -> None:
        self.epoch_scores = {}  # an epoch without validation has no scores

    def configure_optimizers(self) -> Any:
        if self.config.optimizer == "adamw":
            return super().configure_optimizers()
        return self.scheduled(SGD(self.parameter_groups(), lr=self.lr, momentum=_MOMENTUM))


def detect_labelled(
    net: Any, video: LabelledVideo, config: VideoModelConfig, category_ids: tuple[int | str, ...], seed: int
) -> list[Entry]:
    """Results of every frame of a video of a dataset."""
    count = config.memory.first_references if config.memory is not None else 0
    references = [read_frame(video.frames[place].path) for place in spread(count, len(video.frames))] if count else []
    found = follow(net, (read_frame(frame.path) for frame in video.frames), seed=seed, references=references)
    return [
        row
        for frame, one in zip(video.frames, found, strict=True)
        for row in entries_of(one, frame.image_id, category_ids)
    ]
