"""`ChangeTask`: trains a net of two dates on patches, and validates it on whole pairs; and their tiled prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from statefield.backbones import without_scan
from statefield.backbones.checkpoints import load_checkpoint
from statefield.datasets.change import ChangeInfo
from statefield.errors import ConfigError
from statefield.tasks.common.checkpointing import load_weights
from statefield.tasks.common.fitting import seeded
from statefield.tasks.common.module import DensePredictionTask
from statefield.tasks.common.parallel import of_all
from statefield.tasks.common.tiling import sliding_slabs
from statefield.tasks.remote_sensing.change_kinds import ChangeKind, ShiftedLogits, change_kind
from statefield.tasks.remote_sensing.change_recipe import ChangeInferenceConfig, ChangeModelConfig, ChangeRecipe
from statefield.tasks.remote_sensing.change_threshold import ThresholdCounts
from statefield.tasks.remote_sensing.nets import CHANGE_NETS

Progress = Callable[[int, int], None]


class ChangeTask(DensePredictionTask):
    """Change detection of any kind.

    After each validation `epoch_scores` holds the kind's main scores of all validation pairs together, decided at a
    threshold of 0.5, or, where the recipe chooses it on the validation pairs, at the best one.

    Args:
        recipe: model, inference and seed are read. info: of the dataset. num_bands: that the net sees.
        total_steps: optimiser steps of the whole training.
    """

    def __init__(self, recipe: ChangeRecipe, info: ChangeInfo, *, num_bands: int, total_steps: int) -> None:
        config = recipe.model
        super().__init__(
            lr=config.lr,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup_steps,
            schedule=config.schedule,
            seed=recipe.seed,
            total_steps=total_steps,
            average_decay=config.average_decay,
            max_skipped_steps=recipe.trainer.max_skipped_steps,
        )
        self.kind = change_kind(config.task, info, config.loss)
        self.roi = recipe.roi
        self.inference = dataclasses.replace(recipe.inference, mirror=False)  # in validation; it costs four times
        self.net = build_net(config, self.kind, num_bands)
        self.kind.shifts(threshold_of(self.inference))
        self._states: dict[str, Any] = {}
        self._counts: dict[str, ThresholdCounts] = {}

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.net.parameters())

    def forward(self, before: Tensor, after: Tensor) -> Any:
        """Raw logits of scaled patches [B, C, H, W] of both dates: a tensor, or a NamedTuple of the net's maps."""
        return self.net(before, after)

    def batch_loss(self, batch: Mapping[str, Any]) -> Tensor:
        try:
            outputs = self.net(batch["before"], batch["after"])
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                f"data.batch_size = {len(batch['mask'])} with data.patch_size = {tuple(batch['mask'].shape[1:])}: the "
                "coarsest map has one pixel, of which a batch norm learns nothing. Give a batch of 2 or more, or "
                "larger patches."
            ) from error
        return self.kind.loss(outputs, batch)

    def on_validation_epoch_start(self) -> None:
        self._states, self._counts = {}, {}

    def validation_step(self, pair: dict[str, Any], batch_idx: int) -> None:
        net = ShiftedLogits(self.evaluated, self.kind.shifts(threshold_of(self.inference))).to(self.device)
        decided, counts = predict_pair(
            net,
            pair["before"],
            pair["after"],
            self.kind,
            roi=self.roi,
            inference=self.inference,
            target=pair["masks"],
        )
        self._states[pair["case"]] = self.kind.observe(decided, pair["masks"], pair["case"])
        self._counts[pair["case"]] = counts

    def on_validation_epoch_end(self) -> None:
        # a pair that two processes saw, so that each has equally many, counts once
        states = {case: state for one in of_all(self._states) for case, state in one.items()}
        values = self.kind.summarise(reduce(add, states.values())).values
        self.epoch_scores = {name: values[name] for name in self.kind.shown}
        if self.inference.threshold == "val" and self.kind.name == "binary":
            counts = {case: count for one in of_all(self._counts) for case, count in one.items()}
            best = reduce(add, counts.values()).best()
            self.epoch_scores = {self.kind.score: best.f1, "threshold": best.threshold}

    def on_train_epoch_start(self) -> None:
        self.epoch_scores = {}  # an epoch without validation has no scores

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["classes"] = [list(layer.classes) for layer in self.kind.layers]


def build_task(recipe: ChangeRecipe, info: ChangeInfo, *, num_bands: int, total_steps: int) -> ChangeTask:
    """The task of a recipe; its weights follow from the seed alone, or come from the files that the recipe names."""
    task = seeded(recipe.seed, lambda: ChangeTask(recipe, info, num_bands=num_bands, total_steps=total_steps))
    if recipe.model.encoder_weights is not None:
        encoder = getattr(task.net, "encoder", None)
        if encoder is None:
            raise ConfigError(f"model.encoder_weights is set, but {recipe.model.net} has no encoder: set it to null.")
        load_checkpoint(encoder, recipe.model.encoder_weights, fresh=("feature_norms",))
    if recipe.model.weights is not None:
        load_weights(task.net, recipe.model.weights)
    return task


def build_net(config: ChangeModelConfig, kind: ChangeKind, num_bands: int) -> nn.Module:
    """The net of a recipe for images of `num_bands` bands; `ConfigError` for an argument that it does not take."""
    arguments: dict[str, Any] = dict(config.net_args)
    if config.net != "fc_siam_diff":
        arguments |= {"encoder": config.encoder, "encoder_args": config.encoder_args}
    try:
        net = CHANGE_NETS[config.net](num_bands, **kind.net_arguments(), **arguments)
    except TypeError as error:
        raise ConfigError(
            f"model.net {config.net} cannot be built with net_args={config.net_args}: {error}. See its class in "
            "statefield.tasks.remote_sensing.nets for what it takes."
        ) from error
    if config.without_scan:
        without_scan(net)
    return net


def threshold_of(inference: ChangeInferenceConfig) -> float:
    """The recipe's threshold; 0.5 where it is yet to be chosen."""
    return 0.5 if inference.threshold == "val" else inference.threshold


@torch.no_grad()
def predict_pair(
    net: nn.Module,
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    kind: ChangeKind,
    *,
    roi: tuple[int, int],
    inference: ChangeInferenceConfig,
    target: Mapping[str, NDArray[Any]] | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, NDArray[np.uint8]], ThresholdCounts]:
    """The class maps of a pair by layer, uint8 [H, W], decided row by row as the windows are done.

    Args:
        net: in eval mode, a `ShiftedLogits`. before, after: as the net sees them, [C, H, W].
        roi: rows and columns of a window. target: the masks of the pair.
        progress: called as progress(windows done, windows in all).

    Returns: the maps; and how many target pixels have which probability of class 1 in the first map (counted from the
        logits as they are given, shift included), empty without a target.
    """
    device = next(net.parameters()).device
    bands = len(before)

    def both(windows: Tensor) -> Tensor:
        outputs = net(windows[:, :bands], windows[:, bands:])
        return outputs if isinstance(outputs, Tensor) else torch.cat(tuple(outputs), dim=1)

    image = torch.from_numpy(np.concatenate([before, after]))[None]
    parts: list[dict[str, Tensor]] = []
    counts = ThresholdCounts.empty()
    for slab in sliding_slabs(
        image,
        both,
        roi,
        overlap=inference.overlap,
        batch_size=inference.batch_size,
        weighting=inference.weighting,
        mirror_axes=(0, 1) if inference.mirror else (),
        device=device,
        progress=progress,
    ):
        parts.append(kind.decide(slab.logits))
        if target is not None:
            margin = slab.logits[0, 1] - slab.logits[0, 0]
            counts += ThresholdCounts.of(margin.numpy(), target[kind.gate][slab.start : slab.stop])
    maps = {
        layer.name: torch.cat([part[layer.name] for part in parts], dim=1)[0].cpu().numpy() for layer in kind.layers
    }
    return maps, counts
