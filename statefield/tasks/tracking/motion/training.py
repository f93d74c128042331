"""Training of MTP from a recipe, its test beside the Kalman filters, and a trained run as a motion model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch import Callback

from statefield.errors import ConfigError
from statefield.tasks.common import fitting
from statefield.tasks.common.checkpointing import load_weights
from statefield.tasks.common.data import NumberedBatches, require_cases
from statefield.tasks.common.outcome import TestResult
from statefield.tasks.common.parallel import is_first
from statefield.tasks.common.report import ComparisonRow
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.tracking.motion import MOTION_MODELS
from statefield.tasks.tracking.motion.accuracy import NextBox, next_box
from statefield.tasks.tracking.motion.learned import LearnedMotion
from statefield.tasks.tracking.motion.model import MotionModel
from statefield.tasks.tracking.motion.motion_report import write_results
from statefield.tasks.tracking.motion.recipe import MotionRecipe, read_recipe
from statefield.tasks.tracking.motion.task import VALIDATION_SCORE, MotionTask, SequenceCases, build_net
from statefield.tasks.tracking.motion.windows import MotionWindows, SequenceTracks, read_tracks
from statefield.tasks.tracking.nets import MotionPredictor

__all__ = ["BASELINES", "TrainedMotion", "compare", "load_motion", "train"]

log = logging.getLogger(__name__)
Role = Literal["model", "control", "baseline"]
BASELINES = {
    "still": "still",
    "constant velocity": "constant_velocity",
    "Kalman (SORT, OC-SORT)": "kalman_sort",
    "Kalman (ByteTrack)": "kalman_byte",
}


@dataclass(frozen=True)
class TrainedMotion:
    """A trained run: its recipe and its net."""

    recipe: MotionRecipe
    net: MotionPredictor

    def model(self, image_size: tuple[int, int] | None, device: str = "cpu") -> LearnedMotion:
        """A motion model of a sequence with images of this width and height."""
        return LearnedMotion(self.net, unit=self.recipe.model.unit, image_size=image_size, device=device)


def train(
    recipe: MotionRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    announce: fitting.Announce = log.info,
) -> TestResult | None:
    """Train the recipe's net and its control, and compare them with the baselines on the test sequences.

    Args: as of `fitting.fit`.

    Returns the result; None in every process but the first.

    Raises:
        ConfigError: settings that cannot work, a run folder in the way, or nothing to resume.
        TrainingDiverged: the loss is no longer a number. Errors of the ground truth's files.
    """
    recipe = fitting.begin(recipe, read_recipe, resume=resume, overwrite=overwrite)
    splits = read_splits(recipe)
    plans = fitting.plans_of(recipe)
    if resume:
        fitting.require_same_cases(plans[0].folder, splits)
    windows = MotionWindows(
        splits["train"],
        history=recipe.model.history,
        unit=recipe.model.unit,
        jitter=recipe.data.jitter,
        clean=recipe.data.clean,
        shorten=recipe.data.shorten,
        mirror=recipe.data.mirror,
        seed=recipe.seed,
    )
    scale = recipe.model.scale
    spread = windows.spread() if scale is None else np.full(4, scale, np.float32)

    def task(plan: MotionRecipe, total_steps: int) -> MotionTask:
        def build() -> MotionTask:
            return MotionTask(
                plan.model,
                spread=spread,
                seed=plan.seed,
                total_steps=total_steps,
                max_skipped_steps=plan.trainer.max_skipped_steps,
            )

        return fitting.seeded(plan.seed, build)

    fitting.fit(
        plans,
        build_task=task,
        build_data=lambda: NumberedBatches(
            windows,
            SequenceCases(splits["val"], recipe.model),
            batch_size=recipe.data.batch_size,
            steps_per_epoch=recipe.trainer.steps_per_epoch,
            workers=recipe.data.workers,
        ),
        about=lambda: {
            "layout": "MOTChallenge",
            "splits": {split: [each.case for each in tracks] for split, tracks in splits.items()},
        },
        score=VALIDATION_SCORE,
        resume=resume,
        overwrite=overwrite,
        callbacks=callbacks,
        announce=announce,
    )
    if not is_first():
        return None
    announce(f"testing on {', '.join(each.case for each in splits['test'])}")
    states = compare([load_motion(plan.folder.root) for plan in plans], splits["test"])
    rows = [
        ComparisonRow(name, role, sum(by_sequence.values(), NextBox()).summarise())
        for (name, role), by_sequence in states.items()
    ]
    by_sequence = {
        each.case: {name: found[each.case] for (name, _), found in states.items()} for each in splits["test"]
    }
    return write_results(plans[0].folder, recipe, rows, by_sequence)


def read_splits(recipe: MotionRecipe) -> dict[str, list[SequenceTracks]]:
    """The tracks of the recipe's sequences, by split."""
    data = recipe.data
    if data.root is None:
        raise ConfigError("data.root is not set: name the folder of a ground truth, e.g. --data.root MOT17/train.")
    both = set(data.val) & set(data.test)
    if both or not data.val or not data.test:
        raise ConfigError(
            f"data.val = {data.val} and data.test = {data.test}: name sequences for each, none of them in both; the "
            "rest is trained on."
        )
    every = read_tracks(data.root, split=data.split)
    known = {each.case: each for each in every}
    for name in (*data.val, *data.test):
        if name not in known:
            raise ConfigError(f"{data.root} has no sequence {name!r}; there are {', '.join(sorted(known))}.")
    splits = {"val": [known[name] for name in data.val], "test": [known[name] for name in data.test]}
    splits["train"] = [each for each in every if each.case not in {*data.val, *data.test}]
    require_cases(splits["train"], splits["val"])
    return splits


def load_motion(run: Path) -> TrainedMotion:
    """The net of a run folder that `statefield mot train` made, with its best weights.

    Raises:
        ConfigError, CheckpointError: no such run, or one without weights.
    """
    folder = RunFolder(run)
    folder.require()
    recipe = read_recipe(folder.config)
    net = build_net(recipe.model)
    load_weights(net, folder.weights)
    return TrainedMotion(recipe, net.eval())


def compare(
    trained: Sequence[TrainedMotion], tracks: Sequence[SequenceTracks]
) -> dict[tuple[str, Role], dict[str, NextBox]]:
    """How well nets (the model, then its control) and the baselines know the next box.

    Returns: name and role of each -> sequence -> its state.
    """
    roles: tuple[Role, Role] = ("model", "control")
    found: dict[tuple[str, Role], dict[str, NextBox]] = {}
    with torch.inference_mode():
        for one, role in zip(trained, roles, strict=False):
            found[one.recipe.model.name, role] = {each.case: next_box(each, _maker(one, each)) for each in tracks}
        for name, motion in BASELINES.items():
            found[name, "baseline"] = {each.case: next_box(each, MOTION_MODELS[motion]) for each in tracks}
    return found


def _maker(one: TrainedMotion, tracks: SequenceTracks) -> Callable[[], MotionModel]:
    return lambda: one.model(tracks.image_size)
