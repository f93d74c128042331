"""Training of a video detector from a recipe, its test beside its control, and a trained run as a detector."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import Callback

from statefield.datasets.tracking.video_objects import VideoSet, open_videos
from statefield.errors import ConfigError
from statefield.tasks.common import fitting
from statefield.tasks.common.checkpointing import load_weights
from statefield.tasks.common.data import require_cases
from statefield.tasks.common.outcome import TestResult
from statefield.tasks.common.parallel import is_first
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.tracking.video_detection.detector import VideoDetector
from statefield.tasks.tracking.video_detection.examples import VideoData
from statefield.tasks.tracking.video_detection.recipe import VideoRecipe, fresh, read_recipe, require_sound
from statefield.tasks.tracking.video_detection.task import VALIDATION_SCORE, VideoDetectionTask
from statefield.tasks.tracking.video_detection.testing import Progress, Role, contend, finish

__all__ = ["TrainedDetector", "load_detector", "read_splits", "train"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrainedDetector:
    """A trained run: its recipe, its net in eval mode, and its classes, by name and by the id of its annotations."""

    folder: RunFolder
    recipe: VideoRecipe
    net: VideoDetector
    classes: tuple[str, ...]
    category_ids: tuple[int | str, ...]


def train(
    recipe: VideoRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    announce: fitting.Announce = log.info,
    progress: Progress | None = None,
) -> TestResult | None:
    """Train the recipe's detector and its control, and score both on the test videos.

    Args: as of `fitting.fit`; progress: of testing, (video, frames done, of how many).

    Returns the result; None in every process but the first.

    Raises:
        ConfigError: settings that cannot work, a run folder in the way, or nothing to resume.
        TrainingDiverged: the loss is no longer a number. Errors of the annotations and frames.
    """
    recipe = fitting.begin(recipe, read_recipe, resume=resume, overwrite=overwrite)
    require_sound(recipe)
    splits = read_splits(recipe)
    plans = fitting.plans_of(recipe)
    if resume:
        fitting.require_same_cases(plans[0].folder, {name: one.videos for name, one in splits.items()})

    def task(plan: VideoRecipe, total_steps: int) -> VideoDetectionTask:
        def build() -> VideoDetectionTask:
            return VideoDetectionTask(
                plan.model,
                num_classes=len(splits["train"].classes),
                seed=plan.seed,
                total_steps=total_steps,
                val=splits["val"],
                max_skipped_steps=plan.trainer.max_skipped_steps,
            )

        built = fitting.seeded(plan.seed, build)
        if plan.model.weights is not None:
            load_weights(built.net, plan.model.weights)
        return built

    fitting.fit(
        plans,
        build_task=task,
        build_data=lambda: VideoData(
            splits["train"],
            splits["val"],
            recipe.data,
            references=recipe.data.references if any(plan.recipe.model.memory for plan in plans) else 0,
            steps=recipe.trainer.steps_per_epoch,
            seed=recipe.seed,
        ),
        about=lambda: {
            "layout": splits["train"].layout,
            "classes": list(splits["train"].classes),
            "category_ids": list(splits["train"].category_ids),
            "splits": {name: [video.case for video in one.videos] for name, one in splits.items()},
        },
        score=VALIDATION_SCORE,
        resume=resume,
        overwrite=overwrite,
        callbacks=callbacks,
        announce=announce,
    )
    if not is_first():
        return None
    test = splits["test"]
    if recipe.trainer.fast_dev_run:
        test = test.only([test.videos[0].case])
    announce(f"testing on {len(test.videos)} videos, {len(test.truth.images)} frames")
    trained = [load_detector(plan.folder.root) for plan in plans]
    roles: tuple[Role, Role] = ("model", "control")
    contenders = [
        contend(one.net, one.recipe, test, folder=one.folder, role=role, progress=progress)
        for one, role in zip(trained, roles, strict=False)
    ]
    return finish(plans[0].folder, recipe, test, contenders)


def read_splits(recipe: VideoRecipe) -> dict[str, VideoSet]:
    """The videos of "train", "val" and "test".

    Raises: ConfigError: splits that cannot be made so, or whose classes differ. Errors of the annotations' files.
    """
    data = recipe.data
    assert data.train is not None
    every = _source(data.train, data.images)
    held = [*data.val_videos, *data.test_videos]
    both = set(data.val_videos) & set(data.test_videos)
    if both:
        raise ConfigError(f"{sorted(both)[0]!r} is in data.val_videos and data.test_videos: name it in one of them.")
    val = _source(data.val, data.images) if data.val is not None else every.only(data.val_videos)
    if data.test is not None:
        test = _source(data.test, data.images)
    else:
        test = every.only(data.test_videos) if data.test_videos else val
    for name, one in (("val", val), ("test", test)):
        if (one.classes, one.category_ids) != (every.classes, every.category_ids):
            raise ConfigError(
                f"{one.truth.path} ({name}) has the classes {_told(one)}, and {every.truth.path} (train) has "
                f"{_told(every)}: they must be equal, with equal ids."
            )
    splits = {"train": every.without(held), "val": val, "test": test}
    require_cases(splits["train"].videos, splits["val"].videos)
    return {name: one if name == "train" else one.first_frames(data.frames_per_video) for name, one in splits.items()}


def load_detector(run: Path) -> TrainedDetector:
    """The detector of a run folder that `statefield video train` made, with its best weights.

    Raises:
        ConfigError: no such run. CheckpointError: one without weights, or with weights of another detector.
    """
    folder = RunFolder(run)
    folder.require()
    recipe = read_recipe(folder.config)
    known = fitting.read_about(folder, ["classes", "category_ids"])
    net = fitting.seeded(recipe.seed, lambda: VideoDetector(fresh(recipe.model), len(known["classes"])))
    load_weights(net, folder.weights)
    return TrainedDetector(folder, recipe, net.eval(), tuple(known["classes"]), tuple(known["category_ids"]))


def _source(path: Path, images: Path | None) -> VideoSet:
    return open_videos(path, images if path.is_file() else None)


def _told(videos: VideoSet) -> str:
    pairs = [f"{name} ({number})" for name, number in zip(videos.classes, videos.category_ids, strict=True)]
    return ", ".join(pairs[:6]) + (f" and {len(pairs) - 6} more" if len(pairs) > 6 else "")
