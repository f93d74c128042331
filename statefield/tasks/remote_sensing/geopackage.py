"""Polygons as a GeoPackage (OGC 12-128, version 1.3): an SQLite file, so Python's own sqlite3 writes it.

Of the libraries that this package needs none writes vectors (rasterio has no writer, and its GDAL no way to one), and
pyogrio or fiona would bring a second GDAL into the process. What the standard asks of a table of features is little:
two numbers in the file's header, three tables that describe, and geometries as well-known binary behind a header. No
R-tree is written, which the standard leaves free; readers make one where they need it.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError

from statefield.errors import DataError
from statefield.files import atomic_path

_APPLICATION_ID = 0x47504B47  # "GPKG"
_USER_VERSION = 10300
_OWN_SRS = 100_000  # the number of a system that EPSG does not list; the file alone gives it a meaning
_UNDEFINED = -1  # the standard's number of an unknown Cartesian system

_TABLES = """
CREATE TABLE gpkg_spatial_ref_sys (
  srs_name TEXT NOT NULL, srs_id INTEGER PRIMARY KEY, organization TEXT NOT NULL,
  organization_coordsys_id INTEGER NOT NULL, definition TEXT NOT NULL, description TEXT);
CREATE TABLE gpkg_contents (
  table_name TEXT NOT NULL PRIMARY KEY, data_type TEXT NOT NULL, identifier TEXT UNIQUE, description TEXT DEFAULT '',
  last_change DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')),
  min_x DOUBLE, min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER,
  CONSTRAINT fk_gc_r_srs_id FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE gpkg_geometry_columns (
  table_name TEXT NOT NULL, column_name TEXT NOT NULL, geometry_type_name TEXT NOT NULL, srs_id INTEGER NOT NULL,
  z TINYINT NOT NULL, m TINYINT NOT NULL,
  CONSTRAINT pk_geom_cols PRIMARY KEY (table_name, column_name), CONSTRAINT uk_gc_table_name UNIQUE (table_name),
  CONSTRAINT fk_gc_tn FOREIGN KEY (table_name) REFERENCES gpkg_contents(table_name),
  CONSTRAINT fk_gc_srs FOREIGN KEY (srs_id) REFERENCES gpkg_spatial_ref_sys(srs_id));
CREATE TABLE regions (
  fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, geom POLYGON NOT NULL, class INTEGER NOT NULL, name TEXT);
"""
_WGS84 = (
    'GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563,AUTHORITY["EPSG","7030"]],'
    'AUTHORITY["EPSG","6326"]],PRIMEM["Greenwich",0,AUTHORITY["EPSG","8901"]],UNIT["degree",0.0174532925199433,'
    'AUTHORITY["EPSG","9122"]],AXIS["Latitude",NORTH],AXIS["Longitude",EAST],AUTHORITY["EPSG","4326"]]'
)
_ALWAYS_THERE = (
    ("Undefined Cartesian SRS", _UNDEFINED, "NONE", -1, "undefined", "undefined Cartesian coordinate reference system"),
    ("Undefined geographic SRS", 0, "NONE", 0, "undefined", "undefined geographic coordinate reference system"),
    ("WGS 84 geodetic", 4326, "EPSG", 4326, _WGS84, "longitude/latitude coordinates in decimal degrees"),
)


@dataclass(frozen=True)
class Region:
    """One polygon: `rings` of x and y [n, 2] float64, the outer one first, each ending where it begins."""

    value: int
    name: str | None
    rings: Sequence[NDArray[np.float64]]


def write_geopackage(path: str | os.PathLike[str], regions: Iterable[Region], crs: str | None) -> int:
    """Write `regions`, in the order given and one at a time, into the table "regions"; returns how many there were.

    Args:
        crs: of the coordinates, as WKT; None: an undefined Cartesian system. The file's coordinates are those given.

    Raises: DataError for a system that the standard's form of WKT cannot say. The file appears whole or not at all.
    """
    system = _system(path, crs)
    extent = _Extent()
    with atomic_path(path) as partial:
        database = sqlite3.connect(partial)
        try:
            # the file is flushed by `atomic_path`, and one that was cut off is never seen
            database.executescript(
                f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA application_id = {_APPLICATION_ID}; "
                f"PRAGMA user_version = {_USER_VERSION};" + _TABLES
            )
            systems = {row[1]: row for row in (*_ALWAYS_THERE, system)}
            database.executemany("INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?, ?, ?)", systems.values())
            database.executemany(
                "INSERT INTO regions (geom, class, name) VALUES (?, ?, ?)", _rows(regions, system[1], extent)
            )
            database.execute(
                "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, min_x, min_y, max_x, "
                "max_y, srs_id) VALUES ('regions', 'features', 'regions', 'regions of a label raster', ?, ?, ?, ?, ?)",
                (*extent.bounds, system[1]),
            )
            database.execute(
                "INSERT INTO gpkg_geometry_columns VALUES ('regions', 'geom', 'POLYGON', ?, 0, 0)", (system[1],)
            )
            database.commit()
        finally:
            database.close()
    return extent.count


class _Extent:
    """How many polygons went by, and where they lie."""

    def __init__(self) -> None:
        self.count = 0
        self._low, self._high = np.full(2, np.inf), np.full(2, -np.inf)

    @property
    def bounds(self) -> tuple[float | None, ...]:
        return (*self._low.tolist(), *self._high.tolist()) if self.count else (None,) * 4

    def add(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
        self.count += 1
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)


def _rows(regions: Iterable[Region], srs_id: int, extent: _Extent) -> Iterator[tuple[bytes, int, str | None]]:
    for region in regions:
        low, high = region.rings[0].min(axis=0), region.rings[0].max(axis=0)
        extent.add(low, high)
        # magic, version 0, flags: an envelope of x and y (1 << 1), little-endian (1)
        header = struct.pack("<2sBBi4d", b"GP", 0, 0b11, srs_id, low[0], high[0], low[1], high[1])
        yield header + well_known_binary(region.rings), region.value, region.name


def well_known_binary(rings: Sequence[NDArray[np.float64]]) -> bytes:
    """A polygon (type 3) as little-endian well-known binary."""
    parts = [struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), np.ascontiguousarray(ring, "<f8").tobytes()]
    return b"".join(parts)


def _system(path: str | os.PathLike[str], wkt: str | None) -> tuple[str, int, str, int, str, str]:
    if wkt is None:
        return _ALWAYS_THERE[0]
    crs = CRS.from_wkt(wkt)
    code = crs.to_epsg(confidence_threshold=100)  # a system that is merely much alike would move the polygons
    try:
        definition = crs.to_wkt(version="WKT1_GDAL")
    except CRSError as error:
        raise DataError(
            f"{path}: a GeoPackage cannot hold this coordinate system ({error}); write .geojson."
        ) from error
    name = definition.split('"')[1] if '"' in definition else "unnamed"
    if code is None:
        return (name, _OWN_SRS, "NONE", _OWN_SRS, definition, "as the raster has it")
    return (name, code, "EPSG", code, definition, "")
