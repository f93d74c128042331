"""Sequences with one object to follow: their boxes, and where their frames are, in the layouts of the benchmarks.

A place is a benchmark's folder, the folder of one sequence, a video, or a file of events. Boxes come from the layouts
that `single_object.py` and `vot.py` recognise, or from PEDRo's samples; frames are looked for beside them and below the
place. Nothing but text is read until a sequence is opened.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.events import read_events
from statefield.datasets.events.frames import EventFrameConfig, EventFrames
from statefield.datasets.events.pedro import SIZE as PEDRO_SIZE
from statefield.datasets.events.pedro import load_pedro, pedro_names
from statefield.datasets.events.stream import Events
from statefield.datasets.readers.video import VIDEO_SUFFIXES, pictures_in
from statefield.datasets.tracking.frames import Frame, NumberedFrames, PictureFrames, VideoFrames
from statefield.datasets.tracking.number_rows import read_rows
from statefield.datasets.tracking.single_object import BOX, ObjectSequence, find_sequences
from statefield.datasets.tracking.vot import boxes_of_regions, find_vot_sequences, is_vot
from statefield.errors import ConfigError, DataError, DatasetLayoutError

__all__ = ["EVENT_SUFFIXES", "FrameKind", "ObjectVideo", "find_object_videos"]

EVENT_SUFFIXES = (".raw", ".aedat4", ".csv", ".npz", ".npy", ".h5", ".hdf5")
FrameKind = Literal["any", "pictures", "event_pictures", "events"]
# where publishers keep a sequence's frames, {} being its name; VisEvent and COESOT have pictures of both cameras
_FOLDERS: dict[FrameKind, tuple[str, ...]] = {
    "pictures": ("vis_imgs", "{}_aps", "img", "imgs", "images", "color", "img1", "."),
    "event_pictures": ("event_imgs", "{}_dvs", "img", "imgs", "images", "."),
    "any": ("img", "imgs", "images", "color", "img1", "vis_imgs", "{}_aps", "event_imgs", "{}_dvs", "."),
    "events": (),
}
_PEDRO_WINDOW_US = 10_000  # four frames of the 40 ms that a sample's boxes stand for
_PEDRO_SPLITS = ("train", "val", "test")
_PANNED_FRAMES = 24


@dataclass(frozen=True)
class ObjectVideo:
    """One sequence.

    Args:
        case: its name.
        boxes: [T, 4] float64, x, y, width, height in pixels; one row where the truth is of the first frame alone, and
            none where there is no truth.
        visible: [T], frames whose target has a box of positive size and is not marked absent.
        place: the folder of pictures, the video, or the file of events.
        events: how events become frames; None for pictures.
        split: "train", "val" or "test" where the data set is divided; else "".
        truth: the file that the boxes are from; None without.
        sample: of PEDRo: its name, in `place`.
    """

    case: str
    boxes: NDArray[np.float64]
    visible: NDArray[np.bool_]
    place: Path
    events: EventFrameConfig | None = None
    split: str = ""
    truth: Path | None = None
    sample: str = ""

    def open(self) -> NumberedFrames:
        """The frames.

        Raises: DataError: files that cannot be read, or another number of frames than boxes.
        """
        wanted = len(self.boxes) if len(self.boxes) > 1 else None
        frames: NumberedFrames
        if self.sample:
            pedro = load_pedro(self.place, self.split, self.sample)
            path = self.place / "numpy" / self.split / f"{self.sample}.npy"
            assert self.events is not None
            windows = EventFrames(path, self.events, _num_windows(pedro.events, self.events), pedro.events)
            frames = _Panned(windows, _path(self.sample, self.events))
        elif self.events is not None:
            frames = EventFrames(self.place, self.events, wanted, read_events(self.place))
        elif self.place.is_dir():
            frames = PictureFrames(self.place)
        else:
            frames = VideoFrames(self.place)
        if wanted is not None and len(frames) != wanted:
            raise DataError(
                f"{self.place}: {len(frames)} frames, and {wanted} boxes in {self.truth}; one for each frame is "
                "needed. Remove the frames that have no box, or leave the sequence out with --sequences."
            )
        return frames


def find_object_videos(
    place: Path,
    *,
    truth: Path | None = None,
    names: Sequence[str] | None = None,
    kind: FrameKind = "any",
    events: EventFrameConfig | None = None,
) -> list[ObjectVideo]:
    """The sequences of a place, by name.

    Args:
        place: a benchmark's folder, one sequence's folder, a video, or a file of events.
        truth: the ground truth, where it does not lie with the frames: a folder, VOT's JSON file, or a text file.
        names: only these.
        kind: which frames, where there are several: "pictures" of an ordinary camera, "event_pictures" as the benchmark
            ships them, "events" (the recording itself), or "any": the first of these that is there.
        events: how recordings become frames.

    Raises:
        DatasetLayoutError: no such place, no sequence in it, or no frames of one. DataError: text that cannot be read.
    """
    events = events or EventFrameConfig()
    if truth is not None and not truth.exists():
        raise DatasetLayoutError(f"{truth}: no such file or folder of ground truth.")
    if (place / "numpy").is_dir() and (place / "xml").is_dir():
        return _chosen(place, _pedro(place, events), names)
    if place.is_file():
        return _chosen(place, [_of_file(place, truth, events)], names)
    if not place.is_dir():
        raise DatasetLayoutError(f"{place}: no such file or folder. Name a benchmark, a sequence, a video or events.")
    annotated = _annotated(truth or place, None if names is None else tuple(names), is_given=truth is not None)
    if annotated is None:
        alone = _alone(place, truth, kind, events)
        if alone is None:
            raise DatasetLayoutError(
                f"{place}: neither a benchmark with ground truth (SEQUENCE/groundtruth.txt and the like) nor frames of "
                "one sequence: pictures, or a folder img/ of them. A video or a recording is named itself."
            )
        return _chosen(place, [alone], names)
    found = []
    for one in annotated:
        where = _frames_of(place, one, kind)
        if where is None:
            raise DatasetLayoutError(
                f"{place}: no frames of {one.name!r} for {one.path}. Looked for {one.name}/, with folders such as "
                f"{', '.join(_FOLDERS['any'][:-1]).format(one.name, one.name)} in it, for {one.name}"
                f"{VIDEO_SUFFIXES[1]} and the like, and for events ({one.name}{EVENT_SUFFIXES[0]}, ...)."
            )
        found.append(_video(one, where, events))
    return found


def _video(one: ObjectSequence, place: Path, events: EventFrameConfig) -> ObjectVideo:
    visible = _have_size(one.boxes)
    if one.present is not None:
        visible &= one.present
    is_recording = place.is_file() and place.suffix.lower() in EVENT_SUFFIXES
    return ObjectVideo(one.name, one.boxes, visible, place, events if is_recording else None, truth=one.path)


def _have_size(boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1))


def _chosen(place: Path, found: list[ObjectVideo], names: Sequence[str] | None) -> list[ObjectVideo]:
    if names is None:
        return found
    known = {one.case: one for one in found}
    missing = [name for name in names if name not in known]
    if missing:
        raise DatasetLayoutError(
            f"{place}: there is no sequence {missing[0]!r}; there are {', '.join(list(known)[:5])}."
        )
    return [known[name] for name in names]


def _annotated(root: Path, names: tuple[str, ...] | None, *, is_given: bool) -> list[ObjectSequence] | None:
    """The sequences of a ground truth; None where the frames' own folder has none."""
    if root.is_file() and root.suffix.lower() == ".txt":
        return [ObjectSequence(root.stem, read_rows(root, 4, BOX), root)]
    if is_vot(root):
        return boxes_of_regions(find_vot_sequences(root, names))
    if not is_given and (root / "groundtruth.txt").is_file():  # one sequence's own folder
        parent, name = root.resolve().parent, root.resolve().name
        try:
            return find_sequences(parent, (name,))[1]
        except DatasetLayoutError:  # no boxes but regions
            return boxes_of_regions(find_vot_sequences(parent, (name,)))
    if not is_given and (root / "groundtruth_rect.txt").is_file():
        return [ObjectSequence(root.resolve().name, read_rows(path := root / "groundtruth_rect.txt", 4, BOX), path)]
    if not is_given and pictures_in(root):
        return None
    try:
        return find_sequences(root, names)[1]
    except DatasetLayoutError:
        if is_given or names is not None:
            raise
        return None


def _alone(place: Path, truth: Path | None, kind: FrameKind, events: EventFrameConfig) -> ObjectVideo | None:
    where = _inside(place, kind)
    return None if where is None else _video(_truth_of(place.resolve().name, truth, place), where, events)


def _of_file(place: Path, truth: Path | None, events: EventFrameConfig) -> ObjectVideo:
    ending = place.suffix.lower()
    if ending not in (*VIDEO_SUFFIXES, *EVENT_SUFFIXES):
        raise DataError(
            f"{place}: frames are read from videos ({', '.join(VIDEO_SUFFIXES)}), recordings of events "
            f"({', '.join(EVENT_SUFFIXES)}) and folders of pictures."
        )
    beside = place.with_suffix(".txt")
    truth = truth or (beside if beside.is_file() else None)
    return _video(_truth_of(place.stem, truth, place), place, events)


def _truth_of(name: str, truth: Path | None, place: Path) -> ObjectSequence:
    """The boxes of one sequence, from a ground truth that may be of many; none without one."""
    if truth is None:
        return ObjectSequence(name, np.zeros((0, 4)), place)
    found = _annotated(truth, (name,), is_given=True)
    assert found
    return found[0]


def _frames_of(root: Path, one: ObjectSequence, kind: FrameKind) -> Path | None:
    """Where the frames of a sequence lie."""
    own = one.path.parent if one.path.stem.startswith("groundtruth") and one.path.is_relative_to(root) else None
    for folder in (*([own] if own else []), *_homes(root, one.name)):
        found = _inside(folder, kind) or _named_file(folder.parent, folder.name, kind)
        if found is not None:
            return found
    return None


def _homes(root: Path, name: str) -> Iterator[Path]:
    yield root / name
    for between in ("frames", "data_seq/UAV123", "data", "sequences", *_PEDRO_SPLITS):
        yield root / between / name
    yield from sorted(path for path in root.glob(f"*/{name}") if path.is_dir())  # LaSOT: CLASS/SEQUENCE


def _inside(folder: Path, kind: FrameKind) -> Path | None:
    """The pictures or the recording in a sequence's own folder."""
    for below in _FOLDERS[kind]:
        place = folder / below.format(folder.resolve().name)
        if pictures_in(place):
            return place
    if kind in ("any", "events") and folder.is_dir():
        recordings = sorted(path for path in folder.iterdir() if path.suffix.lower() in EVENT_SUFFIXES)
        if len(recordings) == 1:
            return recordings[0]
        if recordings:
            raise ConfigError(
                f"{folder}: {len(recordings)} recordings of events, {recordings[0].name} and {recordings[1].name} "
                "among them; a sequence has one. Leave the one to be read there."
            )
    return None


def _named_file(folder: Path, name: str, kind: FrameKind) -> Path | None:
    endings = (*(VIDEO_SUFFIXES if kind in ("any", "pictures") else ()), *EVENT_SUFFIXES)
    return next((path for ending in endings if (path := folder / f"{name}{ending}").is_file()), None)


def _pedro(root: Path, events: EventFrameConfig) -> list[ObjectVideo]:
    """Every person of every sample: the 40 ms as frames of 10 ms (`window_us`), for all of which the box stands.

    With `pan_px` there are more frames than windows, which return, and boxes move as the frames do.
    """
    config = events if events.window_us is not None else dataclasses.replace(events, window_us=_PEDRO_WINDOW_US)
    found = []
    for split in _PEDRO_SPLITS:
        if not (root / "numpy" / split).is_dir():
            continue
        for name in pedro_names(root, split):
            sample = load_pedro(root, split, name)
            if not len(sample.events):
                continue
            path = _path(name, config)
            shifts = path if len(path) else np.zeros((_num_windows(sample.events, config), 2), np.int64)
            for number, corners in enumerate(sample.boxes.astype(np.float64), start=1):
                box = np.concatenate((corners[:2], corners[2:] - corners[:2]))
                boxes = box + np.concatenate((shifts, np.zeros_like(shifts)), axis=1)
                case = name if len(sample.boxes) == 1 else f"{name}-{number}"
                truth = root / "xml" / split / f"{name}.xml"
                centres = boxes[:, :2] + boxes[:, 2:] / 2
                visible = _have_size(boxes) & ((centres >= 0) & (centres < PEDRO_SIZE)).all(axis=1)
                found.append(ObjectVideo(case, boxes, visible, root, config, split, truth, name))
    return found


def _num_windows(events: Events, config: EventFrameConfig) -> int:
    step = config.step_us or config.window_us
    assert step is not None
    return max(1, round((int(events.t.max()) - int(events.t.min())) / step))


def _path(name: str, config: EventFrameConfig) -> NDArray[np.int64]:
    """Where a panned sample's frames lie, whole pixels right and down, [T, 2]; none without a pan."""
    if not config.pan_px:
        return np.zeros((0, 2), dtype=np.int64)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    phase, turn = rng.uniform(0, 2 * np.pi, 2), rng.uniform(0.25, 0.5, 2)
    at = np.arange(_PANNED_FRAMES)[:, None]
    path = config.pan_px / turn * (np.sin(phase + turn * at) - np.sin(phase))  # no step is longer than pan_px
    return np.rint(path).astype(np.int64)


class _Panned:
    """The windows of a still, again and again, each moved by its place on a path; black where nothing comes in.

    Args: shifts: pixels right and down, [T, 2]; none: the windows as they are.
    """

    def __init__(self, frames: EventFrames, shifts: NDArray[np.int64]) -> None:
        self.path, self.frames, self.shifts = frames.path, frames, shifts
        self.num_held_bytes = frames.num_held_bytes

    def __len__(self) -> int:
        return len(self.shifts) or len(self.frames)

    def __getitem__(self, number: int) -> Frame:
        frame = self.frames[number % len(self.frames)]
        if not len(self.shifts):
            return frame
        right, down = self.shifts[number]
        moved = np.zeros_like(frame)
        if self.frames.config.kind == "picture":
            moved[:] = 255
        elif self.frames.config.kind == "voxels":
            moved[:] = 128
        height, width = frame.shape[:2]
        to = slice(max(down, 0), max(height + min(down, 0), 0)), slice(max(right, 0), max(width + min(right, 0), 0))
        of = slice(max(-down, 0), max(height - max(down, 0), 0)), slice(max(-right, 0), max(width - max(right, 0), 0))
        moved[to] = frame[of]
        return moved

    def name_of(self, number: int) -> str:
        return self.frames.name_of(number % len(self.frames))
