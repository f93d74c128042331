"""What is measured on whole rasters so that their bands become what a net saw in training, without holding them.

Rasters are read in strips of rows, and pixels without data count nowhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
from numpy.typing import NDArray

from statefield.errors import DataError
from statefield.tasks.common.config import NormalisationConfig
from statefield.tasks.common.normalisation import Intensities, Moments, measure, require_normalisation
from statefield.tasks.remote_sensing.raster_sources import BandScaling, Source

_ROWS = 512
_PIXELS = 4 << 20  # at a time: wide rasters in fewer rows
Progress = Callable[[int, int], None]


def standardising(sources: Sequence[Source], progress: Progress | None = None) -> list[BandScaling]:
    """For each raster the scaling that gives each band mean 0 and deviation 1 over the pixels with data in all of them.

    Args:
        sources: on one grid, see `raster_predict.open_sources`. progress: called as progress(rows done, rows in all).
    """
    moments = [[Moments() for _ in source.bands] for source in sources]
    header = sources[0].header
    with ExitStack() as stack:
        datasets = [stack.enter_context(source.open()) for source in sources]
        for rows in _strips(sources[0]):
            parts = [
                source.read(dataset, rows, (0, header.width)) for source, dataset in zip(sources, datasets, strict=True)
            ]
            valid = np.logical_and.reduce([part[1] for part in parts])
            for (values, _), of_bands in zip(parts, moments, strict=True):
                for band, found in zip(values, of_bands, strict=True):
                    found.add(band[valid].astype(np.float64))
            if progress is not None:
                progress(rows[1], header.height)
    return [BandScaling.standardised([m.mean for m in one], [m.deviation for m in one]) for one in moments]


def normalising(source: Source, config: NormalisationConfig, progress: Progress | None = None) -> BandScaling:
    """The scaling that does to a raster what `normalise` does to a picture: each band by its own statistics.

    Mean and deviation take one pass over each band, percentiles two more.

    Raises: ConfigError for settings that cannot work.
    """
    require_normalisation(config)
    bands = [dataclasses.replace(source, bands=(band,), scaling=None) for band in source.bands]
    found = []
    for number, band in enumerate(bands):
        found.append(measure(partial(_values, band), config))
        if config.clip_percentiles is not None and found[-1].clip is None:
            raise DataError(f"{source.path}, band {band.bands[0]}: no pixel has data, so nothing can be measured.")
        if progress is not None:
            progress(number + 1, len(bands))
    return scaling_of(config, found)


def scaling_of(config: NormalisationConfig, bands: Sequence[Intensities]) -> BandScaling:
    """A normalisation, with what was measured of each band, as offsets, scales and clipping."""
    count = len(bands)
    clips = tuple(one.clip for one in bands if one.clip is not None) or None
    if config.method in ("range", "ct"):
        low, high = config.low, config.high
        assert low is not None and high is not None
        within = tuple((min(max(a, low), high), min(max(b, low), high)) for a, b in clips or ((low, high),) * count)
        if config.method == "range":
            return BandScaling((low,) * count, (high - low,) * count, within)
        assert config.mean is not None and config.std is not None
        return BandScaling((config.mean,) * count, (config.std,) * count, within)
    keep_zero = config.method == "zscore_nonzero"
    if config.method == "none":
        return BandScaling((0.0,) * count, (1.0,) * count, clips)
    return BandScaling(
        tuple(one.mean for one in bands), tuple(one.deviation for one in bands), clips, keep_zero=keep_zero
    )


def _values(source: Source) -> Iterator[NDArray[np.float32]]:
    """The values with data of a single band, strip by strip."""
    with source.open() as dataset:
        for rows in _strips(source):
            values, valid = source.read(dataset, rows, (0, source.header.width))
            yield values[0][valid]


def _strips(source: Source) -> Iterator[tuple[int, int]]:
    """Rows start..stop, whole blocks where they are no larger than a strip."""
    header = source.header
    count = max(1, min(_ROWS, _PIXELS // header.width))
    block = header.block[0]
    if block <= count:
        count -= count % block
    for top in range(0, header.height, count):
        yield top, min(top + count, header.height)
