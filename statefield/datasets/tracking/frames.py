"""The frames of one sequence by their number: of a folder of pictures or of a video. Each is uint8 [H, W, 3], RGB.

`datasets/events/frames.py` makes such frames of events, so a tracker need not know what it looks at.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.readers.limits import require_memory
from statefield.datasets.readers.video import find_frames, pictures_in, read_frame
from statefield.errors import DataError

__all__ = ["Frame", "HeldFrames", "NumberedFrames", "PictureFrames", "VideoFrames"]

Frame = NDArray[np.uint8]  # [H, W, 3]


class NumberedFrames(Protocol):
    """Frames by their number, from 0."""

    path: Path

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Frame:
        """Frame `number`; `DataError` names its file where it cannot be read."""

    def name_of(self, number: int) -> str:
        """What a person would look for: the file of a frame, or a file and the number in it."""

    @property
    def num_held_bytes(self) -> int:
        """Memory that is taken as long as the object lives."""


class PictureFrames:
    """The pictures of a folder, in the order of the numbers in their names.

    Raises: DataError: no picture in it.
    """

    num_held_bytes = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = pictures_in(path)
        if not self.files:
            raise DataError(f"{path}: no pictures in this folder.")

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Frame:
        return read_frame(self.files[number])

    def name_of(self, number: int) -> str:
        return str(self.files[number])


class VideoFrames:
    """The frames of a video, decoded one after another; going back starts from the first frame again.

    The video is walked over once at the start, as headers tell the number of frames wrongly or not at all.

    Raises: DataError: a file that is no video, or is damaged or cut off.
    """

    num_held_bytes = 0

    def __init__(self, path: Path) -> None:
        self.path = path
        (self._video,) = find_frames([path])
        self._coming: Iterator[Frame] | None = None
        self._next = 0
        self._count = sum(1 for _ in self._video)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Frame:
        if not 0 <= number < self._count:
            raise IndexError(number)
        if self._coming is None or number < self._next:
            self._coming, self._next = iter(self._video), 0
        while self._next < number:
            next(self._coming)
            self._next += 1
        self._next += 1
        return next(self._coming)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_coming": None, "_next": 0}  # a decoder stays in its process

    def name_of(self, number: int) -> str:
        return f"{self.path}, frame {number + 1}"


class HeldFrames:
    """All frames in memory, for drawing from them in any order.

    Raises: DataError: more than the memory limit allows.
    """

    def __init__(self, frames: NumberedFrames) -> None:
        self.path, self._frames = frames.path, frames
        first = frames[0]
        self.num_held_bytes = first.nbytes * len(frames)
        require_memory(
            frames.path,
            self.num_held_bytes,
            f"{len(frames)} frames of {first.shape[1]} x {first.shape[0]} pixels (save them as a folder of pictures, "
            "and nothing is held)",
        )
        self.held = [first, *(frames[number] for number in range(1, len(frames)))]

    def __len__(self) -> int:
        return len(self.held)

    def __getitem__(self, number: int) -> Frame:
        return self.held[number]

    def name_of(self, number: int) -> str:
        return self._frames.name_of(number)
