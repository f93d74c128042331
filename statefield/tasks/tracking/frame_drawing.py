"""Pictures with boxes: how a box and its name are drawn, and how frames become files, an animation or a video."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from statefield.errors import ConfigError, DataError
from statefield.files import atomic_path

__all__ = ["Form", "draw_box", "draw_dashed_box", "draw_label", "require_writer", "write_pictures"]

Form = Literal["frames", "mp4", "webm", "webp"]
_DEFAULT_RATE = 25.0
_LONGEST_SIDE_PX = 1280  # of a video; frames keep their size


def require_writer(form: Form) -> None:
    """Raise `ConfigError` where pictures cannot be written in this form."""
    if form == "mp4" and shutil.which("ffmpeg") is None:
        raise ConfigError(
            "--draw mp4: the program ffmpeg is not installed, and nothing that statefield depends on writes mp4. "
            "Install ffmpeg, or draw frames or webp."
        )


def draw_box(pen: ImageDraw.ImageDraw, corners: np.ndarray, colour: str, width: int) -> None:
    """A rectangle at left, top, right, bottom; one that ends before it begins is a line."""
    left, top, right, bottom = (float(value) for value in corners)
    pen.rectangle([left, top, max(left, right), max(top, bottom)], outline=colour, width=width)


def draw_dashed_box(pen: ImageDraw.ImageDraw, corners: np.ndarray, colour: str, width: int) -> None:
    """A rectangle of dashes, for what is not there."""
    left, top, right, bottom = (float(value) for value in corners)
    dash = 5.0 * width
    for (x, y), (to_x, to_y) in (
        ((left, top), (right, top)),
        ((left, bottom), (right, bottom)),
        ((left, top), (left, bottom)),
        ((right, top), (right, bottom)),
    ):
        length = max(abs(to_x - x), abs(to_y - y), 1e-6)
        for start in np.arange(0.0, length, 2 * dash):
            one, other = start / length, min(start + dash, length) / length
            pen.line(
                [(x + (to_x - x) * one, y + (to_y - y) * one), (x + (to_x - x) * other, y + (to_y - y) * other)],
                fill=colour,
                width=width,
            )


def draw_label(
    pen: ImageDraw.ImageDraw,
    bottom_left: tuple[float, float],
    text: str,
    paper: str,
    ink: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """`text` in `ink` on `paper`, above the point `bottom_left` where there is room."""
    x, y = bottom_left
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    high = bottom - top + 6
    y = max(0.0, y - high)
    pen.rectangle([x, y, x + right - left + 8, y + high], fill=paper)
    pen.text((x + 4 - left, y + 3 - top), text, fill=ink, font=font)


def write_pictures(
    target: Path, frames: Iterator[tuple[str, Image.Image]], form: Form, frame_rate: float | None
) -> int:
    """Write named pictures, one after the other, each file whole or not at all; returns how many there were.

    Args:
        target: "frames" are TARGET/NAME.jpg, the others TARGET.mp4 (by the program ffmpeg), TARGET.webm (VP8, by
            OpenCV, for browsers) and TARGET.webp (animated); the last two are at most 1280 pixels wide or high.
        frame_rate: frames a second; None: 25.
    """
    rate = frame_rate or _DEFAULT_RATE
    if form == "frames":
        count = 0
        for name, picture in frames:
            with atomic_path(target / f"{name}.jpg") as partial:
                picture.save(partial, format="JPEG", quality=90)
            count += 1
        return count
    video = target.with_name(f"{target.name}.{form}")
    with atomic_path(video) as partial:
        if form == "webp":
            pictures = [_smaller(picture) for _, picture in frames]
            if pictures:
                pictures[0].save(
                    partial, format="WEBP", save_all=True, append_images=pictures[1:], duration=round(1000 / rate)
                )
            return len(pictures)
        return _write_webm(partial, frames, rate) if form == "webm" else _write_mp4(partial, frames, rate)


def _smaller(picture: Image.Image) -> Image.Image:
    picture.thumbnail((_LONGEST_SIDE_PX, _LONGEST_SIDE_PX))
    return picture


def _write_webm(path: Path, frames: Iterator[tuple[str, Image.Image]], rate: float) -> int:
    """VP8, which OpenCV's wheels can encode without any program beside them, and every browser shows."""
    import cv2

    writer, size, count = None, (0, 0), 0
    try:
        for _, picture in frames:
            shown = np.asarray(_smaller(picture.convert("RGB")))
            if writer is None:
                size = (shown.shape[1] + shown.shape[1] % 2, shown.shape[0] + shown.shape[0] % 2)  # VP8 halves colours
                writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"VP80"), rate, size)
                if not writer.isOpened():
                    raise DataError(f"{path}: OpenCV cannot write WebM here. Draw frames or webp instead.")
            page = np.zeros((size[1], size[0], 3), np.uint8)  # frames of other sizes are cut or padded, not stretched
            part = shown[: size[1], : size[0]]
            page[: part.shape[0], : part.shape[1]] = part[..., ::-1]
            writer.write(page)
            count += 1
    finally:
        if writer is not None:
            writer.release()
    return count


def _write_mp4(path: Path, frames: Iterator[tuple[str, Image.Image]], rate: float) -> int:
    program = shutil.which("ffmpeg") or "ffmpeg"
    even = "pad=ceil(iw/2)*2:ceil(ih/2)*2"
    command = [program, "-loglevel", "error", "-y", "-f", "image2pipe", "-framerate", f"{rate:g}", "-i", "-"]
    command += ["-vf", even, "-pix_fmt", "yuv420p", "-f", "mp4", str(path)]
    count = 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # noqa: S603  (ffmpeg itself)
        assert process.stdin is not None and process.stderr is not None
        try:
            for _, picture in frames:
                picture.save(process.stdin, format="PNG", compress_level=1)
                count += 1
            process.stdin.close()
        except BrokenPipeError:
            pass  # ffmpeg has stopped: its words follow
        said = process.stderr.read().decode(errors="replace").strip()
    if process.returncode:
        raise DataError(f"{path}: ffmpeg failed ({said[-300:]}). Draw frames or webp instead.")
    return count
