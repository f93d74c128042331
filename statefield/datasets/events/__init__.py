"""Events of event cameras: readers of the usual files, and the arrays that networks take.

read_events("recording.raw")                 all at once
event_chunks("recording.raw", 1_000_000)     a million at a time
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from statefield.datasets.events.aedat4 import aedat4_chunks, read_aedat4
from statefield.datasets.events.arrays import hdf5_chunks, read_arrays, read_hdf5, read_text, text_chunks
from statefield.datasets.events.evt import raw_chunks, read_raw
from statefield.datasets.events.representations import (
    event_frame,
    event_picture,
    last_times,
    time_surface,
    voxel_grid,
)
from statefield.datasets.events.stream import DEFAULT_CHUNK, Events, joined, regrouped
from statefield.errors import ConfigError, DataError

__all__ = [
    "Events",
    "event_chunks",
    "event_frame",
    "event_picture",
    "joined",
    "last_times",
    "read_events",
    "time_surface",
    "voxel_grid",
]

_READERS = {
    ".raw": read_raw,
    ".aedat4": read_aedat4,
    ".csv": read_text,
    ".txt": read_text,
    ".npz": read_arrays,
    ".npy": read_arrays,
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
}
_CHUNKS = {
    ".raw": raw_chunks,
    ".aedat4": aedat4_chunks,
    ".csv": text_chunks,
    ".txt": text_chunks,
    ".h5": hdf5_chunks,
    ".hdf5": hdf5_chunks,
}


def read_events(path: str | Path) -> Events:
    """All events of a file, by its ending: EVT 2.0/3.0 (.raw), .aedat4, .csv, .txt, .npz, .npy, .h5.

    Raises:
        DataError: no such file, another ending, or a file that cannot be read; see the readers.
    """
    path = Path(path)
    return _READERS[_ending(path)](path)


def event_chunks(path: str | Path, events_per_chunk: int = DEFAULT_CHUNK) -> Iterator[Events]:
    """The events of a file in chunks, in their order; arrays of NumPy are read whole and handed out in parts."""
    path = Path(path)
    if events_per_chunk < 1:
        raise ConfigError(f"events_per_chunk={events_per_chunk}: at least 1 is needed.")
    ending = _ending(path)
    if ending in _CHUNKS:
        yield from regrouped(_CHUNKS[ending](path, events_per_chunk), events_per_chunk)
    else:
        yield from regrouped([read_arrays(path)], events_per_chunk)


def _ending(path: Path) -> str:
    if path.suffix.lower() not in _READERS:
        raise DataError(f"{path}: events are read from files ending in {', '.join(_READERS)}.")
    return path.suffix.lower()
