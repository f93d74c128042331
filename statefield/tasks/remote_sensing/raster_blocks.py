"""A raster as bands of columns, each walked from the top by rows of windows; what a window reads and where logits go.

The windows are those of `statefield.tasks.common.tiling`: the same starts, the same weights, the same zeros around an
image smaller than a window. So the blended logits equal `sliding_window` of the whole image, though only `tile` rows of
one band are in memory, whatever the height and the width of the raster.

Shape legend: C channels of all sources together, K channels of logits, H rows, W columns. Padded coordinates are those
of the image with the zeros that precede it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.io import DatasetReader
from torch import Tensor

from statefield.errors import CheckpointError, ConfigError, ShapeError
from statefield.tasks.common.tiling import window_starts, window_weights
from statefield.tasks.remote_sensing.raster_sources import Source

BLOCK = 512  # rows and columns of a block of the output, and rows of a strip
_LARGEST_TILE = 8192

Rows = tuple[NDArray[np.float32], NDArray[np.bool_]]


@dataclass(frozen=True)
class Layout:
    """Where windows, bands and strips of a raster of `height` x `width` pixels lie.

    tile: side of the square windows, pixels. overlap: part of a window shared with the next, in [0, 1).
    margin: pixels along the sides of a window, but for those on the image's border, whose logits are not used.
    band_columns: columns of a band, a multiple of 512. A strip is 512 rows of one band; strips are finished one after
    the other, band by band.
    """

    height: int
    width: int
    tile: int
    overlap: float
    band_columns: int
    margin: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.tile <= _LARGEST_TILE:
            raise ConfigError(f"tile={self.tile}: windows of 1 to {_LARGEST_TILE} pixels a side are possible.")
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap={self.overlap}: a number in [0, 1) is needed.")
        shared = self.tile - max(int(self.tile * (1 - self.overlap)), 1)
        if not 0 <= 2 * self.margin <= shared:
            raise ConfigError(
                f"margin={self.margin}: neighbouring windows share {shared} pixels (tile={self.tile}, "
                f"overlap={self.overlap}), so a margin of 0 to {shared // 2} can be cut off each."
            )
        if self.band_columns < BLOCK or self.band_columns % BLOCK:
            raise ConfigError(f"band_columns={self.band_columns}: a multiple of {BLOCK} is needed.")

    @cached_property
    def before(self) -> tuple[int, int]:
        """Rows and columns of zeros that precede an image smaller than a window."""
        return (max(self.tile - self.height, 0) // 2, max(self.tile - self.width, 0) // 2)

    @cached_property
    def rows(self) -> list[int]:
        """Where windows start along the rows, padded."""
        return window_starts(max(self.height, self.tile), self.tile, self.overlap)

    @cached_property
    def bands(self) -> list[tuple[int, int]]:
        """Columns start..stop of each band, in the image."""
        starts = range(0, self.width, self.band_columns)
        return [(start, min(start + self.band_columns, self.width)) for start in starts]

    @cached_property
    def strips(self) -> list[tuple[int, int]]:
        """Rows start..stop of each strip, in the image."""
        return [(start, min(start + BLOCK, self.height)) for start in range(0, self.height, BLOCK)]

    @cached_property
    def _columns(self) -> list[int]:
        return window_starts(max(self.width, self.tile), self.tile, self.overlap)

    def columns(self, band: int) -> list[int]:
        """Where windows that touch the band start along the columns, padded."""
        low, high = (edge + self.before[1] for edge in self.bands[band])
        return [start for start in self._columns if start < high and start + self.tile > low]

    def rows_from(self, strip: int) -> list[int]:
        """Where windows start that touch the strip or a later one, padded rows."""
        first = self.strips[strip][0] + self.before[0]
        return [start for start in self.rows if start + self.tile > first]

    def weights(self, row: int, column: int) -> Tensor:
        """What the pixels of the window at (row, column) weigh, [tile, tile]; 0 in its margin."""
        ends = (max(self.height, self.tile) - self.tile, max(self.width, self.tile) - self.tile)
        sides = tuple((start > 0, start < end) for start, end in zip((row, column), ends, strict=True))
        return _weights(self.tile, self.margin, sides)

    def todo(self, done: int) -> list[tuple[int, int]]:
        """(band, first strip) still to be done when the first `done` strips are finished."""
        first, strip = divmod(done, len(self.strips))
        return [(band, strip if band == first else 0) for band in range(first, len(self.bands))]

    def num_tiles(self, done: int = 0) -> int:
        """How many windows remain when `done` strips are finished."""
        return sum(len(self.rows_from(strip)) * len(self.columns(band)) for band, strip in self.todo(done))

    def regions(self, done: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """Padded rows and columns start..stop to read, in the order of the walk: of each window row what is new."""
        for band, strip in self.todo(done):
            columns = self.columns(band)
            across = (columns[0], columns[-1] + self.tile)
            read_to = 0
            for number, row in enumerate(self.rows_from(strip)):
                yield (row if number == 0 else read_to, row + self.tile), across
                read_to = row + self.tile


@lru_cache(maxsize=16)
def _weights(tile: int, margin: int, sides: tuple[tuple[bool, bool], ...]) -> Tensor:
    weights = window_weights((tile, tile), "gaussian")
    for axis, (cut_first, cut_last) in enumerate(sides):
        if cut_first:
            weights.narrow(axis, 0, margin).zero_()
        if cut_last:
            weights.narrow(axis, tile - margin, margin).zero_()
    return weights


class ReadAhead:
    """Rows of one source in the order of the walk, read by a thread of its own, with a handle of its own.

    `next()` gives (values [C, h, w], valid [h, w]) of the next region, zeros and not valid beyond the image. At most
    `ahead` regions wait in memory. What fails in the thread is raised by `next`.
    """

    def __init__(self, source: Source, layout: Layout, done: int, *, ahead: int = 2) -> None:
        self._source, self._layout, self._done = source, layout, done
        self._queue: queue.Queue[Rows | BaseException] = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"read {source.path}", daemon=True)

    def __enter__(self) -> ReadAhead:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def next(self) -> Rows:
        """The next region."""
        found = self._queue.get()
        if isinstance(found, BaseException):
            raise found
        return found

    def _run(self) -> None:
        try:
            with self._source.open() as dataset:
                for rows, columns in self._layout.regions(self._done):
                    region = padded_rows(self._source, dataset, self._layout, rows, columns)
                    if not self._put(region):
                        return
        except BaseException as error:  # told to the thread that asks for the rows
            self._put(error)

    def _put(self, found: Rows | BaseException) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(found, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def padded_rows(
    source: Source, dataset: DatasetReader, layout: Layout, rows: tuple[int, int], columns: tuple[int, int]
) -> Rows:
    """A region in padded coordinates; what lies beyond the image is 0 and not valid."""
    shape = (rows[1] - rows[0], columns[1] - columns[0])
    values = np.zeros((len(source.bands), *shape), np.float32)
    valid = np.zeros(shape, bool)
    inside = []
    for (start, stop), before, size in zip((rows, columns), layout.before, (layout.height, layout.width), strict=True):
        inside.append((max(start - before, 0), min(stop - before, size)))
    if all(low < high for low, high in inside):
        place = tuple(
            slice(low + before - start, high + before - start)
            for (low, high), before, (start, _) in zip(inside, layout.before, (rows, columns), strict=True)
        )
        values[(slice(None), *place)], valid[place] = source.read(dataset, *inside)
    return values, valid


@dataclass(frozen=True)
class Finished:
    """Final rows start..stop (in the image) of one band: logits [K, h, w], None where no window ran; valid [h, w]."""

    band: int
    start: int
    stop: int
    logits: Tensor | None
    valid: NDArray[np.bool_]


@torch.no_grad()
def walk(
    readers: Sequence[ReadAhead],
    net: Callable[[Tensor], Tensor],
    layout: Layout,
    channels: int,
    done: int,
    *,
    batch_size: int,
    device: torch.device | str | None,
    progress: Callable[[int, int], None],
) -> Iterator[Finished]:
    """Blended logits band by band, from the top; windows without one valid pixel do not go through the net.

    Args:
        net: windows [n, C, tile, tile] -> logits [n, K, tile, tile].
        progress: called as progress(tiles of the net, tiles skipped) after each row of windows.
    """
    tile = layout.tile
    for band, strip in layout.todo(done):
        columns, rows = layout.columns(band), layout.rows_from(strip)
        left = columns[0]
        width = columns[-1] + tile - left
        image = torch.zeros(channels, tile, width)
        valid = np.zeros((tile, width), bool)
        weight_sum = torch.zeros(tile, width)
        logit_sum: Tensor | None = None
        for number, row in enumerate(rows):
            _read_next(readers, image, valid)
            units = [column - left for column in columns if valid[:, column - left : column - left + tile].any()]
            for first in range(0, len(units), batch_size):
                batch = units[first : first + batch_size]
                windows = torch.stack([image[:, :, start : start + tile] for start in batch])
                logits = net(windows if device is None else windows.to(device)).float().cpu()
                _require_finite(logits, layout, row, batch[0] + left)
                if logit_sum is None:
                    logit_sum = torch.zeros(logits.shape[1], tile, width)
                for window, start in zip(logits, batch, strict=True):
                    weights = layout.weights(row, start + left)
                    logit_sum[:, :, start : start + tile].addcmul_(window, weights)
                    weight_sum[:, start : start + tile] += weights
            progress(len(units), len(columns) - len(units))
            final = (rows[number + 1] - row) if number + 1 < len(rows) else tile
            found = _finished(layout, band, row, final, left, logit_sum, weight_sum, valid)
            if found is not None and found.stop > layout.strips[strip][0]:
                yield _from(found, layout.strips[strip][0])
            if number + 1 < len(rows):
                for sums in (weight_sum, logit_sum):
                    if sums is not None:
                        _move_up(sums, final)


def _read_next(readers: Sequence[ReadAhead], image: Tensor, valid: NDArray[np.bool_]) -> None:
    """New rows enter the buffers from below; a pixel without data in any source is 0 in all of them."""
    parts = [reader.next() for reader in readers]
    both = np.logical_and.reduce([part[1] for part in parts])
    count, held = both.shape[0], image.shape[1]
    kept = held - count
    if kept:
        image[:, :kept] = image[:, count:].clone()
        valid[:kept] = valid[count:].copy()
    fresh = np.concatenate([part[0] for part in parts])
    np.copyto(fresh, 0, where=~both)
    image[:, kept:] = torch.from_numpy(fresh)
    valid[kept:] = both


def _finished(
    layout: Layout,
    band: int,
    row: int,
    final: int,
    left: int,
    logit_sum: Tensor | None,
    weight_sum: Tensor,
    valid: NDArray[np.bool_],
) -> Finished | None:
    start, stop = max(row, layout.before[0]), min(row + final, layout.before[0] + layout.height)
    if start >= stop:
        return None
    low, high = (edge + layout.before[1] - left for edge in layout.bands[band])
    place = (slice(start - row, stop - row), slice(low, high))
    logits = None
    if logit_sum is not None:
        reached = weight_sum[place]
        logits = logit_sum[(slice(None), *place)] / torch.where(reached > 0, reached, 1.0)
    return Finished(band, start - layout.before[0], stop - layout.before[0], logits, valid[place].copy())


def _from(found: Finished, first: int) -> Finished:
    """Without rows above `first`, which belong to a strip that is finished already (their sums lack windows)."""
    cut = first - found.start
    if cut <= 0:
        return found
    logits = None if found.logits is None else found.logits[:, cut:]
    return Finished(found.band, first, found.stop, logits, found.valid[cut:])


def _move_up(sums: Tensor, by: int) -> None:
    """Drop the first `by` rows of a buffer [..., rows, W] in place: later rows move up, zeros follow."""
    kept = sums.shape[-2] - by
    sums[..., :kept, :] = sums[..., by:, :].clone()
    sums[..., kept:, :] = 0


def _require_finite(logits: Tensor, layout: Layout, row: int, column: int) -> None:
    if logits.ndim != 4 or logits.shape[2:] != (layout.tile, layout.tile):
        raise ShapeError(f"the net returned logits of shape {tuple(logits.shape)} for windows of {layout.tile} pixels.")
    if not torch.isfinite(logits).all():
        raise CheckpointError(
            f"the net returned NaN or infinite logits for the windows from row {row - layout.before[0]}, column "
            f"{column - layout.before[1]}. Check the weights, and that the bands are scaled as in training."
        )
