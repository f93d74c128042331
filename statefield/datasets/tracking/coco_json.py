"""COCO and CocoVID JSON, checked entry by entry before pycocotools, which trusts its input, sees them.

A CocoVID file is a COCO file with `videos`, images that name their `video_id` and `frame_id`, and annotations whose
`instance_id` is the same throughout a video (open-mmlab/mmtracking). Results are COCO's list of detections.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from statefield.datasets.readers.limits import require_memory
from statefield.errors import DataError
from statefield.files import write_text

Entry = dict[str, Any]
Kind = Literal["bbox", "segm", "keypoints"]
OnBad = Literal["error", "skip"]
_FIELD: dict[Kind, str] = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
_BYTES_PER_CHARACTER = 12  # of the Python objects that JSON becomes


@dataclass(frozen=True)
class Annotations:
    """Ground truth.

    Args:
        path: the file.
        images, categories, annotations, videos: the file's lists, every entry checked; `videos` is empty for COCO.
        skipped: annotations that were left out, reason -> count.
    """

    path: Path
    images: list[Entry]
    categories: list[Entry]
    annotations: list[Entry]
    videos: list[Entry] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def has_tracks(self) -> bool:
        """True where motion can be measured: frames in order and instances that keep their number."""
        return (
            bool(self.videos)
            and all(is_finite(image.get("frame_id")) for image in self.images)
            and all(is_key(one.get("instance_id")) for one in self.annotations)
        )


@dataclass(frozen=True)
class Detections:
    """Results: entries that can be scored, the kinds that they all have, and what was skipped (reason -> count)."""

    path: Path
    entries: list[Entry]
    kinds: tuple[Kind, ...]
    skipped: dict[str, int] = field(default_factory=dict)


def read_annotations(path: Path, on_bad: OnBad = "error") -> Annotations:
    """Read ground truth.

    Args:
        on_bad: "skip" leaves annotations that cannot be scored out and counts them.

    Raises:
        DataError: no JSON, a list that is missing, or an entry with something missing or impossible; names the entry.
    """
    content = _json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: a list; ground truth is an object with images, annotations and categories.")
    lists: dict[str, list[Entry]] = {}
    for name in ("images", "annotations", "categories", "videos"):
        value = content.get(name, [] if name == "videos" else None)
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise DataError(f"{path}: no {name!r} that is a list of objects. Found: {', '.join(sorted(content))}.")
        lists[name] = value
        numbers = [one.get("id") for one in value]
        if not all(isinstance(number, (int, str)) for number in numbers):
            index = next(i for i, number in enumerate(numbers) if not isinstance(number, (int, str)))
            raise DataError(f"{path}: {name}[{index}] has the id {numbers[index]!r}; a number is needed.")
        twice = [number for number, count in Counter(numbers).items() if count > 1]
        if twice:
            raise DataError(f"{path}: {name} has the id {twice[0]!r} twice; ids are unique.")
    videos = {one["id"] for one in lists["videos"]}
    for index, image in enumerate(lists["images"]):
        if videos and (not is_key(image.get("video_id")) or image["video_id"] not in videos):
            raise DataError(
                f"{path}: images[{index}] belongs to the video {image.get('video_id')!r}, which is not there."
            )
    images = {image["id"]: image for image in lists["images"]}
    categories = {one["id"] for one in lists["categories"]}
    kept: list[Entry] = []
    skipped: Counter[str] = Counter()
    for index, one in enumerate(lists["annotations"]):
        problem = _entry_problem(one, images, categories, is_truth=True)
        if problem is None:
            kept.append(one)
        elif on_bad == "error":
            raise DataError(
                f"{path}: annotations[{index}] (id {one['id']!r}): {problem}. Correct it, or leave such entries out: "
                "--on-bad skip."
            )
        else:
            skipped[problem.split(":")[0]] += 1
    return Annotations(path, lists["images"], lists["categories"], kept, lists["videos"], dict(skipped))


def read_detections(path: Path, truth: Annotations, on_bad: OnBad = "error") -> Detections:
    """Read results and check them against the ground truth.

    Args:
        on_bad: "error" raises at the first entry that cannot be scored; "skip" leaves such out and counts them.

    Raises:
        DataError: no JSON list, or an entry without an image, category, score, or region; names the entry.
    """
    content = _json(path)
    if not isinstance(content, list):
        what = "an object" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"{path}: {what}; results are a list of detections (image_id, category_id, bbox, score).")
    images = {image["id"]: image for image in truth.images}
    categories = {one["id"] for one in truth.categories}
    entries: list[Entry] = []
    skipped: Counter[str] = Counter()
    for index, one in enumerate(content):
        problem = _entry_problem(one, images, categories, is_truth=False) if isinstance(one, dict) else "is no object"
        if problem is None:
            entries.append(one)
        elif on_bad == "error":
            raise DataError(f"{path}: entry {index}: {problem}. Correct it, or leave such entries out: --on-bad skip.")
        else:
            skipped[problem.split(":")[0]] += 1
    kinds: tuple[Kind, ...] = tuple(
        kind for kind, key in _FIELD.items() if entries and all(one.get(key) for one in entries)
    )
    if "bbox" in kinds and ("keypoints" in kinds or "segm" in kinds):
        # pycocotools takes boxes for themselves and forgets masks and keypoints of the same entry
        kinds = (*(kind for kind in kinds if kind != "bbox"), "bbox")
    if entries and not kinds:
        raise DataError(f"{path}: no kind of region that all entries have: bbox, segmentation or keypoints.")
    return Detections(path, entries, kinds, dict(skipped))


def write_results(path: Path, entries: Sequence[Entry]) -> None:
    """Write detections as COCO's list, an entry a line, whole or not at all."""
    write_text(path, "[" + ",\n".join(json.dumps(one, allow_nan=False) for one in entries) + "]\n")


def _json(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    require_memory(path, path.stat().st_size * _BYTES_PER_CHARACTER, f"{path.stat().st_size} bytes of JSON")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: this is no JSON ({error.msg}). It may be cut off.") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, or an integer of more than 4,300 digits
        raise DataError(f"{path}: this is no JSON ({error}).") from error


def _entry_problem(one: Entry, images: dict[Any, Entry], categories: set[Any], *, is_truth: bool) -> str | None:
    """What is wrong with an annotation or detection, or None. Before a colon stands the kind of problem."""
    if not is_key(one.get("image_id")) or one["image_id"] not in images:
        return f"image_id is not among the images: {one.get('image_id')!r}"
    if not is_key(one.get("category_id")) or one["category_id"] not in categories:
        return f"category_id is not among the categories: {one.get('category_id')!r}"
    if not is_truth and not is_finite(one.get("score")):
        return f"score is no number: {one.get('score')!r}"
    if is_truth and not is_finite(one.get("area", 0)):
        return f"area is no number: {one.get('area')!r}"
    checks: dict[str, Callable[[Any], str | None]] = {
        "bbox": _box_problem,
        "segmentation": lambda value: _segmentation_problem(value, images[one["image_id"]]),
        "keypoints": _keypoints_problem,
    }
    given = [name for name in checks if one.get(name) not in (None, [])]
    if not given:
        return "there is neither a bbox nor a segmentation nor keypoints"
    for name in given:
        problem = checks[name](one[name])
        if problem:
            return problem
    return None


def is_key(value: Any) -> bool:
    """Whether a value of JSON may number or name an entry."""
    return isinstance(value, (int, str))


def is_finite(value: Any) -> bool:
    """Whether a value of JSON, whose integers have no largest, is a number that float64 holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max  # false for NaN


def _box_problem(box: Any) -> str | None:
    if not isinstance(box, list) or len(box) != 4 or not all(is_finite(value) for value in box):
        return f"bbox is not four numbers x, y, width, height: {str(box)[:60]}"
    if box[2] < 0 or box[3] < 0:
        return f"bbox has a negative size: {box}"
    return None


def _keypoints_problem(points: Any) -> str | None:
    if not isinstance(points, list) or len(points) % 3 or not all(is_finite(value) for value in points):
        return f"keypoints are not numbers in threes x, y, v: {str(points)[:60]}"
    return None


def _segmentation_problem(value: Any, image: Entry) -> str | None:
    if isinstance(value, list):
        for polygon in value:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                return "segmentation has a polygon that is not six numbers or more, x and y in turn"
            if not all(is_finite(number) for number in polygon):
                return "segmentation has a coordinate that is no number"
        if not (isinstance(image.get("height"), int) and isinstance(image.get("width"), int)):
            return "segmentation is of polygons, but its image tells no height and width"
        return None
    if not isinstance(value, dict) or "counts" not in value:
        return "segmentation is neither polygons nor run lengths with size and counts"
    size, counts = value.get("size"), value["counts"]
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and 0 < n < 2**16 for n in size)):
        return f"segmentation has no size [height, width]: {str(size)[:40]}"
    of_image = [image.get("height", size[0]), image.get("width", size[1])]
    if size != of_image:
        return f"segmentation is not of its image's size: {size}, the image {of_image}"
    runs = _runs(counts)
    if runs is None or (runs < 0).any() or int(runs.sum()) != size[0] * size[1]:
        return f"segmentation has run lengths that do not fill its size: {size}"
    return None


def _runs(counts: Any) -> np.ndarray | None:
    """The run lengths of a mask; COCO's strings hold six bits a letter, the third run on as differences."""
    if isinstance(counts, list):
        return np.array(counts, dtype=np.int64) if all(isinstance(n, int) and abs(n) < 2**40 for n in counts) else None
    if not isinstance(counts, str):
        return None
    codes = np.frombuffer(counts.encode("ascii", errors="replace"), dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or (codes < 0).any() or (codes > 63).any() or codes[-1] & 32:
        return None
    is_last = (codes & 32) == 0
    number = np.cumsum(is_last) - is_last
    starts = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
    place = np.arange(len(codes)) - starts[number]
    if place.max() > 7:  # 40 bits are more than any image has pixels
        return None
    values = np.bincount(number, weights=((codes & 31) << (5 * place)).astype(np.float64)).astype(np.int64)
    last = np.flatnonzero(is_last)
    values -= np.where(codes[last] & 16, np.int64(1) << (5 * (place[last] + 1)), 0)
    for parity in (1, 2):  # run m is told as the difference to run m - 2, from the fourth on
        values[parity::2] = np.cumsum(values[parity::2])
    return values
