"""One tracker's result of one sequence as a video: over its frames, or over an empty field where there are none.

With a ground truth the marks are those of `drawing` (hits, misses, false positives, switches); without one each track
has its colour, its number and the way of its last frames.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from statefield.datasets.readers.limits import require_memory
from statefield.datasets.readers.video import Frames
from statefield.datasets.tracking.bad_rows import BadRows, OnBad
from statefield.datasets.tracking.mot_text import read_mot_results
from statefield.datasets.tracking.track_boxes import TrackBoxes
from statefield.errors import DataError
from statefield.tasks.common.figures import class_colour
from statefield.tasks.tracking.frame_drawing import Form, draw_box, draw_label, require_writer, write_pictures
from statefield.tasks.tracking.mot_evaluation.drawing import FrameMarks, ink_on
from statefield.tasks.tracking.mot_evaluation.evaluate import MotEvaluation, read_sequence

_FIELD, _INK, _PAPER = "#23272E", "#FFFFFF", "#101418"
_TRAIL = 30  # frames
_MOST_FRAMES = 20_000  # of a video without pictures, whose length a row of text alone decides
_LARGEST_SIDE_PX = 16_384


@dataclass(frozen=True)
class TrackSummary:
    """What a result holds: frames (to the last that has a box), tracks, boxes, and the median length of a track."""

    num_frames: int
    num_tracks: int
    num_boxes: int
    median_length: float

    @classmethod
    def of(cls, boxes: TrackBoxes) -> TrackSummary:
        if not len(boxes):
            return cls(0, 0, 0, 0.0)
        lengths = np.unique(boxes.ids, return_counts=True)[1]
        return cls(int(boxes.frame.max()) + 1, len(lengths), len(boxes), float(np.median(lengths)))


def read_tracks(path: Path, *, on_bad: OnBad = "error") -> tuple[TrackBoxes, list[str]]:
    """The boxes of a result in MOTChallenge's form, and a note for each kind of row that was left out."""
    bad = BadRows(path, on_bad)
    return read_mot_results(path, num_frames=None, bad=bad), bad.told()


def write_track_video(
    target: Path,
    boxes: TrackBoxes,
    *,
    name: str,
    frames: Frames | None = None,
    frame_rate: float | None = None,
    form: Form = "webm",
) -> int:
    """Draw a result without a ground truth; returns how many frames were drawn.

    Args:
        target: the file without its suffix, see `write_pictures`.
        boxes: the tracks. name: of the sequence, drawn in a corner.
        frames: its pictures, the first of them frame 1; None: an empty field that holds every box.
        frame_rate: frames a second; None: that of `frames`, or 25.

    Raises: ConfigError for a form that cannot be written here; DataError for pictures that cannot be read, and for a
        result whose boxes no picture can hold.
    """
    require_writer(form)
    last = int(boxes.frame.max()) + 1 if len(boxes) else 0
    marks = _TrackMarks(boxes, name)
    rate = frame_rate or (frames.rate if frames is not None else None)
    return write_pictures(target, _marked(frames, boxes, last, marks), form, rate)


def write_scored_video(
    target: Path,
    evaluation: MotEvaluation,
    *,
    frames: Frames | None = None,
    frame_rate: float | None = None,
    form: Form = "webm",
) -> int:
    """Draw the first tracker of an evaluation on its first sequence and class; arguments as for `write_track_video`."""
    require_writer(form)
    tracker, sequence = evaluation.trackers[0], evaluation.ground_truth.sequences[0]
    scored = read_sequence(evaluation, tracker, sequence, evaluation.classes[0])
    rate = frame_rate or (frames.rate if frames is not None else None) or sequence.frame_rate
    shown = scored.all_gt if len(scored.all_gt) > len(scored.all_tracker) else scored.all_tracker
    return write_pictures(
        target, _marked(frames, shown, scored.num_frames, _ScoredMarks(FrameMarks(scored), sequence.name)), form, rate
    )


class _Marks(Protocol):
    """Draws what there is in a frame; frames come in order."""

    def draw(self, picture: Image.Image, frame: int) -> None: ...


@dataclass(frozen=True)
class _ScoredMarks:
    """Hits and errors, with the sequence's name above them."""

    marks: FrameMarks
    name: str

    def draw(self, picture: Image.Image, frame: int) -> None:
        self.marks.draw(picture, frame, f"{self.name}  frame {frame + 1}")


class _TrackMarks:
    """Every track in its own colour, with the way that its feet took."""

    def __init__(self, boxes: TrackBoxes, name: str) -> None:
        self.boxes, self.name = boxes, name
        tracks = {int(track): number for number, track in enumerate(dict.fromkeys(boxes.ids.tolist()))}
        self.colour_of = {track: class_colour(number % 7 + 1) for track, number in tracks.items()}
        self.trails: dict[int, deque[tuple[int, float, float]]] = defaultdict(lambda: deque(maxlen=_TRAIL))

    def draw(self, picture: Image.Image, frame: int) -> None:
        """Draw the boxes of `frame`; frames come in order."""
        boxes, pen = self.boxes, ImageDraw.Draw(picture)
        width, high = max(2, round(picture.height / 360)), max(12, picture.height // 48)
        font = ImageFont.load_default(high)
        first, stop = np.searchsorted(boxes.frame, [frame, frame + 1]).tolist()
        for box in range(first, stop):
            track, (left, _, right, bottom) = int(boxes.ids[box]), boxes.corners[box].tolist()
            self.trails[track].append((frame, (left + right) / 2, bottom))
        for track, trail in self.trails.items():
            recent = [(x, y) for seen, x, y in trail if frame - seen < _TRAIL]
            if len(recent) > 1:
                pen.line(recent, fill=self.colour_of[track], width=width)
        for box in range(first, stop):
            colour, corners = self.colour_of[int(boxes.ids[box])], boxes.corners[box]
            draw_box(pen, corners, colour, width)
            draw_label(pen, (float(corners[0]), float(corners[1])), str(boxes.ids[box]), colour, ink_on(colour), font)
        draw_label(pen, (0, high * 1.5), f"{self.name}  frame {frame + 1}   boxes {stop - first}", _PAPER, _INK, font)


def _marked(
    frames: Frames | None, boxes: TrackBoxes, num_frames: int, marks: _Marks
) -> Iterator[tuple[str, Image.Image]]:
    """The pictures with their marks; of a video only as many as the result is long."""
    for frame, picture in enumerate(_pictures(frames, boxes, num_frames)):
        if frame >= num_frames:
            return
        marks.draw(picture, frame)
        yield f"{frame + 1:06d}", picture


def _pictures(frames: Frames | None, boxes: TrackBoxes, num_frames: int) -> Iterator[Image.Image]:
    if frames is not None:
        yield from (Image.fromarray(frame) for frame in frames)
        return
    if num_frames > _MOST_FRAMES:
        raise DataError(
            f"the last box is in frame {num_frames}; without pictures at most {_MOST_FRAMES} frames are drawn. Give "
            "the frames too, or check the numbers in the first column."
        )
    corners = boxes.corners if len(boxes) else np.array([[0.0, 0.0, 640.0, 360.0]])
    width, height = (int(side) + 16 for side in np.ceil(np.maximum(corners[:, 2:].max(axis=0), (320, 180))))
    if max(width, height) > _LARGEST_SIDE_PX:
        raise DataError(
            f"boxes reach to {width} x {height} pixels; pictures of up to {_LARGEST_SIDE_PX} pixels a side are drawn. "
            "Check that boxes are left, top, width, height in pixels."
        )
    require_memory("frames", 3 * width * height, f"{width} x {height} pixels")
    for _ in range(num_frames):
        yield Image.new("RGB", (width, height), _FIELD)
