"""Detection in videos with a trained detector: frames in, COCO's results out, frame by frame."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from statefield.datasets.readers.limits import require_memory
from statefield.datasets.readers.video import Frames, find_frames
from statefield.datasets.tracking.coco_json import Entry, write_results
from statefield.datasets.tracking.video_objects import open_videos
from statefield.errors import ConfigError
from statefield.files import write_json
from statefield.tasks.tracking.frame_drawing import Form, require_writer, write_pictures
from statefield.tasks.tracking.video_detection.follow import entries_of, follow, spread
from statefield.tasks.tracking.video_detection.testing import draw_detections
from statefield.tasks.tracking.video_detection.training import TrainedDetector

__all__ = ["DetectedVideo", "DetectionInput", "Drawing", "detect_videos", "find_inputs", "require_free"]

_LARGEST_ANIMATION_PX = 1280 * 1280  # of a frame; all of an animation are in memory at once
OnFrame = Callable[[str, int, int | None], None]  # video, frames done, of how many


@dataclass(frozen=True)
class DetectionInput:
    """A video to look through.

    Args: frames: of it. image_ids: of each frame, where annotations name them; None: they are numbered as they come.
    """

    frames: Frames
    image_ids: tuple[int | str, ...] | None = None


@dataclass(frozen=True)
class DetectedVideo:
    """What became of a video: results of all its frames; `seconds` of reading and detection, drawing left out."""

    name: str
    num_frames: int
    entries: list[Entry]
    seconds: float


@dataclass(frozen=True)
class Drawing:
    """How frames are drawn: into which folder, in which form, and detections of which score on."""

    folder: Path
    form: Form
    least_score: float = 0.5


def find_inputs(paths: Sequence[Path], images: Path | None, trained: TrainedDetector) -> list[DetectionInput]:
    """The videos that `paths` name: video files, folders of frames, folders of either, or one CocoVID or COCO file.

    Args:
        images: of a CocoVID or COCO file: the folder that its file_names are in.
        trained: its classes have to be among those of a CocoVID or COCO file, under the same ids.

    Raises: DatasetLayoutError, DataError, ConfigError: nothing that can be looked through; the message names the file.
    """
    if len(paths) == 1 and paths[0].suffix.lower() == ".json":
        found = []
        labelled = open_videos(paths[0], images)
        known = dict(zip(labelled.category_ids, labelled.classes, strict=True))
        for number, name in zip(trained.category_ids, trained.classes, strict=True):
            if known.get(number) != name:
                raise ConfigError(
                    f"{paths[0]} has no class {name!r} of id {number}, which {trained.folder.root} detects; it has "
                    f"{', '.join(f'{one} ({key})' for key, one in list(known.items())[:6])}. Results would be scored "
                    "as other classes: give the folder of the frames, or correct the categories."
                )
        for video in labelled.videos:
            files = tuple(frame.path for frame in video.frames)
            (frames,) = find_frames([files[0]])
            numbers = tuple(frame.image_id for frame in video.frames)
            found.append(DetectionInput(Frames(video.case, files[0].parent, files, 0, frames.size), numbers))
        return found
    if images is not None:
        raise ConfigError("--images is of one CocoVID or COCO file (.json), and none was given: leave it out.")
    return [DetectionInput(frames) for frames in find_frames(paths)]


def require_free(output: Path, drawing: Drawing | None, *, overwrite: bool) -> None:
    """Raise `ConfigError` where results or pictures are there already, or cannot be written in the form asked for."""
    if output.suffix.lower() != ".json":
        raise ConfigError(f"--output {output}: a name that ends in .json is needed.")
    written = [output, images_file(output), *([drawing.folder] if drawing is not None else [])]
    there = [path for path in written if path.exists()]
    if there and not overwrite:
        raise ConfigError(f"{there[0]} is there already. Replace it with --overwrite, or name another --output.")
    if drawing is not None:
        require_writer(drawing.form)


def images_file(output: Path) -> Path:
    """Where it is said which frame is which number, of results in `output`."""
    return output.with_name(f"{output.stem}_images.json")


def detect_videos(
    trained: TrainedDetector,
    inputs: Sequence[DetectionInput],
    output: Path,
    *,
    least_score: float | None = None,
    drawing: Drawing | None = None,
    on_frame: OnFrame | None = None,
) -> tuple[list[DetectedVideo], Path | None]:
    """Look through every video in turn, and write COCO's results once all are done: on an error nothing is written.

    Args:
        trained: its net is in eval mode, on the device that it is to compute on.
        output: the list of results (.json). Where no annotations number the frames, a CocoVID file of them is written
            beside it, OUTPUT_images.json, for `statefield mot track --images`.
        least_score: detections below it are left out.

    Returns: what became of each video; the file of the images, None where the frames had numbers.

    Raises: DataError: a frame that cannot be read; the message names its file.
    """
    partial = None if drawing is None else drawing.folder.with_name(f".{drawing.folder.name}.partial")
    if drawing is not None and drawing.form == "webp":
        for one in inputs:
            width, height = one.frames.size
            pixels = (one.frames.length or 0) * min(width * height, _LARGEST_ANIMATION_PX)
            require_memory(one.frames.path, 3 * pixels, f"{one.frames.length} frames, held for one animation")
    detected: list[DetectedVideo] = []
    images: list[Entry] = []
    try:
        for number, one in enumerate(inputs, start=1):
            watched = _Watched(trained, one, len(images), least_score, drawing, on_frame)
            if drawing is not None and partial is not None:
                write_pictures(partial / one.frames.name, iter(watched), drawing.form, one.frames.rate)
            else:
                for _ in watched:
                    pass
            detected.append(DetectedVideo(one.frames.name, watched.count, watched.entries, watched.seconds))
            images += _images(one, number, watched.count, len(images), watched.sizes)
        if drawing is not None and partial is not None:
            shutil.rmtree(drawing.folder, ignore_errors=True)
            partial.rename(drawing.folder)
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    write_results(output, [entry for one in detected for entry in one.entries])
    if all(one.image_ids is not None for one in inputs):
        return detected, None
    beside = images_file(output)
    videos = [{"id": number, "name": one.frames.name} for number, one in enumerate(inputs, start=1)]
    categories = [
        {"id": number, "name": name} for number, name in zip(trained.category_ids, trained.classes, strict=True)
    ]
    write_json(beside, {"videos": videos, "images": images, "categories": categories, "annotations": []})
    return detected, beside


class _Watched:
    """One video on its way through the detector; iterating gives a picture of each frame where they are drawn."""

    def __init__(
        self,
        trained: TrainedDetector,
        one: DetectionInput,
        before: int,
        least_score: float | None,
        drawing: Drawing | None,
        on_frame: OnFrame | None,
    ) -> None:
        self.trained, self.one, self.before, self.least_score = trained, one, before, least_score
        self.drawing, self.on_frame = drawing, on_frame
        self.entries: list[Entry] = []
        self.sizes: list[tuple[int, int]] = []
        self.seconds = 0.0

    @property
    def count(self) -> int:
        """Frames that were looked at."""
        return len(self.sizes)

    def __iter__(self) -> Iterator[tuple[str, Image.Image]]:
        frames, latest = self.one.frames, _Latest(self.one.frames)
        found = follow(
            self.trained.net,
            latest,
            seed=self.trained.recipe.seed,
            references=self._references(),
        )
        while True:
            begun = time.perf_counter()
            one = next(found, None)
            self.seconds += time.perf_counter() - begun
            if one is None:
                return
            height, width = latest.frame.shape[:2]
            number = self.before + self.count + 1
            if self.one.image_ids is not None:
                identifier: int | str = self.one.image_ids[self.count]
            else:
                identifier = number
            self.sizes.append((width, height))
            rows = entries_of(one, identifier, self.trained.category_ids)
            rows = [row for row in rows if self.least_score is None or row["score"] >= self.least_score]
            self.entries += rows
            if self.on_frame is not None:
                self.on_frame(frames.name, self.count, frames.length)
            if self.drawing is not None:
                yield f"{self.count:06d}", Image.fromarray(self._drawn(latest.frame, rows, self.drawing.least_score))

    def _references(self) -> list[NDArray[np.uint8]]:
        """Frames that the memory begins with, where the recipe asks for them."""
        memory = self.trained.recipe.model.memory
        if memory is None or not memory.first_references:
            return []
        frames = self.one.frames
        length = frames.length or sum(1 for _ in frames)
        return frames.at(spread(memory.first_references, length))

    def _drawn(self, frame: NDArray[np.uint8], rows: Sequence[Entry], least_score: float) -> NDArray[np.uint8]:
        labels: dict[Any, int] = {number: label for label, number in enumerate(self.trained.category_ids, start=1)}
        shown = [(labels[row["category_id"]], row["bbox"], row["score"]) for row in rows if row["score"] >= least_score]
        return draw_detections(frame, shown, self.trained.classes, enlarge=False)


class _Latest:
    """Frames as they come, the last one kept: the detector reads them, and they are drawn afterwards."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames
        self.frame: NDArray[np.uint8] = np.zeros((0, 0, 3), np.uint8)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for frame in self.frames:
            self.frame = frame
            yield frame


def _images(one: DetectionInput, video: int, count: int, before: int, sizes: Sequence[tuple[int, int]]) -> list[Entry]:
    return [
        {"id": before + index + 1, "video_id": video, "frame_id": index, "file_name": name, "width": w, "height": h}
        for index, (name, (w, h)) in enumerate(zip(one.frames.frame_names(count), sizes, strict=True))
    ]
