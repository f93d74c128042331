"""A label raster as polygons in GeoJSON (RFC 7946: longitude and latitude of WGS 84)."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import rasterio
from rasterio.crs import CRS
from rasterio.features import shapes
from rasterio.warp import transform_geom

from statefield.datasets.readers.raster import opened
from statefield.errors import ConfigError, DataError
from statefield.files import atomic_path

_WGS84 = CRS.from_epsg(4326)
_DIGITS = 7  # of a degree: about a centimetre


def write_polygons(
    labels: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    classes: Sequence[int] | None = None,
    names: Sequence[str] = (),
    band: int = 1,
) -> int:
    """The connected regions (by sides) of a label raster, one GeoJSON feature each, and how many there are.

    The raster is read row by row; the polygons themselves are in memory, so it grows with the number of their corners.

    Args:
        labels: a GeoTIFF of classes, as `predict_raster` writes it. output: the .geojson or .json file.
        classes: those to outline; None: all above 0. names: of the classes, from 0, for the property "name".
        band: of `labels`, from 1.

    Raises: ConfigError for an output of another format; DataError for labels without a CRS.
    """
    if not os.fspath(output).lower().endswith((".geojson", ".json")):
        raise ConfigError(f"{output}: polygons are written as GeoJSON; give a name that ends in .geojson.")
    with opened(labels) as dataset, atomic_path(output) as partial, partial.open("w", encoding="utf-8") as file:
        if dataset.crs is None:
            raise DataError(f"{labels}: it has no coordinate reference system, which polygons in degrees need.")
        count = 0
        file.write('{"type": "FeatureCollection", "features": [')
        for feature in _features(dataset, band, classes, names):
            file.write(("\n" if count == 0 else ",\n") + json.dumps(feature))
            count += 1
        file.write("\n]}\n")
    return count


def _features(dataset: Any, band: int, classes: Sequence[int] | None, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    for outline, number in shapes(rasterio.band(dataset, band), connectivity=4, transform=dataset.transform):
        value = int(number)
        wanted = value > 0 if classes is None else value in classes
        if not wanted or value == dataset.nodata:
            continue
        geometry = transform_geom(dataset.crs, _WGS84, outline, precision=_DIGITS)
        rings = geometry["coordinates"]
        geometry["coordinates"] = [_turned(ring, outer=place == 0) for place, ring in enumerate(rings)]
        properties = {"class": value, **({"name": names[value]} if value < len(names) else {})}
        yield {"type": "Feature", "properties": properties, "geometry": geometry}


def _turned(ring: Sequence[tuple[float, float]], *, outer: bool) -> list[tuple[float, float]]:
    """Counterclockwise outside, clockwise holes, as RFC 7946 has it."""
    corners = list(ring)
    area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(corners))
    return corners if (area > 0) == outer else corners[::-1]
