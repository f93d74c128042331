"""What a detector found in the frames of sequences: the input of tracking by detection.

    SEQUENCE/det/det.txt or SEQUENCE.txt      MOTChallenge text: frame,-1,left,top,width,height,score,...; frames from 1
    instances.json                            COCO: images and annotations in one file, each annotation with a score
    results.json and the images it is of      COCO results, as YOLOX and pycocotools write them: a list of
                                              {image_id, category_id, bbox: [left, top, width, height], score}

The images of a COCO file say of which sequence and frame they are: by the digits of their file's name
(`MOT17-02/img1/000001.jpg`), else by `frame_id`, counted from 0 or 1; by `video_id` and `videos`, else by the folder of
the file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.readers.digits import whole_number
from statefield.datasets.readers.limits import require_memory
from statefield.datasets.tracking.bad_rows import BadRows
from statefield.datasets.tracking.coco_json import is_finite, is_key
from statefield.datasets.tracking.multi_object import read_sequence_info
from statefield.datasets.tracking.number_table import read_number_table
from statefield.errors import ConfigError, DataError, DatasetLayoutError
from statefield.files import require_file_name

__all__ = ["Detections", "read_detections"]

_COLUMNS = 7
_IMAGE_FOLDERS = ("img1", "img", "images", "data")
_MOST_FRAMES = 10_000_000
_MOST_DIGITS = 20  # of a number in a picture's name
_BYTES_PER_CHARACTER = 12  # of the objects that a JSON becomes


@dataclass(frozen=True)
class Detections:
    """The detections of one sequence, sorted by frame.

    Attributes:
        name: of the sequence. num_frames: its length; the last frame with a detection where nothing says it.
        frame: int64 [K], from 1. boxes: float64 [K, 4], left, top, right, bottom in pixels. scores: float64 [K].
        image_size: width and height in pixels, where something says it.
    """

    name: str
    num_frames: int
    frame: NDArray[np.int64]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    image_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.frame)

    def frames(self) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
        """Number, boxes [M, 4] and scores [M] of every frame, also of those without detections."""
        starts = np.searchsorted(self.frame, np.arange(1, self.num_frames + 2))
        for number in range(1, self.num_frames + 1):
            here = slice(starts[number - 1], starts[number])
            yield number, self.boxes[here], self.scores[here]


def read_detections(
    path: Path,
    *,
    images: Path | None = None,
    categories: Sequence[str] | None = None,
    sequences: Sequence[str] | None = None,
    bad: Callable[[Path], BadRows] = BadRows,
) -> list[Detections]:
    """The detections of every sequence below `path`, by name.

    Args:
        path: a MOT text file, a folder of sequences, or a COCO file.
        images: for a list of COCO results, the file whose images it is of.
        categories: only these, by name or number; for COCO files.
        sequences: only these.
        bad: makes what is told of a file's bad rows: one without area, of a frame below 1, not finite.

    Raises:
        DatasetLayoutError, DataError: what is there cannot be read. ConfigError: arguments that do not fit it.
    """
    if not path.exists():
        raise DatasetLayoutError(f"{path}: no such file or folder. Name the detections.")
    if path.suffix.lower() == ".json":
        found = _of_coco(path, images, categories, bad(path))
    else:
        for name, given in (("--images", images), ("--category", categories)):
            if given:
                raise ConfigError(f"{name} is of COCO files, and {path} is none: leave it out.")
        found = [_of_text(name, file, folder, bad(file)) for name, file, folder in _text_files(path, sequences)]
    if sequences is None:
        return found
    known = {each.name: each for each in found}
    missing = [name for name in sequences if name not in known]
    if missing:
        raise ConfigError(f"{path} has no sequence {missing[0]!r}; there are {', '.join(sorted(known)[:8])}.")
    return [known[name] for name in sequences]


def _text_files(path: Path, sequences: Sequence[str] | None) -> list[tuple[str, Path, Path | None]]:
    """Name, file and sequence folder of each sequence."""
    if path.is_file():
        in_sequence = path.parent.name == "det"
        return [
            (path.parent.parent.resolve().name, path, path.parent.parent) if in_sequence else (path.stem, path, None)
        ]
    if (path / "det" / "det.txt").is_file():
        return [(path.resolve().name, path / "det" / "det.txt", path)]
    folders = [each for each in sorted(path.iterdir()) if (each / "det" / "det.txt").is_file()]
    if folders:
        _require_detections(path, sequences)
        return [(each.name, each / "det" / "det.txt", each) for each in folders]
    files = sorted(path.glob("*.txt"))
    if not files:
        raise DatasetLayoutError(
            f"{path} holds no detections: SEQUENCE/det/det.txt or SEQUENCE.txt (MOTChallenge text), or a COCO file by "
            "its own name, is needed."
        )
    return [(each.stem, each, None) for each in files]


def _require_detections(path: Path, sequences: Sequence[str] | None) -> None:
    """`DatasetLayoutError` when a sequence that is wanted, all of them or those named, has no detections."""
    for folder in sorted(path.iterdir()):
        is_sequence = any((folder / part).exists() for part in ("seqinfo.ini", "img1", "gt"))
        wanted = sequences is None or folder.name in sequences
        if is_sequence and wanted and not (folder / "det" / "det.txt").is_file():
            raise DatasetLayoutError(
                f"{folder} is a sequence without detections: {folder / 'det' / 'det.txt'} is missing, which its "
                "neighbours have. Add it, or name the sequences to take (--sequences)."
            )


def _of_text(name: str, path: Path, folder: Path | None, bad: BadRows) -> Detections:
    table = read_number_table(path, columns=_COLUMNS, at_least=_COLUMNS, bad=bad)
    num_frames, size = None, None
    if folder is not None and (folder / "seqinfo.ini").is_file():
        info = read_sequence_info(folder / "seqinfo.ini")
        num_frames = int(info["seqlength"])
        width, height = (whole_number(info.get(side, "")) for side in ("imwidth", "imheight"))
        size = None if width is None or height is None else (width, height)
    values = table.values
    kept = np.ones(len(values), dtype=bool)
    for row, (frame, width, height) in enumerate(values[:, [0, 4, 5]].tolist()):
        wrong = _wrong(frame, width, height, num_frames)
        if wrong is not None:
            bad.add(wrong[0], int(table.lines[row]), wrong[1])
            kept[row] = False
    values = values[kept]
    return _sorted(name, num_frames, values[:, 0], values[:, 2:6], values[:, 6], size)


def _wrong(frame: float, width: float, height: float, num_frames: int | None) -> tuple[str, str] | None:
    """Why a box cannot be meant, in few words and in a sentence; None where it can."""
    if frame < 1 or frame != math.floor(frame) or frame > _MOST_FRAMES:
        return "no frame", f"frame {frame:g}; frames are whole numbers from 1"
    if num_frames is not None and frame > num_frames:
        return "beyond the sequence", f"frame {frame:g} is beyond the sequence, which has {num_frames}"
    if width <= 0 or height <= 0:
        return "without area", f"a box of {width:g} by {height:g} pixels has no area"
    return None


def _sorted(
    name: str,
    num_frames: int | None,
    frame: NDArray[np.float64],
    boxes: NDArray[np.float64],
    scores: NDArray[np.float64],
    image_size: tuple[int, int] | None,
) -> Detections:
    """From boxes (left, top, width, height) in any order of frames."""
    order = np.argsort(frame, kind="stable")
    frames, boxes = frame[order].astype(np.int64), boxes[order]
    last = int(frames[-1]) if len(frames) else 0
    corners = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)
    return Detections(name, num_frames or last, frames, corners, scores[order], image_size)


def _of_coco(path: Path, images: Path | None, categories: Sequence[str] | None, bad: BadRows) -> list[Detections]:
    content = _json(path)
    results: Any
    about: Any
    if isinstance(content, list):
        if images is None:
            raise ConfigError(
                f"{path} is a list of results, which name their images by number only: name the COCO file that these "
                "images are of with --images."
            )
        results, about, source = content, _json(images), images
    elif isinstance(content, dict):
        results, about, source = content.get("annotations"), content, path
    else:
        results, about, source = None, None, path
    if not isinstance(about, dict) or not isinstance(about.get("images"), list) or not isinstance(results, list):
        raise DataError(f"{source} is no COCO file: an object with the lists images and annotations is needed.")
    for name in ("categories", "videos"):
        entries = about.get(name) or []
        if not isinstance(entries, list) or not all(isinstance(one, dict) and is_key(one.get("id")) for one in entries):
            raise DataError(f"{source}: {name!r} is no list of objects with a number each.")
    wanted = _category_ids(about, categories, source)
    places = _places(about, source)
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name, _, _ in places.values()}
    for number, entry in enumerate(results, start=1):
        row = _result(entry, number, path, places, bad)
        if row is not None and (
            wanted is None or (is_key(entry.get("category_id")) and entry["category_id"] in wanted)
        ):
            rows[places[entry["image_id"]][0]].append(row)
    lengths = {name: max(frame for other, frame, _ in places.values() if other == name) for name in rows}
    sizes = {name: size for name, _, size in places.values()}
    found = []
    for name in sorted(rows):
        values = np.array(rows[name], dtype=np.float64).reshape(-1, 6)
        found.append(_sorted(name, lengths[name], values[:, 0], values[:, 1:5], values[:, 5], sizes[name]))
    return found


def _json(path: Path) -> Any:
    if not path.is_file():
        raise DatasetLayoutError(f"{path}: no such file.")
    require_memory(path, path.stat().st_size * _BYTES_PER_CHARACTER, f"{path.stat().st_size} bytes of JSON")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no JSON ({error}).") from error


def _category_ids(about: Mapping[str, Any], categories: Sequence[str] | None, source: Path) -> set[Any] | None:
    if categories is None:
        return None
    known = {str(each.get("name")): each.get("id") for each in about.get("categories") or []}
    numbers = {str(number): number for number in known.values()}
    missing = [name for name in categories if name not in known and name not in numbers]
    if missing:
        raise ConfigError(f"{source} has no category {missing[0]!r}; there are {', '.join(known) or 'none'}.")
    return {known.get(name, numbers.get(name)) for name in categories}


def _places(about: Mapping[str, Any], source: Path) -> dict[Any, tuple[str, int, tuple[int, int] | None]]:
    """Sequence, frame and image size of each image, by its id."""
    videos = {each.get("id"): str(each.get("file_name") or each.get("name")) for each in about.get("videos") or []}
    found: dict[Any, tuple[str, int, tuple[int, int] | None]] = {}
    numbers = [_number_of(image, index, source) for index, image in enumerate(about["images"], start=1)]
    # counted from 0 in the files' names (as ImageNet-VID has them) or in frame_id (as CocoVID has it)
    from_zero = {by: int((by, 0) in numbers) for by in ("name", "frame_id")}
    for index, (image, (by, counted)) in enumerate(zip(about["images"], numbers, strict=True), start=1):
        number = counted + from_zero[by]
        file = _file_of(image)
        folders = [part for part in file.parent.parts if part not in _IMAGE_FOLDERS]
        name = videos.get(image.get("video_id")) or (folders[-1] if folders else source.stem)
        if number < 1 or number > _MOST_FRAMES:
            raise DataError(f"{source}: image {index} ({file}) is of frame {number}; frames are counted from 1.")
        width, height = image.get("width"), image.get("height")
        size = (width, height) if isinstance(width, int) and isinstance(height, int) else None
        require_file_name(PurePosixPath(name).name, f"{source}: image {index}")
        found[image["id"]] = (PurePosixPath(name).name, number, size)
    if not found:
        raise DataError(f"{source} has no images.")
    return found


def _file_of(image: Mapping[str, Any]) -> PurePosixPath:
    return PurePosixPath(str(image.get("file_name", "")).replace("\\", "/"))


def _number_of(image: Any, index: int, source: Path) -> tuple[str, int]:
    """An image's number, and whether its file's "name" or its "frame_id" says it."""
    if not isinstance(image, dict) or not is_key(image.get("id")):
        raise DataError(f"{source}: image {index} has no number of its own (id).")
    if not is_key(image.get("video_id", 0)):
        raise DataError(f"{source}: image {index} has the video_id {str(image['video_id'])[:40]}; a number is needed.")
    digits = re.search(r"([0-9]+)$", _file_of(image).stem)
    if digits and len(digits.group(1)) > _MOST_DIGITS:
        raise DataError(f"{source}: image {index} has a frame of {len(digits.group(1))} digits in its name.")
    if digits:
        return "name", int(digits.group(1))
    number = image.get("frame_id")
    if not isinstance(number, int):
        raise DataError(
            f"{source}: image {index} ({_file_of(image)}) has neither a frame number in its name nor a frame_id."
        )
    return "frame_id", number


def _result(
    entry: Any, number: int, path: Path, places: Mapping[Any, tuple[str, int, Any]], bad: BadRows
) -> tuple[float, ...] | None:
    """Frame, box and score of one result; None where it is left out. `bad` counts results as if they were lines."""
    box = entry.get("bbox") if isinstance(entry, dict) else None
    numbers = [*box, entry.get("score")] if isinstance(box, list) and len(box) == 4 else None
    if numbers is None or not all(is_finite(one) for one in numbers):
        bad.add("no box with a score", number, f"result {number} has no bbox of four finite numbers and a score")
        return None
    image = entry.get("image_id")
    if not is_key(image) or image not in places:
        bad.add("of no known image", number, f"result {number} is of image {repr(image)[:40]}, which there is none of")
        return None
    frame = places[image][1]
    wrong = _wrong(frame, numbers[2], numbers[3], None)
    if wrong is not None:
        bad.add(wrong[0], number, f"result {number}: {wrong[1]}")
        return None
    return (float(frame), *(float(one) for one in numbers))
