"""Regions of label rasters as polygons: traced in strips as of the whole, in GeoPackages that others read."""

import sqlite3
import struct

import numpy as np
import pytest
import rasterio
from fakes.rasters import UTM, write_raster
from rasterio.crs import CRS
from rasterio.features import rasterize, shapes

from statefield.errors import ConfigError, DataError
from statefield.tasks.remote_sensing.geopackage import Region, well_known_binary, write_geopackage
from statefield.tasks.remote_sensing.outlines import outlines
from statefield.tasks.remote_sensing.polygons import write_polygons

WANTED = np.arange(256) > 0


def comparable(value, rings):
    """A region whatever corner and direction its rings begin with, and whatever the order of its holes."""
    found = []
    for ring in rings:
        corners = [tuple(map(int, corner)) for corner in ring][:-1]
        first = corners.index(min(corners))
        corners = corners[first:] + corners[:first]
        following = min(corners[1], corners[-1]) == corners[1]
        found.append(tuple(corners if following else [corners[0], *reversed(corners[1:])]))
    return (int(value), found[0], tuple(sorted(found[1:])))


@pytest.mark.parametrize("seed", range(40))
def test_regions_traced_in_strips_are_those_of_the_whole_raster(seed):
    rng = np.random.default_rng(seed)
    height, width, rows = (int(rng.integers(1, limit)) for limit in (40, 40, 9))
    labels = rng.integers(0, rng.integers(2, 5), (height, width)).astype(np.uint8)
    if seed % 2:
        labels = labels.repeat(2, axis=0).repeat(3, axis=1)
    if seed % 3 == 0:  # one large region with many holes, which touch in corners
        labels[rng.random(labels.shape) < 0.7] = 1
    whole = [comparable(value, shape["coordinates"]) for shape, value in shapes(labels, mask=WANTED[labels])]
    strips = (labels[top : top + rows] for top in range(0, len(labels), rows))
    assert sorted(comparable(o.value, o.rings) for o in outlines(strips, WANTED)) == sorted(whole)


def test_a_region_is_handed_out_as_soon_as_it_ends_and_the_others_are_not_held():
    labels = np.zeros((40, 30), np.uint8)
    labels[::4, ::2] = 1  # 150 single pixels
    labels[:, 29] = 2  # one region from top to bottom
    strips_read = []

    def strips():
        for top in range(0, 40, 4):
            strips_read.append(top)
            yield labels[top : top + 4]

    seen = [(outline.value, len(strips_read)) for outline in outlines(strips(), WANTED)]
    assert [value for value, _ in seen] == [1] * 150 + [2]
    assert [count for _, count in seen] == [1 + number // 15 for number in range(150)] + [10]


def ring_of(corners):
    return np.array(corners, np.float64)


def test_well_known_binary_is_that_of_the_standard():
    square = ring_of([(0, 0), (2, 0), (2, 2), (0, 0)])
    content = well_known_binary([square])
    assert content[:13] == bytes([1]) + struct.pack("<III", 3, 1, 4)  # little-endian, polygon, one ring, four corners
    assert struct.unpack("<8d", content[13:]) == (0, 0, 2, 0, 2, 2, 0, 0)


def rows_of(path, query):
    database = sqlite3.connect(path)
    try:
        return database.execute(query).fetchall()
    finally:
        database.close()


def test_a_geopackage_has_what_the_standard_asks_for_and_the_raster_s_own_coordinates(tmp_path):
    image = write_raster(tmp_path / "a.tif", 1060, 80, bands=1)
    image.array[:] = 0
    image.array[0, 500:530, 30:50] = 1  # across the line between two strips
    image.array[0, 505:509, 35:40] = 2
    image.array[0, 1059, 79] = 2
    image.save()
    path = tmp_path / "out.gpkg"
    assert write_polygons(image.path, path, names=("unchanged", "changed")) == 3
    header = path.read_bytes()[:100]
    assert header[68:72] == b"GPKG" and int.from_bytes(header[60:64], "big") == 10300
    assert rows_of(path, "PRAGMA integrity_check") == [("ok",)] and rows_of(path, "PRAGMA foreign_key_check") == []
    query = "SELECT srs_id, organization, organization_coordsys_id FROM gpkg_spatial_ref_sys ORDER BY 1"
    systems = rows_of(path, query)
    assert systems == [(-1, "NONE", -1), (0, "NONE", 0), (4326, "EPSG", 4326), (32631, "EPSG", 32631)]
    assert rows_of(path, "SELECT * FROM gpkg_geometry_columns") == [("regions", "geom", "POLYGON", 32631, 0, 0)]
    found = rows_of(path, "SELECT fid, geom, class, name FROM regions")
    assert [(fid, value, name) for fid, _, value, name in found] == [(1, 2, None), (2, 1, "changed"), (3, 2, None)]
    bounds = rows_of(path, "SELECT data_type, min_x, min_y, max_x, max_y, srs_id FROM gpkg_contents")
    left, top = rasterio.transform.xy(image.transform, 500, 30, offset="ul")
    right, bottom = rasterio.transform.xy(image.transform, 1060, 80, offset="ul")
    assert bounds == [("features", left, bottom, right, top, 32631)]
    polygons = [(geometry_of(blob, 32631), value) for _, blob, value, _ in found]
    burned = rasterize(polygons, out_shape=(1060, 80), transform=image.transform, dtype="uint8")
    np.testing.assert_array_equal(burned, image.array[0])


def geometry_of(blob, srs_id):
    """A blob of the standard's binary as GeoJSON, read by its text: header, envelope, well-known binary."""
    magic, version, flags, srs = struct.unpack_from("<2sBBi", blob)
    assert (magic, version, flags, srs) == (b"GP", 0, 0b11, srs_id)
    low_x, high_x, low_y, high_y = struct.unpack_from("<4d", blob, 8)
    order, kind, num_rings = struct.unpack_from("<BII", blob, 40)
    assert (order, kind) == (1, 3)
    place, rings = 49, []
    for _ in range(num_rings):
        (count,) = struct.unpack_from("<I", blob, place)
        rings.append(np.frombuffer(blob, "<f8", 2 * count, place + 4).reshape(count, 2))
        place += 4 + 16 * count
    assert place == len(blob)
    assert [low_x, low_y] == rings[0].min(axis=0).tolist() and [high_x, high_y] == rings[0].max(axis=0).tolist()
    return {"type": "Polygon", "coordinates": [ring.tolist() for ring in rings]}


def test_a_system_that_epsg_does_not_list_is_kept_as_it_is_and_none_is_told_as_undefined(tmp_path):
    own = CRS.from_proj4("+proj=laea +lat_0=12.5 +lon_0=77.25 +x_0=1000 +datum=WGS84 +units=m")
    square = Region(1, "x", [ring_of([(0, 0), (1, 0), (1, 1), (0, 0)])])
    assert write_geopackage(tmp_path / "own.gpkg", [square], own.to_wkt()) == 1
    query = (
        "SELECT organization, definition FROM gpkg_spatial_ref_sys WHERE srs_id = (SELECT srs_id FROM gpkg_contents)"
    )
    ((organization, definition),) = rows_of(tmp_path / "own.gpkg", query)
    assert organization == "NONE" and CRS.from_wkt(definition) == own
    assert write_geopackage(tmp_path / "none.gpkg", [], None) == 0
    assert rows_of(tmp_path / "none.gpkg", "SELECT srs_id, min_x FROM gpkg_contents") == [(-1, None)]


@pytest.mark.parametrize("crs", [UTM, CRS.from_epsg(4326), None], ids=["metres", "degrees", "none"])
def test_gdal_reads_the_geopackage(tmp_path, crs):
    pyogrio = pytest.importorskip("pyogrio", reason="pyogrio is not installed, so GDAL's reader cannot be asked")
    image = write_raster(tmp_path / "a.tif", 40, 30, bands=1, crs=crs)
    image.array[:] = np.random.default_rng(0).integers(0, 3, image.array.shape)
    image.save()
    count = write_polygons(image.path, tmp_path / "out.gpkg", names=("a", "b", "c"))
    told = pyogrio.read_info(tmp_path / "out.gpkg", force_feature_count=True)
    assert told["features"] == count and told["geometry_type"] == "Polygon"
    assert crs is None or CRS.from_user_input(told["crs"]) == crs


def test_other_formats_and_degrees_without_a_system_are_refused(tmp_path):
    image = write_raster(tmp_path / "a.tif", 4, 4, bands=1, crs=None)
    with pytest.raises(ConfigError, match=r"ends in \.gpkg or \.geojson"):
        write_polygons(image.path, tmp_path / "out.shp")
    with pytest.raises(DataError, match=r"a\.tif: it has no coordinate reference system.*\.gpkg"):
        write_polygons(image.path, tmp_path / "out.geojson")
    with rasterio.open(image.path) as dataset:
        assert dataset.crs is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif"]
