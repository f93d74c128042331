"""Arrays of one case that live in memory while they fit, and in files mapped into memory when they do not."""

from __future__ import annotations

import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from statefield.errors import ConfigError, DataError

_KEPT_FREE = 1 << 28  # bytes of a disk that scratch files leave to others


def available_bytes() -> int:
    """Memory that this process can have without others being swapped out, as far as the system tells; else 4 GB.

    On Linux what the kernel calls available, and no more than the control group (a container, a batch job) leaves.
    """
    found = 4_000_000_000
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines() if ":" in line)
        if "MemAvailable" in lines:
            found = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
    except OSError:
        return found
    return found if limit.strip() == "max" else max(0, min(found, int(limit) - int(used)))


def parse_size(text: str) -> int:
    """Bytes of a size such as "4GB", "500 MB" or "1.5 GiB".

    >>> parse_size("4GB"), parse_size("1.5 GiB")
    (4000000000, 1610612736)
    """
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    units |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    for unit, factor in units.items():
        if text.strip().lower().endswith(unit.lower()):
            try:
                size = float(text.strip()[: -len(unit)]) * factor
            except ValueError:
                break
            if 0 < size < 2**60:
                return int(size)
    raise ConfigError(f"{text!r} is no size of memory: give a number above 0 and its unit, such as 4GB or 500MB.")


class MappedArray:
    """A file as an array; `release` gives the pages that were touched back to the system, their content stays.

    Args:
        path: an existing file of at least `offset` + the array's bytes.
        order: "F" for an array whose first axis runs fastest, as NIfTI has it.
        writable: changes reach the file.
    """

    def __init__(
        self,
        path: Path,
        shape: Sequence[int],
        dtype: DTypeLike,
        *,
        offset: int = 0,
        order: str = "C",
        writable: bool = False,
    ) -> None:
        self.path = path
        count = math.prod(shape)
        with path.open("r+b" if writable else "rb") as stream:
            length = offset + count * np.dtype(dtype).itemsize
            self._map = mmap.mmap(stream.fileno(), length, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
        flat = np.frombuffer(self._map, dtype=dtype, count=count, offset=offset)
        self.array: NDArray[Any] = flat.reshape(tuple(shape), order="F" if order == "F" else "C")

    def release(self) -> None:
        """Take the file's pages out of this process's memory; they are read again if asked for."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


class Workspace:
    """Where the arrays of one case are made: in memory up to a limit, beyond it in a folder of temporary files.

    A context manager; the folder is made when it is first needed and removed at the end.

    Args:
        limit: bytes of arrays that may be in memory; None: all of them.
        folder: where the temporary folder is made.
    """

    def __init__(self, limit: int | None = None, folder: Path | None = None) -> None:
        self.limit, self._parent = limit, folder
        self.in_memory = self.on_disk = 0
        self._folder: Path | None = None
        self._mapped: list[MappedArray] = []

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mapped.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def fits(self, num_bytes: int) -> bool:
        """Whether so many bytes more may be in memory."""
        return self.limit is None or self.in_memory + num_bytes <= self.limit

    def empty(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """An array of undefined content, in memory or mapped from a file.

        Raises: DataError: the disk has not enough room.
        """
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if self.fits(num_bytes):
            self.in_memory += num_bytes
            return np.empty(tuple(shape), dtype=dtype)
        path = self.reserve(num_bytes, f"an array of {' x '.join(map(str, shape))} {np.dtype(dtype)}")
        return self.keep(MappedArray(path, shape, dtype, writable=True)).array

    def keep(self, mapped: MappedArray) -> MappedArray:
        """Have `release` reach this array too."""
        self._mapped.append(mapped)
        return mapped

    def reserve(self, num_bytes: int, what: str) -> Path:
        """A new file of so many bytes that the disk really has: writing to a mapped file cannot fail politely."""
        if self._folder is None:
            if self._parent is not None:
                self._parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=".statefield-", dir=self._parent))
        free = shutil.disk_usage(self._folder).free - _KEPT_FREE
        handle, name = tempfile.mkstemp(dir=self._folder)
        try:
            if num_bytes > free:
                raise OSError(f"{max(free, 0) / 1e9:.3g} GB are free")
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(handle, 0, max(num_bytes, 1))
            else:
                os.truncate(handle, max(num_bytes, 1))
        except OSError as error:
            raise DataError(
                f"{self._folder.parent}: {what} takes {num_bytes / 1e9:.3g} GB on this disk, but {error}. Name a "
                "folder on a larger disk for temporary files (--scratch), or give more memory (--memory)."
            ) from error
        finally:
            os.close(handle)
        self.on_disk += num_bytes
        return Path(name)

    def release(self) -> None:
        """Take the pages of all mapped arrays out of this process's memory."""
        for mapped in self._mapped:
            mapped.release()
