"""Scalings measured on rasters in strips are those of the whole picture."""

import numpy as np
import pytest
from fakes.rasters import change_pair, write_raster

from statefield.errors import DataError
from statefield.tasks.common.config import NormalisationConfig
from statefield.tasks.common.normalisation import normalise
from statefield.tasks.remote_sensing import raster_scaling
from statefield.tasks.remote_sensing.raster_predict import open_sources
from statefield.tasks.remote_sensing.raster_scaling import normalising, standardising


@pytest.fixture(autouse=True)
def few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(raster_scaling, "_ROWS", 37)


CALIBRATED = {"low": 20.0, "high": 150.0, "mean": 90.0, "std": 33.0}


@pytest.mark.parametrize("method", ["zscore", "zscore_nonzero", "range", "ct", "none"])
@pytest.mark.parametrize("clip", [None, (10.0, 70.0)])
def test_a_raster_becomes_what_normalise_makes_of_the_picture(tmp_path, method, clip):
    image = write_raster(tmp_path / "a.tif", 120, 90, bands=2)
    image.array[:, :30, :30] = 0
    image.save()
    config = NormalisationConfig(method=method, clip_percentiles=clip, **CALIBRATED)
    (source,) = open_sources([image.path])
    scaling = normalising(source, config)
    np.testing.assert_allclose(
        scaling.apply(image.array.astype(np.float32)), normalise(image.array, config), rtol=1e-5, atol=1e-6
    )


def test_two_dates_are_standardised_over_the_pixels_that_both_have(tmp_path):
    before, after = change_pair(tmp_path, 120, 90, nodata=200)
    before.array[:, :40] = 200
    after.array[1, :, :10] = 200
    before.save(), after.save()
    sources = open_sources([before.path, after.path])
    told = []
    found = standardising(sources, lambda *rows: told.append(rows))
    for image, scaling in zip((before, after), found, strict=True):
        values = image.array[:, 40:, 10:].reshape(3, -1).astype(np.float64)
        np.testing.assert_allclose(scaling.offset, values.mean(axis=1))
        np.testing.assert_allclose(scaling.scale, values.std(axis=1))
        assert scaling.clip is None and not scaling.keep_zero
    assert told[-1] == (120, 120)


def test_percentiles_of_a_band_without_data_are_refused(tmp_path):
    image = write_raster(tmp_path / "a.tif", 20, 20, nodata=3)
    image.array[1] = 3
    image.save()
    (source,) = open_sources([image.path])
    with pytest.raises(DataError, match=r"a\.tif, band 2: no pixel has data"):
        normalising(source, NormalisationConfig(clip_percentiles=(1.0, 99.0)))
