"""VOT's ground truth and results: regions, anchors, tags of frames.

Ground truth is VOT's own folders (list.txt, SEQ/groundtruth.txt, SEQ/*.tag, SEQ/anchor.value, SEQ/sequence), or one
JSON file as pysot keeps it (SEQ -> gt_rect, width, height, and a list of flags for each tag).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.readers import image as image_reader
from statefield.datasets.readers.digits import whole_number
from statefield.datasets.readers.limits import require_memory
from statefield.datasets.tracking.number_rows import read_flags, text_lines
from statefield.datasets.tracking.regions import Region, Special, bounding_box, read_regions, region_of
from statefield.datasets.tracking.single_object import ObjectSequence
from statefield.datasets.tracking.single_object_results import TrackerResults
from statefield.errors import ConfigError, DataError, DatasetLayoutError
from statefield.files import require_file_name

TAGS = ("camera_motion", "illum_change", "motion_change", "size_change", "occlusion", "empty")
_IMAGE_FOLDERS = ("color", "img", "ir", ".")
_TREE = "list.txt, SEQ/groundtruth.txt with regions, or a JSON file with gt_rect for each sequence"


@dataclass(frozen=True)
class VotSequence:
    """One sequence.

    Args:
        name: as list.txt or the JSON file has it.
        regions: one for each frame; a special one where there is no target.
        path: the file they were read from.
        image_size: (width, height) in pixels, or None where nothing tells.
        tags: name -> [T] bool, frames with that challenge.
        anchors: [T] int, > 0 where a forward run starts, < 0 for a backward run; None for data without anchors.
    """

    name: str
    regions: list[Region]
    path: Path
    image_size: tuple[int, int] | None = None
    tags: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    anchors: NDArray[np.int64] | None = None

    def anchor_runs(self) -> list[tuple[int, bool]]:
        """(frame, is backward) of each run of the anchor-based protocol: forward ones first, as in the toolkit."""
        if self.anchors is None:
            return []
        runs = [(int(frame), False) for frame in np.flatnonzero(self.anchors > 0)]
        return runs + [(int(frame), True) for frame in np.flatnonzero(self.anchors < 0)]


def is_vot(root: Path) -> bool:
    """True for ground truth in one of VOT's forms. Looks at names and at the first line of one file."""
    if root.is_file():
        return root.suffix == ".json"
    folders = _folders(root)
    if not folders:
        return False
    with (folders[0] / "groundtruth.txt").open(encoding="utf-8", errors="replace") as file:
        first = file.readline().strip()
    return first.startswith("m") or first.replace("\t", ",").count(",") >= 5 or (folders[0] / "anchor.value").is_file()


def find_vot_sequences(root: Path, names: tuple[str, ...] | None = None) -> list[VotSequence]:
    """The sequences of a folder or JSON file, by name; `names` chooses some.

    Raises:
        DatasetLayoutError: nothing of the kind, or a name that is not there.
        DataError: a file that cannot be read, or flags that do not belong to their frames.
    """
    if root.is_file():
        return _from_json(root, names)
    found = {folder.name: folder for folder in _folders(root)}
    if not found:
        raise DatasetLayoutError(f"{root}: no sequence of VOT in it. Needed: {_TREE}.")
    return [_from_folder(found[name]) for name in _chosen(root, list(found), names)]


def find_vot_trackers(folders: list[Path], sequences: list[VotSequence], anchored: bool) -> list[TrackerResults]:
    """The trackers in `folders`: TRACKER/[baseline/]SEQ/SEQ_001.txt, or SEQ_00000012.txt for the run from anchor 12.

    Text or binary (.bin) files. A folder is a tracker, or holds one folder for each.

    Raises:
        DatasetLayoutError: no result, or a run of an anchor is missing.
        ConfigError: two trackers of one name.
    """
    trackers: list[TrackerResults] = []
    for folder in folders:
        if not folder.is_dir():
            raise DatasetLayoutError(f"{folder}: no such folder. Give the folder of a tracker's results.")
        candidates = [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]
        own = _tracker_files(folder, sequences, anchored)
        found = [(folder, own)] if own else [(c, _tracker_files(c, sequences, anchored)) for c in candidates[1:]]
        found = [(place, files) for place, files in found if files]
        if not found:
            example = f"{sequences[0].name}/{sequences[0].name}_{'00000000' if anchored else '001'}.txt"
            raise DatasetLayoutError(f"{folder}: no result such as {example} or baseline/{example} in it.")
        trackers += [TrackerResults(place.resolve().name, place, files) for place, files in found]
    names = [tracker.name for tracker in trackers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two result folders are called {twice[0]!r}; rename one, since tables call trackers by it.")
    return trackers


def boxes_of_regions(sequences: Sequence[VotSequence]) -> list[ObjectSequence]:
    """VOT's regions as the upright boxes around them, for one-pass protocols."""
    return [
        ObjectSequence(
            one.name,
            np.stack([bounding_box(region) for region in one.regions]),
            one.path,
            attributes=tuple(tag for tag, flags in one.tags.items() if flags.any()),
            image_size=one.image_size,
        )
        for one in sequences
    ]


def _tracker_files(folder: Path, sequences: list[VotSequence], anchored: bool) -> dict[str, tuple[Path, ...]]:
    found: dict[str, tuple[Path, ...]] = {}
    for sequence in sequences:
        endings = [f"{frame:08d}" for frame, _ in sequence.anchor_runs()] if anchored else []
        for place in (folder / "baseline" / sequence.name, folder / sequence.name, folder):
            if anchored:
                runs = [_one_of(place / f"{sequence.name}_{ending}") for ending in endings]
                if any(runs) and not all(runs):
                    missing = endings[runs.index(None)]
                    raise DatasetLayoutError(f"{place}: the run {sequence.name}_{missing} of that anchor is missing.")
            else:
                runs = [_one_of(place / f"{sequence.name}_{run:03d}") for run in range(1, 16)]
                runs = [run for run in runs if run] or [_one_of(place / sequence.name)]
            kept = tuple(run for run in runs if run)
            if kept:
                found[sequence.name] = kept
                break
    return found


def _one_of(path: Path) -> Path | None:
    for suffix in (".txt", ".bin"):
        candidate = path.with_name(path.name + suffix)
        if candidate.is_file():
            return candidate
    return None


def _folders(root: Path) -> list[Path]:
    listed = root / "list.txt"
    if listed.is_file():
        names = [line.strip() for line in text_lines(listed) if line.strip()]
        outside = next((name for name in names if Path(name).is_absolute() or ".." in Path(name).parts), None)
        if outside is not None:
            raise DataError(f"{listed}: {outside!r} leads out of {root}; it lists folders of sequences in {root}.")
        return [root / name for name in names if (root / name / "groundtruth.txt").is_file()]
    if not root.is_dir():
        return []
    return sorted(child for child in root.iterdir() if (child / "groundtruth.txt").is_file())


def _chosen(root: Path, found: list[str], names: tuple[str, ...] | None) -> list[str]:
    if names is None:
        return sorted(found)
    missing = [name for name in names if name not in found]
    if missing:
        raise DatasetLayoutError(f"{root}: there is no sequence {missing[0]!r}; {len(found)} others are there.")
    return sorted(names)


def _from_folder(folder: Path) -> VotSequence:
    path = folder / "groundtruth.txt"
    regions = read_regions(path)
    tags = {}
    for file in sorted([*folder.glob("*.tag"), *folder.glob("*.label")]):
        tags[file.stem] = _frame_values(file, len(regions), path) != 0
    values = folder / "anchor.value"
    anchors = _frame_values(values, len(regions), path).astype(np.int64) if values.is_file() else None
    return VotSequence(folder.name, regions, path, _image_size(folder), tags, anchors)


def _frame_values(path: Path, count: int, regions: Path) -> NDArray[np.float64]:
    values = read_flags(path, "a number for each frame")
    if len(values) > count:
        raise DataError(f"{path}: {len(values)} values for the {count} frames of {regions}.")
    return np.pad(values, (0, count - len(values)))  # the toolkit reads a short file as zeros from there on


def _image_size(folder: Path) -> tuple[int, int] | None:
    described = folder / "sequence"
    if described.is_file():
        values = dict(line.split("=", 1) for line in text_lines(described) if "=" in line)
        width, height = (whole_number(values.get(side, "")) for side in ("width", "height"))
        if width is not None and height is not None:
            return width, height
    for place in _IMAGE_FOLDERS:
        for suffix in (".jpg", ".png"):
            image = folder / place / f"00000001{suffix}"
            if image.is_file():
                return image_reader.size_of(image)
    return None


def _from_json(path: Path, names: tuple[str, ...] | None) -> list[VotSequence]:
    require_memory(path, path.stat().st_size * 16, f"{path.stat().st_size} bytes of JSON")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also of integers of more than 4,300 digits
        raise DataError(f"{path}: this is no JSON ({error}).") from error
    if not isinstance(content, dict) or not content or not all(isinstance(one, dict) for one in content.values()):
        raise DataError(f"{path}: no sequences. Needed: {_TREE}.")
    for name in content:
        require_file_name(name, f"{path}: a sequence")
    return [_entry(path, name, content[name]) for name in _chosen(path, list(content), names)]


def _entry(path: Path, name: str, entry: dict[str, Any]) -> VotSequence:
    rows = entry.get("gt_rect")
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}, sequence {name!r}: no gt_rect, a list of regions.")
    regions: list[Region] = []
    for number, row in enumerate(rows, start=1):
        where = f"{path}, sequence {name!r}, frame {number}"
        if not isinstance(row, list) or not all(isinstance(v, (int, float)) for v in row):
            raise DataError(f"{where}: {str(row)[:60]!r} is no list of numbers.")
        try:
            numbers = [float(value) for value in row]
        except OverflowError as error:  # JSON's integers have no largest
            raise DataError(f"{where}: a number beyond {sys.float_info.max:.3g}.") from error
        regions.append(region_of(numbers, where) if row else Special(0))
    tags = {}
    for tag in TAGS:
        flags = entry.get(tag)
        if isinstance(flags, list) and flags:
            if len(flags) != len(regions):
                raise DataError(f"{path}, sequence {name!r}: {len(flags)} flags {tag} for {len(regions)} frames.")
            if not all(isinstance(flag, (int, float)) for flag in flags):
                raise DataError(f"{path}, sequence {name!r}: flags {tag} that are no numbers.")
            tags[tag] = np.array([flag != 0 for flag in flags])
    width, height = entry.get("width"), entry.get("height")
    size = (width, height) if isinstance(width, int) and isinstance(height, int) else None
    return VotSequence(name, regions, path, size, tags)
