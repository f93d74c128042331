"""A recording of events as frames: a window of time, drawn as a picture, then the next.

Trackers of pictures take them as they are: uint8 [H, W, 3], whatever the representation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.events import read_events
from statefield.datasets.events.representations import event_frame, event_picture, time_surface, voxel_grid
from statefield.datasets.events.stream import BYTES_PER_EVENT, Events
from statefield.errors import ConfigError, DataError

__all__ = ["DEFAULT_WINDOW_US", "EventFrameConfig", "EventFrames", "drawn"]

DEFAULT_WINDOW_US = 40_000  # 25 frames a second
Frame = NDArray[np.uint8]  # [H, W, 3]


@dataclass(frozen=True)
class EventFrameConfig:
    """How a stream of events becomes frames. Recordings whose frames are pictures already are taken as they are.

    Args:
        kind: "picture" (white, red where on and blue where off, as EventVOT and COESOT ship theirs), "counts" (off, all
            and on events of a pixel), "voxels" (polarities in three bins of time) or "surface" (how recent the last off
            event, any event and on event are).
        window_us: microseconds of events in a frame; null: the recording divided evenly by the number of its boxes, or
            40000 where there are none.
        step_us: from the beginning of a frame to that of the next; null: `window_us`. A smaller one lets frames
            overlap.
        full: events of a pixel at which "counts" and "voxels" are at the end of their range.
        tau_us: the time in which "surface" falls to 1/e.
        pan_px: of PEDRo's samples, which are stills: frames move over the sensor by up to so many pixels from one to
            the next, on a path that follows from the sample's name, and boxes with them. What comes in at the edge has
            no events. 0: they stand still.
    """

    kind: Literal["picture", "counts", "voxels", "surface"] = "picture"
    window_us: int | None = None
    step_us: int | None = None
    full: float = 4.0
    tau_us: float = 20_000.0
    pan_px: float = 0.0

    def __post_init__(self) -> None:
        for name in ("window_us", "step_us", "full", "tau_us"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"events.{name} = {value}: a number above 0 is needed.")
        if not 0 <= self.pan_px < 1000:
            raise ConfigError(f"events.pan_px = {self.pan_px}: a number of pixels from 0 on is needed.")
        if self.step_us is not None and self.window_us is None:
            raise ConfigError(f"events.step_us = {self.step_us} needs events.window_us: how long a frame itself lasts.")


class EventFrames:
    """The frames of a recording, drawn when they are asked for; the events are in memory.

    Args:
        path: a file of events, or what `events` are from.
        config: window and representation.
        num_frames: boxes that are to have a frame each; None: as many frames as the recording has windows.
        events: instead of reading the file.

    Frame k has the events from k steps after the first event on. Raises DataError: no event in the file, or it ends
    before the last box.
    """

    def __init__(
        self, path: Path, config: EventFrameConfig, num_frames: int | None = None, events: Events | None = None
    ) -> None:
        self.path, self.config = path, config
        events = read_events(path) if events is None else events
        if not len(events):
            raise DataError(f"{path}: no event in this file, so there is nothing to follow.")
        if (events.t[1:] < events.t[:-1]).any():
            order = np.argsort(events.t, kind="stable")
            events = Events(
                events.t[order], events.x[order], events.y[order], events.on[order], events.width, events.height
            )
        self.events = events
        self.first_us = int(events.t[0])
        duration = int(events.t[-1]) - self.first_us + 1
        if config.window_us is None and num_frames is not None:
            self.step_us: float = max(duration / num_frames, 1.0)
            self.window_us: float = self.step_us
        else:
            self.window_us = config.window_us or DEFAULT_WINDOW_US
            self.step_us = config.step_us or self.window_us
        self.count = max(1, int(np.ceil(duration / self.step_us))) if num_frames is None else num_frames
        if (self.count - 1) * self.step_us >= duration:
            raise DataError(
                f"{path}: {duration / 1e6:.3f} s of events, {duration / self.step_us:.0f} frames of "
                f"{self.step_us:.0f} us, and {self.count} boxes: set events.window_us to the time from box to box, or "
                "to null, which divides the recording by the boxes."
            )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Frame:
        if not 0 <= number < self.count:
            raise IndexError(number)
        start = self.first_us + round(number * self.step_us)
        end = max(self.first_us + round(number * self.step_us + self.window_us), start + 1)
        first, last = np.searchsorted(self.events.t, np.array([start, end], dtype=np.uint64))
        return drawn(self.events[int(first) : int(last)], self.config, (start, end), self.events.size)

    @property
    def num_held_bytes(self) -> int:
        return BYTES_PER_EVENT * len(self.events)

    def name_of(self, number: int) -> str:
        return f"{self.path}, frame {number + 1} of {self.step_us:.0f} us"


def drawn(events: Events, config: EventFrameConfig, span_us: tuple[int, int], size: tuple[int, int]) -> Frame:
    """The events of one window as a picture, uint8 [H, W, 3].

    Args: span_us: begin and end of the window, the end not included. size: width and height in pixels.
    """
    if config.kind == "picture":
        return event_picture(events, size)
    if config.kind == "voxels":
        grid = voxel_grid(events, 3, size, span_us=(span_us[0], span_us[1] - 1))
        return _bytes(0.5 + 0.5 * grid / config.full)
    if config.kind == "counts":
        off, on = event_frame(events, size)
        return _bytes(np.stack((off, off + on, on)) / config.full)
    off, on = time_surface(events, config.tau_us, size, at_us=span_us[1])
    return _bytes(np.stack((off, np.maximum(off, on), on)))


def _bytes(shares: NDArray[np.floating]) -> Frame:
    """[3, H, W] of shares 0 to 1 as [H, W, 3] of 0 to 255."""
    return np.ascontiguousarray(np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0))
