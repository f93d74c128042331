"""Tiled inference: a net sees windows of a fixed size, and the image gets one blended map of logits.

Shape legend: B images, C channels in, K channels out, *S spatial (2-D `H, W` or 3-D `D, H, W`).

Windows start every `roi * (1 - overlap)` pixels; the last one of each axis is moved back so that it ends with the
image. An image smaller than the roi is padded with zeros on both sides. Where windows overlap, logits are averaged
with the weights of `window_weights`. All of it follows `monai.inferers.sliding_window_inference` (modes "gaussian" and
"constant", sigma_scale 0.125), and the tests hold it to that within 1e-5.

Mirrored test-time augmentation averages *logits*, before any softmax: blending of windows is an average of logits too,
so the two commute, and the result is still something that `softmax` or `argmax` may be applied to.

Memory: windows are walked along the first spatial axis, and only the rows that later windows can still reach are kept.
`sliding_slabs` hands out the finished rows, so a caller that reduces them at once (argmax) holds
`K * roi[0] * S[1] * ...` values and never the whole stack of classes; `sliding_window` puts them together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from statefield.errors import ConfigError, ShapeError

Weighting = Literal["gaussian", "constant"]
Progress = Callable[[int, int], None]
Net = Callable[[Tensor], Tensor]

_SIGMA_SCALE = 0.125
_BYTES_AT_A_TIME = 64 << 20  # of finished rows that are averaged together
_SMALLEST_WEIGHT = 1e-3  # a corner seen by one window only is divided by its own weight: keep that far from zero


@dataclass(frozen=True)
class Slab:
    """Finished rows of the blended logits: `logits` [B, K, stop - start, *S[1:]] are rows start..stop of the image."""

    start: int
    stop: int
    logits: Tensor


def window_starts(size: int, roi: int, overlap: float) -> list[int]:
    """Where windows begin along one axis of `size` >= `roi` pixels; the last one ends exactly at `size`.

    >>> window_starts(10, 4, 0.5)
    [0, 2, 4, 6]
    >>> window_starts(9, 4, 0.0)
    [0, 4, 5]
    """
    step = max(int(roi * (1 - overlap)), 1)
    count = math.ceil((size - roi) / step) + 1
    return [min(index * step, size - roi) for index in range(count)]


def window_weights(roi: Sequence[int], weighting: Weighting, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight of each pixel of a window, [*roi].

    "constant" is one everywhere. "gaussian" is a product of one Gaussian per axis, centred in the window, with a
    standard deviation of 1/8 of the roi and never less than 1e-3.
    """
    if weighting == "constant":
        return torch.ones(tuple(roi), dtype=dtype)
    if weighting != "gaussian":
        raise ConfigError(f"weighting={weighting!r}: windows are blended with weighting='gaussian' or 'constant'.")
    weights = torch.ones((), dtype=dtype)
    for size in roi:
        offset = torch.arange(size, dtype=dtype) - (size - 1) / 2
        bell = torch.exp(offset.square() / (-2 * (_SIGMA_SCALE * size) ** 2))
        weights = weights.unsqueeze(-1) * bell
    return weights.clamp(min=_SMALLEST_WEIGHT)


def mirrored(net: Net, mirror_axes: Sequence[int]) -> Net:
    """`net` averaged over all 2^n flips of the spatial axes in `mirror_axes` (0 is the first spatial axis).

    Each flip is undone on the logits before they are averaged.
    """
    flips = [
        [axis + 2 for axis in axes]
        for count in range(len(mirror_axes) + 1)
        for axes in itertools.combinations(mirror_axes, count)
    ]

    def averaged(windows: Tensor) -> Tensor:
        total: Tensor | None = None
        for axes in flips:
            logits = _widened(net(windows.flip(axes)))
            _check_logits(logits, windows)
            logits = logits.flip(axes)
            total = logits if total is None else total + logits
        assert total is not None
        return total / len(flips)

    return averaged if len(flips) > 1 else net


def sliding_window(
    image: Tensor,
    net: Net,
    roi: Sequence[int],
    *,
    overlap: float | Sequence[float] = 0.5,
    batch_size: int = 4,
    weighting: Weighting = "gaussian",
    mirror_axes: Sequence[int] = (),
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """The blended logits of `net` over images of any size, without gradients.

    Args:
        image: [B, C, *S], floating point, 2-D or 3-D.
        net: windows [n, C, *roi] -> logits [n, K, *roi], n <= batch_size.
        roi: the window's size, one positive number per spatial axis.
        overlap: the part of a window shared with the next one, in [0, 1), one for all axes or one per axis.
        batch_size: how many windows the net gets at a time; changes memory and speed, not the result.
        weighting: "gaussian" trusts a window's centre most; "constant" averages plainly.
        mirror_axes: the spatial axes (0 first) to mirror for test-time augmentation; logits of all flips are averaged.
        device: where the net runs; windows travel there and logits come back to `image`'s device. Default: no travel.
        progress: called as `progress(windows_done, windows_total)` after each batch.

    Returns: logits [B, K, *S] on `image`'s device: float64 for a float64 image, float32 for every other dtype, since
        averages of many windows lose digits in half precision.

    Raises: ShapeError for an image, a roi or logits of the wrong shape; ConfigError for an impossible setting.
    """
    joined: Tensor | None = None
    slabs = sliding_slabs(
        image,
        net,
        roi,
        overlap=overlap,
        batch_size=batch_size,
        weighting=weighting,
        mirror_axes=mirror_axes,
        device=device,
        progress=progress,
    )
    for slab in slabs:
        if joined is None:
            if slab.logits.shape[2] == image.shape[2]:
                return slab.logits
            shape = (image.shape[0], slab.logits.shape[1], *image.shape[2:])
            joined = torch.empty(shape, dtype=slab.logits.dtype, device=slab.logits.device)
        joined[:, :, slab.start : slab.stop] = slab.logits
    assert joined is not None
    return joined


def sliding_slabs(
    image: Tensor,
    net: Net,
    roi: Sequence[int],
    *,
    overlap: float | Sequence[float] = 0.5,
    batch_size: int = 4,
    weighting: Weighting = "gaussian",
    mirror_axes: Sequence[int] = (),
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    band: tuple[int, int] | None = None,
) -> Iterator[Slab]:
    """`sliding_window`, row by row: yields `Slab`s from the first row to the last, each as soon as it is final.

    Arguments and errors are those of `sliding_window`; errors come at the call, before the first slab is asked for.

    Args:
        band: columns start..stop of the second spatial axis: slabs hold these alone, and only windows that touch them
            go through the net. An image whose rows are too large for memory can so be done band by band; windows that
            touch two bands are computed twice.
    """
    overlaps = _checked(image, roi, overlap, batch_size, mirror_axes)
    if band is not None and not 0 <= band[0] < band[1] <= image.shape[3]:
        raise ShapeError(f"band={band}: columns start < stop of the image's {image.shape[3]} are needed.")
    weights = window_weights(roi, weighting, dtype=_sum_dtype(image.dtype))
    windows = _Windows(tuple(image.shape[2:]), tuple(int(size) for size in roi), tuple(overlaps), band)
    return _walk(image, mirrored(net, mirror_axes), windows, batch_size, weights, device, progress)


def num_windows(
    sizes: Sequence[int],
    roi: Sequence[int],
    overlap: float | Sequence[float] = 0.5,
    band: tuple[int, int] | None = None,
) -> int:
    """How many windows `sliding_slabs` puts through the net for one image of `sizes` (spatial axes alone)."""
    overlaps = [overlap] * len(roi) if isinstance(overlap, (int, float)) else overlap
    windows = _Windows(tuple(sizes), tuple(roi), tuple(overlaps), band)
    return len(windows.rows) * len(windows.corners)


class _Windows:
    """Where the windows of an image lie, in voxels of the image padded to at least the roi.

    before: zeros that precede the image on each axis. rows: starts along the first axis. corners: starts along the
    others, of the windows that touch the band. band: its columns, start..stop.
    """

    def __init__(
        self, sizes: tuple[int, ...], roi: tuple[int, ...], overlaps: tuple[float, ...], band: tuple[int, int] | None
    ) -> None:
        self.sizes, self.roi = sizes, roi
        self.padded = tuple(max(size, window) for size, window in zip(sizes, roi, strict=True))
        self.before = tuple((padded - size) // 2 for padded, size in zip(self.padded, sizes, strict=True))
        starts = [window_starts(*axis) for axis in zip(self.padded, roi, overlaps, strict=True)]
        low, high = band or (0, sizes[1])
        self.band = (low + self.before[1], high + self.before[1])
        starts[1] = [start for start in starts[1] if start < self.band[1] and start + roi[1] > self.band[0]]
        self.rows, self.corners = starts[0], list(itertools.product(*starts[1:]))

    def cut(self, image: Tensor, corner: Sequence[int]) -> Tensor:
        """The window at `corner` of an image [C, *S]; zeros where it reaches beyond."""
        low = [start - pad for start, pad in zip(corner, self.before, strict=True)]
        high = [start + size for start, size in zip(low, self.roi, strict=True)]
        box = [slice(max(a, 0), min(b, size)) for a, b, size in zip(low, high, self.sizes, strict=True)]
        window = image[(slice(None), *box)]
        gaps = [(max(-a, 0), max(b - size, 0)) for a, b, size in zip(low, high, self.sizes, strict=True)]
        if not any(side for gap in gaps for side in gap):
            return window
        return functional.pad(window, [side for gap in reversed(gaps) for side in gap])

    def places(self, corner: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Of the window at `corner` (first axis aside): which part touches the band, and where the sums have it."""
        first = max(corner[0], self.band[0])
        last = min(corner[0] + self.roi[1], self.band[1])
        rest = [slice(start, start + size) for start, size in zip(corner[1:], self.roi[2:], strict=True)]
        inside = (slice(None), slice(first - corner[0], last - corner[0]), *(slice(None) for _ in rest))
        return inside, (slice(None), slice(first - self.band[0], last - self.band[0]), *rest)


@torch.no_grad()
def _walk(
    image: Tensor,
    net: Net,
    windows: _Windows,
    batch_size: int,
    weights: Tensor,
    device: torch.device | str | None,
    progress: Progress | None,
) -> Iterator[Slab]:
    rows, roi = windows.rows, windows.roi
    units = [(number, corner) for number in range(image.shape[0]) for corner in windows.corners]
    total, done = len(rows) * len(units), 0

    weights = weights.to(image.device)
    held = (roi[0], windows.band[1] - windows.band[0], *windows.padded[2:])
    weight_sum = torch.zeros(held, dtype=weights.dtype, device=image.device)
    logit_sum: Tensor | None = None
    for index, row in enumerate(rows):
        for first in range(0, len(units), batch_size):
            batch = units[first : first + batch_size]
            given = torch.stack([windows.cut(image[number], (row, *corner)) for number, corner in batch])
            logits = net(given if device is None else given.to(device))
            _check_logits(logits, given)
            logits = _widened(logits).to(image.device, weights.dtype)
            if logit_sum is None:
                shape = (image.shape[0], logits.shape[1], *held)
                logit_sum = torch.zeros(shape, dtype=weights.dtype, device=image.device)
            for window, (number, corner) in zip(logits, batch, strict=True):
                part, place = windows.places(corner)
                logit_sum[number][(slice(None), *place)].addcmul_(window[(slice(None), *part)], weights[part])
                if number == 0:
                    weight_sum[place] += weights[part]
            del logits
            done += len(batch)
            if progress is not None:
                progress(done, total)
        assert logit_sum is not None
        final = (rows[index + 1] if index + 1 < len(rows) else windows.padded[0]) - row
        yield from _finished(row, final, logit_sum, weight_sum, windows)
        for sums, axis in ((logit_sum, 2), (weight_sum, 0)):
            _move_up(sums, axis, final)


def _finished(row: int, final: int, logit_sum: Tensor, weight_sum: Tensor, windows: _Windows) -> Iterator[Slab]:
    """The part of finished rows that lies in the image itself, a few at a time: an average is a copy."""
    before = windows.before
    start, stop = max(row, before[0]), min(row + final, before[0] + windows.sizes[0])
    inner = tuple(slice(pad, pad + size) for pad, size in zip(before[2:], windows.sizes[2:], strict=True))
    step = max(1, _BYTES_AT_A_TIME // (logit_sum[:, :, 0].numel() * logit_sum.element_size()))
    for first in range(start, stop, step):
        last = min(first + step, stop)
        part = slice(first - row, last - row)
        logits = logit_sum[(slice(None), slice(None), part, slice(None), *inner)]
        yield Slab(first - before[0], last - before[0], logits / weight_sum[(part, slice(None), *inner)])


def _move_up(sums: Tensor, axis: int, by: int) -> None:
    """Drop the first `by` rows of a buffer in place: later rows move up, zeros follow."""
    rows = sums.shape[axis]
    for row in range(by, rows, by):  # at most `by` rows at a time, which never overlap where they go
        count = min(by, rows - row)
        sums.narrow(axis, row - by, count).copy_(sums.narrow(axis, row, count))
    sums.narrow(axis, rows - by, by).zero_()


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _widened(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _check_logits(logits: Tensor, windows: Tensor) -> None:
    """Tiled inference puts logits back pixel for pixel: they must have the window's size."""
    given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    fits = (
        isinstance(logits, Tensor)
        and logits.shape[:1] == windows.shape[:1]
        and logits.ndim == windows.ndim
        and logits.shape[2:] == windows.shape[2:]
    )
    if not fits:
        raise ShapeError(
            f"the net returned {given} for windows of shape {tuple(windows.shape)}: tiled inference needs one tensor "
            f"of logits [{windows.shape[0]}, K, {', '.join(map(str, windows.shape[2:]))}]; wrap a net that returns "
            "several outputs or another size."
        )


def _checked(
    image: Tensor, roi: Sequence[int], overlap: float | Sequence[float], batch_size: int, mirror_axes: Sequence[int]
) -> list[float]:
    """The overlap of each axis, after every argument has been found possible."""
    axes = image.ndim - 2
    if axes not in (2, 3) or 0 in image.shape or not image.is_floating_point():
        raise ShapeError(
            f"image has shape {tuple(image.shape)} and dtype {image.dtype}: tiled inference takes floating-point "
            "[B, C, H, W] or [B, C, D, H, W] without empty axes."
        )
    if len(roi) != axes or any(int(size) != size or size < 1 for size in roi):
        raise ShapeError(
            f"roi={tuple(roi)}: an image of shape {tuple(image.shape)} needs {axes} positive whole numbers."
        )
    overlaps = [float(overlap)] * axes if isinstance(overlap, (int, float)) else [float(part) for part in overlap]
    if len(overlaps) != axes or any(not 0 <= part < 1 for part in overlaps):
        raise ConfigError(f"overlap={overlap!r}: give one number in [0, 1), or one for each of the {axes} axes.")
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: the net needs at least one window at a time.")
    if len(set(mirror_axes)) != len(mirror_axes) or any(not 0 <= axis < axes for axis in mirror_axes):
        raise ConfigError(
            f"mirror_axes={tuple(mirror_axes)}: give different axes of 0..{axes - 1} (0 is the first spatial axis)."
        )
    return overlaps
