"""10,000 optimiser steps in bf16 with every kind of scan: no NaN, a falling loss, and memory that does not grow."""

from __future__ import annotations

import math
import resource
from pathlib import Path

import pytest
import torch
from fakes.medical import write_pairs
from lightning.pytorch import Callback
from torch import Tensor, nn

from statefield.backbones._mixers import (
    CrossDualityMixer,
    CrossScanMixer,
    MatrixMemoryMixer,
    SpatialMix,
    StructureAwareMixer,
)
from statefield.tasks.common.config import TrainerConfig
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.common.trainer import run_training
from statefield.tasks.medical.experiment import Dataset, build_data, build_task
from statefield.tasks.medical.recipe import DataConfig, ModelConfig, SegmentationRecipe
from statefield.tasks.medical.segmentation import VALIDATION_SCORE

STEPS, EPOCHS = 10_000, 5


class EveryScan(nn.Module):
    """A residual block for each of five scans, on cells of 4 x 4 pixels: [B, 1, H, W] -> logits [B, 2, H, W]."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 4, stride=4)
        self.mixers = nn.ModuleList(
            [
                CrossScanMixer(channels, d_state=4, expand=1.0),
                StructureAwareMixer(channels, d_state=2, expand=1.0),
                CrossDualityMixer(channels, d_state=4),
                SpatialMix(channels),
                MatrixMemoryMixer(channels, expand=1.0, heads=2),
            ]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in self.mixers])
        self.head = nn.ConvTranspose2d(channels, 2, 4, stride=4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).movedim(1, -1)  # [B, h, w, C]
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            y = norm(x)
            if isinstance(mixer, MatrixMemoryMixer):
                y = mixer(y.flatten(1, 2), y.shape[1:3]).unflatten(1, y.shape[1:3])
            else:
                y = mixer(y)
            x = x + y
        return self.head(x.movedim(-1, 1))


class _Watch(Callback):
    """The loss of every step, and the memory that the process holds at some."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.held: dict[int, int] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, *_) -> None:
        self.losses.append(float(outputs["loss"]))
        if len(self.losses) in (STEPS // 5, STEPS):
            self.held[len(self.losses)] = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_steps_in_bf16_stay_finite_learn_and_hold_no_more_memory(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", num_cases=6, size=(16, 16))
    recipe = SegmentationRecipe(
        run=tmp_path / "run",
        seed=3,
        data=DataConfig(root=data, patch_size=(16, 16), batch_size=2, augment="flips"),
        model=ModelConfig(encoder="test_resnet", lr=3e-3),
        trainer=TrainerConfig(
            accelerator="cpu",
            precision="bf16-mixed",
            threads=1,
            max_epochs=EPOCHS,
            steps_per_epoch=STEPS // EPOCHS,
            val_every_epochs=EPOCHS,
        ),
    )
    dataset = Dataset.of(recipe)
    folder = RunFolder(recipe.run)
    patches = build_data(recipe, dataset, {split: dataset.records(split) for split in ("train", "val", "test")}, folder)
    task = build_task(recipe, dataset.info, total_steps=STEPS)
    torch.manual_seed(3)
    task.net = EveryScan()
    watch = _Watch()
    run_training(task, patches, recipe.trainer, folder, score=VALIDATION_SCORE, resume=False, callbacks=[watch])
    assert task.trainer.global_step == len(watch.losses) == STEPS
    assert all(map(math.isfinite, watch.losses))
    assert task.gradients.skipped_in_all == 0
    assert all(bool(value.isfinite().all()) for value in task.net.state_dict().values())
    first, last = sum(watch.losses[:500]) / 500, sum(watch.losses[-500:]) / 500
    print(f"loss {first:.3f} -> {last:.3f}, held {[round(held / 2**20) for held in watch.held.values()]} MiB")
    assert last < first / 2
    assert watch.held[STEPS] - watch.held[STEPS // 5] < 2**25
