"""Frames with what a tracker got right and wrong: hits in the colour of their track, misses, false positives, switches.

The matches are those of CLEAR at IoU 0.5, after the benchmark's rules: what is not drawn does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from statefield.datasets.readers.limits import require_memory
from statefield.datasets.tracking.multi_object import SequenceFiles
from statefield.errors import DataError, DatasetLayoutError
from statefield.tasks.common.figures import class_colour
from statefield.tasks.tracking.frame_drawing import (
    Form,
    draw_box,
    draw_dashed_box,
    draw_label,
    require_writer,
    write_pictures,
)
from statefield.tasks.tracking.mot_evaluation.clear import clear_matches
from statefield.tasks.tracking.mot_evaluation.evaluate import MotEvaluation, TrackerScores, read_sequence
from statefield.tasks.tracking.mot_evaluation.sequence import MotSequence

_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_MISSED, _FALSE, _INK, _PAPER = "#FFFFFF", "#FF3B30", "#FFFFFF", "#101418"


def draw_evaluation(folder: Path, evaluation: MotEvaluation, *, form: Form, images: Path | None = None) -> str:
    """Draw every tracker on every sequence whose frames are there; returns what was written, in words.

    Args:
        folder: frames go to TRACKER/SEQUENCE/FILE.jpg below it, videos to TRACKER/SEQUENCE.mp4 or .webp; where several
            classes are scored, TRACKER is followed by the class.
        evaluation: of `evaluate_mot`.
        form: "frames" (JPEG), "mp4" (by the program ffmpeg) or "webp" (animated, at most 1280 pixels wide or high).
        images: folder with the frames of each sequence, in SEQUENCE or SEQUENCE/img1; default: beside the ground truth.

    Raises: ConfigError for mp4 without ffmpeg; DatasetLayoutError where there are no frames of any sequence.
    """
    found = find_frames(evaluation, form=form, images=images)
    num_frames = 0
    for tracker in evaluation.trackers:
        for class_name in evaluation.classes:
            name = tracker.name if len(evaluation.classes) == 1 else f"{tracker.name}_{class_name}"
            for sequence in evaluation.ground_truth.sequences:
                if files := found[sequence.name]:
                    drawn = _drawn_frames(evaluation, tracker, sequence, class_name, files)
                    num_frames += write_pictures(folder / name / sequence.name, drawn, form, sequence.frame_rate)
    missing = [name for name, files in found.items() if not files]
    without = f"; no frames of {', '.join(missing)}" if missing else ""
    return f"{num_frames} frames{without}"


def find_frames(evaluation: MotEvaluation, *, form: Form, images: Path | None = None) -> dict[str, dict[int, Path]]:
    """The pictures of each sequence by number, none of some; errors are those of `draw_evaluation`."""
    require_writer(form)
    found = {each.name: _frame_files(each, images) for each in evaluation.ground_truth.sequences}
    if not any(found.values()):
        where = images or evaluation.ground_truth.root
        names = ", ".join(list(found)[:3])
        raise DatasetLayoutError(
            f"{where} has no frames of {names}: pictures such as SEQUENCE/img1/000001.jpg are needed. Name their "
            "folder with --images."
        )
    return found


def _frame_files(sequence: SequenceFiles, images: Path | None) -> dict[int, Path]:
    """Frame number as the files have it -> picture."""
    places = [images / sequence.name / "img1", images / sequence.name] if images is not None else [sequence.images]
    for place in places:
        if place is None or not place.is_dir():
            continue
        files = {
            int(number[0]): path
            for path in sorted(place.iterdir())
            if path.suffix.lower() in _PICTURES and (number := re.findall(r"\d+", path.stem)[-1:])
        }
        if files:
            return files
    return {}


def _drawn_frames(
    evaluation: MotEvaluation,
    tracker: TrackerScores,
    sequence: SequenceFiles,
    class_name: str,
    files: dict[int, Path],
) -> Iterator[tuple[str, Image.Image]]:
    scored = read_sequence(evaluation, tracker, sequence, class_name)
    first = 0 if evaluation.ground_truth.benchmark == "KITTI" else 1
    marks = FrameMarks(scored)
    for number, path in sorted(files.items()):
        frame = number - first
        if not 0 <= frame < scored.num_frames:
            continue
        picture = _picture(path)
        marks.draw(picture, frame, f"{tracker.name}  {sequence.name}  frame {number}")
        yield path.stem, picture


def _picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            require_memory(path, image.height * image.width * 3, f"{image.width} x {image.height} pixels")
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a picture ({error}). Replace it, or name other --images.") from error


def ink_on(colour: str) -> str:
    """Dark or light, whichever can be read on a colour (luma of ITU-R BT.601)."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return _PAPER if 0.299 * red + 0.587 * green + 0.114 * blue > 110 else _INK


class FrameMarks:
    """What is to be drawn in each frame."""

    def __init__(self, scored: MotSequence) -> None:
        self.scored = scored
        matches = clear_matches(scored)
        self.match_of_tracker = np.full(len(scored.tracker), -1)
        self.match_of_tracker[matches.tracker] = matches.gt
        self.is_found = np.zeros(len(scored.gt), bool)
        self.is_found[matches.gt] = True
        self.switched_from = np.full(len(scored.tracker), -1)  # position of the gt's last match, where it was another's
        last: dict[int, int] = {}
        for gt, box in zip(matches.gt.tolist(), matches.tracker.tolist(), strict=True):
            track = int(scored.gt_ids[gt])
            if track in last and scored.tracker_ids[last[track]] != scored.tracker_ids[box]:
                self.switched_from[box] = last[track]
            last[track] = box

    def draw(self, picture: Image.Image, frame: int, title: str) -> None:
        """Draw the boxes of `frame` and, above, the counts."""
        scored, pen = self.scored, ImageDraw.Draw(picture)
        width = max(2, round(picture.height / 360))
        high = max(12, picture.height // 48)
        font = ImageFont.load_default(high)
        counts = dict.fromkeys(("hits", "misses", "false", "switches"), 0)
        for gt in range(int(scored.gt_frames.first[frame]), int(scored.gt_frames.first[frame + 1])):
            if not self.is_found[gt]:
                counts["misses"] += 1
                draw_dashed_box(pen, scored.gt.corners[gt], _MISSED, width)
        for box in range(int(scored.tracker_frames.first[frame]), int(scored.tracker_frames.first[frame + 1])):
            corners, track = scored.tracker.corners[box], int(scored.tracker.ids[box])
            if self.match_of_tracker[box] < 0:
                counts["false"] += 1
                draw_box(pen, corners, _FALSE, width)
                pen.line([(corners[0], corners[1]), (corners[2], corners[3])], fill=_FALSE, width=width)
                continue
            counts["hits"] += 1
            colour = class_colour(int(scored.tracker_ids[box]) % 7 + 1)
            label = str(track)
            if self.switched_from[box] >= 0:
                counts["switches"] += 1
                label = f"{scored.tracker.ids[self.switched_from[box]]} > {track}"
            draw_box(pen, corners, colour, 2 * width if self.switched_from[box] >= 0 else width)
            draw_label(pen, (corners[0], corners[1]), label, colour, ink_on(colour), font)
        told = "   ".join(f"{name} {count}" for name, count in counts.items())
        draw_label(pen, (0, high * 1.5), f"{title}   {told}", _PAPER, _INK, font)
