"""Events as all readers give them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.readers.limits import require_memory
from statefield.errors import DataError, ShapeError

BYTES_PER_EVENT = 13  # 8 of time, 2 and 2 of place, 1 of polarity
DEFAULT_CHUNK = 1_000_000


@dataclass(frozen=True)
class Events:
    """Events in the order of the file.

    Args:
        t: [N] uint64, microseconds.
        x, y: [N] uint16, column and row of the pixel, from 0 at the top left.
        on: [N] bool, True where it became brighter.
        width, height: of the sensor in pixels; 0 where the file does not tell.
    """

    t: NDArray[np.uint64]
    x: NDArray[np.uint16]
    y: NDArray[np.uint16]
    on: NDArray[np.bool_]
    width: int = 0
    height: int = 0

    def __post_init__(self) -> None:
        wanted = {"t": np.uint64, "x": np.uint16, "y": np.uint16, "on": np.bool_}
        for name, dtype in wanted.items():
            array = getattr(self, name)
            if array.shape != self.t.shape or array.ndim != 1 or array.dtype != dtype:
                raise ShapeError(
                    f"events: {name} is {array.dtype} {array.shape}; {np.dtype(dtype)} of one length is needed."
                )

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, part: slice | NDArray[np.bool_]) -> Events:
        """The events of a slice, or of a mask, over the same sensor."""
        return Events(self.t[part], self.x[part], self.y[part], self.on[part], self.width, self.height)

    def between(self, start_us: int, end_us: int) -> Events:
        """The events from `start_us` up to, not including, `end_us`."""
        return self[(self.t >= np.uint64(start_us)) & (self.t < np.uint64(end_us))]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height): the sensor's, or the smallest that holds all events where the file does not tell."""
        if self.width and self.height:
            return self.width, self.height
        if not len(self):
            return 0, 0
        return int(self.x.max()) + 1, int(self.y.max()) + 1


def joined(parts: Iterable[Events]) -> Events:
    """All parts one after another; no part gives no event."""
    kept = list(parts)
    if not kept:
        return no_events()
    return Events(
        np.concatenate([part.t for part in kept]),
        np.concatenate([part.x for part in kept]),
        np.concatenate([part.y for part in kept]),
        np.concatenate([part.on for part in kept]),
        kept[0].width,
        kept[0].height,
    )


def no_events(width: int = 0, height: int = 0) -> Events:
    """A recording of nothing."""
    nothing = np.zeros(0)
    return made(nothing, nothing, nothing, nothing, width, height)


def made(
    t: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    on: NDArray[Any],
    width: int = 0,
    height: int = 0,
    where: str | Path = "events",
    first: int = 0,
) -> Events:
    """Events from arrays of any numeric dtype, checked: whole pixels on the sensor, times of 0 and later.

    Args:
        on: 1 and True are on; 0, -1 and False are off.
        where, first: the file and the number of the first event, for errors.

    Raises:
        DataError: lengths that differ, or a value that cannot be; names the event.
    """
    lengths = {len(t), len(x), len(y), len(on)}
    if len(lengths) > 1:
        raise DataError(f"{where}: times, columns, rows and polarities differ in number: {sorted(lengths)}.")
    for name, values, limit in (("column", x, width or 2**16), ("row", y, height or 2**16), ("time", t, 2**63)):
        wrong = ~((values >= 0) & (values < limit))
        if name != "time" and values.dtype.kind == "f":
            wrong |= values != np.floor(values)
        _refuse(wrong, values, f"{name} outside 0 to {limit - 1}" if name != "time" else "negative time", where, first)
    if on.dtype != np.bool_:
        _refuse(~np.isin(on, (-1, 0, 1)), on, "polarity that is neither 0 nor 1 nor -1", where, first)
    times = np.floor(t) if t.dtype.kind == "f" else t
    return Events(
        times.astype(np.uint64), x.astype(np.uint16), y.astype(np.uint16), np.asarray(on > 0, np.bool_), width, height
    )


def _refuse(wrong: NDArray[np.bool_], values: NDArray[Any], what: str, where: str | Path, first: int) -> None:
    if wrong.any():
        index = int(np.argmax(wrong))
        raise DataError(
            f"{where}: event {first + index} has a {what}: {values[index]}; so have {int(wrong.sum()) - 1} more. The "
            "file is damaged, or its columns are in another order."
        )


def within_memory(path: Path, parts: Iterable[Events]) -> Iterator[Events]:
    """The parts as they come, until all of them together would pass the memory limit."""
    count = 0
    for part in parts:
        count += len(part)
        require_memory(path, 2 * count * BYTES_PER_EVENT, f"{count} events and more")  # twice while they are joined
        yield part


def regrouped(parts: Iterable[Events], events_per_chunk: int) -> Iterator[Events]:
    """The same events in chunks of `events_per_chunk`, the last one shorter."""
    waiting: list[Events] = []
    count = 0
    for part in parts:
        waiting.append(part)
        count += len(part)
        if count < events_per_chunk:
            continue
        everything = joined(waiting)
        whole = count - count % events_per_chunk
        for start in range(0, whole, events_per_chunk):
            yield everything[start : start + events_per_chunk]
        waiting = [everything[whole:]]
        count -= whole
    if count:
        yield joined(waiting)
