"""ImageNet-VID as its publisher ships it (ILSVRC2015): an XML file for each frame.

    ILSVRC2015/Annotations/VID/val/ILSVRC2015_val_00000000/000000.xml
    ILSVRC2015/Data/VID/val/ILSVRC2015_val_00000000/000000.JPEG

Training videos lie one folder deeper (Annotations/VID/train/ILSVRC2015_VID_train_0000/VIDEO). A million files take
minutes to read; whoever has the annotations as a CocoVID file starts at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from statefield.datasets.tracking.coco_json import Annotations, Entry
from statefield.datasets.tracking.number_rows import text_lines
from statefield.errors import DataError, DatasetLayoutError

__all__ = ["CLASSES", "is_imagenet_vid", "read_imagenet_vid"]

# WordNet's number of each class -> its name, in the order in which papers on ImageNet-VID list them.
CLASSES = {
    "n02691156": "airplane",
    "n02419796": "antelope",
    "n02131653": "bear",
    "n02834778": "bicycle",
    "n01503061": "bird",
    "n02924116": "bus",
    "n02958343": "car",
    "n02402425": "cattle",
    "n02084071": "dog",
    "n02121808": "domestic_cat",
    "n02503517": "elephant",
    "n02118333": "fox",
    "n02510455": "giant_panda",
    "n02342885": "hamster",
    "n02374451": "horse",
    "n02129165": "lion",
    "n01674464": "lizard",
    "n02484322": "monkey",
    "n03790512": "motorcycle",
    "n02324045": "rabbit",
    "n02509815": "red_panda",
    "n02411705": "sheep",
    "n01726692": "snake",
    "n02355227": "squirrel",
    "n02129604": "tiger",
    "n04468005": "train",
    "n01662784": "turtle",
    "n04530566": "watercraft",
    "n02062744": "whale",
    "n02391049": "zebra",
}
_NUMBERS = {name: number for number, name in enumerate(CLASSES, start=1)}


def is_imagenet_vid(folder: Path) -> bool:
    """Whether `folder` is Annotations/VID/SPLIT, or has it below."""
    return _annotations(folder) is not None


def read_imagenet_vid(folder: Path) -> tuple[Annotations, dict[Any, Path]]:
    """All annotations of a split as a CocoVID file's, and the picture of each image id.

    Args: folder: ILSVRC2015/Annotations/VID/train, or val.

    Raises:
        DatasetLayoutError: no annotations, or no frames beside them. DataError: a file that is no annotation.
    """
    place = _annotations(folder)
    if place is None:
        raise DatasetLayoutError(f"{folder}: Annotations/VID/SPLIT with an XML file for each frame is needed.")
    parts = list(place.resolve().parts)
    parts[len(parts) - 1 - parts[::-1].index("Annotations")] = "Data"
    data = Path(*parts)
    if not data.is_dir():
        raise DatasetLayoutError(f"{data}: no such folder; it holds the frames whose annotations are in {place}.")
    images: list[Entry] = []
    annotations: list[Entry] = []
    videos: list[Entry] = []
    files: dict[Any, Path] = {}
    for number, video in enumerate(sorted({path.parent for path in place.rglob("*.xml")}), start=1):
        name = video.relative_to(place)
        videos.append({"id": number, "name": name.as_posix()})
        for frame, path in enumerate(sorted(video.glob("*.xml"))):
            identifier = len(images) + 1
            files[identifier] = data / name / f"{path.stem}.JPEG"
            size, objects = _read(path)
            images.append(
                {
                    "id": identifier,
                    "video_id": number,
                    "frame_id": frame,
                    "file_name": (name / f"{path.stem}.JPEG").as_posix(),
                    "width": size[0],
                    "height": size[1],
                }
            )
            for track, category, (left, top, right, bottom) in objects:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": identifier,
                        "category_id": category,
                        "instance_id": track,
                        "bbox": [left, top, right - left, bottom - top],
                    }
                )
    first = files.get(1)
    if first is not None and not first.is_file():
        raise DatasetLayoutError(f"{first}: no such file, but an annotation of it in {place}. Fetch the frames, too.")
    categories: list[Entry] = [{"id": _NUMBERS[key], "name": name} for key, name in CLASSES.items()]
    return Annotations(place, images, categories, annotations, videos), files


def _annotations(folder: Path) -> Path | None:
    """Annotations/VID/SPLIT: `folder` itself, or the one below it."""
    if "Annotations" in folder.resolve().parts and next(folder.rglob("*.xml"), None) is not None:
        return folder
    below = folder / "Annotations" / "VID"
    splits = sorted(path for path in below.iterdir() if path.is_dir()) if below.is_dir() else []
    return splits[0] if len(splits) == 1 else None


def _read(path: Path) -> tuple[tuple[int, int], list[tuple[int, int, tuple[float, float, float, float]]]]:
    """Width and height; of each object its track, its class's number and its box (left, top, right, bottom)."""
    # patterns instead of an XML parser, as that would expand entities; the elements are plain and do not nest
    text = "\n".join(text_lines(path))
    width, height = (_number(text, key) for key in ("width", "height"))
    if "<annotation" not in text or width is None or height is None:
        raise DataError(f"{path}: no annotation of a frame with its width and height.")
    found = []
    for index, body in enumerate(re.findall(r"<object>(.*?)</object>", text, flags=re.DOTALL), start=1):
        left, top, right, bottom = (_number(body, key) for key in ("xmin", "ymin", "xmax", "ymax"))
        track, name = _number(body, "trackid"), re.search(r"<name>\s*(.*?)\s*</name>", body)
        if left is None or top is None or right is None or bottom is None or track is None or name is None:
            raise DataError(f"{path}: object {index} needs trackid, name, xmin, ymin, xmax and ymax.")
        if name[1] not in _NUMBERS:
            raise DataError(f"{path}: object {index} is of {name[1]!r}, which is none of ImageNet-VID's 30 classes.")
        if right < left or bottom < top:
            raise DataError(f"{path}: object {index} ends before it begins: {left:g} {top:g} {right:g} {bottom:g}.")
        found.append((int(track), _NUMBERS[name[1]], (left, top, right, bottom)))
    return (int(width), int(height)), found


def _number(text: str, key: str) -> float | None:
    match = re.search(rf"<{key}>\s*(-?\d+(?:\.\d+)?)\s*</{key}>", text)
    return float(match[1]) if match else None
