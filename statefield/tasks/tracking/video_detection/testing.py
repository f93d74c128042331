"""The end of a training: detectors on the test videos, their scores side by side, pictures, metrics.json and a page."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from statefield.datasets.readers.video import read_frame
from statefield.datasets.tracking.coco_json import Detections, Entry, write_results
from statefield.datasets.tracking.video_objects import LabelledVideo, VideoSet
from statefield.files import write_json
from statefield.tasks.common.figures import Pixels, class_colour
from statefield.tasks.common.outcome import TestResult, write_metrics
from statefield.tasks.common.report import CaseView, ComparisonRow, Table, Value, representative, write_report
from statefield.tasks.common.run_folder import RunFolder, best_epoch, read_history
from statefield.tasks.tracking.frame_drawing import draw_box, draw_dashed_box, draw_label
from statefield.tasks.tracking.video.coco_scores import CocoScores, coco_scores
from statefield.tasks.tracking.video.vid_scores import SpeedScores, vid_speed_scores
from statefield.tasks.tracking.video_detection.detector import VideoDetector
from statefield.tasks.tracking.video_detection.recipe import VideoRecipe
from statefield.tasks.tracking.video_detection.task import VALIDATION_SCORE, detect_labelled

__all__ = ["Contender", "Progress", "Role", "contend", "draw_detections", "finish"]

Progress = Callable[[str, int, int], None]  # video, frames done, of how many
Role = Literal["model", "control"]
_SHOWN_SCORE = 0.5  # detections below it are scored and not drawn
_INK, _PAPER = "#101418", "#FFFFFF"


@dataclass(frozen=True, eq=False)
class Contender:
    """A tested detector.

    Args:
        entries: COCO's results of all test videos. seconds: reading of frames and detection.
        speeds: of test videos whose objects have tracks.
    """

    name: str
    role: Role
    entries: list[Entry]
    scores: CocoScores
    speeds: SpeedScores | None
    seconds: float
    num_parameters: int
    train_seconds: float | None
    best_epoch: int | None


def contend(
    net: VideoDetector,
    recipe: VideoRecipe,
    test: VideoSet,
    *,
    folder: RunFolder,
    role: Role,
    progress: Progress | None = None,
) -> Contender:
    """Detect in every test video, frame by frame, and score what was found."""
    entries: list[Entry] = []
    begun, done, total = time.perf_counter(), 0, len(test.truth.images)
    for video in test.videos:
        entries += detect_labelled(net, video, recipe.model, test.category_ids, recipe.seed)
        done += len(video.frames)
        if progress is not None:
            progress(video.case, done, total)
    seconds = time.perf_counter() - begun
    detections = Detections(test.truth.path, entries, ("bbox",))
    history = read_history(folder.history) if folder.history.exists() else []
    return Contender(
        name=recipe.model.name,
        role=role,
        entries=entries,
        scores=coco_scores(test.truth, detections, "bbox"),
        speeds=vid_speed_scores(test.truth, detections) if test.truth.has_tracks else None,
        seconds=seconds,
        num_parameters=sum(parameter.numel() for parameter in net.parameters()),
        train_seconds=history[-1].get("seconds") if history else None,
        best_epoch=best_epoch(history, VALIDATION_SCORE),
    )


def finish(folder: RunFolder, recipe: VideoRecipe, test: VideoSet, contenders: Sequence[Contender]) -> TestResult:
    """Write predictions/ (detections and truth, for `statefield video evaluate`), metrics.json and report.html."""
    main = contenders[0]
    for one in contenders:
        write_results(folder.predictions / ("detections.json" if one is main else "control.json"), one.entries)
    write_json(folder.predictions / "truth.json", _as_cocovid(test))
    rows = [ComparisonRow(one.name, one.role, _row(one, len(test.truth.images))) for one in contenders]
    write_metrics(
        folder,
        recipe,
        model=_numbers(main, test),
        controls=[_numbers(one, test) for one in contenders[1:]],
        comparison=rows,
        extra={"classes": list(test.classes), "videos": [video.case for video in test.videos]},
    )
    report = write_report(
        folder.root,
        title=f"{main.name}: objects in {len(test.videos)} videos",
        summary=_cards(main, test),
        cases=_views(test, contenders),
        history=read_history(folder.history) if folder.history.exists() else [],
        classes=(),
        comparison=rows if len(rows) > 1 else None,
        tables=[_class_table(contenders)],
        notes=_notes(recipe, test),
        reproduce=(
            f"statefield video train --config {folder.config}",
            f"statefield video evaluate --gt {folder.predictions / 'truth.json'} "
            f"--results {folder.predictions / 'detections.json'}",
        ),
        legend={"boxes": {name: class_colour(label) for label, name in enumerate(test.classes[:7], start=1)}},
    )
    return TestResult(folder, _numbers(main, test)["test"], rows, report)


def _as_cocovid(test: VideoSet) -> dict[str, Any]:
    truth = test.truth
    return {
        "videos": truth.videos,
        "images": truth.images,
        "categories": truth.categories,
        "annotations": truth.annotations,
    }


def _row(one: Contender, num_frames: int) -> dict[str, Value]:
    values: dict[str, Value] = {"parameters": one.num_parameters}
    values["training"] = None if one.train_seconds is None else f"{one.train_seconds:.0f} s"
    values |= {name: _known(one.scores.overall[name]) for name in ("AP50", "AP", "AP75")}
    if one.speeds is not None:
        values |= {f"AP50 {speed}": one.speeds.mean[speed] for speed in ("slow", "medium", "fast")}
    return values | {"frames/s": num_frames / one.seconds}


def _numbers(one: Contender, test: VideoSet) -> dict[str, Any]:
    return {
        "name": one.name,
        "parameters": one.num_parameters,
        "train_seconds": one.train_seconds,
        "best_epoch": one.best_epoch,
        "detect_seconds": one.seconds,
        "num_frames": len(test.truth.images),
        "num_objects": len(test.truth.annotations),
        "test": {name: _known(value) for name, value in one.scores.overall.items()}
        | ({} if one.speeds is None else {f"AP50_{speed}": value for speed, value in one.speeds.mean.items()}),
        "classes": one.scores.per_class,
    }


def _known(value: float) -> float | None:
    """pycocotools has -1 where nothing is to be scored."""
    return None if value == -1 else value


def _cards(main: Contender, test: VideoSet) -> dict[str, Value]:
    overall = main.scores.overall
    cards: dict[str, Value] = {"AP50": _known(overall["AP50"]), "AP": _known(overall["AP"])}
    cards |= {"test videos": len(test.videos), "frames": len(test.truth.images)}
    return cards | {"frames/s": len(test.truth.images) / main.seconds, "parameters": main.num_parameters}


def _class_table(contenders: Sequence[Contender]) -> Table:
    per_class = contenders[0].scores.per_class
    rows: list[dict[str, Value]] = [
        {"class": name} | {f"{one.role} {score}": one.scores.per_class[name][score] for one in contenders
                           for score in ("AP50", "AP")}
        for name in per_class
    ]  # fmt: skip
    return Table("Each class", "Over all test frames, by pycocotools; a class without an object has no score.", rows)


def _notes(recipe: VideoRecipe, test: VideoSet) -> list[str]:
    notes = [
        "Each test video is gone through once, frame by frame; a frame's result depends on the frames before it alone."
        if recipe.model.memory is None or not recipe.model.memory.first_references
        else "The memory begins with frames spread over the whole video, as in the paper's test.",
        f"Drawn are detections of a score of {_SHOWN_SCORE} and more, in the colour of their class; the truth dashed. "
        "The frame of each video is the one with most objects.",
    ]
    if test.truth.has_tracks:
        notes.append(
            "Slow, medium and fast objects are those of motion IoU above 0.9, from 0.7 to 0.9 and below 0.7, scored as "
            "papers on ImageNet-VID do (FGFA); the first columns are COCO's."
        )
    return notes


def _views(test: VideoSet, contenders: Sequence[Contender]) -> list[CaseView]:
    """Every video with its scores, and pictures of those that the page will show."""
    found: dict[str, list[Entry]] = {video.case: [] for video in test.videos}
    video_of = {frame.image_id: video.case for video in test.videos for frame in video.frames}
    for entry in contenders[0].entries:
        found[video_of[entry["image_id"]]].append(entry)
    scores = {
        case: coco_scores(truth, Detections(truth.path, found[case], ("bbox",)), "bbox").overall
        for case, truth in test.by_video().items()
    }
    ranked = [_number(scores[video.case]["AP50"]) for video in test.videos]
    shown = representative(ranked).values()
    nothing = np.zeros((1, 1), np.int64)
    return [
        CaseView(
            video.case,
            np.zeros((3, 1, 1), np.float32),  # the pictures stand for it
            target=nothing,
            prediction=nothing,
            scores={name: _number(scores[video.case][name]) for name in ("AP50", "AP")},
            pictures=_pictures(video, test, contenders) if place in shown else {},
        )
        for place, video in enumerate(test.videos)
    ]


def _pictures(video: LabelledVideo, test: VideoSet, contenders: Sequence[Contender]) -> dict[str, Pixels]:
    """The fullest frame of a video: the truth, and what each detector found."""
    frame = max(video.frames, key=lambda one: len(one.boxes))
    picture = read_frame(frame.path)
    labels = {number: label for label, number in enumerate(test.category_ids, start=1)}
    pictures = {"truth": draw_detections(picture, [], (), truth=frame.boxes)}
    for one in contenders:
        rows = [row for row in one.entries if row["image_id"] == frame.image_id and row["score"] >= _SHOWN_SCORE]
        title = "detections" if one.role == "model" else "detections of the control"
        named = [(labels[row["category_id"]], row["bbox"], row["score"]) for row in rows]
        pictures[title] = draw_detections(picture, named, test.classes, truth=frame.boxes)
    return pictures


def _number(value: float) -> float:
    return float("nan") if value == -1 else value


def draw_detections(
    frame: Pixels,
    found: Sequence[tuple[int, Sequence[float], float]],
    classes: Sequence[str],
    *,
    truth: NDArray[np.float32] | None = None,
    enlarge: bool = True,
) -> Pixels:
    """A frame with boxes and the names of their classes.

    Args:
        found: label (from 1), box (left, top, width, height) and score of each.
        truth: boxes to be drawn dashed, left, top, right, bottom.
        enlarge: small frames, so that a name has room.
    """
    height, width = frame.shape[:2]
    scale = max(1, round(360 / max(height, width))) if enlarge else 1
    picture = Image.fromarray(frame).resize((width * scale, height * scale), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(picture)
    line, font = max(2, picture.height // 360), ImageFont.load_default(max(11, picture.height // 40))
    for box in truth if truth is not None else ():
        draw_dashed_box(pen, np.asarray(box) * scale, _PAPER, line)
    for label, (left, top, wide, high), score in found:
        corners = np.array([left, top, left + wide, top + high]) * scale
        colour = class_colour(label)
        draw_box(pen, corners, colour, line)
        draw_label(pen, (float(corners[0]), float(corners[1])), f"{classes[label - 1]} {score:.2f}", colour, _INK, font)
    return np.asarray(picture)
