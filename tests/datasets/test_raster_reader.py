"""GeoTIFFs: values, place, holes and windows; what is refused, and that nothing beside the file is opened."""

from __future__ import annotations

import struct
import threading
import warnings

import numpy as np
import pytest
import rasterio
from fakes.change import PLACE, write_tiff
from rasterio import Affine

from statefield.datasets.readers import raster
from statefield.datasets.readers.limits import LIMIT_VARIABLE
from statefield.errors import ConfigError, DataError


def ramp(bands=2, rows=20, columns=30, dtype=np.uint16):
    return np.arange(bands * rows * columns).reshape(bands, rows, columns).astype(dtype)


def test_values_place_and_header_are_the_files(tmp_path):
    path = write_tiff(tmp_path / "a.tif", ramp(), nodata=65535)
    found = raster.read_raster(path)
    np.testing.assert_array_equal(found.array, ramp().astype(np.float32))
    assert found.array.dtype == np.float32 and found.valid.all()
    header = found.header
    assert (header.height, header.width, header.dtypes, header.nodata) == (20, 30, ("uint16", "uint16"), 65535)
    assert header.transform == (10.0, 0.0, 500_000.0, 0.0, -10.0, 4_000_000.0)
    assert rasterio.crs.CRS.from_wkt(header.crs).to_epsg() == 32633
    assert raster.read_header(path) == header
    meta = raster.meta_of(header, case="a")
    assert (meta["crs"], meta["transform"], meta["case"]) == (header.crs, header.transform, "a")


@pytest.mark.parametrize("tiling", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}])
def test_window_is_that_part_of_the_raster_and_knows_its_place(tmp_path, tiling):
    path = write_tiff(tmp_path / "a.tif", ramp(), **tiling)
    found = raster.read_raster(path, window=(3, 5, 7, 11))
    np.testing.assert_array_equal(found.array, ramp()[:, 3:10, 5:16])
    # column 5 and row 3 lie 50 m east and 30 m south of the corner
    assert raster.meta_of(found.header, case="a", corner=(3, 5))["transform"][2::3] == (500_050.0, 3_999_970.0)
    for window in ((0, 0, 21, 3), (-1, 0, 2, 2), (0, 28, 2, 3), (2, 2, 0, 2)):
        with pytest.raises(DataError, match="not inside its 20 x 30"):
            raster.read_raster(path, window=window)


def test_cloud_optimised_files_are_read(tmp_path):
    path = tmp_path / "cog.tif"
    with rasterio.open(
        path, "w", driver="COG", dtype="uint16", count=2, height=20, width=30, crs="EPSG:4326", transform=PLACE
    ) as file:
        file.write(ramp())
    np.testing.assert_array_equal(raster.read_raster(path).array, ramp())


def test_holes_are_0_and_not_valid(tmp_path):
    values = ramp(dtype=np.float32)
    values[0, 2, 3] = -9999
    values[1, 4, 5] = -9999
    found = raster.read_raster(write_tiff(tmp_path / "a.tif", values, nodata=-9999))
    assert np.argwhere(~found.valid).tolist() == [[2, 3], [4, 5]]
    assert found.array[0, 2, 3] == found.array[1, 4, 5] == 0 and found.array[0, 4, 5] == 125
    values[values == -9999] = np.nan
    found = raster.read_raster(write_tiff(tmp_path / "b.tif", values, nodata=np.nan))
    assert np.argwhere(~found.valid).tolist() == [[2, 3], [4, 5]] and np.isfinite(found.array).all()


def test_values_that_are_no_numbers_are_refused_unless_they_are_nodata(tmp_path):
    values = ramp(dtype=np.float64)
    values[0, 0, 0], values[0, 0, 1] = np.nan, 1e300
    with pytest.raises(
        DataError, match=r"a.tif: 2 values are NaN, infinite or beyond float32, and its nodata value is None"
    ):
        raster.read_raster(write_tiff(tmp_path / "a.tif", values))


def test_raster_without_a_place_has_none(tmp_path):
    header = raster.read_header(write_tiff(tmp_path / "a.tif", ramp(), crs=None))
    assert header.crs is None and header.transform is None
    assert {"crs", "transform"}.isdisjoint(raster.meta_of(header, case="a"))


def test_coarser_band_is_repeated_to_a_shape(tmp_path):
    path = write_tiff(tmp_path / "a.tif", np.array([[1, 2], [3, 4]], np.uint8))
    found = raster.read_raster(path, shape=(4, 4)).array[0]
    np.testing.assert_array_equal(found, np.kron([[1, 2], [3, 4]], np.ones((2, 2))))


@pytest.mark.parametrize(
    "name",
    [
        "https://example.org/a.tif",
        "/vsicurl/https://example.org/a.tif",
        "/VSIZIP/a.zip/a.tif",
        "/vsimem/a.tif",
        "s3://bucket/a.tif",
        "file:///etc/a.tif",
        "zip://a.zip!a.tif",
        "GTIFF_DIR:2:a.tif",
        "GTIFF_RAW:a.tif",
        "NETCDF:a.nc:x",
        " http://example.org/a.tif",
    ],
)
def test_urls_and_virtual_paths_are_refused(name):
    with pytest.raises(ConfigError, match="a file on this machine is needed"):
        raster.read_raster(name)


def _vrt_of(path):
    return (
        '<VRTDataset rasterXSize="30" rasterYSize="20"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="0">{path}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )


def test_other_formats_are_refused_whatever_their_name(tmp_path):
    secret = write_tiff(tmp_path / "secret.tif", ramp(1))
    texts = {
        "vrt.tif": _vrt_of(secret),
        "mrf.tif": "<MRF_META><CachedSource><Source>secret.tif</Source></CachedSource></MRF_META>",
        "wms.tif": "<GDAL_WMS><Service name='TMS'><ServerUrl>http://127.0.0.1:9/</ServerUrl></Service></GDAL_WMS>",
        "text.tif": "no raster",
        "empty.tif": "",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=f"{name}: this is no GTiff raster"):
            raster.read_header(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        raster.read_header(tmp_path / "absent.tif")
    with pytest.raises(DataError, match="no such file"):
        raster.read_header(tmp_path)


def test_side_files_are_not_opened(tmp_path):
    """A mask beside the file may be of any format, a VRT too, and an .aux.xml may name files elsewhere."""
    empty = write_tiff(tmp_path / "empty.tif", np.zeros((20, 30), np.uint8))
    path = write_tiff(tmp_path / "a.tif", ramp(1) + 1)
    (tmp_path / "a.tif.msk").write_text(_vrt_of(empty))
    (tmp_path / "a.tif.ovr").write_text(_vrt_of(empty))
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>5</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    found = raster.read_raster(path)
    assert found.header.nodata is None and found.valid.all()
    np.testing.assert_array_equal(found.array, ramp(1) + 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "a.tif",
        "a.tif.aux.xml",
        "a.tif.msk",
        "a.tif.ovr",
        "empty.tif",
    ]


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("compress", ["none", "deflate", "lzw"])
def test_file_that_is_cut_off_is_named(tmp_path, keep, compress):
    noise = np.random.default_rng(0).integers(0, 65535, (2, 64, 64)).astype(np.uint16)
    whole = write_tiff(tmp_path / "whole.tif", noise, compress=compress).read_bytes()
    path = tmp_path / "cut.tif"
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DataError, match=r"cut\.tif: this is no GTiff raster that can be read, or it is damaged or cut"):
        raster.read_raster(path)


def _tiff_of_tiles(path, width, height, tile):
    """A TIFF whose header claims one deflated tile of that size; 200 bytes."""
    data = b"\x78\x9c\x03\x00\x00\x00\x00\x01"
    entries = [
        (256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1),
        (322, 4, tile), (323, 4, tile), (324, 4, 8), (325, 4, len(data)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory + struct.pack("<I", 0))
    return path


def test_absurd_blocks_are_refused_before_anything_is_decoded(tmp_path):
    path = _tiff_of_tiles(tmp_path / "a.tif", 64, 64, 1 << 20)
    with pytest.raises(
        DataError, match=r"a\.tif: its header claims blocks of 1048576 x 1048576 pixels, which takes 1.1e\+03 GB"
    ):
        raster.read_header(path)
    with pytest.raises(DataError, match=r"b\.tif"):
        raster.read_header(_tiff_of_tiles(tmp_path / "b.tif", 64, 64, 1 << 30))


def test_absurd_size_is_refused_before_anything_is_decoded_but_windows_are_read(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "a.tif", ramp(1, 64, 64), tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    monkeypatch.setenv(LIMIT_VARIABLE, "0.00001")  # 10 kB, where 64 x 64 take 37
    with pytest.raises(DataError, match=r"its header claims 1 bands of 64 x 64 pixels"):
        raster.read_raster(path)
    with pytest.raises(DataError, match=r"its header claims 1 bands of 8 x 8 pixels"):
        raster.read_raster(path, window=(0, 0, 8, 8), shape=(4000, 4000))
    np.testing.assert_array_equal(
        raster.read_raster(path, window=(16, 16, 16, 16)).array, ramp(1, 64, 64)[:, 16:32, 16:32]
    )


def test_complex_bands_and_labels_of_several_bands_are_refused(tmp_path):
    with pytest.raises(DataError, match="bands of type complex64 found"):
        raster.read_raster(write_tiff(tmp_path / "a.tif", ramp(1).astype(np.complex64)))
    with pytest.raises(DataError, match="2 bands found; label values need a single one"):
        raster.read_single_band(write_tiff(tmp_path / "b.tif", ramp()))


def test_same_place_tells_what_differs(tmp_path):
    def header(**how):
        return raster.read_header(write_tiff(tmp_path / f"{len(list(tmp_path.iterdir()))}.tif", ramp(), **how))

    first = header()
    assert raster.same_place(first, header()) is None
    assert raster.same_place(first, header(crs=None)) is None
    assert raster.same_place(first, header(transform=Affine(10, 0, 500_000.5, 0, -10, 4_000_000))) is None
    moved = header(transform=Affine(10, 0, 500_005.0, 0, -10, 4_000_020))
    assert raster.same_place(first, moved) == "their corners lie 2 pixels apart"
    stretched = header(transform=Affine(10.1, 0, 500_000, 0, -10, 4_000_000))
    assert raster.same_place(first, stretched) == "their corners lie 0.3 pixels apart"  # 30 columns of 0.1 m more
    assert raster.same_place(first, header(crs="EPSG:4326")) == "their coordinate reference systems differ"


def test_threads_read_with_a_handle_each(tmp_path):
    path = write_tiff(tmp_path / "a.tif", ramp(2, 64, 64), crs=None, tiled=True, blockxsize=16, blockysize=16)
    found: dict[int, np.ndarray] = {}

    def read(index):
        found[index] = raster.read_raster(path, window=(8 * index, 0, 8, 64)).array

    before = list(warnings.filters)
    threads = [threading.Thread(target=read, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.concatenate([found[i] for i in range(8)], axis=1), ramp(2, 64, 64))
    assert warnings.filters == before
