"""AEDAT 4 files of iniVation's cameras: a header, then packets, each a flatbuffer that may be compressed.

The layout (docs.inivation.com, AEDAT file formats; the flatbuffer schemas of dv-processing): "#!AER-DAT4.0\\r\\n"; a
header with its size before it, a table of the compression (0 none, 1 and 2 LZ4, 3 and 4 Zstandard), the place of the
table of contents (-1: none) and an XML text that tells the streams; then packets, each with the number of its stream
and its size. A packet of events is a table with one vector of structs: time in microseconds (int64), x, y (int16),
polarity.

The few table lookups that this takes are done here, so no flatbuffer library is needed; LZ4 and Zstandard are, for
files that use them (`pip install lz4`, `pip install zstandard`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from statefield.datasets.events.stream import DEFAULT_CHUNK, Events, joined, made, no_events, regrouped, within_memory
from statefield.datasets.readers.digits import whole_number
from statefield.datasets.readers.limits import memory_limit_bytes, require_memory
from statefield.errors import DataError

_MAGIC = b"#!AER-DAT4.0\r\n"
_EVENT = np.dtype(
    {"names": ["t", "x", "y", "on"], "formats": ["<i8", "<i2", "<i2", "u1"], "offsets": [0, 8, 10, 12], "itemsize": 16}
)
_COMPRESSIONS = {0: "none", 1: "LZ4", 2: "LZ4", 3: "Zstandard", 4: "Zstandard"}
_MOST_HEADER_BYTES = 2**24
_MOST_PACKET_BYTES = 2**28
Unpack = Callable[[bytes], bytes]


def read_aedat4(path: Path) -> Events:
    """All events of the file's first stream of events.

    Raises:
        DataError: no AEDAT 4 file, without such a stream, damaged, compressed by a method whose library is missing (its
            name is told), or larger than the memory limit.
    """
    return joined(within_memory(path, _packets(path)))


def aedat4_chunks(path: Path, events_per_chunk: int = DEFAULT_CHUNK) -> Iterator[Events]:
    """The events in chunks, with a packet or a chunk of the file in memory at a time."""
    return regrouped(_packets(path), events_per_chunk)


def _packets(path: Path) -> Iterator[Events]:
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    with path.open("rb") as file:
        unpack, end, described = _header(path, file)
        stream, width, height = _event_stream(path, described)
        size = path.stat().st_size
        end = end if 0 < end <= size else size
        count = 0
        yield no_events(width, height)
        while file.tell() < end:
            at = file.tell()
            header = file.read(8)
            if len(header) < 8:
                raise DataError(f"{path}: cut off within the packet at byte {at}. Copy it again.")
            number, length = struct.unpack("<ii", header)
            if not 0 <= length <= _MOST_PACKET_BYTES:
                raise DataError(f"{path}: the packet at byte {at} claims {length} bytes; the file is damaged.")
            if number != stream:
                file.seek(length, 1)
                continue
            content = file.read(length)
            if len(content) < length:
                raise DataError(f"{path}: cut off within the packet at byte {at}. Copy it again.")
            structs = _event_structs(path, at, unpack(content))
            yield made(structs["t"], structs["x"], structs["y"], structs["on"], width, height, path, count)
            count += len(structs)


def _header(path: Path, file: BinaryIO) -> tuple[Unpack, int, str]:
    """How packets are unpacked, where they end (-1: with the file), and the XML text."""
    if file.read(len(_MAGIC)) != _MAGIC:
        raise DataError(f"{path}: no AEDAT 4 file: it does not begin with {_MAGIC[:-2].decode()!r}.")
    length = struct.unpack("<I", (file.read(4) or b"").ljust(4, b"\0"))[0]
    content = file.read(length) if 0 < length <= _MOST_HEADER_BYTES else b""
    if len(content) < 8 or len(content) < length:
        raise DataError(f"{path}: its header claims {length} bytes; the file is damaged or cut off.")
    table = _Table(path, content, 0)
    compression = table.number(0, "<i", 0)
    end = table.number(1, "<q", -1)
    described = table.text(2)
    method = _COMPRESSIONS.get(compression)
    if method is None:
        raise DataError(f"{path}: a compression of number {compression}; 0 to 4 are known.")
    return _unpacker(path, method), end, described


def _unpacker(path: Path, method: str) -> Unpack:
    limit = min(_MOST_PACKET_BYTES, memory_limit_bytes())
    if method == "none":
        return lambda content: content
    package = {"LZ4": "lz4", "Zstandard": "zstandard"}[method]
    damaged: tuple[type[Exception], ...] = (RuntimeError, EOFError, ValueError, MemoryError)
    try:
        if method == "LZ4":
            from lz4.frame import LZ4FrameDecompressor

            def unpack(content: bytes) -> bytes:
                return LZ4FrameDecompressor().decompress(content, max_length=limit)

        else:
            from zstandard import ZstdDecompressor, ZstdError

            damaged += (ZstdError,)

            def unpack(content: bytes) -> bytes:
                return ZstdDecompressor().stream_reader(content).read(limit)

    except ImportError:
        raise DataError(
            f"{path}: its packets are compressed with {method}, which needs a package that is not installed: "
            f"pip install {package}. Or write the file without compression (DV's recorder: compression NONE)."
        ) from None

    def guarded(content: bytes) -> bytes:
        try:
            unpacked = unpack(content)
        except damaged as error:
            raise DataError(f"{path}: a packet cannot be unpacked ({error}); the file is damaged.") from error
        require_memory(path, len(unpacked), f"a packet of {len(unpacked)} bytes")
        return unpacked

    return guarded


def _event_stream(path: Path, described: str) -> tuple[int, int, int]:
    """(number, width, height) of the first stream of events; sizes of 0 where the text does not tell."""
    # a stream is <node name="0" ...> with its attributes, up to the next; no XML parser, as it would expand entities
    for match in re.finditer(r'<node name="(\d+)"[^>]*>(.*?)(?=<node name="\d+"|\Z)', described, flags=re.DOTALL):
        body = match[2]
        if re.search(r'key="typeIdentifier"[^>]*>\s*EVTS\s*<', body):
            sizes = [re.search(rf'key="size{axis}"[^>]*>\s*(\d+)\s*<', body) for axis in "XY"]
            told = [whole_number(size[1]) or 0 if size else 0 for size in sizes]
            width, height = (side if side < 2**15 else 0 for side in told)
            number = whole_number(match[1])
            return -1 if number is None else number, width, height
    raise DataError(f"{path}: it tells of no stream of events (EVTS), only of others such as frames.")


def _event_structs(path: Path, at: int, content: bytes) -> np.ndarray:
    """The structs of a packet: a flatbuffer with its size before it, whose table has one vector."""
    if len(content) < 8:
        raise DataError(f"{path}: the packet at byte {at} is empty; the file is damaged.")
    table = _Table(path, content, 4)
    place, count = table.vector(0)
    if count < 0 or place + 16 * count > len(content):
        raise DataError(f"{path}: the packet at byte {at} claims {count} events; the file is damaged.")
    return np.frombuffer(content, dtype=_EVENT, count=count, offset=place)


class _Table:
    """The root table of a flatbuffer that begins at `start` of `content`."""

    def __init__(self, path: Path, content: bytes, start: int) -> None:
        self.path, self.content = path, content
        self.place = start + self._at("<I", start)
        self.fields = self.place - self._at("<i", self.place)
        self.num_bytes = self._at("<H", self.fields)

    def number(self, field: int, form: str, default: int) -> int:
        place = self._field(field)
        return default if place is None else self._at(form, place)

    def vector(self, field: int) -> tuple[int, int]:
        """(first byte, number of elements); none where the field is left out."""
        place = self._field(field)
        if place is None:
            return 0, 0
        target = place + self._at("<I", place)
        return target + 4, self._at("<I", target)

    def text(self, field: int) -> str:
        first, count = self.vector(field)
        if first + count > len(self.content):
            raise DataError(f"{self.path}: a text runs past its header; the file is damaged.")
        return self.content[first : first + count].decode("utf-8", errors="replace")

    def _field(self, field: int) -> int | None:
        entry = 4 + 2 * field
        offset = self._at("<H", self.fields + entry) if entry + 2 <= self.num_bytes else 0
        return self.place + offset if offset else None

    def _at(self, form: str, place: int) -> int:
        if not 0 <= place <= len(self.content) - struct.calcsize(form):
            raise DataError(f"{self.path}: a table points outside of itself; the file is damaged.")
        return int(struct.unpack_from(form, self.content, place)[0])
