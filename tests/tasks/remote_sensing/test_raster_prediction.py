"""Prediction of rasters: the same as of the whole image, with its place on the ground, in bounded memory."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from fakes.rasters import UTM, change_pair, write_raster
from rasterio.crs import CRS
from rio_cogeo.cogeo import cog_validate
from torch import nn

from statefield.errors import CheckpointError, ConfigError, DataError
from statefield.tasks.common.tiling import sliding_window
from statefield.tasks.remote_sensing.nets import FCSiamDiff, SemanticChange
from statefield.tasks.remote_sensing.polygons import write_polygons
from statefield.tasks.remote_sensing.raster_output import Legend
from statefield.tasks.remote_sensing.raster_predict import predict_raster
from statefield.tasks.remote_sensing.raster_sources import BandScaling, percentile_range

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[3] / "../shared/data"))
SCALING = BandScaling.ranged([0.0], [255.0])


class Blurred(nn.Module):
    """Logits of three classes from a neighbourhood of 9 x 9 pixels, of one image or of the difference of two."""

    def __init__(self, channels=3, classes=3):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(classes, channels, 9, 9, generator=generator) / 9)
        self.num_windows = 0

    def forward(self, *images):
        x = images[0] if len(images) == 1 else images[1] - images[0]
        self.num_windows += len(x)
        return nn.functional.conv2d(x, self.weight, padding=4)


def whole_image(net, *arrays, tile, overlap):
    """Blended logits [K, H, W] of the definition, `sliding_window` of all pixels at once."""
    joint = torch.from_numpy(np.concatenate(arrays)).float().div(255)[None]
    counts = [len(array) for array in arrays]
    return sliding_window(joint, lambda x: net(*x.split(counts, dim=1)), (tile, tile), overlap=overlap)[0]


@pytest.mark.parametrize(
    "height, width, tile, overlap", [(530, 1100, 96, 0.5), (40, 700, 64, 0.25), (600, 50, 64, 0.0), (1, 1, 16, 0.5)]
)
def test_probabilities_in_bands_of_columns_equal_those_of_the_whole_image(tmp_path, height, width, tile, overlap):
    before, after = change_pair(tmp_path, height, width)
    net = Blurred()
    predict_raster(
        net,
        [before.path, after.path],
        tmp_path / "out.tif",
        tile=tile,
        overlap=overlap,
        band_columns=512,
        scaling=SCALING,
        probabilities=tmp_path / "p.tif",
    )
    logits = whole_image(net, before.array, after.array, tile=tile, overlap=overlap)
    with rasterio.open(tmp_path / "p.tif") as dataset:
        np.testing.assert_allclose(dataset.read(), logits.softmax(dim=0).numpy(), atol=1e-5)
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert (dataset.read(1) == logits.argmax(dim=0).numpy()).mean() > 0.9999


def test_a_margin_as_wide_as_the_reach_of_the_net_gives_the_untiled_result_everywhere(tmp_path):
    image = write_raster(tmp_path / "a.tif", 600, 700)
    net = Blurred()
    kwargs = {"tile": 128, "overlap": 0.25, "band_columns": 512, "scaling": SCALING}
    predict_raster(net, [image.path], tmp_path / "out.tif", probabilities=tmp_path / "p.tif", margin=4, **kwargs)
    with torch.no_grad():
        untiled = net(torch.from_numpy(image.array).float().div(255)[None])[0].softmax(dim=0).numpy()
    with rasterio.open(tmp_path / "p.tif") as dataset:
        np.testing.assert_allclose(dataset.read(), untiled, atol=1e-5)


@pytest.mark.parametrize("nodata, expected", [(None, None), (200, 200), (0, 255)])
def test_the_output_is_a_valid_cog_on_the_grid_of_the_input(tmp_path, nodata, expected):
    image = write_raster(tmp_path / "a.tif", 1200, 1100, nodata=nodata)
    legend = Legend(("water", "field", "town"), ((0, 0, 255), (0, 255, 0), (255, 0, 0)))
    result = predict_raster(Blurred(), [image.path], tmp_path / "out.tif", legends=[legend], scaling=SCALING)
    valid, errors, warned = cog_validate(str(tmp_path / "out.tif"), quiet=True)
    assert valid and not errors and not warned
    with rasterio.open(image.path) as given, rasterio.open(tmp_path / "out.tif") as dataset:
        assert dataset.crs.to_wkt() == given.crs.to_wkt() and dataset.transform == given.transform
        assert dataset.shape == given.shape and dataset.dtypes == ("uint8",)
        assert dataset.nodata == expected == result.nodata
        assert dataset.colormap(1)[2] == (255, 0, 0, 255)
        assert dataset.tags(1)["CLASS_1"] == "field"
        assert dataset.overviews(1) and dataset.block_shapes == [(512, 512)]
        labels = dataset.read(1)
        coarse = dataset.read(1, out_shape=(600, 550))
        assert set(np.unique(coarse)) <= set(np.unique(labels))  # a majority, not an average of class numbers
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "out.tif"]


def test_pixels_without_data_in_either_date_have_none_in_the_output_and_empty_windows_are_skipped(tmp_path):
    before, after = change_pair(tmp_path, 600, 1100, nodata=255)
    before.array[:, :, 500:] = 255
    after.array[:, 100:110, :40] = 255
    before.save(), after.save()
    net = Blurred()
    result = predict_raster(net, [before.path, after.path], tmp_path / "out.tif", tile=64, overlap=0.5, scaling=SCALING)
    with rasterio.open(tmp_path / "out.tif") as dataset:
        labels = dataset.read(1)
        missing = np.any((before.array == 255) | (after.array == 255), axis=0)
        np.testing.assert_array_equal(labels == 255, missing)
        np.testing.assert_array_equal(dataset.read_masks(1) == 0, missing)
    assert net.num_windows == result.num_tiles and result.num_skipped > result.num_tiles


def test_an_alpha_band_and_nan_count_as_no_data_and_do_not_reach_the_net(tmp_path):
    image = write_raster(tmp_path / "a.tif", 70, 90, bands=4, alpha=True)
    image.array[3] = 255
    image.array[3, :10] = 0
    image.save()
    predict_raster(Blurred(), [image.path], tmp_path / "out.tif", tile=32, scaling=SCALING)
    with rasterio.open(tmp_path / "out.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1) == 255, np.arange(70)[:, None].repeat(90, 1) < 10)
    floats = write_raster(tmp_path / "f.tif", 70, 90, dtype="float32")
    floats.array[1, 5, 6] = np.nan
    floats.save()
    predict_raster(Blurred(), [floats.path], tmp_path / "out.tif", tile=32)
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert np.argwhere(dataset.read(1) == 255).tolist() == [[5, 6]]


def test_align_warps_the_second_date_to_the_first_grid(tmp_path):
    before, after = change_pair(tmp_path, 300, 300)
    # the same picture, 40 columns to the east and 20 rows to the south, in its own file
    moved = write_raster(tmp_path / "moved.tif", 300, 300, shift=(40, 20))
    moved.array[:, :280, :260] = after.array[:, 20:, 40:]
    moved.save()
    with pytest.raises(DataError, match=r"before\.tif .*moved\.tif .*pixels apart.*align=True"):
        predict_raster(Blurred(), [before.path, moved.path], tmp_path / "out.tif")
    kwargs = {"tile": 64, "scaling": SCALING}
    predict_raster(Blurred(), [before.path, after.path], tmp_path / "direct.tif", **kwargs)
    predict_raster(Blurred(), [before.path, moved.path], tmp_path / "warped.tif", align=True, **kwargs)
    with rasterio.open(tmp_path / "direct.tif") as direct, rasterio.open(tmp_path / "warped.tif") as warped:
        assert warped.transform == direct.transform and warped.nodata == 255
        labels = warped.read(1)
        assert (labels[:20] == 255).all() and (labels[:, :40] == 255).all()
        # windows at the edge of the overlap see zeros where the direct run sees pixels
        np.testing.assert_array_equal(labels[30:, 50:], direct.read(1)[30:, 50:])


def test_outputs_of_a_named_tuple_become_bands(tmp_path):
    before, after = change_pair(tmp_path, 100, 120)

    def net(x, y):
        return SemanticChange(x[:, :2], x, y)

    result = predict_raster(net, [before.path, after.path], tmp_path / "out.tif", tile=64)
    assert result.layers == (("change", 2), ("before", 3), ("after", 3))
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert dataset.descriptions == ("change", "before", "after")
        np.testing.assert_array_equal(dataset.read(3), after.array.argmax(axis=0))


def test_percentiles_are_measured_on_pixels_with_data(tmp_path):
    image = write_raster(tmp_path / "a.tif", 50, 60, nodata=7)
    image.array[:] = 7
    image.array[:, :10] = np.linspace(100, 200, 600).reshape(10, 60).astype(np.uint8)
    image.save()
    scaling = percentile_range(image.path, 0, 100)
    assert scaling.clip == ((100.0, 200.0),) * 3
    with pytest.raises(ConfigError, match="0 <= low < high"):
        percentile_range(image.path, 90, 10)


def test_polygons_outline_the_classes_in_degrees(tmp_path):
    image = write_raster(tmp_path / "a.tif", 60, 80, bands=1)
    image.array[:] = 0
    image.array[0, 10:20, 30:50] = 1
    image.array[0, 40:42, 5:6] = 1
    image.save()
    count = write_polygons(image.path, tmp_path / "out.geojson", names=("unchanged", "changed"))
    found = json.loads((tmp_path / "out.geojson").read_text())["features"]
    assert count == len(found) == 2
    assert {feature["properties"]["name"] for feature in found} == {"changed"}
    ring = max((feature["geometry"]["coordinates"][0] for feature in found), key=lambda r: np.ptp(np.array(r)[:, 0]))
    left, top = rasterio.transform.xy(image.transform, 10, 30, offset="ul")
    lon, lat = rasterio.warp.transform(UTM, CRS.from_epsg(4326), [left], [top])
    assert min(np.hypot(x - lon[0], y - lat[0]) for x, y in ring) < 1e-6
    area = sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(ring))
    assert area > 0  # counterclockwise


def test_progress_counts_every_tile_once(tmp_path):
    image = write_raster(tmp_path / "a.tif", 300, 700)
    told = []
    result = predict_raster(
        Blurred(), [image.path], tmp_path / "o.tif", tile=64, band_columns=512, progress=lambda *a: told.append(a)
    )
    assert told[-1] == (result.num_tiles, result.num_tiles)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_a_change_net_of_the_package_runs_and_stays_in_its_mode(tmp_path):
    before, after = change_pair(tmp_path, 70, 90)
    net = FCSiamDiff(in_channels=3)
    net.train()
    result = predict_raster(
        net,
        [before.path, after.path],
        tmp_path / "out.tif",
        tile=32,
        polygons=tmp_path / "o.geojson",
        scaling=SCALING,
        mirror_axes=(0, 1),
    )
    assert net.training and result.layers == (("class", 2),) and result.num_polygons is not None
    with rasterio.open(tmp_path / "out.tif") as dataset:
        assert dataset.tags(1)["CLASS_1"] == "changed"


def test_nan_logits_are_told_with_their_place(tmp_path):
    image = write_raster(tmp_path / "a.tif", 70, 90)
    with pytest.raises(CheckpointError, match="row 0, column 0"):
        predict_raster(lambda x: x * float("nan"), [image.path], tmp_path / "out.tif", tile=32)
    assert not (tmp_path / "out.tif").exists()


def test_real_sentinel_bands_of_two_dates(tmp_path):
    folder = DATA / "remote_sensing/oscd_s2_geotiff/rennes"
    pair = [next(iter(sorted((folder / name).glob("*B04.tif"))), None) for name in ("imgs_1", "imgs_2")]
    if None in pair:
        pytest.skip(f"no OSCD rasters at {folder} (STATEFIELD_DATA)")
    scaling = [percentile_range(path) for path in pair]
    predict_raster(
        Blurred(1, 2), pair, tmp_path / "out.tif", tile=128, scaling=scaling, polygons=tmp_path / "o.geojson"
    )
    with rasterio.open(pair[0]) as given, rasterio.open(tmp_path / "out.tif") as dataset:
        assert dataset.crs.to_wkt() == given.crs.to_wkt() and dataset.transform == given.transform
    assert cog_validate(str(tmp_path / "out.tif"), quiet=True)[0]
    assert json.loads((tmp_path / "o.geojson").read_text())["features"]
