"""Events as arrays that networks take: counts, voxel grids, time surfaces. NumPy in, float32 NumPy out.

Legend: H, W height and width of the sensor, B bins of time. The first channel of two is of events that are off, the
second of those that are on. `torch.from_numpy` takes each result without a copy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.events.stream import Events
from statefield.errors import ConfigError, DataError

Array = NDArray[np.float32]


def event_frame(events: Events, size: tuple[int, int] | None = None) -> Array:
    """How many events each pixel had: [2, H, W] float32, off and on (Maqueda et al., CVPR 2018, section 3.1).

    Args:
        size: (width, height); None is `events.size`.
    """
    width, height = _size(events, size)
    index = (events.on.astype(np.int64) * height + events.y) * width + events.x
    return np.bincount(index, minlength=2 * height * width).reshape(2, height, width).astype(np.float32)


def voxel_grid(
    events: Events,
    num_bins: int,
    size: tuple[int, int] | None = None,
    span_us: tuple[int, int] | None = None,
    normalised: bool = False,
) -> Array:
    """Polarities over space and time: [B, H, W] float32 (Zhu et al., CVPR 2019, equations 1 and 2).

    With t* = (B - 1) (t - t_first) / (t_last - t_first), an event adds its polarity, 1 or -1, to the two bins next
    to t*, in proportion 1 - |b - t*|.

    Args:
        num_bins: B, at least 1. With one bin all events add to it.
        span_us: (t_first, t_last); events outside it are left out. None is that of the events.
        normalised: values other than 0 get mean 0 and standard deviation 1, as the paper's successors feed them.
    """
    if num_bins < 1:
        raise ConfigError(f"num_bins={num_bins}: at least one bin of time is needed.")
    width, height = _size(events, size)
    grid = np.zeros(num_bins * height * width)
    if len(events):
        first, last = span_us if span_us is not None else (int(events.t.min()), int(events.t.max()))
        if last < first:
            raise ConfigError(f"span_us=({first}, {last}): the end is before the beginning.")
        # differences of whole microseconds: float64 has no room for microseconds since 1970 times anything
        since = events.t.astype(np.int64) - first
        inside = (since >= 0) & (since <= last - first)
        at = (num_bins - 1) * since[inside] / max(last - first, 1)
        sign = np.where(events.on[inside], 1.0, -1.0)
        pixel = events.y[inside].astype(np.int64) * width + events.x[inside]
        lower = np.floor(at).astype(np.int64)
        share = at - lower
        for bins, weight in ((lower, 1.0 - share), (lower + 1, share)):
            kept = bins < num_bins
            index = bins[kept] * height * width + pixel[kept]
            grid += np.bincount(index, weights=(sign * weight)[kept], minlength=len(grid))
    result = grid.reshape(num_bins, height, width).astype(np.float32)
    if normalised and (filled := result != 0).any():
        values = result[filled]
        spread = values.std()
        result[filled] = (values - values.mean()) / (spread if spread > 0 else 1.0)
    return result


def last_times(events: Events, size: tuple[int, int] | None = None) -> NDArray[np.float64]:
    """The surface of active events: each pixel's last time in microseconds, NaN if none: [2, H, W] float64.

    Source: Benosman et al., Event-based visual flow, TNNLS 2014.
    """
    width, height = _size(events, size)
    surface = np.full(2 * height * width, np.nan)
    order = np.argsort(events.t, kind="stable")
    index = (events.on.astype(np.int64) * height + events.y) * width + events.x
    # the last of each pixel: of the reversed order, the first
    pixels, first = np.unique(index[order][::-1], return_index=True)
    surface[pixels] = events.t[order][::-1][first].astype(np.float64)
    return surface.reshape(2, height, width)


def time_surface(events: Events, tau_us: float, size: tuple[int, int] | None = None, at_us: int | None = None) -> Array:
    """How recent each pixel's last event is: exp(-(at - t_last) / tau), 0 without one: [2, H, W] float32 in [0, 1].

    Source: Lagorce et al., HOTS, TPAMI 2017, equation 3.

    Args:
        tau_us: the time in microseconds in which the surface falls to 1/e.
        at_us: the time at which it is looked at; later events are left out. None is that of the last event.
    """
    if not tau_us > 0:
        raise ConfigError(f"tau_us={tau_us}: a time above 0 is needed.")
    at = at_us if at_us is not None else int(events.t.max()) if len(events) else 0
    width, height = _size(events, size)
    before = events[events.t <= np.uint64(at)]
    surface = last_times(before, (width, height))
    return np.nan_to_num(np.exp((surface - float(at)) / tau_us), nan=0.0).astype(np.float32)


def event_picture(events: Events, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """A picture for people and for trackers of pictures: [H, W, 3] uint8, white, red where on and blue where off.

    A pixel has the colour of the polarity that it had more events of; of as many of both, that of on.
    """
    counts = event_frame(events, size)
    picture = np.full((*counts.shape[1:], 3), 255, dtype=np.uint8)
    picture[counts[0] > counts[1]] = (0, 0, 255)
    picture[(counts[1] >= counts[0]) & (counts[1] > 0)] = (255, 0, 0)
    return picture


def _size(events: Events, size: tuple[int, int] | None) -> tuple[int, int]:
    width, height = size if size is not None else events.size
    if width < 0 or height < 0:
        raise ConfigError(f"size=({width}, {height}): width and height in pixels are needed.")
    if len(events) and (int(events.x.max()) >= width or int(events.y.max()) >= height):
        raise DataError(
            f"events reach to column {int(events.x.max())} and row {int(events.y.max())}, outside {width} x {height} "
            "pixels. Give the size of the sensor."
        )
    return width, height
