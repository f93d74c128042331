"""What single-object trackers write: a text file of boxes for each sequence, in any of the usual places."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.tracking.number_rows import read_rows
from statefield.datasets.tracking.single_object import BOX
from statefield.errors import ConfigError, DatasetLayoutError

Corners = Literal["xywh", "xyxy"]
# beside the results of a sequence, with the same ending
_NO_RESULTS = ("_time", "_times", "_all_boxes", "_all_scores", "_object_presence_scores", "_scores")


@dataclass(frozen=True)
class TrackerResults:
    """The files of one tracker: sequence -> one file for each repetition, in their order."""

    name: str
    root: Path
    files: dict[str, tuple[Path, ...]]


def find_trackers(folders: list[Path], sequences: list[str]) -> list[TrackerResults]:
    """The trackers in `folders`: each folder holds one tracker's results, or a folder for each tracker.

    Sequences are recognised as SEQ.txt, SEQ_001.txt (with _002, ... as repetitions), SEQ/SEQ_001.txt (GOT-10k),
    baseline/SEQ/SEQ_001.txt (VOT), and uav_SEQ.txt (pytracking). Sequences without a file are simply not in the result.

    Raises:
        DatasetLayoutError: a folder that is not there or holds no result of any sequence.
        ConfigError: two trackers of the same name.
    """
    trackers: list[TrackerResults] = []
    for folder in folders:
        if not folder.is_dir():
            hint = " Unpack it first." if folder.suffix == ".zip" else " Give the folder of a tracker's text files."
            raise DatasetLayoutError(f"{folder}: no such folder.{hint}")
        own = _files(folder, sequences)
        if own:
            trackers.append(TrackerResults(folder.resolve().name, folder, own))
            continue
        below = [(child, _files(child, sequences)) for child in sorted(folder.iterdir()) if child.is_dir()]
        found = [TrackerResults(child.name, child, files) for child, files in below if files]
        if not found:
            raise DatasetLayoutError(
                f"{folder}: no result of any of the {len(sequences)} sequences, such as {sequences[0]}.txt or "
                f"{sequences[0]}/{sequences[0]}_001.txt, nor a folder of a tracker with such files."
            )
        trackers += found
    names = [tracker.name for tracker in trackers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two result folders are called {twice[0]!r}; rename one, since tables call trackers by it.")
    return trackers


def read_boxes(path: Path, corners: Corners = "xywh") -> NDArray[np.float64]:
    """[T, 4] float64: x, y, width, height as in the file. `corners="xyxy"` files hold x1, y1, x2, y2 instead.

    Raises:
        DataError: a row that does not consist of four numbers; names the file and the line.
    """
    boxes = read_rows(path, 4, BOX if corners == "xywh" else "a box: x1, y1, x2, y2")
    if corners == "xyxy":
        boxes[:, 2:] -= boxes[:, :2]
    return boxes


def _files(folder: Path, sequences: list[str]) -> dict[str, tuple[Path, ...]]:
    places = [folder] + [base for base in (folder / "baseline", folder / "longterm") if base.is_dir()]
    here: dict[str, Path] = {}
    for place in places:
        for path in sorted(place.glob("*.txt")):
            if not path.stem.endswith(_NO_RESULTS):
                here.setdefault(_plain(path.stem), path)
    found: dict[str, tuple[Path, ...]] = {}
    for sequence in sequences:
        name = _plain(sequence)
        single = here.get(name, here.get(f"uav-{name}"))
        runs = [single] if single else [here[key] for run in range(1, 16) if (key := f"{name}-{run:03d}") in here]
        for place in places:
            if not runs:
                runs = sorted((place / sequence).glob(f"{sequence}_[0-9][0-9][0-9].txt"))
        if runs:
            found[sequence] = tuple(runs)
    return found


def _plain(name: str) -> str:
    """Toolkits write Jogging.1, Jogging-1 and Jogging_1, and some the whole name in lower case."""
    return name.lower().replace("_", "-").replace(".", "-")
