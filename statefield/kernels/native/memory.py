"""Memory for large outputs, handed out again when its tensor is gone.

A fresh output of 50 MB is memory that the kernel of the system has to zero first, page by page: 4 to 7 ms on 2 MiB
pages, 31 ms on pages of 4 KiB, where the scan that fills it takes 7. A network asks for the same sizes at every step,
so what it has given back is kept, up to a bound, as torch's allocator does on GPUs.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from statefield.errors import ConfigError

_LARGE = 4 << 20  # from here on fresh memory costs more than the bookkeeping
_PAGE = 2 << 20
_KEPT_MIB = 256


class RecycledMemory:
    """Blocks of anonymous memory on 2 MiB pages.

    Attributes:
        limit: bytes that may lie here unused; what is given back beyond it returns to the system, the oldest first.
        unused: bytes that do.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.unused = 0
        self._free: list[mmap.mmap] = []  # the one given back last is the last
        self._lock = threading.RLock()  # the same thread comes back when the collector runs inside `take`

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous CPU tensor with arbitrary contents, like `torch.empty(shape, dtype=dtype)`.

        Its memory comes back here when the last tensor that shares its storage is gone.
        """
        count = math.prod(shape)
        block = self._take(count * dtype.itemsize)
        view = memoryview(block)
        weakref.finalize(view, self._give_back, block).atexit = False
        start = -torch.frombuffer(view, dtype=torch.uint8).data_ptr() % _PAGE
        return torch.frombuffer(view, dtype=dtype, count=count, offset=start).view(*shape)  # it holds `view`

    def _take(self, size: int) -> mmap.mmap:
        size = -(-size // _PAGE) * _PAGE + _PAGE  # one page more, so that the tensor can begin at a page's boundary
        with self._lock:
            fitting = [block for block in self._free if size <= len(block) <= size + size // 4]
            if fitting:
                block = min(reversed(fitting), key=len)
                self._free.remove(block)
                self.unused -= len(block)
                return block
        # Private, so that a forked process has a copy of its own.
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # advice only: where the system has no such pages, small ones serve
                block.madvise(mmap.MADV_HUGEPAGE)
        return block

    def _give_back(self, block: mmap.mmap) -> None:
        with self._lock:
            self._free.append(block)
            self.unused += len(block)
            while self.unused > self.limit:
                self.unused -= len(self._free.pop(0))


def _limit() -> int:
    given = os.environ.get("STATEFIELD_RECYCLED_MIB") or str(_KEPT_MIB)
    if not given.isdecimal():
        raise ConfigError(
            f"STATEFIELD_RECYCLED_MIB={given!r}: it is the memory in MiB that the native kernels may keep for their "
            f"next outputs, a whole number from 0 (keep none) up; it is {_KEPT_MIB} when unset."
        )
    return int(given) << 20


_memory: RecycledMemory | None = None


def new_empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """`like.new_empty(shape, dtype=dtype)` for an output that a kernel will fill; a large one is recycled memory.

    Up to STATEFIELD_RECYCLED_MIB (256) of what was given back is kept for later calls; 0 turns that off.
    """
    global _memory
    dtype = dtype or like.dtype
    if math.prod(shape) * dtype.itemsize < _LARGE:
        return like.new_empty(shape, dtype=dtype)
    if _memory is None:
        _memory = RecycledMemory(_limit())
    tensor = _memory.empty(shape, dtype)
    if torch.are_deterministic_algorithms_enabled() and torch.utils.deterministic.fill_uninitialized_memory:  # type: ignore[attr-defined]
        tensor.fill_(math.nan)  # as torch fills its own
    return tensor
