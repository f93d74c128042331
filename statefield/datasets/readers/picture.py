"""One picture of any kind: a GeoTIFF with its place on the ground, or a photograph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rasterio.enums import ColorInterp

from statefield.datasets.readers import image as image_reader
from statefield.datasets.readers import raster
from statefield.datasets.sample import Meta

SUFFIXES = image_reader.SUFFIXES


@dataclass(frozen=True, eq=False)
class Picture:
    """array: float32 [C, H, W]. valid: bool [H, W], or None where every pixel has data. header: of rasters."""

    array: np.ndarray
    valid: np.ndarray | None
    meta: Meta
    header: raster.RasterHeader | None = None


def read_picture(path: Path, case: str) -> Picture:
    """One file that holds every channel: a TIFF through rasterio, another picture (or a palette) through Pillow.

    Raises `DataError` for a file that is damaged, too large or of values that are not finite; the readers say which.
    """
    if _is_raster(path):
        found = raster.read_raster(path)
        valid = None if found.valid.all() else found.valid
        return Picture(found.array, valid, raster.meta_of(found.header, case=case), found.header)
    return Picture(image_reader.read_image(path), None, image_reader.meta_of(path, case=case))


def num_channels_of(path: Path) -> int:
    """The channels that `read_picture` gives, from the file's header alone."""
    if _is_raster(path):
        return raster.read_header(path).num_bands
    return image_reader.num_channels_of(path)


def _is_raster(path: Path) -> bool:
    """Whether the file's values are intensities in bands; a palette's are numbers of colours, which Pillow looks up."""
    if path.suffix.lower() not in raster.SUFFIXES:
        return False
    with raster.opened(path) as dataset:
        return dataset.colorinterp[0] != ColorInterp.palette
