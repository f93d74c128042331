"""Frames of a video, one after the other: of a file through OpenCV (FFmpeg), or of a folder of pictures.

OpenCV is there already (albumentations needs it); pictures need nothing but Pillow. Frames are uint8 [H, W, 3], RGB.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.readers import image as image_reader
from statefield.datasets.readers.limits import require_memory
from statefield.errors import ConfigError, DataError, DatasetLayoutError

__all__ = ["VIDEO_SUFFIXES", "Frames", "find_frames", "read_frame"]

Frame = NDArray[np.uint8]  # [H, W, 3]
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
_IMAGE_FOLDERS = ("img1", "img", "images", "data")  # where benchmarks keep a sequence's frames
_LOST_SHARE = 0.01  # containers without an index state their length by duration and rate, a little off


def read_frame(path: Path) -> Frame:
    """A picture as uint8 [H, W, 3]; grey ones get three equal channels.

    Raises: DataError: damaged, larger than the memory limit, or of more than 8 bits a channel.
    """
    values = image_reader.read_image(path)
    if values.max(initial=0) > 255 or values.min(initial=0) < 0:
        raise DataError(f"{path}: values up to {values.max():g} found; frames have 8 bits a channel, 0 to 255.")
    return np.ascontiguousarray(np.broadcast_to(values, (3, *values.shape[1:])).transpose(1, 2, 0).astype(np.uint8))


@dataclass(frozen=True)
class Frames:
    """The frames of one video.

    Args:
        name: of the video: its file's or folder's.
        path: the video file, or the folder of pictures.
        files: the pictures in order; empty for a video file.
        stated_length: frames that the video file's header states; 0 where it states none.
        size: width and height of the first frame, pixels, as its header states them.
        rate: frames a second, where the video file states it.
    """

    name: str
    path: Path
    files: tuple[Path, ...]
    stated_length: int
    size: tuple[int, int]
    rate: float | None = None

    @property
    def length(self) -> int | None:
        """How many frames, None where nothing says it before the last was read."""
        return len(self.files) or self.stated_length or None

    def frame_names(self, count: int) -> list[str]:
        """A file name for each of `count` frames: the picture's own, or NAME_000001 for a frame of a video file."""
        if self.files:
            return [str(path) for path in self.files[:count]]
        return [f"{self.name}/{number:06d}.jpg" for number in range(1, count + 1)]

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order.

        Raises: DataError: a frame that cannot be decoded; a video that ends before the length that it states.
        """
        return (read_frame(path) for path in self.files) if self.files else self._decoded()

    def at(self, positions: Sequence[int]) -> list[Frame]:
        """The frames at these positions, from 0, those that there are; a video file is decoded up to the last."""
        if self.files:
            return [read_frame(self.files[position]) for position in positions]
        wanted, found = set(positions), {}
        for position, frame in enumerate(self):
            if position in wanted:
                found[position] = frame
            if len(found) == len(wanted):
                break
        return [found[position] for position in positions if position in found]

    def _decoded(self) -> Iterator[Frame]:
        import cv2

        capture = _opened(self.path)
        count = 0
        try:
            while True:
                is_there, pixels = capture.read()
                if not is_there:
                    break
                count += 1
                yield cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
        finally:
            capture.release()
        if self.stated_length - count > max(2, _LOST_SHARE * self.stated_length) or not count:
            raise DataError(
                f"{self.path}: {count} of {self.stated_length} frames could be decoded, so the video is damaged or "
                "cut off. Copy it again, or save the frames that are whole as a folder of pictures."
            )


def find_frames(paths: Sequence[Path]) -> list[Frames]:
    """The videos that `paths` name: video files, folders of pictures, and folders of either (SEQUENCE/img1, too).

    Headers alone are read: sizes are checked against the memory limit before anything is decoded.

    Raises:
        DatasetLayoutError: nothing there, or no frames in it. DataError: a video or picture that cannot be opened.
        ConfigError: two videos of one name.
    """
    found = [one for path in paths for one in _found(path)]
    names = [one.name for one in found]
    twice = next((one for one in found if names.count(one.name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"{twice.path}: two videos are named {twice.name!r}, and results call them by it. Rename one."
        )
    return found


def _found(path: Path) -> list[Frames]:
    if path.is_file():
        if path.suffix.lower() in image_reader.SUFFIXES:
            return [_of_pictures(path.stem, path.parent, (path,))]
        return [_of_file(path)]
    if not path.is_dir():
        raise DatasetLayoutError(f"{path}: no such file or folder. Name a video file or a folder of frames.")
    own = _of_folder(path)
    if own is not None:
        return [own]
    inside = [one for each in sorted(path.iterdir()) if each.is_dir() and (one := _of_folder(each)) is not None]
    inside += [_of_file(each) for each in sorted(path.iterdir()) if each.suffix.lower() in VIDEO_SUFFIXES]
    if not inside:
        raise DatasetLayoutError(
            f"{path} holds no frames: pictures ({', '.join(image_reader.SUFFIXES)}), folders of them (SEQUENCE/img1 or "
            f"SEQUENCE), or video files ({', '.join(VIDEO_SUFFIXES)}) are needed."
        )
    return inside


def _of_folder(folder: Path) -> Frames | None:
    for place in (folder, *(folder / name for name in _IMAGE_FOLDERS)):
        files = pictures_in(place)
        if files:
            return _of_pictures(folder.resolve().name, place, files)
    return None


def pictures_in(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder, by the numbers in their names; none where there is no such folder."""
    if not folder.is_dir():
        return ()
    found = [path for path in folder.iterdir() if path.suffix.lower() in image_reader.SUFFIXES]
    return tuple(sorted(found, key=_by_number))


def _by_number(path: Path) -> tuple[tuple[int, str], ...]:
    """frame_9 before frame_10."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name))


def _of_pictures(name: str, folder: Path, files: tuple[Path, ...]) -> Frames:
    return Frames(name, folder, files, 0, image_reader.size_of(files[0]))


def _of_file(path: Path) -> Frames:
    import cv2

    capture = _opened(path)
    width, height, count, rate = (
        capture.get(what)
        for what in (
            cv2.CAP_PROP_FRAME_WIDTH,
            cv2.CAP_PROP_FRAME_HEIGHT,
            cv2.CAP_PROP_FRAME_COUNT,
            cv2.CAP_PROP_FPS,
        )
    )
    capture.release()
    if width < 1 or height < 1:
        raise DataError(f"{path}: a video of {width:g} x {height:g} pixels; it holds no pictures or is damaged.")
    require_memory(path, int(width * height) * 3, f"frames of {height:g} x {width:g} pixels")
    return Frames(path.stem, path, (), max(0, int(count)), (int(width), int(height)), rate if rate > 0 else None)


def _opened(path: Path) -> Any:
    """OpenCV's capture of a video file."""
    import cv2

    # what FFmpeg and OpenCV would write to the terminal, the error says
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture(os.fspath(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise DataError(
            f"{path}: this is no video that can be read, or it is damaged or cut off. Copy it again, convert it "
            "to .mp4, or save its frames as a folder of pictures."
        )
    return capture
