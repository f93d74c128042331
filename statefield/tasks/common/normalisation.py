"""Intensities to net inputs, in two passes over the slices of a case: measure, then apply.

Shape legend: C channels, D slices, *S spatial. What is measured is summed slice by slice in the order of the slices, so
a volume that is read from disk slab by slab gets bit for bit the numbers of one in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from statefield.errors import ConfigError
from statefield.tasks.common.config import NormalisationConfig

Slices = Callable[[], Iterable[NDArray[np.float32]]]  # every slice of one channel, from the first; asked anew per pass


@dataclass(frozen=True)
class Intensities:
    """What is measured of one channel: the clipping range (None: not clipped), then mean and standard deviation."""

    clip: tuple[float, float] | None = None
    mean: float = 0.0
    deviation: float = 1.0


class Moments:
    """Mean and standard deviation of values that come in parts.

    Of each part mean and sum of squared deviations, joined as Chan, Golub and LeVeque (1983) do.

    >>> moments = Moments()
    >>> moments.add(np.array([1.0, 3.0])), moments.add(np.array([5.0, 7.0]))
    (None, None)
    >>> moments.mean, round(moments.deviation, 4)
    (4.0, 2.2361)
    """

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        """Count the values of an array of any shape."""
        if not values.size:
            return
        here = float(values.mean())
        ahead, self.count = here - self.mean, self.count + values.size
        self.mean += ahead * values.size / self.count
        between = ahead**2 * values.size * (self.count - values.size) / self.count
        self._squares += float(np.square(values - here).sum()) + between

    @property
    def deviation(self) -> float:
        """The standard deviation of all values; 1 where they are all the same, or there are none."""
        deviation = (self._squares / self.count) ** 0.5 if self.count else 0.0
        return deviation if deviation > 0 else 1.0


def require_normalisation(config: NormalisationConfig) -> None:
    """Raise `ConfigError` for settings that cannot work."""
    calibrated = config.method in ("range", "ct")
    if calibrated and (config.low is None or config.high is None or config.low >= config.high):
        raise ConfigError(
            f"data.normalisation: method {config.method!r} needs low < high in the file's units; given "
            f"low={config.low}, high={config.high}."
        )
    if config.method == "ct" and (config.mean is None or config.std is None or not config.std > 0):
        raise ConfigError(
            f"data.normalisation: method 'ct' needs mean, and std above 0, in the file's units; given "
            f"mean={config.mean}, std={config.std}. `statefield medical plan` finds them."
        )
    if config.clip_percentiles is not None and not 0 <= config.clip_percentiles[0] < config.clip_percentiles[1] <= 100:
        raise ConfigError(
            f"data.normalisation.clip_percentiles = {config.clip_percentiles}: two rising values in 0..100 are needed."
        )


def normalise(image: NDArray[np.float32], config: NormalisationConfig) -> NDArray[np.float32]:
    """`image` [C, *S] as `config` says, each channel by itself; float32, a new array.

    A constant channel becomes 0 with the z-scores. Raises `ConfigError` for settings that cannot work.
    """
    require_normalisation(config)
    result = np.empty(image.shape, dtype=np.float32)
    for channel, values in enumerate(np.asarray(image, dtype=np.float32)):
        slices = values if values.ndim == 3 else values[None]
        intensities = measure(partial(iter, slices), config)
        made = result[channel] if values.ndim == 3 else result[channel][None]
        for index, one in enumerate(slices):
            made[index] = apply(one, config, intensities)
    return result


def measure(slices: Slices, config: NormalisationConfig) -> Intensities:
    """What `apply` has to know of a channel: three passes for percentiles, one for mean and standard deviation."""
    clip = None
    if config.clip_percentiles is not None:
        clip = percentiles(lambda: (one[_counted(one, config)] for one in slices()), config.clip_percentiles)
    if config.method not in ("zscore", "zscore_nonzero"):
        return Intensities(clip)
    moments = Moments()
    for one in slices():
        chosen = one[_counted(one, config)].astype(np.float64)
        moments.add(chosen if clip is None else np.clip(chosen, *clip))
    return Intensities(clip, moments.mean, moments.deviation)


def apply(values: NDArray[np.float32], config: NormalisationConfig, intensities: Intensities) -> NDArray[np.float32]:
    """Voxels of one channel, of any shape, as `config` says; float32."""
    counted = _counted(values, config)
    if intensities.clip is not None:
        values = np.where(counted, np.clip(values, *intensities.clip), values)
    if config.method == "none":
        return values
    if config.method == "range":
        assert config.low is not None and config.high is not None
        return np.asarray(np.clip((values - config.low) / (config.high - config.low), 0, 1), dtype=np.float32)
    if config.method == "ct":
        assert config.low is not None and config.high is not None
        assert config.mean is not None and config.std is not None
        return np.asarray((np.clip(values, config.low, config.high) - config.mean) / config.std, dtype=np.float32)
    scaled = (values.astype(np.float64) - intensities.mean) / intensities.deviation
    return np.asarray(np.where(counted, scaled, 0.0), dtype=np.float32)


def percentiles(parts: Slices, shares: tuple[float, float]) -> tuple[float, float] | None:
    """Two percentiles of all values that `parts` hands out, exact, or None when there are none.

    Between two values they are interpolated linearly, as `numpy.percentile` does it. The values that are needed are
    found by counting: a pass over the upper half of each float's bits, then one over the lower half of those that share
    the upper one. So nothing is sorted, and memory holds two tables of 65536 counts.

    >>> percentiles(lambda: iter([np.float32([3, 1]), np.float32([2, 5, 4])]), (0, 75))
    (1.0, 4.0)
    """
    upper = np.zeros(1 << 16, dtype=np.int64)
    for part in parts():
        upper += np.bincount(_rank_bits(part) >> 16, minlength=1 << 16)
    total = int(upper.sum())
    if total == 0:
        return None
    places = [share / 100 * (total - 1) for share in shares]
    ranks = sorted({rank for place in places for rank in (int(place), min(int(place) + 1, total - 1))})
    below = np.cumsum(upper) - upper
    heads = {rank: int(np.searchsorted(below + upper, rank, side="right")) for rank in ranks}
    lower = {head: np.zeros(1 << 16, dtype=np.int64) for head in heads.values()}
    for part in parts():
        bits = _rank_bits(part)
        for head, counts in lower.items():
            counts += np.bincount(bits[bits >> 16 == head] & 0xFFFF, minlength=1 << 16)
    values = {
        rank: _value((head << 16) | int(np.searchsorted(np.cumsum(lower[head]), rank - below[head], side="right")))
        for rank, head in heads.items()
    }
    found = []
    for place in places:
        rank = int(place)
        low, high = values[rank], values[min(rank + 1, total - 1)]
        found.append(low + (high - low) * (place - rank))
    return found[0], found[1]


def _counted(values: NDArray[np.float32], config: NormalisationConfig) -> NDArray[np.bool_]:
    return values != 0 if config.method == "zscore_nonzero" else np.ones(values.shape, dtype=bool)


def _rank_bits(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Integers below 2^32 in the order of the floats: a float's bits, all turned over if negative, else the sign."""
    bits = np.ascontiguousarray(values, dtype=np.float32).ravel().view(np.uint32).astype(np.int64)
    return np.where(bits >> 31, 0xFFFFFFFF - bits, bits + 0x80000000)


def _value(bits: int) -> float:
    """The float whose place in the order is `bits`."""
    raw = bits - 0x80000000 if bits >= 0x80000000 else 0xFFFFFFFF - bits
    return float(np.array(raw, dtype=np.uint32).view(np.float32))
