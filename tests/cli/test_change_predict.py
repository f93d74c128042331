"""`statefield change predict`: from rasters and a net's file to maps, killed and resumed, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from fakes.change import write_levir
from fakes.rasters import change_pair, write_raster
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rio_cogeo.cogeo import cog_validate

from statefield.cli.main import main
from statefield.tasks.common.config import TrainerConfig
from statefield.tasks.common.tiling import sliding_window
from statefield.tasks.remote_sensing.change_recipe import (
    BandScalingConfig,
    ChangeDataConfig,
    ChangeInferenceConfig,
    ChangeModelConfig,
    ChangeRecipe,
)
from statefield.tasks.remote_sensing.change_run import load_change_run
from statefield.tasks.remote_sensing.change_training import fit
from statefield.tasks.remote_sensing.nets import MambaBCD, MambaBDA, MambaSCD
from statefield.tasks.remote_sensing.nets.checkpoints import load_change_net
from statefield.tasks.remote_sensing.raster_predict import predict_raster
from statefield.tasks.remote_sensing.raster_sources import BandScaling

NETS = {"mamba_bcd": MambaBCD, "mamba_scd": MambaSCD, "mamba_bda": MambaBDA}
IMAGENET = BandScaling.standardised([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])


def converted(folder: Path, name: str) -> Path:
    """The file that `statefield convert` makes of a small net with random weights."""
    torch.manual_seed(0)
    net = NETS[name](encoder="test_resnet", width=8)
    torch.save(net.state_dict(), folder / f"{name}.pth")
    target = folder / f"{name}.safetensors"
    words = ["convert", str(folder / f"{name}.pth"), str(target), "--model", name, "--set", "encoder=test_resnet"]
    assert main(words) == 0
    return target


@pytest.fixture(scope="module")
def binary(tmp_path_factory) -> Path:
    return converted(tmp_path_factory.mktemp("net"), "mamba_bcd")


def words_of(before, after, output, *more) -> list[str]:
    return ["change", "predict", str(before), str(after), "-o", str(output), "--device", "cpu", *map(str, more)]


def told(capsys: pytest.CaptureFixture) -> tuple[str, str]:
    found = capsys.readouterr()
    return " ".join(found.out.split()), " ".join(found.err.split())


def test_the_command_writes_what_the_engine_gives_with_everything_asked_for(tmp_path, binary, capsys):
    before, after = change_pair(tmp_path, 200, 300, nodata=200)
    before.array[:, :20] = 200
    before.save()
    output, polygons = tmp_path / "out/change.tif", tmp_path / "out/change.gpkg"
    more = ["--weights", binary, "--tile", 64, "--probabilities", tmp_path / "chances/p.tif", "--polygons", polygons]
    assert main(words_of(before.path, after.path, output, *more)) == 0
    out, _ = told(capsys)
    _, net, _ = load_change_net(binary)
    expected = predict_raster(
        net,
        [before.path, after.path],
        tmp_path / "expected.tif",
        tile=64,
        scaling=IMAGENET,
        polygons=tmp_path / "e.gpkg",
    )
    assert output.read_bytes() == (tmp_path / "expected.tif").read_bytes()
    unchanged, changed = expected.counts[0]
    total = unchanged + changed
    assert total == 180 * 300
    assert f"Wrote {output}, 200 x 300 pixels on the grid of {before.path}: " in out
    assert f"unchanged {100 * unchanged / total:.4g} %, changed {100 * changed / total:.4g} % of the pixels" in out
    assert (
        "(nodata 200)" in out and f"{expected.num_tiles} tiles went through mamba_bcd of mamba_bcd.safetensors" in out
    )
    assert f"Polygons: {expected.num_polygons} in {polygons}." in out
    valid, errors, warned = cog_validate(str(output), quiet=True)
    assert valid and not errors and not warned
    with rasterio.open(before.path) as given, rasterio.open(output) as written:
        assert (written.crs.to_wkt(), written.transform, written.nodata) == (given.crs.to_wkt(), given.transform, 200)
    assert sorted(path.name for path in output.parent.iterdir()) == ["change.gpkg", "change.tif"]
    assert [path.name for path in (tmp_path / "chances").iterdir()] == ["p.tif"]


@pytest.mark.parametrize("name", ["mamba_scd", "mamba_bda"])
def test_classes_are_said_only_where_something_changed_or_stood(tmp_path, name):
    weights = converted(tmp_path, name)
    before, after = change_pair(tmp_path, 90, 120)
    output = tmp_path / "out.tif"
    assert main(words_of(before.path, after.path, output, "--weights", weights, "--tile", 64)) == 0
    with rasterio.open(output) as dataset:
        first, *others = dataset.read()
        names = dataset.descriptions
        assert names == (("change", "before", "after") if name == "mamba_scd" else ("building", "damage"))
        assert dataset.tags(2)["CLASS_1"] == ("water" if name == "mamba_scd" else "no damage")
    for labels in others:  # and there never the output that no loss trains
        np.testing.assert_array_equal(labels > 0, first > 0)


def test_a_killed_command_goes_on_with_resume_to_the_same_file(tmp_path, binary, capsys):
    before, after = change_pair(tmp_path, 1100, 900)
    more = ["--weights", binary, "--tile", 96, "--overlap", 0.25, "--threads", 1, "--polygons"]
    assert main(words_of(before.path, after.path, tmp_path / "whole.tif", *more, tmp_path / "whole.geojson")) == 0
    output = tmp_path / "out.tif"
    words = words_of(before.path, after.path, output, *more, tmp_path / "out.geojson")
    code = "import sys; from statefield.cli.main import run; run()"
    child = subprocess.Popen([sys.executable, "-c", code, *words], env={**os.environ, "OMP_NUM_THREADS": "1"})
    journal = tmp_path / ".out.tif.partial/journal"
    while child.poll() is None and not (journal.exists() and '"strip": 0' in journal.read_text()):
        time.sleep(0.02)
    assert child.poll() is None, "the child ended before it could be killed"
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not output.exists()
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0
    assert "strips were there from the run before" in told(capsys)[0]
    assert output.read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert (tmp_path / "out.geojson").read_bytes() == (tmp_path / "whole.geojson").read_bytes()
    assert not list(tmp_path.glob(".*"))
    assert main([*words, "--resume"]) == 0
    assert "kept as it is" in told(capsys)[0]
    assert main(words) == 2
    assert "pass --overwrite" in told(capsys)[1]


@pytest.fixture
def refused(tmp_path, binary, capsys):
    """Run the command; it must end with status 2, a paragraph with these parts, and no new file."""

    def call(before, after, *parts, more=(), output=None, weights=binary):
        held = sorted(str(path) for path in tmp_path.rglob("*"))
        words = words_of(before, after, output or tmp_path / "new/out.tif", "--weights", weights, *more)
        assert main(words if "--tile" in words else [*words, "--tile", "32"]) == 2
        out, err = told(capsys)
        assert "Traceback" not in err and "Wrote" not in out
        for part in parts:
            assert part in err, err
        assert sorted(str(path) for path in tmp_path.rglob("*")) == held

    return call


def test_rasters_of_other_places_are_refused(tmp_path, binary, refused):
    before, after = change_pair(tmp_path, 60, 70)
    other = write_raster(tmp_path / "b.tif", 60, 70, crs=CRS.from_epsg(32632))
    refused(before.path, other.path, "before.tif", "b.tif", "reference systems differ")
    far = write_raster(tmp_path / "c.tif", 60, 70, shift=(1000, 0))
    refused(before.path, far.path, "before.tif", "c.tif", "do not overlap", more=["--align"])
    moved = write_raster(tmp_path / "d.tif", 60, 70, shift=(3, 0))
    refused(before.path, moved.path, "before.tif", "d.tif", "--align")
    refused(before.path, after.path, "absent.pth", weights=tmp_path / "absent.pth")
    more = ["--weights", binary, "--tile", 32, "--align"]
    assert main(words_of(before.path, moved.path, tmp_path / "ok.tif", *more)) == 0


def test_damaged_empty_and_virtual_files_are_refused(tmp_path, refused):
    before, after = change_pair(tmp_path, 600, 700, compress="DEFLATE")
    content = after.path.read_bytes()
    for name, share in (("half.tif", 0.5), ("tail.tif", 0.97)):
        (tmp_path / name).write_bytes(content[: int(len(content) * share)])
        refused(before.path, tmp_path / name, name, "cut off")
    (tmp_path / "empty.tif").write_bytes(b"")
    refused(before.path, tmp_path / "empty.tif", "empty.tif", "no GTiff raster")
    (tmp_path / "vrt.tif").write_text(
        '<VRTDataset rasterXSize="700" rasterYSize="600"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{before.path}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    (tmp_path / "mrf.tif").write_text(
        '<MRF_META><CachedSource><Source>/etc/passwd</Source></CachedSource><Raster><Size x="9"/></Raster></MRF_META>'
    )
    (tmp_path / "gti.tif").write_text(
        "<GDALTileIndexDataset><IndexDataset>/etc/passwd</IndexDataset></GDALTileIndexDataset>"
    )
    for name in ("vrt.tif", "mrf.tif", "gti.tif"):
        refused(before.path, tmp_path / name, name, "no GTiff raster")
    for name in ("https://example.org/a.tif", "/vsicurl/https://example.org/a.tif", "GTI:/etc/passwd", "VRT:x"):
        refused(before.path, name, name, "--allow-remote")
    none = bytearray(write_raster(tmp_path / "plain.tif", 60, 70).path.read_bytes())
    tag = none.find(np.array([277, 3], "<u2").tobytes())  # SamplesPerPixel, a short
    none[tag + 8 : tag + 10] = b"\0\0"
    (tmp_path / "none.tif").write_bytes(none)
    refused(before.path, tmp_path / "none.tif", "none.tif")


def test_rasters_without_data_or_of_other_bands_are_refused(tmp_path, refused):
    before, after = change_pair(tmp_path, 60, 70, nodata=9)
    after.array[:] = 9
    after.save()
    refused(before.path, after.path, "before.tif", "after.tif", "no pixel has data")
    five = write_raster(tmp_path / "five.tif", 60, 70, bands=5)
    refused(five.path, five.path, "five.tif gives 5 of its 5 bands", "takes 3", "--bands 1,2,3")
    refused(five.path, five.path, "bands=(4, 5, 6)", "five.tif has bands 1 to 5", more=["--bands", "4,5,6"])
    deep = write_raster(tmp_path / "deep.tif", 60, 70, dtype="uint16")
    refused(deep.path, deep.path, "deep.tif has 3 bands of uint16", "--mean and --std")


def test_settings_and_places_that_cannot_work_are_refused(tmp_path, refused, binary, capsys):
    before, after = change_pair(tmp_path, 60, 70)
    pair = (before.path, after.path)
    for tile in ("0", "-4", "1000000"):
        refused(*pair, f"tile={tile}", more=["--tile", tile])
    refused(*pair, "2 GiB", more=["--tile", "8192", "--batch-size", "9"])
    refused(*pair, "overlap=1.0", more=["--overlap", "1"])
    refused(*pair, "nodata=1", more=["--nodata", "1"])
    refused(*pair, "--threads 0", more=["--threads", "0"])
    refused(*pair, "--device cuda:77", more=["--device", "cuda:77"])
    refused(*pair, "ends in .tif", output=tmp_path / "out.png")
    refused(*pair, "ends in .gpkg or .geojson", more=["--polygons", tmp_path / "p.shp"])
    refused(*pair, "a.txt is no folder", output=_file(tmp_path / "a.txt") / "out.tif")
    refused(*pair, "is a folder", more=["--polygons", _folder(tmp_path / "p.gpkg"), "--overwrite"])
    refused(*pair, "before.tif", "must differ", output=before.path, more=["--overwrite"])
    refused(*pair, "must differ", more=["--probabilities", tmp_path / "new/out.tif"])
    refused(*pair, "convert", weights=_file(tmp_path / "other.safetensors"))
    for words, part in (
        ([], "--run FOLDER"),
        (["--weights", binary, "--run", tmp_path], "one of the two"),
        (["--run", tmp_path, "--model", "mamba_bcd"], "--model with --run"),
        (["--run", tmp_path], "not a run folder"),
        (["--weights", binary, "--mean", "1,2,3"], "belong together"),
        (["--weights", binary, "--encoder", "tiny"], "was converted with encoder='test_resnet'"),
        (["--weights", binary, "--model", "mamba_scd"], "holds weights of mamba_bcd"),
    ):
        assert main(words_of(*pair, tmp_path / "new/out.tif", *words)) == 2
        assert part in told(capsys)[1]
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_takes_no_files_is_refused(tmp_path, refused):
    before, after = change_pair(tmp_path, 60, 70)
    closed = _folder(tmp_path / "closed")
    closed.chmod(0o500)
    refused(before.path, after.path, "closed takes no files", output=closed / "out.tif")


def test_a_disk_that_refuses_is_told_and_what_is_finished_kept(tmp_path, binary, capsys, monkeypatch):
    before, after = change_pair(tmp_path, 60, 70)

    def full(*_, **__):
        raise OSError(28, "No space left on device", "somewhere.tif")

    monkeypatch.setattr("statefield.tasks.remote_sensing.raster_predict.write_labels", full)
    assert main(words_of(before.path, after.path, tmp_path / "out.tif", "--weights", binary, "--tile", 32)) == 2
    assert "somewhere.tif: could not be read or written (No space left on device)" in told(capsys)[1]
    monkeypatch.undo()
    words = words_of(before.path, after.path, tmp_path / "out.tif", "--weights", binary, "--tile", 32, "--resume")
    assert main(words) == 0
    assert "0 tiles went through" in told(capsys)[0]


def test_without_a_place_on_the_ground_a_map_and_a_geopackage_are_written(tmp_path, binary):
    profile = {"driver": "GTiff", "height": 40, "width": 50, "count": 3, "dtype": "uint8"}
    for name in ("a.tif", "b.tif"):
        with pytest.warns(NotGeoreferencedWarning), rasterio.open(tmp_path / name, "w", **profile) as dataset:
            dataset.write(np.random.default_rng(0).integers(0, 255, (3, 40, 50), dtype=np.uint8))
    more = ["--weights", binary, "--tile", 32, "--polygons", tmp_path / "p.gpkg"]
    assert main(words_of(tmp_path / "a.tif", tmp_path / "b.tif", tmp_path / "out.tif", *more)) == 0
    assert (tmp_path / "p.gpkg").exists()


def _file(path: Path) -> Path:
    path.write_text("no raster")
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two of three bands, each image scaled by itself, that calls more than half of the pixels changed."""
    folder = tmp_path_factory.mktemp("run")
    recipe = ChangeRecipe(
        run=folder / "run",
        data=ChangeDataConfig(
            root=write_levir(folder / "LEVIR-CD"),
            bands=["blue", "red"],
            scaling=BandScalingConfig(method="image"),
            patch_size=(32, 32),
            batch_size=2,
        ),
        model=ChangeModelConfig(encoder="test_resnet", net_args={"width": 8}, warmup_steps=1),
        trainer=TrainerConfig(max_epochs=1, steps_per_epoch=1, threads=1, accelerator="cpu"),
        inference=ChangeInferenceConfig(threshold=0.3),
    )
    fit(recipe)
    return folder / "run"


def test_a_run_predicts_with_its_own_bands_scaling_window_and_threshold(tmp_path, run, capsys):
    before, after = change_pair(tmp_path, 100, 140, nodata=255)
    before.array[:, :25] = 255
    before.save()
    output, chances = tmp_path / "out.tif", tmp_path / "p.tif"
    assert main(words_of(before.path, after.path, output, "--run", run, "--probabilities", chances)) == 0
    assert f"went through mamba_bcd test_resnet of {run}" in told(capsys)[0]
    trained = load_change_run(run)
    valid = np.ones((100, 140), bool)
    valid[:25] = False
    images = []
    for date in (before, after):
        image = date.array[[2, 0]].astype(np.float32)
        images.append(torch.from_numpy(trained.scaling_of(image, valid).apply(image) * valid)[None])
    logits = sliding_window(
        torch.cat(images, dim=1),
        lambda x: trained.net(x[:, :2], x[:, 2:]),
        (32, 32),
        overlap=trained.recipe.inference.overlap,
    )[0]
    with rasterio.open(chances) as dataset, rasterio.open(output) as labels:
        found = dataset.read()
        np.testing.assert_array_equal(np.isnan(found[0]), ~valid)
        expected = logits.softmax(dim=0).numpy()
        np.testing.assert_allclose(found[:, valid], expected[:, valid], atol=1e-4)
        clear = valid & (np.abs(found[0] - found[1]) > 1e-3)
        np.testing.assert_array_equal(labels.read(1)[clear], (found[1] > found[0])[clear])
        assert labels.nodata == 255 and labels.tags(1)["CLASS_1"] == "changed"


def test_other_bands_than_the_run_s_are_refused(tmp_path, run, capsys):
    five = write_raster(tmp_path / "five.tif", 60, 70, bands=5)
    assert main(words_of(five.path, five.path, tmp_path / "out.tif", "--run", run)) == 2
    said = told(capsys)[1]
    assert "five.tif gives 5 of its 5 bands" in said and "takes 2 (blue, red)" in said
