"""Videos whose frames have boxes of classes: what a detector in videos learns from and is scored against.

Every layout becomes the lists of a CocoVID file (`coco_json.Annotations`), so that there is one form of the truth:

    annotations.json and a folder of images      CocoVID; a plain COCO file is as many videos of one frame
    SEQUENCE/gt/gt.txt and SEQUENCE/img1/        MOTChallenge, DanceTrack, SportsMOT: the one class "pedestrian"
    Annotations/VID/SPLIT/**/VIDEO/000000.xml    ImageNet-VID, with the frames in Data/VID/SPLIT/**/VIDEO/000000.JPEG
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.readers.image import size_of
from statefield.datasets.readers.video import pictures_in
from statefield.datasets.tracking.bad_rows import BadRows
from statefield.datasets.tracking.coco_json import Annotations, Entry, read_annotations
from statefield.datasets.tracking.imagenet_vid import is_imagenet_vid, read_imagenet_vid
from statefield.datasets.tracking.mot_text import read_mot_ground_truth
from statefield.datasets.tracking.multi_object import SequenceFiles, open_ground_truth
from statefield.errors import ConfigError, DataError, DatasetLayoutError

__all__ = ["LabelledFrame", "LabelledVideo", "VideoSet", "open_videos"]

_PEDESTRIAN = 1  # MOT16's number of the class; MOT15 has no column for it


@dataclass(frozen=True, eq=False)
class LabelledFrame:
    """A frame and what is in it.

    Args:
        image_id: of the annotations. path: the picture.
        boxes: float32 [N, 4], left, top, right, bottom in pixels, each with area; crowds are left out.
        labels: int64 [N], 1 to the number of classes, in the order of the set's categories.
    """

    image_id: int | str
    path: Path
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LabelledVideo:
    """A video: its name, and its frames in order."""

    case: str
    frames: tuple[LabelledFrame, ...]


@dataclass(frozen=True, eq=False)
class VideoSet:
    """The videos of one source.

    Args:
        layout: "CocoVID", "COCO", "MOTChallenge" or "ImageNet-VID". truth: all annotations in one form.
        videos: by name.
    """

    layout: str
    truth: Annotations
    videos: tuple[LabelledVideo, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of labels 1, 2, ..."""
        return tuple(str(one.get("name", one["id"])) for one in self.truth.categories)

    @property
    def category_ids(self) -> tuple[int | str, ...]:
        """The files' ids of labels 1, 2, ..."""
        return tuple(one["id"] for one in self.truth.categories)

    def only(self, names: Sequence[str]) -> VideoSet:
        """The set with these videos alone. Raises: ConfigError: there is no such video."""
        known = {video.case: video for video in self.videos}
        for name in names:
            if name not in known:
                raise ConfigError(f"{self.truth.path} has no video {name!r}; there are {_some(list(known))}.")
        return self._with(tuple(known[name] for name in dict.fromkeys(names)))

    def without(self, names: Sequence[str]) -> VideoSet:
        """The set without these videos."""
        return self._with(tuple(video for video in self.videos if video.case not in names))

    def first_frames(self, count: int | None) -> VideoSet:
        """The set with the first `count` frames of each video; None: as it is."""
        if count is None:
            return self
        return self._with(tuple(LabelledVideo(video.case, video.frames[:count]) for video in self.videos))

    def by_video(self) -> dict[str, Annotations]:
        """The truth of each video by itself."""
        video_of = {frame.image_id: video.case for video in self.videos for frame in video.frames}
        images: dict[str, list[Entry]] = {video.case: [] for video in self.videos}
        annotations: dict[str, list[Entry]] = {video.case: [] for video in self.videos}
        for one in self.truth.images:
            images[video_of[one["id"]]].append(one)
        for one in self.truth.annotations:
            annotations[video_of[one["image_id"]]].append(one)
        return {
            case: Annotations(self.truth.path, images[case], self.truth.categories, annotations[case])
            for case in images
        }

    def _with(self, videos: tuple[LabelledVideo, ...]) -> VideoSet:
        kept = {frame.image_id for video in videos for frame in video.frames}
        images = [one for one in self.truth.images if one["id"] in kept]
        used = {one.get("video_id") for one in images}
        truth = Annotations(
            self.truth.path,
            images,
            self.truth.categories,
            [one for one in self.truth.annotations if one["image_id"] in kept],
            [one for one in self.truth.videos if one["id"] in used],
        )
        return VideoSet(self.layout, truth, videos)


def open_videos(source: Path, images: Path | None = None) -> VideoSet:
    """The videos of a source, its layout recognised by itself.

    Args:
        source: a COCO or CocoVID file, or a folder (see the module).
        images: of a COCO file: the folder that its `file_name`s are in; None: that of the file itself.

    Raises: DatasetLayoutError, DataError: what is there cannot be read; the message names the file.
    """
    if not source.exists():
        raise DatasetLayoutError(
            f"{source}: no such file or folder. A CocoVID file (.json) or a folder of MOTChallenge or ImageNet-VID is "
            "needed."
        )
    if source.is_file():
        return _of_coco(source, images)
    if images is not None:
        raise ConfigError(
            f"data.images is of COCO files, and {source} is a folder with frames of its own: leave it out."
        )
    if is_imagenet_vid(source):
        truth, files = read_imagenet_vid(source)
        return _grouped("ImageNet-VID", truth, files)
    return _of_mot(source)


def _of_coco(source: Path, images: Path | None) -> VideoSet:
    truth = read_annotations(source)
    for index, one in enumerate(truth.annotations):
        if not one.get("bbox"):
            raise DataError(
                f"{source}: annotations[{index}] (id {one['id']!r}) has no bbox, and boxes are learned here."
            )
    folder = images or source.parent
    files = {}
    for index, image in enumerate(truth.images):
        if not isinstance(image.get("file_name"), str):
            raise DataError(f"{source}: images[{index}] has no file_name, so its picture cannot be found.")
        files[image["id"]] = folder / image["file_name"]
    first = next(iter(files.values()), None)
    if first is not None and not first.is_file():
        raise DatasetLayoutError(
            f"{first}: no such file; {source} names it. Say with --data.images in which folder the file_names are."
        )
    return _grouped("CocoVID" if truth.videos else "COCO", truth, files)


def _grouped(layout: str, truth: Annotations, files: Mapping[Any, Path]) -> VideoSet:
    if not truth.images or not truth.categories:
        raise DataError(f"{truth.path} has {len(truth.images)} images and {len(truth.categories)} categories.")
    labels = {one["id"]: number for number, one in enumerate(truth.categories, start=1)}
    objects: dict[Any, list[Entry]] = defaultdict(list)
    for one in truth.annotations:
        if not one.get("iscrowd") and one["bbox"][2] > 0 and one["bbox"][3] > 0:
            objects[one["image_id"]].append(one)
    names = {one["id"]: str(one.get("name") or one.get("file_name") or one["id"]) for one in truth.videos}
    by_video: dict[str, list[Entry]] = defaultdict(list)
    for image in truth.images:
        by_video[names[image["video_id"]] if truth.videos else Path(image["file_name"]).stem].append(image)
    if not truth.videos and len(by_video) < len(truth.images):
        by_video = {str(image["file_name"]): [image] for image in truth.images}
    videos = []
    for name, images in sorted(by_video.items()):
        ordered = sorted(images, key=lambda image: image.get("frame_id", 0))
        frames = tuple(_frame(image, files[image["id"]], objects[image["id"]], labels) for image in ordered)
        videos.append(LabelledVideo(name, frames))
    return VideoSet(layout, truth, tuple(videos))


def _frame(image: Entry, path: Path, objects: Sequence[Entry], labels: Mapping[Any, int]) -> LabelledFrame:
    boxes = np.array([one["bbox"] for one in objects], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    numbers = np.array([labels[one["category_id"]] for one in objects], dtype=np.int64)
    return LabelledFrame(image["id"], path, boxes, numbers)


def _of_mot(source: Path) -> VideoSet:
    found = open_ground_truth(source)
    if found.benchmark == "KITTI":
        raise DatasetLayoutError(f"{source} is KITTI's: convert it to a CocoVID file, whose classes can be learned.")
    images: list[Entry] = []
    annotations: list[Entry] = []
    videos: list[Entry] = []
    files: dict[Any, Path] = {}
    for number, sequence in enumerate(found.sequences, start=1):
        pictures = pictures_in(sequence.images) if sequence.images is not None else ()
        if not pictures:
            raise DatasetLayoutError(
                f"{sequence.ground_truth.parent} is of {sequence.name}, whose frames are not there: "
                f"{sequence.name}/img1/000001.jpg is needed. Fetch them, or leave the sequence out of the folder."
            )
        width, height = size_of(pictures[0])
        videos.append({"id": number, "name": sequence.name})
        begin = len(images)
        for frame, path in enumerate(pictures):
            files[begin + frame + 1] = path
            images.append(
                {
                    "id": begin + frame + 1,
                    "video_id": number,
                    "frame_id": frame,
                    "file_name": path.relative_to(source).as_posix() if path.is_relative_to(source) else str(path),
                    "width": width,
                    "height": height,
                }
            )
        annotations += _pedestrians(sequence, begin, len(pictures), len(annotations), found.has_classes)
    truth = Annotations(source, images, [{"id": 1, "name": "pedestrian"}], annotations, videos)
    return _grouped("MOTChallenge", truth, files)


def _pedestrians(sequence: SequenceFiles, begin: int, num_frames: int, known: int, has_classes: bool) -> list[Entry]:
    """The boxes of people that the benchmark counts, as annotations of the images `begin + 1` on."""
    path = sequence.ground_truth
    rows = read_mot_ground_truth(path, num_frames=num_frames, has_classes=has_classes, bad=BadRows(path))
    kept = rows.counts & (rows.size > 0).all(axis=1)
    if has_classes:
        kept &= rows.classes == _PEDESTRIAN
    return [
        {
            "id": known + index + 1,
            "image_id": begin + int(rows.frame[row]) + 1,
            "category_id": 1,
            "instance_id": int(rows.ids[row]),
            "bbox": [
                float(value) for value in (*rows.corners[row, :2], *(rows.corners[row, 2:] - rows.corners[row, :2]))
            ],
        }
        for index, row in enumerate(np.flatnonzero(kept))
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
