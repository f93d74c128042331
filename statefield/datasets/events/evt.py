"""Prophesee's raw files: EVT 2.0 and EVT 3.0, decoded without a loop over events.

Words are little-endian. EVT 2.0, 32 bits, the type in the top four: 0 and 1 an event, off and on (6 bits of time, 11 of
column, 11 of row), 8 the upper 28 bits of the time. EVT 3.0, 16 bits, the type in the top four: 0 row, 2 an event at a
column (bit 11: on), 3 a column where a vector begins, 4 and 5 vectors of 12 and 8 columns whose bits tell the events,
6 and 8 the lower and upper 12 bits of the time. Other words are triggers and continuations, which are left out.
Times are in microseconds and start again after 2**34 (EVT 2.0) or 2**24 (EVT 3.0), which is undone. Events before the
first time word have no time and are left out. Source: docs.prophesee.ai, data encoding formats; for the corner cases (a
time word sets the lower bits to 0; what counts as starting again) Prophesee's sample decoder in OpenEB.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.events.stream import DEFAULT_CHUNK, Events, joined, made, regrouped, within_memory
from statefield.datasets.readers.digits import whole_number
from statefield.errors import DataError

_MOST_HEADER_BYTES = 2**20
_WORDS_AT_ONCE = 2**19
_MARGIN = 10  # time words may come a little out of order; only a fall of nearly the whole range is a new start
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RawHeader:
    """What the text at the top of a raw file says, and where the words begin (`offset`, in bytes)."""

    version: int
    width: int
    height: int
    offset: int
    fields: dict[str, str]


def read_header(path: Path) -> RawHeader:
    """The header of a raw file.

    Raises:
        DataError: no raw file, or an encoding other than EVT 2.0 and 3.0.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    fields: dict[str, str] = {}
    offset = 0
    with path.open("rb") as file:
        # words begin after "% end", or in older files where a line no longer begins as those of the header do
        while line := file.readline(_MOST_HEADER_BYTES):
            if offset > _MOST_HEADER_BYTES or not line.startswith(b"% ") or not line.isascii():
                break
            offset += len(line)
            key, _, value = line[2:].decode("ascii").strip().partition(" ")
            fields[key.lower()] = value.strip()
            if key.lower() == "end":
                break
    if not fields:
        raise DataError(f"{path}: no raw file of Prophesee: it does not begin with lines such as '% evt 2.0'.")
    described = dict(part.split("=", 1) for part in fields.get("format", "").split(";") if "=" in part)
    named = f"{fields.get('format', '').split(';')[0]} {fields.get('evt', '')}".upper()
    version = {"2.0": 2, "3.0": 3, "2": 2, "3": 3, "2.1": 21}.get(fields.get("evt", ""), 0)
    if not version:
        version = {"EVT2": 2, "EVT3": 3, "EVT21": 21}.get(named.split()[0] if named.strip() else "", 0)
    if version not in (2, 3):
        raise DataError(f"{path}: the encoding {named.strip() or 'is not told'}; EVT 2.0 and EVT 3.0 are read.")
    geometry = re.match(r"(\d+)x(\d+)", fields.get("geometry", ""))
    width = geometry[1] if geometry else described.get("width", fields.get("width", "0"))
    height = geometry[2] if geometry else described.get("height", fields.get("height", "0"))
    told = (whole_number(width) or 0, whole_number(height) or 0)
    size = tuple(side if side < 2**16 else 0 for side in told)
    if not all(size) and fields.get("plugin_name") == "hal_plugin_gen3_fx3":
        size = (640, 480)  # the Gen3 VGA sensor, whose older files do not tell
    return RawHeader(version, size[0], size[1], offset, fields)


def read_raw(path: Path) -> Events:
    """All events of a raw file.

    Raises:
        DataError: see `read_header`; a file that is cut within a word, larger than the memory limit once decoded, or
            with events outside its sensor.
    """
    return joined(within_memory(path, _decoded(path, read_header(path))))


def raw_chunks(path: Path, events_per_chunk: int = DEFAULT_CHUNK) -> Iterator[Events]:
    """The events in chunks, with no more of the file in memory than a chunk needs."""
    return regrouped(_decoded(path, read_header(path)), events_per_chunk)


def _decoded(path: Path, header: RawHeader) -> Iterator[Events]:
    dtype = np.dtype("<u4" if header.version == 2 else "<u2")
    rest = (path.stat().st_size - header.offset) % dtype.itemsize
    if rest:
        raise DataError(f"{path}: {rest} bytes after the last whole word of {dtype.itemsize}; the file is cut off.")
    decoder: _Evt2 | _Evt3 = _Evt2() if header.version == 2 else _Evt3()
    count = 0
    with path.open("rb") as file:
        file.seek(header.offset)
        while True:
            words = np.fromfile(file, dtype=dtype, count=_WORDS_AT_ONCE)
            if not len(words) and count:
                return
            part = made(*decoder.decode(words), header.width, header.height, path, count)
            yield part
            if not len(words):
                return
            count += len(part)


def _filled(is_set: NDArray[np.bool_], values: Ints, before: int) -> Ints:
    """At each place the value of the last place that is set, `before` where there is none yet."""
    last = np.maximum.accumulate(np.where(is_set, np.arange(len(values)), -1))
    return np.where(last >= 0, values[last], before)


class _Clock:
    """Upper bits of the time over the whole file: undoes starting again at 0."""

    def __init__(self, bits: int) -> None:
        self.range = 1 << bits
        self.last = -1
        self.turns = 0

    def unrolled(self, values: Ints) -> Ints:
        before = np.concatenate([[self.last if self.last >= 0 else values[0]], values[:-1]]) if len(values) else values
        turns = self.turns + np.cumsum(before - values >= self.range - 1 - _MARGIN)
        if len(values):
            self.last, self.turns = int(values[-1]), int(turns[-1])
        return values + turns * self.range


class _Evt2:
    """Keeps the upper bits of the time from one part of the file to the next; -1 before the first."""

    def __init__(self) -> None:
        self.clock = _Clock(28)
        self.high = -1

    def decode(self, words: NDArray[np.uint32]) -> tuple[Ints, Ints, Ints, NDArray[np.bool_]]:
        w = words.astype(np.int64)
        kind = w >> 28
        is_high = kind == 8
        high = np.zeros(len(w), dtype=np.int64)
        high[is_high] = self.clock.unrolled(w[is_high] & 0xFFFFFFF)
        high = _filled(is_high, high, self.high)
        is_event = (kind <= 1) & (high >= 0)
        if len(high):
            self.high = int(high[-1])
        e = w[is_event]
        t = (high[is_event] << 6) | ((e >> 22) & 0x3F)
        return t, (e >> 11) & 0x7FF, e & 0x7FF, kind[is_event] == 1


class _Evt3:
    """Keeps time, row and the beginning of a vector from one part of the file to the next."""

    def __init__(self) -> None:
        self.clock = _Clock(12)
        self.base = self.time = -1
        self.row = self.column = 0
        self.is_on = 0

    def decode(self, words: NDArray[np.uint16]) -> tuple[Ints, Ints, Ints, NDArray[np.bool_]]:
        w = words.astype(np.int64)
        if not len(w):
            nothing = np.zeros(0, dtype=np.int64)
            return nothing, nothing, nothing, nothing.astype(np.bool_)
        kind = w >> 12
        is_high, is_low = kind == 8, kind == 6
        base = np.zeros(len(w), dtype=np.int64)
        base[is_high] = self.clock.unrolled(w[is_high] & 0xFFF) << 12
        base = _filled(is_high, base, self.base)
        is_timed = base >= 0
        time = _filled((is_high | is_low) & is_timed, base + np.where(is_low, w & 0xFFF, 0), self.time)
        row = _filled(kind == 0, w & 0x7FF, self.row)
        # a vector begins where the last beginning said, after the columns of the vectors since then
        begins = kind == 3
        steps = np.where(kind == 4, 12, np.where(kind == 5, 8, 0))
        passed = np.cumsum(steps) - steps
        column = _filled(begins, (w & 0x7FF) - passed, self.column) + passed
        is_on = _filled(begins, (w >> 11) & 1, self.is_on)
        self.base, self.time, self.row, self.is_on = int(base[-1]), int(time[-1]), int(row[-1]), int(is_on[-1])
        self.column = int(column[-1] + steps[-1])

        is_single = (kind == 2) & (time >= 0)
        is_vector = (steps > 0) & (time >= 0)
        bits = ((w[:, None] >> np.arange(12)) & 1).astype(np.bool_)
        bits[:, 1:] &= is_vector[:, None]
        bits[:, 0] = np.where(is_vector, bits[:, 0], is_single)
        bits[kind == 5, 8:] = False
        word, place = np.nonzero(bits)
        single = is_single[word]
        x = np.where(single, w[word] & 0x7FF, column[word] + place)
        on = np.where(single, (w[word] >> 11) & 1, is_on[word]) == 1
        return time[word], x, row[word], on
