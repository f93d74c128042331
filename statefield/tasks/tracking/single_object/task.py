"""`SotTask`: trains MambaEVT on samples, and validates it by following whole sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from torch import Tensor
from torch.utils.data import Dataset

from statefield.backbones import without_scan
from statefield.tasks.common.module import DensePredictionTask
from statefield.tasks.common.parallel import of_all
from statefield.tasks.tracking.nets import MambaEVT
from statefield.tasks.tracking.nets.mamba_evt_checkpoints import load_initial_weights
from statefield.tasks.tracking.single_object.examples import OpenedVideos, Part
from statefield.tasks.tracking.single_object.follow import follow, frame_errors_of, success_scores
from statefield.tasks.tracking.single_object.losses import tracking_loss
from statefield.tasks.tracking.single_object.recipe import SotModelConfig, TrackerConfig
from statefield.tasks.tracking.single_object.tracker import SingleObjectTracker
from statefield.tasks.tracking.sot.one_pass import FrameErrors

VALIDATION_SCORE = "AUC/success"

__all__ = ["VALIDATION_SCORE", "PartNumbers", "SotTask", "build_net"]


def build_net(config: SotModelConfig) -> MambaEVT:
    """The net of a recipe, with initial weights: random ones."""
    net = MambaEVT(
        template_size=config.template_size,
        search_size=config.search_size,
        patch_size=config.patch_size,
        dim=config.dim,
        num_layers=config.num_layers,
        d_state=config.d_state,
        expand=config.expand,
        head_channels=config.head_channels,
        drop_path_rate=config.drop_path_rate,
        convolution=config.convolution,
    )
    return without_scan(net) if config.without_scan else net


class PartItem(TypedDict):
    """A sequence to follow, by its place among the validation sequences."""

    number: int


class PartNumbers(Dataset[PartItem]):
    """The places of so many validation sequences: the task has them, and opens them itself."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> PartItem:
        return {"number": index}


class SotTask(DensePredictionTask):
    """MambaEVT on samples.

    Args:
        config: net, loss and optimiser.
        tracker, parts: what follows the target in validation, and where. num_frames: of each; None: all.
        seed, total_steps, max_skipped_steps: see `DensePredictionTask`.

    After each validation `epoch_scores` holds `VALIDATION_SCORE`: the area under the success curve over all frames
    after the first ones, of the target followed from its first box.
    """

    net: MambaEVT

    def __init__(
        self,
        config: SotModelConfig,
        tracker: TrackerConfig,
        parts: Sequence[Part],
        *,
        num_frames: int | None = None,
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
        self.config, self.tracker = config, tracker
        self.parts = [
            Part(one.video, one.first, one.end if num_frames is None else min(one.end, one.first + num_frames))
            for one in parts
        ]
        self.net = build_net(config)
        if config.weights is not None:
            load_initial_weights(self.net, config.weights)
        self.opened = OpenedVideos()
        self._errors: dict[str, FrameErrors | None] = {}

    def rate_share(self, name: str) -> float:
        """The head learns at the full rate, everything before it at `backbone_lr` of it."""
        return 1.0 if name.startswith("head.") else self.config.backbone_lr

    def batch_loss(self, batch: Any) -> Tensor:
        """2 GIoU + 5 L1 + 1 focal, as the recipe weighs them."""
        maps = self.net(batch["static"], self.net.encode_templates(batch["templates"]), batch["search"])
        return tracking_loss(
            maps,
            batch["box"],
            giou_weight=self.config.giou_weight,
            l1_weight=self.config.l1_weight,
            focal_weight=self.config.focal_weight,
        ).total

    def on_validation_epoch_start(self) -> None:
        self._errors = {}

    def validation_step(self, case: PartItem, batch_idx: int) -> None:
        part = self.parts[case["number"]]
        net = self.evaluated
        assert isinstance(net, MambaEVT)
        tracker = SingleObjectTracker(
            net,
            template_factor=self.config.template_factor,
            search_factor=self.config.search_factor,
            config=self.tracker,
            device=self.device,
        )
        frames = self.opened.of(part.video)
        found = follow(tracker, part.case, frames, part.video.boxes[part.first], first=part.first, end=part.end)
        self._errors[part.case] = frame_errors_of(found.boxes, part.video, part.first)

    def on_validation_epoch_end(self) -> None:
        errors = {case: one for part in of_all(self._errors) for case, one in part.items()}
        self.epoch_scores = {
            VALIDATION_SCORE: success_scores([one for one in errors.values() if one is not None])["AUC"]
        }

    def on_train_epoch_start(self) -> None:
        self.epoch_scores = {}
