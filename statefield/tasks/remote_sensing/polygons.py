"""The regions of a label raster as polygons: a GeoPackage in the raster's own system, or GeoJSON in degrees."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform_geom
from rasterio.windows import Window

from statefield.datasets.readers.raster import opened
from statefield.errors import ConfigError, DataError
from statefield.files import atomic_path
from statefield.tasks.remote_sensing.geopackage import Region, write_geopackage
from statefield.tasks.remote_sensing.outlines import Outline, outlines
from statefield.tasks.remote_sensing.output_paths import POLYGON_SUFFIXES

_WGS84 = CRS.from_epsg(4326)
_DIGITS = 7  # of a degree: about a centimetre
_ROWS = 512  # of a strip: a row of blocks of what `predict_raster` writes


def write_polygons(
    labels: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    classes: Sequence[int] | None = None,
    names: Sequence[str] = (),
    band: int = 1,
) -> int:
    """The connected regions (by sides) of a label raster, one feature each, and how many there are.

    A GeoPackage (.gpkg) has the raster's coordinates and system. GeoJSON (.geojson, .json) has longitude and latitude
    of WGS 84, as RFC 7946 demands, rounded to about a centimetre. Memory holds 512 rows, their regions, and those that
    go on below; not all there are.

    Args:
        labels: a GeoTIFF of classes, as `predict_raster` writes it. output: the file; it appears whole or not at all.
        classes: those to outline; None: all above 0. names: of the classes, from 0, for the property "name".
        band: of `labels`, from 1.

    Raises: ConfigError for an output of another format; DataError for GeoJSON of labels without a CRS.
    """
    if Path(output).suffix.lower() not in POLYGON_SUFFIXES:
        raise ConfigError(
            f"{output}: polygons are written as GeoPackage or GeoJSON; give a name that ends in .gpkg or .geojson."
        )
    with opened(labels) as dataset:
        crs = dataset.crs.to_wkt() if dataset.crs else None
        require_crs(output, str(labels), crs)
        regions = _regions(dataset, band, classes, names)
        if _is_geopackage(output):
            return write_geopackage(output, regions, crs)
        return _write_geojson(output, regions, dataset.crs)


def pixel_outlines(labels: str | os.PathLike[str], *, band: int = 1) -> Iterator[Outline]:
    """The regions that `write_polygons` writes, of all classes above 0, in pixels (column, row), for drawing."""
    with opened(labels) as dataset:
        yield from _outlines(dataset, band, None)


def require_crs(output: str | os.PathLike[str], labels: str, crs: str | None) -> None:
    """`DataError` where polygons in degrees are wanted of a raster without a coordinate reference system."""
    if crs is None and not _is_geopackage(output):
        raise DataError(
            f"{labels}: it has no coordinate reference system, which polygons in degrees need. Write a .gpkg, which "
            "has the raster's own coordinates."
        )


def _is_geopackage(path: str | os.PathLike[str]) -> bool:
    return Path(path).suffix.lower() == ".gpkg"


def _regions(dataset: Any, band: int, classes: Sequence[int] | None, names: Sequence[str]) -> Iterator[Region]:
    for outline in _outlines(dataset, band, classes):
        name = names[outline.value] if outline.value < len(names) else None
        yield Region(outline.value, name, [_placed(ring, dataset.transform) for ring in outline.rings])


def _outlines(dataset: Any, band: int, classes: Sequence[int] | None) -> Iterator[Outline]:
    wanted = np.zeros(256, bool)
    wanted[slice(1, None) if classes is None else list(classes)] = True
    if dataset.nodata is not None and 0 <= dataset.nodata <= 255:
        wanted[int(dataset.nodata)] = False
    strips = (
        dataset.read(band, window=Window(0, top, dataset.width, min(_ROWS, dataset.height - top)))
        for top in range(0, dataset.height, _ROWS)
    )
    yield from outlines(strips, wanted)


def _placed(ring: NDArray[np.int64], transform: Affine) -> NDArray[np.float64]:
    x, y = ring.T.astype(np.float64)
    a, b, c, d, e, f = tuple(transform)[:6]
    return np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)


def _write_geojson(output: str | os.PathLike[str], regions: Iterator[Region], crs: CRS) -> int:
    count = 0
    with atomic_path(output) as partial, partial.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for region in regions:
            file.write(("\n" if count == 0 else ",\n") + json.dumps(_feature(region, crs)))
            count += 1
        file.write("\n]}\n")
    return count


def _feature(region: Region, crs: CRS) -> dict[str, Any]:
    outline = {"type": "Polygon", "coordinates": [ring.tolist() for ring in region.rings]}
    geometry = transform_geom(crs, _WGS84, outline, precision=_DIGITS)
    rings = geometry["coordinates"]
    geometry["coordinates"] = [_turned(ring, outer=place == 0) for place, ring in enumerate(rings)]
    properties = {"class": region.value, **({} if region.name is None else {"name": region.name})}
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def _turned(ring: Sequence[tuple[float, float]], *, outer: bool) -> list[tuple[float, float]]:
    """Counterclockwise outside, clockwise holes, as RFC 7946 has it."""
    corners = list(ring)
    area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(corners))
    return corners if (area > 0) == outer else corners[::-1]
