"""Rasters that cannot be predicted: a clear error, and nothing written."""

import numpy as np
import pytest
import rasterio
from fakes.rasters import change_pair, write_raster
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning

from statefield.errors import ConfigError, DataError, ShapeError
from statefield.tasks.remote_sensing.raster_output import Legend
from statefield.tasks.remote_sensing.raster_predict import predict_raster
from statefield.tasks.remote_sensing.raster_sources import BandScaling


def same(*images):
    """The first image as its own logits."""
    return images[0]


@pytest.fixture
def refused(tmp_path):
    """Call `predict_raster`, expect the error, and that no file appeared."""

    def call(error, match, images, net=same, **options):
        held = sorted(path.name for path in tmp_path.iterdir())
        with pytest.raises(error, match=match):
            predict_raster(net, images, tmp_path / "out.tif", **{"tile": 32, **options})
        assert sorted(path.name for path in tmp_path.iterdir()) == held

    return call


def test_other_crs_size_place_or_none(tmp_path, refused):
    first = write_raster(tmp_path / "a.tif", 60, 70)
    other_crs = write_raster(tmp_path / "b.tif", 60, 70, crs=CRS.from_epsg(32632))
    refused(DataError, r"a\.tif \(EPSG:32631.*b\.tif \(EPSG:32632.*systems differ", [first.path, other_crs.path])
    larger = write_raster(tmp_path / "c.tif", 60, 71)
    refused(DataError, r"a\.tif.*60 x 70 pixels\) and .*c\.tif.*60 x 71", [first.path, larger.path])
    far = write_raster(tmp_path / "d.tif", 60, 70, shift=(1000, 0))
    for align in (True, False):
        refused(DataError, r"a\.tif.*d\.tif.*do not overlap", [first.path, far.path], align=align)
    without = write_raster(tmp_path / "e.tif", 60, 70, crs=None)
    refused(DataError, r"a\.tif.*e\.tif.*only one of them", [first.path, without.path], align=True)
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(tmp_path / "f.tif", "w", **_plain(60, 70)) as dataset:
        dataset.write(first.array)
    refused(DataError, r"a\.tif says where it lies and .*f\.tif does not", [first.path, tmp_path / "f.tif"])


@pytest.mark.parametrize("left", [0.3, 0.7, 0.98])
def test_a_truncated_tiff_is_told_before_anything_runs(tmp_path, refused, left):
    image = write_raster(tmp_path / "a.tif", 600, 700, compress="DEFLATE")
    content = image.path.read_bytes()
    image.path.write_bytes(content[: int(len(content) * left)])
    runs = []
    refused(DataError, r"a\.tif.*damaged or cut off", [image.path], net=lambda x: runs.append(x) or x)
    assert not runs


def test_a_damaged_block_ends_the_run_without_a_trace(tmp_path, refused):
    image = write_raster(tmp_path / "a.tif", 600, 700, compress="DEFLATE")
    with rasterio.open(image.path) as dataset:
        start = int(dataset.get_tag_item("BLOCK_OFFSET_1_2", "TIFF", bidx=1))
    content = bytearray(image.path.read_bytes())
    content[start : start + 40] = bytes(40)
    image.path.write_bytes(content)
    refused(DataError, r"a\.tif.*damaged", [image.path])


def test_virtual_and_remote_rasters_are_refused(tmp_path, refused):
    image = write_raster(tmp_path / "a.tif", 60, 70)
    vrt = tmp_path / "b.tif"
    vrt.write_text(
        '<VRTDataset rasterXSize="70" rasterYSize="60"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{image.path}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    refused(DataError, r"b\.tif.*no GTiff raster", [vrt])
    (tmp_path / "c.tif").write_text(
        '<MRF_META><CachedSource><Source>/etc/passwd</Source></CachedSource><Raster><Size x="9"/></Raster></MRF_META>'
    )
    refused(DataError, r"c\.tif.*no GTiff raster", [tmp_path / "c.tif"])
    for name in (
        "https://example.org/a.tif",
        "/vsicurl/http://example.org/a.tif",
        "/vsizip/a.zip/a.tif",
        "GTIFF_DIR:1:a",
    ):
        refused(ConfigError, "a file on this machine is needed", [name])
    refused(ConfigError, "a file on this machine is needed", [f"/vsisubfile/0,{image.path}"])
    result = predict_raster(
        same,
        [f"/vsisubfile/0_{image.path.stat().st_size},{image.path}"],
        tmp_path / "out.tif",
        tile=32,
        allow_remote=True,
    )
    assert result.num_tiles > 0
    with pytest.raises(DataError, match="no GTiff raster"):
        predict_raster(same, [f"/vsisubfile/0_9999,{vrt}"], tmp_path / "out.tif", allow_remote=True)


def test_absurd_sizes(tmp_path, refused):
    image = write_raster(tmp_path / "a.tif", 60, 70)
    for tile in (0, -5, 10**6):
        refused(ConfigError, f"tile={tile}", [image.path], tile=tile)
    refused(ConfigError, "2 GiB", [image.path], tile=8192, batch_size=10)
    refused(ConfigError, "overlap=1", [image.path], overlap=1.0)
    refused(ConfigError, "margin=9", [image.path], overlap=0.5, margin=9)
    refused(ConfigError, "band_columns=1000", [image.path], band_columns=1000)
    huge = _plain(32_768, 32_768, count=1, blockxsize=32_768, blockysize=32_768, tiled=True, sparse_ok=True)
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(tmp_path / "huge.tif", "w", **huge):
        pass
    refused(DataError, r"huge\.tif: its blocks are 32768 x 32768 pixels, 1\.07 GB each", [tmp_path / "huge.tif"])


def test_no_pixel_with_data(tmp_path, refused):
    image = write_raster(tmp_path / "a.tif", 600, 70, nodata=9)
    image.array[:] = 9
    image.save()
    refused(DataError, r"a\.tif: no pixel has data", [image.path])
    before, after = change_pair(tmp_path, 60, 70, nodata=9)
    before.array[:, :30], after.array[:, 30:] = 9, 9
    before.save(), after.save()
    refused(DataError, "no pixel has data in all of them", [before.path, after.path])


def test_no_bands_other_bands_and_complex_numbers(tmp_path, refused):
    image = write_raster(tmp_path / "a.tif", 60, 70)
    refused(ConfigError, "bands 1 to 3", [image.path], bands=[4])
    refused(ConfigError, "scaling of 2 bands for 3", [image.path], scaling=BandScaling.standardised([0, 0], [1, 1]))
    single = write_raster(tmp_path / "b.tif", 60, 70, bands=1)
    refused(DataError, r"a\.tif has 3 bands and .*b\.tif 1", [image.path, single.path])
    waves = write_raster(tmp_path / "c.tif", 60, 70, dtype="complex64")
    refused(DataError, "complex numbers", [waves.path])
    empty = bytearray(image.path.read_bytes())
    tag = empty.find(np.array([277, 3], "<u2").tobytes())  # SamplesPerPixel, a short
    empty[tag + 8 : tag + 10] = b"\0\0"
    (tmp_path / "d.tif").write_bytes(empty)
    refused(DataError, r"d\.tif", [tmp_path / "d.tif"])


def test_outputs_and_nets_that_do_not_fit(tmp_path, refused):
    image = write_raster(tmp_path / "a.tif", 60, 70)
    with pytest.raises(ConfigError, match="must differ"):
        predict_raster(same, [image.path], image.path)
    with pytest.raises(ConfigError, match=r"ends in \.tif"):
        predict_raster(same, [image.path], tmp_path / "out.png")
    refused(ShapeError, "windows of shape", [image.path], net=lambda x: x[:, :, :4])
    runs = []
    legend = Legend(("water", "land"), ((0, 0, 255), (0, 255, 0)))
    for wrong, match in (({"legends": [legend]}, "numbers of classes"), ({"nodata": 2}, "nodata=2")):
        refused(ConfigError, match, [image.path], net=lambda x: runs.append(x) or x, batch_size=1, **wrong)
    assert len(runs) == 2  # told with the first window
    refused(ConfigError, "list of one path", str(image.path))
    refused(ConfigError, r"ends in \.gpkg or \.geojson", [image.path], polygons=tmp_path / "p.shp")


def _plain(height, width, count=3, **options):
    return {"driver": "GTiff", "height": height, "width": width, "count": count, "dtype": "uint8", **options}
