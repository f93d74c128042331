"""Photographs as rasters: a picture without a place on the ground becomes a GeoTIFF without one."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from statefield.datasets.readers import image as image_reader
from statefield.datasets.readers import raster
from statefield.files import atomic_path


def as_raster(path: Path, folder: Path) -> Path:
    """`path` itself where it is a TIFF, else a GeoTIFF of it in `folder`, its values unchanged.

    Raises: DataError for a picture that is damaged, too large or transparent, as `read_image` says.
    """
    if path.suffix.lower() in raster.SUFFIXES:
        return path
    values = image_reader.read_image(path)  # [C, H, W]
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    is_whole = low >= 0 and high <= 65535 and bool((values == np.floor(values)).all())
    array = values.astype(np.uint8 if high <= 255 else np.uint16) if is_whole else values
    target = folder / f"{path.stem}.tif"
    profile = {"count": len(array), "height": array.shape[1], "width": array.shape[2], "dtype": array.dtype.name}
    with warnings.catch_warnings(), atomic_path(target) as partial:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # it has no place
        with rasterio.open(
            partial, "w", driver="GTiff", tiled=True, blockxsize=256, blockysize=256, compress="DEFLATE", **profile
        ) as dataset:
            dataset.write(array)
    return target
