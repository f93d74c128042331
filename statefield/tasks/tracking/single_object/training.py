"""Training of MambaEVT from a recipe, its test on sequences that were held out, and a trained run as a tracker."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback
from numpy.typing import NDArray

from statefield.datasets.tracking.object_videos import ObjectVideo, find_object_videos
from statefield.errors import ConfigError, DataError
from statefield.files import write_text
from statefield.tasks.common import fitting
from statefield.tasks.common.checkpointing import load_weights
from statefield.tasks.common.data import NumberedBatches, require_cases
from statefield.tasks.common.outcome import TestResult
from statefield.tasks.common.parallel import is_first
from statefield.tasks.common.run_folder import RunFolder
from statefield.tasks.tracking.nets import MambaEVT
from statefield.tasks.tracking.nets.mamba_evt_checkpoints import load_mamba_evt
from statefield.tasks.tracking.single_object.examples import OpenedVideos, Part, SearchSamples
from statefield.tasks.tracking.single_object.follow import Followed, OnFrame, follow
from statefield.tasks.tracking.single_object.recipe import SotModelConfig, SotRecipe, TrackerConfig, read_recipe
from statefield.tasks.tracking.single_object.report import Contender, write_results
from statefield.tasks.tracking.single_object.results import result_text
from statefield.tasks.tracking.single_object.task import VALIDATION_SCORE, PartNumbers, SotTask, build_net
from statefield.tasks.tracking.single_object.tracker import SingleObjectTracker

__all__ = ["TrainedTracker", "load_tracker", "read_splits", "train"]

log = logging.getLogger(__name__)
_NOTHING: OnFrame = lambda *_: None  # noqa: E731


@dataclass(frozen=True)
class TrainedTracker:
    """A net with weights, how far its crops reach, and what its tracker does.

    Attributes:
        name: what tables call it. net: in evaluation. model: template and search factor. config: of the tracker.
    """

    name: str
    net: MambaEVT
    model: SotModelConfig
    config: TrackerConfig

    def tracker(self, device: str | torch.device = "cpu") -> SingleObjectTracker:
        """A tracker that follows nothing yet."""
        return SingleObjectTracker(
            self.net,
            template_factor=self.model.template_factor,
            search_factor=self.model.search_factor,
            config=self.config,
            device=device,
        )


def load_tracker(path: Path, config: TrackerConfig | None = None) -> TrainedTracker:
    """A run folder of `statefield sot train`, with its best weights, or a file of weights, as `convert` writes it.

    Args: config: instead of the run's, or of the authors'.

    Raises:
        ConfigError, CheckpointError: no such run, one without weights, or a file that does not fit.
    """
    if path.is_file() and RunFolder(path.parent).exists() and RunFolder(path.parent).weights == path:
        path = path.parent  # its recipe says how far the crops reach
    if path.is_file():
        net, _ = load_mamba_evt(path)
        return TrainedTracker(path.stem, net, SotModelConfig(), config or TrackerConfig())
    folder = RunFolder(path)
    folder.require()
    recipe = read_recipe(folder.config)
    net = build_net(recipe.model)
    load_weights(net, folder.weights)
    return TrainedTracker(recipe.model.name, net.eval(), recipe.model, config or recipe.tracker)


def train(
    recipe: SotRecipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[Callback] = (),
    announce: fitting.Announce = log.info,
    progress: OnFrame = _NOTHING,
) -> TestResult | None:
    """Train the recipe's net and its control, and follow the test sequences with each.

    Args: as of `fitting.fit`; progress: called with a sequence, the frames done, and the frames in all.

    Returns the result; None in every process but the first.

    Raises:
        ConfigError: settings that cannot work, a run folder in the way, or nothing to resume.
        TrainingDiverged: the loss is no longer a number. Errors of the sequences' files.
    """
    recipe = fitting.begin(recipe, read_recipe, resume=resume, overwrite=overwrite)
    splits = read_splits(recipe)
    plans = fitting.plans_of(recipe)
    if resume:
        fitting.require_same_cases(plans[0].folder, splits)
    samples = SearchSamples(splits["train"], recipe.data, recipe.model, seed=recipe.seed)

    def task(plan: SotRecipe, total_steps: int) -> SotTask:
        def build() -> SotTask:
            return SotTask(
                plan.model,
                plan.tracker,
                splits["val"],
                num_frames=plan.data.val_frames,
                seed=plan.seed,
                total_steps=total_steps,
                max_skipped_steps=plan.trainer.max_skipped_steps,
            )

        return fitting.seeded(plan.seed, build)

    fitting.fit(
        plans,
        build_task=task,
        build_data=lambda: NumberedBatches(
            samples,
            PartNumbers(len(splits["val"])),
            batch_size=recipe.data.batch_size,
            steps_per_epoch=recipe.trainer.steps_per_epoch,
            workers=recipe.data.workers,
        ),
        about=lambda: {"splits": {split: [part.case for part in parts] for split, parts in splits.items()}},
        score=VALIDATION_SCORE,
        resume=resume,
        overwrite=overwrite,
        callbacks=callbacks,
        announce=announce,
    )
    if not is_first():
        return None
    trained = [load_tracker(plan.folder.root) for plan in plans]
    tested = splits["test"][:1] if recipe.trainer.fast_dev_run else splits["test"]
    contenders = _followed(trained, tested, recipe, announce, progress)
    predictions = plans[0].folder.predictions
    shutil.rmtree(predictions, ignore_errors=True)
    for case, one in contenders[0].followed.items():
        write_text(predictions / f"{case}.txt", result_text(one.boxes))
    return write_results(plans[0].folder, recipe, tested, contenders)


def _followed(
    trained: Sequence[TrainedTracker],
    parts: Sequence[Part],
    recipe: SotRecipe,
    announce: fitting.Announce,
    progress: OnFrame,
) -> list[Contender]:
    """Every contender on every test sequence: the nets, the first one without its memory, and a box that stays."""
    announce(f"testing on {', '.join(part.case for part in parts)}")
    device = "cuda" if torch.cuda.is_available() and recipe.trainer.accelerator != "cpu" else "cpu"
    opened = OpenedVideos()
    first = trained[0]
    # so long an interval that the libraries keep the first template
    forgetful = dataclasses.replace(first, config=dataclasses.replace(first.config, interval=10**9))
    contenders: list[tuple[str, Contender, TrainedTracker | None]] = [
        *((one.name, Contender(one.name, "model" if one is first else "control", {}), one) for one in trained),
        ("", Contender(f"{first.name}, first template alone", "baseline", {}), forgetful),
        ("", Contender("the first box", "baseline", {}), None),
    ]
    for _, contender, tracker in contenders:
        for part in parts:
            box = part.video.boxes[part.first]
            if tracker is None:
                contender.followed[part.case] = _stays(part, box)
                continue
            frames = opened.of(part.video)
            contender.followed[part.case] = follow(
                tracker.tracker(device), part.case, frames, box, first=part.first, end=part.end, on_frame=progress
            )
    return [contender for _, contender, _ in contenders]


def _stays(part: Part, box: NDArray[np.float64]) -> Followed:
    count = part.end - part.first
    return Followed(part.case, np.repeat(box[None], count, axis=0), np.ones(count), 0, np.zeros(count))


def read_splits(recipe: SotRecipe) -> dict[str, list[Part]]:
    """The sequences of the recipe, or parts of them, by split.

    Raises: ConfigError: a recipe that does not say what to learn from and what to hold out. Errors of the files.
    """
    data = recipe.data
    if data.root is None:
        raise ConfigError("data.root is not set: name sequences to learn from, e.g. --data.root EventVOT/train.")
    known = _videos(recipe, data.root)
    if data.time_split is not None:
        if data.val or data.test or data.val_root or data.test_root:
            raise ConfigError(
                "data.time_split cuts every sequence in three parts, so data.val, data.test, data.val_root and "
                "data.test_root have nothing to choose: leave them out, or set data.time_split to null."
            )
        return _cut(known, data.time_split)
    splits: dict[str, list[Part]] = {}
    taken: set[str] = set()
    for split, root, names in (("val", data.val_root, data.val), ("test", data.test_root, data.test)):
        pool = known if root is None else _videos(recipe, root)
        chosen = [one for one in pool if one.split == split] if root is None and not names else pool
        if names:
            by_name = {one.case: one for one in pool}
            missing = [name for name in names if name not in by_name]
            if missing:
                some = ", ".join(list(by_name)[:5])
                raise ConfigError(
                    f"data.{split}: {root or data.root} has no sequence {missing[0]!r}; there are {some}."
                )
            chosen = [by_name[name] for name in names]
        if root is None and not names and not chosen:
            raise ConfigError(
                f"data.{split} and data.{split}_root are not set, and {data.root} is not divided by its publisher: "
                f"name sequences to hold out, e.g. --data.{split} '[{known[0].case}]', or cut every sequence in time "
                "with --data.time_split '[0.6, 0.15]'."
            )
        if root is None:
            if both := taken & {one.case for one in chosen}:
                raise ConfigError(f"{sorted(both)[0]!r} is in data.val and in data.test: name it in one of them.")
            taken |= {one.case for one in chosen}
        splits[split] = [_whole(one) for one in chosen]
    if any(one.split for one in known) and not data.val and not data.test:
        learned = [one for one in known if one.split not in ("val", "test")]
    else:
        learned = known
    splits["train"] = [_whole(one) for one in learned if one.case not in taken]
    require_cases(splits["train"], splits["val"])
    return {split: splits[split] for split in ("train", "val", "test")}


def _videos(recipe: SotRecipe, root: Path) -> list[ObjectVideo]:
    data = recipe.data
    truth = data.truth if root == data.root else None
    found = find_object_videos(root, truth=truth, kind=data.kind, events=data.events)
    without = [one for one in found if not one.visible.any() or (len(one.boxes) < 2)]
    if without:
        raise DataError(
            f"{without[0].place}: {without[0].case!r} has {len(without[0].boxes)} boxes: to learn from a sequence, or "
            "to test on it, a box for each frame is needed. Name the ground truth with --data.truth."
        )
    return found


def _whole(video: ObjectVideo) -> Part:
    return Part(video, int(np.flatnonzero(video.visible)[0]), len(video.boxes))


def _cut(videos: Sequence[ObjectVideo], shares: tuple[float, float]) -> dict[str, list[Part]]:
    """Each sequence in three parts, one after the other in time; each begins with a frame that shows the target."""
    if min(shares) <= 0 or sum(shares) >= 1:
        raise ConfigError(
            f"data.time_split = {list(shares)}: two shares above 0 whose sum is below 1 are needed; what remains is "
            "the test."
        )
    splits: dict[str, list[Part]] = {"train": [], "val": [], "test": []}
    for video in videos:
        count = len(video.boxes)
        edges = (0, round(count * shares[0]), round(count * sum(shares)), count)
        for split, first, end in zip(splits, edges[:-1], edges[1:], strict=True):
            seen = first + np.flatnonzero(video.visible[first:end])
            if len(seen) < 2:
                raise ConfigError(
                    f"data.time_split = {list(shares)} leaves {video.case!r} ({count} frames) fewer than two frames "
                    f"with a target to {split} with: choose other shares."
                )
            splits[split].append(Part(video, int(seen[0]), end))
    return splits
