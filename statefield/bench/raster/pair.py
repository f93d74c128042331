"""Pairs of rasters to measure with: tiled, sparse GeoTIFFs of any size, patches of two dates in a strip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.windows import Window
from scipy.ndimage import gaussian_filter

from statefield.errors import DatasetLayoutError

BLOCK = 512
_SIDE = 256  # of a patch
_NODATA = 255

Patches = list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]  # of two dates, each [3, 256, 256], values below 255


def patches_of(folders: Sequence[Path]) -> tuple[Patches, str]:
    """The patches, and in words what they are: pictures of the same name in A/ and B/ of each folder, or textures.

    Raises: DatasetLayoutError for a folder without such pictures.
    """
    if not folders:
        return _textures(), "synthetic textures with squares that differ"
    found: Patches = []
    for folder in folders:
        names = sorted(path.name for path in (folder / "A").glob("*") if (folder / "B" / path.name).is_file())
        pairs = [tuple(_picture(folder / date / name) for date in "AB") for name in names]
        found += [(before, after) for before, after in pairs if before.shape == after.shape == (3, _SIDE, _SIDE)]
    if not found:
        raise DatasetLayoutError(
            f"{', '.join(map(str, folders))}: no pictures of {_SIDE} x {_SIDE} pixels with the same names in A/ and B/."
        )
    return found, f"{len(found)} pairs of pictures of {', '.join(folder.name for folder in folders)}"


def write_pair(folder: Path, side: int, patches: Patches, *, full: bool) -> tuple[Path, Path]:
    """before.tif and after.tif of `side` x `side` pixels, uint8, 3 bands, with patches in a strip or everywhere.

    The strip is one row of blocks, half way down, across the full width. Blocks without data are not in the file.
    """
    paths = (folder / f"before_{side}.tif", folder / f"after_{side}.tif")
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8", "nodata": _NODATA}
    layout = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "pixel", "sparse_ok": True}
    coding = {"compress": "DEFLATE", "zlevel": 1, "bigtiff": "IF_SAFER"}
    place = {"crs": CRS.from_epsg(32631), "transform": Affine(0.5, 0, 448_000, 0, -0.5, 5_412_000)}
    count = -(-side // BLOCK)
    block_rows = range(count) if full else [count // 2]
    for date, path in enumerate(paths):
        rng = np.random.default_rng(0)  # the same patches in the same places at both dates
        with rasterio.open(path, "w", **profile, **layout, **coding, **place) as dataset:
            for row in block_rows:
                for column in range(count):
                    block = _block(rng, patches, date)
                    height, width = min(BLOCK, side - row * BLOCK), min(BLOCK, side - column * BLOCK)
                    window = Window(column * BLOCK, row * BLOCK, width, height)
                    dataset.write(block[:, :height, :width], window=window)
    return paths


def _block(rng: np.random.Generator, patches: Patches, date: int) -> NDArray[np.uint8]:
    block = np.empty((3, BLOCK, BLOCK), np.uint8)
    for top in range(0, BLOCK, _SIDE):
        for left in range(0, BLOCK, _SIDE):
            patch = patches[int(rng.integers(len(patches)))][date]
            block[:, top : top + _SIDE, left : left + _SIDE] = np.rot90(patch, int(rng.integers(4)), (1, 2))
    return block


def _picture(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return np.minimum(pixels.transpose(2, 0, 1), _NODATA - 1)


def _textures() -> Patches:
    rng = np.random.default_rng(0)
    found: Patches = []
    for _ in range(8):
        before = gaussian_filter(rng.standard_normal((3, _SIDE, _SIDE)), (0, 6, 6))
        before = (120 + 60 * before / before.std()).clip(0, _NODATA - 1).astype(np.uint8)
        after = before.copy()
        top, left = rng.integers(0, _SIDE - 80, 2)
        after[:, top : top + 60, left : left + 80] = rng.integers(0, _NODATA, (3, 1, 1))
        found.append((before, after))
    return found
