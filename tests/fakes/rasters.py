"""Small GeoTIFFs with a place on the ground."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

UTM = CRS.from_epsg(32631)


@dataclass
class FakeRaster:
    """A file and what is in it; change `array` [C, H, W] and `save` again."""

    path: Path
    array: np.ndarray
    transform: Affine
    profile: dict
    alpha: bool

    def save(self):
        """Write `array`."""
        with rasterio.open(self.path, "w", **self.profile) as dataset:
            dataset.write(self.array)
            if self.alpha:
                kinds = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
                dataset.colorinterp = kinds


def write_raster(
    path, height, width, *, bands=3, dtype="uint8", nodata=None, crs=UTM, shift=(0, 0), seed=0, alpha=False, **options
):
    """A raster of blurred noise below 200, `shift` (columns, rows) of 10 m from the usual corner, tiled by 256."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (bands, -(-height // 8), -(-width // 8)))
    array = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width].astype(dtype)
    transform = Affine(10, 0, 448_000 + 10 * shift[0], 0, -10, 5_412_000 - 10 * shift[1])
    profile = {
        "driver": "GTiff",
        "height": height,
        "width": width,
        "count": bands,
        "dtype": dtype,
        "nodata": nodata,
        "crs": crs,
        "transform": transform,
        "tiled": True,
        "blockxsize": 256,
        "blockysize": 256,
        **options,
    }
    fake = FakeRaster(Path(path), array, transform, profile, alpha)
    fake.save()
    return fake


def change_pair(folder, height, width, **options):
    """before.tif and after.tif; a square of the second differs."""
    before = write_raster(Path(folder) / "before.tif", height, width, **options)
    after = write_raster(Path(folder) / "after.tif", height, width, **options)
    after.array[:, height // 3 : height // 2 + 1, width // 3 : width // 2 + 1] = 180
    after.save()
    return before, after
