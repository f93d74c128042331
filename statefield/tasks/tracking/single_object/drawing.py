"""Frames with the box that a tracker found, its score, and the true box where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from statefield.datasets.tracking.frames import NumberedFrames
from statefield.datasets.tracking.object_videos import ObjectVideo
from statefield.tasks.tracking.frame_drawing import Form, draw_box, draw_dashed_box, draw_label, write_pictures
from statefield.tasks.tracking.single_object.follow import Followed

__all__ = ["draw_followed"]

_FOUND, _LOST, _TRUE, _INK, _PAPER = "#D55E00", "#F0E442", "#009E73", "#FFFFFF", "#101418"


def draw_followed(
    folder: Path, found: Followed, frames: NumberedFrames, video: ObjectVideo, form: Form, lost_below: float = 0.0
) -> int:
    """Draw one sequence; frames go to CASE/000001.jpg below `folder`, an animation to CASE.webp or CASE.mp4.

    The found box is orange, yellow and dashed where the target counted as lost; the true one is green.

    Returns: the number of frames. Raises: ConfigError: mp4 without the program ffmpeg.
    """
    return write_pictures(folder / found.case, _drawn(found, frames, video, lost_below), form, None)


def _drawn(
    found: Followed, frames: NumberedFrames, video: ObjectVideo, lost_below: float
) -> Iterator[tuple[str, Image.Image]]:
    for number, (box, score) in enumerate(zip(found.boxes, found.scores, strict=True)):
        picture = Image.fromarray(frames[number])
        pen = ImageDraw.Draw(picture)
        width = max(2, round(picture.height / 240))
        font = ImageFont.load_default(max(12, picture.height // 32))
        if number < len(video.boxes) and video.visible[number]:
            draw_box(pen, _corners(video.boxes[number]), _TRUE, width)
        is_lost = score < lost_below
        (draw_dashed_box if is_lost else draw_box)(pen, _corners(box), _LOST if is_lost else _FOUND, width)
        told = f"{found.case}  frame {number + 1}  {'lost ' if is_lost else ''}{score:.2f}"
        draw_label(pen, (0.0, 0.0), told, _PAPER, _INK, font)
        yield f"{number + 1:06d}", picture


def _corners(box: np.ndarray) -> np.ndarray:
    return np.concatenate((box[:2], box[:2] + box[2:]))
