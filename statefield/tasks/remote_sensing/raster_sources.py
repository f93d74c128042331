"""The rasters a prediction reads: opened safely, on one grid, scaled band by band, without holding more than some rows.

Shape legend: C bands, H rows, W columns.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Interleaving, MaskFlags, Resampling
from rasterio.errors import CRSError, RasterioError
from rasterio.io import DatasetReader
from rasterio.transform import Affine, array_bounds
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from statefield.datasets.readers.raster import DRIVER, RasterHeader, header_of, is_remote, opened, same_place
from statefield.errors import ConfigError, DataError

_LARGEST_BLOCK_BYTES = 512 << 20  # GDAL decodes whole blocks: one larger than this has no place in a bounded memory
_SIDE_OF_SAMPLE = 1024  # pixels per side that percentiles are measured on


@dataclass(frozen=True)
class BandScaling:
    """Net input = (clipped value - offset) / scale, one number for each band.

    offset, scale: in the file's units. clip: (low, high) in the file's units for each band, or None. keep_zero: values
    of exactly 0 stay 0.
    """

    offset: tuple[float, ...]
    scale: tuple[float, ...]
    clip: tuple[tuple[float, float], ...] | None = None
    keep_zero: bool = False

    def __post_init__(self) -> None:
        sizes = {len(self.offset), len(self.scale), len(self.clip or self.offset)}
        numbers = (*self.offset, *self.scale, *(edge for pair in self.clip or () for edge in pair))
        if len(sizes) != 1 or not np.isfinite(numbers).all() or not all(scale > 0 for scale in self.scale):
            raise ConfigError(
                f"band scaling: offsets {self.offset}, scales {self.scale}, clipping {self.clip}; one finite number "
                "(or pair) for each band is needed, and scales above 0."
            )

    @classmethod
    def standardised(cls, mean: Sequence[float], std: Sequence[float]) -> BandScaling:
        """(value - mean) / std."""
        return cls(tuple(mean), tuple(std))

    @classmethod
    def ranged(cls, low: Sequence[float], high: Sequence[float]) -> BandScaling:
        """Values clipped to low..high, which become 0..1.

        >>> BandScaling.ranged([0.0], [255.0]).apply(np.array([[[51.0, 300.0]]], np.float32)).round(3).tolist()
        [[[0.2, 1.0]]]
        """
        edges = tuple(zip(low, high, strict=True))
        return cls(tuple(low), tuple(b - a for a, b in edges), edges)

    def apply(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scaled copy of float32 [C, H, W]."""
        column = (len(self.offset), 1, 1)
        counted = values != 0 if self.keep_zero else None
        if self.clip is not None:
            low, high = np.asarray(self.clip, np.float32).T.reshape(2, *column)
            values = np.clip(values, low, high)
        offset, scale = (np.asarray(part, np.float32).reshape(column) for part in (self.offset, self.scale))
        scaled = (values - offset) / scale
        return scaled if counted is None else np.where(counted, scaled, np.float32(0))


@dataclass(frozen=True)
class Source:
    """One raster to read, and how.

    header: of the grid that is read: the file's own, or the one it is warped to. bands: from 1, in the net's order.
    scaling: None leaves values as stored. warped: whether the file is warped to `header`'s grid while it is read.
    may_lack: whether pixels without data are possible.
    """

    path: str
    header: RasterHeader
    bands: tuple[int, ...]
    scaling: BandScaling | None = None
    warped: bool = False
    may_lack: bool = False
    driver: str = DRIVER
    allow_remote: bool = False

    @contextmanager
    def open(self) -> Iterator[DatasetReader]:
        """The dataset on the grid of `header`; one handle belongs to one thread."""
        with opened(self.path, driver=self.driver, allow_remote=self.allow_remote) as dataset:
            if not self.warped:
                yield dataset
                return
            grid = self.header
            assert grid.crs is not None and grid.transform is not None
            masked = dataset.nodata is not None or _alpha(dataset) is not None
            with WarpedVRT(
                dataset,
                crs=CRS.from_wkt(grid.crs),
                transform=Affine(*grid.transform),
                width=grid.width,
                height=grid.height,
                resampling=Resampling.bilinear,
                add_alpha=not masked,  # else pixels beyond the file's edge would pass for zeros
            ) as grid_view:
                yield grid_view

    def read(
        self, dataset: DatasetReader, rows: tuple[int, int], columns: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Scaled values [C, h, w] (0 where there is no data) and validity [h, w] of rows and columns start..stop.

        A pixel is valid when every band that is read has data there; NaN and infinite values are no data.
        """
        window = Window(columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0])
        stored = dataset.read(list(self.bands), window=window)
        with np.errstate(over="ignore"):  # what passes float32 becomes infinite, which counts as no data
            values = stored.astype(np.float32)
        valid = np.isfinite(values).all(axis=0)
        if any(MaskFlags.all_valid not in dataset.mask_flag_enums[band - 1] for band in self.bands):
            valid &= (dataset.read_masks(list(self.bands), window=window) > 0).all(axis=0)
        missing = ~valid
        np.copyto(values, 0, where=missing)  # ten times as fast as an assignment to values[:, missing]
        if self.scaling is not None and valid.any():
            values = self.scaling.apply(values)
            np.copyto(values, 0, where=missing)
        return values, valid


def describe(
    path: str | os.PathLike[str],
    *,
    bands: Sequence[int] | None = None,
    scaling: BandScaling | None = None,
    driver: str = DRIVER,
    allow_remote: bool = False,
) -> Source:
    """What is known of a raster before anything is decoded.

    Args:
        bands: numbers from 1, in the net's order; None: all but an alpha band.
        scaling: one number per band, or one for all of them.

    Raises:
        ConfigError: a URL or `/vsi` path without `allow_remote`; bands the file has not; a scaling of other bands.
        DataError: not of the driver, damaged, cut off, of complex numbers, or in blocks too large to decode.
    """
    text = os.fspath(path)
    if is_remote(text) and not allow_remote:
        raise ConfigError(
            f"{text}: a file on this machine is needed; URLs and GDAL's virtual paths are opened with --allow-remote "
            "(allow_remote=True) only."
        )
    with opened(path, driver=driver, allow_remote=allow_remote) as dataset:
        header = header_of(dataset)
        alpha = _alpha(dataset)
        chosen = tuple(bands or (band for band in range(1, header.num_bands + 1) if band != alpha))
        if any(not 1 <= band <= header.num_bands for band in chosen) or not chosen:
            raise ConfigError(f"bands={chosen}: {text} has bands 1 to {header.num_bands}.")
        if any("complex" in header.dtypes[band - 1] for band in chosen):
            raise DataError(f"{text}: bands of complex numbers found; integers or floats are needed.")
        if not allow_remote or not is_remote(text):
            _require_whole(text, dataset)
        _require_small_blocks(text, dataset)
        flags = [dataset.mask_flag_enums[band - 1] for band in chosen]
        may_lack = any(MaskFlags.all_valid not in flag for flag in flags) or any(
            header.dtypes[band - 1].startswith("float") for band in chosen
        )
    if scaling is not None and len(scaling.offset) not in (1, len(chosen)):
        raise ConfigError(
            f"scaling of {len(scaling.offset)} bands for {len(chosen)} bands of {text}: one each is needed."
        )
    return Source(text, header, chosen, scaling, False, may_lack, driver, allow_remote)


def on_one_grid(first: Source, second: Source, *, align: bool) -> Source:
    """`second`, known to lie on `first`'s grid: as it is, or warped there (bilinear) when `align` is set.

    Raises: DataError naming both files when their CRS, transform or size differ and `align` is not set, or when they
        do not overlap; when one says where it lies and the other does not.
    """
    a, b = first.header, second.header
    problem = None
    if (a.transform is None) != (b.transform is None):
        placed, other = (a, b) if a.transform is not None else (b, a)
        raise DataError(
            f"{a.path} and {b.path}: {placed.path} says where it lies and {other.path} does not. Give both their place "
            "(gdal_translate -a_srs ... -a_ullr ...), or neither."
        )
    if a.crs is not None and b.crs is not None and CRS.from_wkt(a.crs) == CRS.from_wkt(b.crs):
        b = dataclasses.replace(b, crs=a.crs)  # written differently, the same system
    if (a.crs is None) != (b.crs is None):
        problem = "only one of them has a coordinate reference system"
    problem = problem or same_place(a, b)
    if (a.height, a.width) != (b.height, b.width):
        problem = problem or "their sizes differ"
    if problem is None:
        return second
    told = f"{a.path} ({_grid(a)}) and {b.path} ({_grid(b)}): {problem}"
    if a.crs is None or b.crs is None or a.transform is None:
        raise DataError(f"{told}. They must be the same pixels, and without CRS and transform none can be warped.")
    if not _overlap(a, b, told):
        raise DataError(f"{told}, and they do not overlap on the ground. Give two rasters of the same place.")
    if not align:
        raise DataError(f"{told}. Pass --align (align=True) to warp the second to the first's grid, or use gdalwarp.")
    grid = dataclasses.replace(b, height=a.height, width=a.width, crs=a.crs, transform=a.transform)
    return dataclasses.replace(second, header=grid, warped=True, may_lack=True)


def percentile_range(
    path: str | os.PathLike[str],
    low: float = 2.0,
    high: float = 98.0,
    *,
    bands: Sequence[int] | None = None,
    driver: str = DRIVER,
    allow_remote: bool = False,
) -> BandScaling:
    """`BandScaling.ranged` between two percentiles of each band, measured on at most 1024 x 1024 pixels (nearest).

    Raises: ConfigError unless 0 <= low < high <= 100; DataError for a band without two different values.
    """
    if not 0 <= low < high <= 100:
        raise ConfigError(f"percentiles {low} and {high}: 0 <= low < high <= 100 is needed.")
    source = describe(path, bands=bands, driver=driver, allow_remote=allow_remote)
    shape = tuple(min(side, _SIDE_OF_SAMPLE) for side in (source.header.height, source.header.width))
    with source.open() as dataset:
        edges = []
        for band in source.bands:
            values = dataset.read(band, out_shape=shape).astype(np.float64)
            values = values[(dataset.read_masks(band, out_shape=shape) > 0) & np.isfinite(values)]
            pair = np.percentile(values, (low, high)) if values.size else (0.0, 0.0)
            if not pair[0] < pair[1]:
                raise DataError(
                    f"{source.path}, band {band}: its percentiles {low} and {high} are the same value, or it has no "
                    "data. Give the range of its values yourself."
                )
            edges.append((float(pair[0]), float(pair[1])))
    return BandScaling.ranged(*zip(*edges, strict=True))


def _alpha(dataset: DatasetReader) -> int | None:
    kinds = list(dataset.colorinterp)
    return kinds.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in kinds else None


def _grid(header: RasterHeader) -> str:
    name = "no CRS"
    if header.crs is not None:
        crs = CRS.from_wkt(header.crs)
        name = crs.to_string() if crs.to_epsg() else header.crs.split('"')[1]
    transform = "none" if header.transform is None else ", ".join(f"{part:.10g}" for part in header.transform)
    return f"{name}, transform {transform}, {header.height} x {header.width} pixels"


def _overlap(a: RasterHeader, b: RasterHeader, told: str) -> bool:
    if a.transform is None or b.transform is None or a.crs is None or b.crs is None:
        return True
    bounds_a = array_bounds(a.height, a.width, Affine(*a.transform))
    bounds_b = array_bounds(b.height, b.width, Affine(*b.transform))
    try:
        left, bottom, right, top = transform_bounds(CRS.from_wkt(b.crs), CRS.from_wkt(a.crs), *bounds_b)
    except (CRSError, RasterioError) as error:
        raise DataError(f"{told}, and the second cannot be brought to the first's system ({error}).") from error
    if not np.isfinite([left, bottom, right, top]).all():
        return False
    west, south, east, north = bounds_a
    return min(right, east) > max(left, west) and min(top, north) > max(bottom, south)


def _require_whole(path: str, dataset: DatasetReader) -> None:
    """A TIFF's directory says where each block lies: all must be inside the file, or it was cut off."""
    if dataset.driver != "GTiff":
        return
    size = Path(path).stat().st_size
    bands = range(1, dataset.count + 1) if dataset.interleaving == Interleaving.band else (1,)
    for band in bands:
        rows, columns = dataset.block_shapes[band - 1]
        for row in range(-(-dataset.height // rows)):
            for column in range(-(-dataset.width // columns)):
                start = dataset.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=band)
                length = dataset.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=band)
                if start is not None and int(start) + int(length or 0) > size:
                    raise DataError(
                        f"{path}: damaged or cut off: its block in row {row}, column {column} ends at byte "
                        f"{int(start) + int(length or 0)} of a file of {size} bytes. Copy or download it again."
                    )


def _require_small_blocks(path: str, dataset: DatasetReader) -> None:
    together = dataset.count if dataset.interleaving == Interleaving.pixel else 1
    for kind, (rows, columns) in zip(dataset.dtypes, dataset.block_shapes, strict=True):
        needed = together * rows * columns * (16 if "complex" in kind else np.dtype(kind).itemsize)
        if needed > _LARGEST_BLOCK_BYTES:
            raise DataError(
                f"{path}: its blocks are {rows} x {columns} pixels, {needed / 1e9:.3g} GB each; up to "
                f"{_LARGEST_BLOCK_BYTES / 1e9:.3g} GB can be decoded at a time. Convert it with gdal_translate -of COG."
            )
