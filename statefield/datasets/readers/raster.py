"""GeoTIFFs (cloud-optimised ones are GeoTIFFs) through rasterio, with their place on the ground.

Only the file itself is opened, and only by the driver named: a GDAL that chooses for itself follows VRT and MRF files
to any other file, URLs and `/vsi` paths to any machine, and side files (.aux.xml, .msk, .ovr) to both. So side files
are not looked at: the place has to be in the TIFF, as GeoTIFF has it. Sizes of the raster and of its blocks are checked
before anything is decoded, since a header of a few bytes can claim any.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from statefield.datasets.readers.digits import whole_number
from statefield.datasets.readers.limits import require_memory
from statefield.datasets.sample import Meta
from statefield.errors import ConfigError, DataError

SUFFIXES = (".tif", ".tiff")
DRIVER = "GTiff"
_REMOTE = re.compile(r"^\s*(/vsi|[a-z][a-z0-9+.-]*:/|[a-z_]{2,}:)", re.IGNORECASE)  # URLs, and GDAL's DRIVER:... names
_ENVIRONMENT = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO"}
_ENVI = {**_ENVIRONMENT, "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE"}  # finds its header, no other file
_OPENING = threading.Lock()  # the filters of warnings belong to all threads
_REAL_TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")


@dataclass(frozen=True)
class RasterHeader:
    """What a raster says of itself.

    height, width: pixels. dtypes: one for each band. block: rows and columns that are decoded together.
    crs: the coordinate reference system as WKT, or None. transform: (a, b, c, d, e, f), by which column x and row y (of
        pixel corners) lie at a x + b y + c, d x + e y + f in the CRS; None when the file has none.
    nodata: the value of pixels without data, or None.
    """

    path: str
    height: int
    width: int
    dtypes: tuple[str, ...]
    block: tuple[int, int]
    crs: str | None
    transform: tuple[float, float, float, float, float, float] | None
    nodata: float | None

    @property
    def num_bands(self) -> int:
        """How many bands the raster has."""
        return len(self.dtypes)


@dataclass(frozen=True, eq=False)
class Raster:
    """array: float32 [C, H, W], 0 where a band has no data. valid: bool [H, W], where every band has data."""

    array: np.ndarray
    valid: np.ndarray
    header: RasterHeader


@contextmanager
def opened(
    path: str | os.PathLike[str], *, driver: str = DRIVER, allow_remote: bool = False
) -> Iterator[DatasetReader]:
    """The rasterio dataset, for reading by windows; one handle belongs to one thread.

    Args:
        allow_remote: open URLs and `/vsi` paths, too, still by the driver named alone.

    Raises:
        ConfigError: without `allow_remote`, a URL, a `/vsi` path, or another name that is not a file's.
        DataError: no such file, not of this driver, damaged or cut off; also of what is read inside the block.
        DataError: a block (tile or strip) larger than the memory limit.
    """
    if not (allow_remote and is_remote(path)):
        path = local_path(path)
        if not path.is_file():
            raise DataError(f"{path}: no such file.")
    try:
        with rasterio.Env(**(_ENVI if driver == "ENVI" else _ENVIRONMENT)):
            with _OPENING, warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)  # the header says so with None
                dataset = rasterio.open(path, driver=driver)
            with dataset:
                _require_sane(path, dataset)
                if driver == "ENVI":
                    _require_whole_envi(Path(path), dataset)
                yield dataset
    except RasterioError as error:
        raise DataError(
            f"{path}: this is no {driver} raster that can be read, or it is damaged or cut off "
            f"({type(error).__name__}: {error}). Copy or download it again, or convert it with gdal_translate -of COG."
        ) from error


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether GDAL would take the name for a URL, a `/vsi` path or `DRIVER:...` rather than a file's."""
    return bool(_REMOTE.match(os.fspath(path)))


def local_path(path: str | os.PathLike[str]) -> Path:
    """`path` as a path on this machine; `ConfigError` for URLs, `/vsi` paths and GDAL's `DRIVER:...` names."""
    text = os.fspath(path)
    if is_remote(text):
        raise ConfigError(f"{text}: a file on this machine is needed; URLs and GDAL's virtual paths are not opened.")
    return Path(text)


def read_header(path: str | os.PathLike[str]) -> RasterHeader:
    """The header alone; errors as `opened`."""
    with opened(path) as dataset:
        return header_of(dataset)


def header_of(dataset: DatasetReader) -> RasterHeader:
    """The header of an open dataset."""
    placed = not dataset.transform.is_identity or dataset.crs is not None
    return RasterHeader(
        path=str(dataset.name),
        height=dataset.height,
        width=dataset.width,
        dtypes=tuple(dataset.dtypes),
        block=tuple(dataset.block_shapes[0]),
        crs=dataset.crs.to_wkt() if dataset.crs else None,
        transform=tuple(dataset.transform)[:6] if placed else None,
        nodata=dataset.nodata,
    )


def read_raster(
    path: str | os.PathLike[str],
    *,
    window: tuple[int, int, int, int] | None = None,
    shape: tuple[int, int] | None = None,
) -> Raster:
    """Every band of a raster, or of a window of it.

    Args:
        window: (row, column, height, width), inside the raster; None: all of it.
        shape: (height, width) to repeat or drop pixels to (nearest neighbour), for bands of several resolutions.

    Raises:
        ConfigError, DataError: as `opened`; a window outside the raster; more pixels than the memory limit; bands of
            complex numbers; values that are NaN or infinite without being nodata.
    """
    with opened(path) as dataset:
        header = header_of(dataset)
        part, rows, columns = _window(header, window)
        height, width = shape or (rows, columns)
        odd = sorted({kind for kind in header.dtypes if kind not in _REAL_TYPES})
        if odd:
            raise DataError(f"{header.path}: bands of type {', '.join(odd)} found; integers or floats are needed.")
        itemsize = max(4, *(np.dtype(kind).itemsize for kind in header.dtypes))
        require_memory(
            header.path,
            header.num_bands * (itemsize * max(rows * columns, height * width) + 5 * height * width),
            f"{header.num_bands} bands of {rows} x {columns} pixels",
        )
        how = {"window": part, "out_shape": (header.num_bands, height, width), "resampling": Resampling.nearest}
        stored = dataset.read(**how)
        valid = dataset.read_masks(**how) > 0
    with np.errstate(over="ignore"):  # told below
        values = stored.astype(np.float32)
    values[~valid] = 0
    if not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise DataError(
            f"{header.path}: {count} values are NaN, infinite or beyond float32, and its nodata value is "
            f"{header.nodata}; finite values are needed. Set the nodata value, or fill the holes."
        )
    return Raster(values, valid.all(axis=0), header)


def read_single_band(
    path: str | os.PathLike[str], *, window: tuple[int, int, int, int] | None = None
) -> tuple[np.ndarray, RasterHeader]:
    """The one band of a label raster [H, W] in its own dtype; `DataError` when it has several, errors as above."""
    with opened(path) as dataset:
        header = header_of(dataset)
        if header.num_bands != 1:
            raise DataError(f"{header.path}: {header.num_bands} bands found; label values need a single one.")
        part, rows, columns = _window(header, window)
        require_memory(
            header.path, rows * columns * np.dtype(header.dtypes[0]).itemsize, f"{rows} x {columns} label values"
        )
        return dataset.read(1, window=part), header


def meta_of(header: RasterHeader, *, case: str, corner: tuple[int, int] = (0, 0)) -> Meta:
    """The meta of a raster, or of its window that begins at the row and column `corner`; with `crs` and `transform`."""
    meta: Meta = {
        "case": case,
        "path": header.path,
        "spacing": (1.0, 1.0),
        "spacing_known": False,
        "affine": None,
        "file": None,
    }
    if header.crs is not None:
        meta["crs"] = header.crs
    if header.transform is not None:
        a, b, c, d, e, f = header.transform
        row, column = corner
        meta["transform"] = (a, b, c + column * a + row * b, d, e, f + column * d + row * e)
    return meta


def same_place(first: RasterHeader, second: RasterHeader) -> str | None:
    """Why two rasters that both say where they lie are not the same pixels, or None; a tenth of a pixel is allowed."""
    if first.crs is not None and second.crs is not None and first.crs != second.crs:
        return "their coordinate reference systems differ"
    if first.transform is None or second.transform is None:
        return None
    a, b, _, d, e, _ = first.transform
    area, apart = abs(a * e - b * d), 0.0
    for column, row in ((0, 0), (first.width, 0), (0, first.height), (first.width, first.height)):
        (x, y), (x0, y0) = _place(second.transform, column, row), _place(first.transform, column, row)
        # the inverse of the first raster's matrix brings the distance on the ground to its pixels
        apart = max(apart, abs(e * (x - x0) - b * (y - y0)) / area, abs(a * (y - y0) - d * (x - x0)) / area)
    return f"their corners lie {apart:.3g} pixels apart" if apart > 0.1 else None


def _place(transform: tuple[float, ...], column: int, row: int) -> tuple[float, float]:
    a, b, c, d, e, f = transform
    return a * column + b * row + c, d * column + e * row + f


def _window(header: RasterHeader, window: tuple[int, int, int, int] | None) -> tuple[Window, int, int]:
    row, column, rows, columns = window or (0, 0, header.height, header.width)
    inside = min(row, column) >= 0 and row + rows <= header.height and column + columns <= header.width
    if not inside or rows < 1 or columns < 1:
        raise DataError(
            f"{header.path}: the window of {rows} x {columns} pixels at row {row}, column {column} is not inside its "
            f"{header.height} x {header.width} pixels."
        )
    return Window(column, row, columns, rows), rows, columns


def _require_sane(path: str | os.PathLike[str], dataset: DatasetReader) -> None:
    if not dataset.count or not dataset.width or not dataset.height:
        raise DataError(f"{path}: {dataset.count} bands of {dataset.height} x {dataset.width} pixels: it is empty.")
    together = dataset.count if str(dataset.interleaving).lower().endswith("pixel") else 1
    for kind, (rows, columns) in zip(dataset.dtypes, dataset.block_shapes, strict=True):
        size = 16 if "complex" in kind else np.dtype(kind).itemsize
        require_memory(path, together * rows * columns * size, f"blocks of {rows} x {columns} pixels")


def _require_whole_envi(path: Path, dataset: DatasetReader) -> None:
    """GDAL reads zeros beyond the end of an ENVI file, and takes an interleave that it does not know for bsq."""
    header = dataset.tags(ns="ENVI")
    interleave = header.get("interleave", "bsq")
    if interleave.lower() not in ("bsq", "bil", "bip"):
        raise DataError(f"{path}: its header says interleave = {interleave[:40]}; bsq, bil or bip is needed.")
    if header.get("file_compression", "0") != "0":
        return  # packed, and what is cut off cannot be unpacked
    values = sum(np.dtype(kind.replace("complex_int16", "int32")).itemsize for kind in dataset.dtypes)
    offset = whole_number(header.get("header_offset", "0"))
    claimed = None if offset is None else offset + values * dataset.width * dataset.height
    if claimed is None or path.stat().st_size < claimed:
        wanted = "a header offset that is no number" if claimed is None else f"{claimed} bytes"
        raise DataError(
            f"{path}: its header claims {wanted}, and the file has {path.stat().st_size}. It is cut off, or the header "
            "is another file's: copy both again."
        )
