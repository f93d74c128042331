"""`statefield segment predict`: the labels of a raster are those of the same picture, whatever its size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from fakes.medical import write_pairs, write_pairs_of_volumes
from fakes.rasters import write_raster
from PIL import Image

from statefield.cli.main import main
from statefield.tasks.common.config import NormalisationConfig, TrainerConfig
from statefield.tasks.medical.recipe import DataConfig, ModelConfig, SegmentationRecipe
from statefield.tasks.medical.run import train


def trained(folder: Path, data: Path, **settings) -> Path:
    """The folder of two steps of training."""
    recipe = SegmentationRecipe(
        run=folder / "run",
        data=DataConfig(root=data, patch_size=(16, 16), batch_size=2, augment="none", **settings),
        model=ModelConfig(encoder="test_resnet", detail_channels=4),
        trainer=TrainerConfig(fast_dev_run=True, accelerator="cpu"),
    )
    train(recipe)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pictures of three channels, each normalised by its own percentiles, mean and deviation."""
    folder = tmp_path_factory.mktemp("segment")
    data = write_pairs(folder / "data", num_cases=6, num_channels=3, num_classes=3)
    return trained(folder, data, normalisation=NormalisationConfig(clip_percentiles=(1.0, 99.0)))


def words_of(run: Path, image: Path, output: Path, *more) -> list[str]:
    return ["segment", "predict", str(image), "--run", str(run), "-o", str(output), "--device", "cpu", *map(str, more)]


def test_labels_and_probabilities_are_those_of_the_picture(tmp_path, run, capsys):
    raster = write_raster(tmp_path / "a.tif", 90, 130)
    Image.fromarray(raster.array.transpose(1, 2, 0)).save(tmp_path / "a.png")
    words = ["medical", "predict", "--run", str(run), str(tmp_path / "a.png"), "--device", "cpu", "--no-postprocess"]
    assert main([*words, "--output", str(tmp_path / "a_labels.png")]) == 0
    picture = np.asarray(Image.open(tmp_path / "a_labels.png"))
    assert main(words_of(run, raster.path, tmp_path / "labels.tif", "--probabilities", tmp_path / "p.tif")) == 0
    out = " ".join(capsys.readouterr().out.split())
    with rasterio.open(tmp_path / "labels.tif") as labels, rasterio.open(tmp_path / "p.tif") as chances:
        found, sure = labels.read(1), np.sort(chances.read(), axis=0)
        assert labels.crs.to_wkt() == raster.profile["crs"].to_wkt() and labels.transform == raster.transform
        assert labels.tags(1)["CLASS_0"] == "background"
    clear = sure[-1] - sure[-2] > 1e-4  # elsewhere rounding decides
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], picture[clear])
    assert "test_resnet of" in out and "Wrote" in out


def test_bands_are_chosen_and_counted(tmp_path, run, capsys):
    raster = write_raster(tmp_path / "a.tif", 60, 70, bands=5)
    assert main(words_of(run, raster.path, tmp_path / "out.tif")) == 2
    assert "gives 5 of its 5 bands" in " ".join(capsys.readouterr().err.split())
    assert main(words_of(run, raster.path, tmp_path / "out.tif", "--bands", "4,3,2")) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "out.tif"]


def test_a_run_of_volumes_and_a_raster_without_data_are_refused(tmp_path, run, capsys):
    volumes = trained(tmp_path, write_pairs_of_volumes(tmp_path / "data", num_cases=5))
    raster = write_raster(tmp_path / "a.tif", 60, 70, nodata=7)
    assert main(words_of(volumes, raster.path, tmp_path / "out.tif")) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{volumes} was trained on volumes" in said
    raster.array[:] = 7
    raster.save()
    assert main(words_of(run, raster.path, tmp_path / "out.tif")) == 2
    assert "a.tif, band 1: no pixel has data" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out.tif").exists()
