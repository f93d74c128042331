"""Classifiers of pixels, from training to a map, on a small made-up scene."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from torch import nn

from statefield.backbones import without_scan
from statefield.datasets.hyperspectral import Scene
from statefield.datasets.readers.raster import read_single_band
from statefield.datasets.sample import DatasetInfo
from statefield.errors import ConfigError, LabelError, ShapeError, TrainingDiverged
from statefield.files import write_json
from statefield.tasks.remote_sensing.hyperspectral.comparison import compare, table
from statefield.tasks.remote_sensing.hyperspectral.contenders import CONTENDERS, NetContender, examples
from statefield.tasks.remote_sensing.hyperspectral.preparation import Preparation
from statefield.tasks.remote_sensing.hyperspectral.scene_map import (
    palette,
    predict_scene,
    write_picture,
    write_raster,
)
from statefield.tasks.remote_sensing.hyperspectral.splits import block_split
from statefield.tasks.remote_sensing.hyperspectral.training import Examples, Schedule, train_net
from statefield.tasks.remote_sensing.hyperspectral.windows import Windows
from statefield.tasks.remote_sensing.nets.spectral_spatial import SpectralSpatialCNN, SpectralSpatialMamba

PLACE = (30.0, 0.0, 500_000.0, 0.0, -30.0, 4_400_000.0)


@cache
def fields() -> Scene:
    """Three classes with a spectrum each, and noise: fields of 8 x 8 pixels, 48 x 48 in all, 20 bands."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.permuted(np.tile([0, 1, 2], 12)).reshape(6, 6), np.ones((8, 8))).astype(np.int64)
    spectra = rng.normal(size=(3, 20)) * 2
    cube = (np.moveaxis(spectra[labels], -1, 0) + rng.normal(size=(20, 48, 48))).astype(np.float32)
    labels[:, 24] = -1
    wkt = rasterio.CRS.from_epsg(32616).to_wkt()
    meta = {"case": "fields", "path": "fields", "spacing": (1.0, 1.0), "spacing_known": False}
    info = DatasetInfo(("a", "b", "c"), tuple(map(str, range(20))), 2)
    return Scene(cube, labels, info, {**meta, "affine": None, "file": None, "crs": wkt, "transform": PLACE})


@pytest.mark.parametrize("name", list(CONTENDERS))
def test_each_contender_learns_fields_that_it_was_not_trained_on(name: str) -> None:
    scene, contender = fields(), CONTENDERS[name]
    split = block_split(scene.labels, window=contender.window)
    classifier = contender.fit(scene, split, seed=0, epochs=8)
    test = examples(scene, split, "test")
    assert (classifier.predict(test.pixels) == test.labels).mean() > 0.8  # by chance: 1 / 3
    assert classifier.num_parameters > 100


@pytest.mark.parametrize("name", ["morpmamba", "spectral_spatial_mamba"])
def test_the_seed_alone_decides_what_is_learnt(name: str) -> None:
    scene = fields()
    split = block_split(scene.labels, window=7)
    rows, columns = np.mgrid[:48, :48]
    pixels = np.stack([rows.ravel(), columns.ravel()], 1)
    noise = np.random.default_rng(9).normal(size=scene.cube.shape).astype(np.float32) * 3  # on which nets disagree
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (
        CONTENDERS[name].fit(scene, split, seed=seed, epochs=1).on(noise)(pixels) for seed in (5, 5, 6)
    )
    assert (first == again).all() and (first != other).any()
    assert (torch.get_rng_state() == before).all()


def test_labels_of_test_pixels_are_not_looked_at() -> None:
    scene = fields()
    split = block_split(scene.labels, window=7)
    hidden = scene.labels.copy()
    hidden[split.part == 2] = (hidden[split.part == 2] + 1) % 3
    pixels = split.pixels("test")
    for name in ("morpmamba", "svm"):
        found = [
            CONTENDERS[name].fit(Scene(scene.cube, labels, scene.info, scene.meta), split, seed=0, epochs=1)
            for labels in (scene.labels, hidden)
        ]
        assert (found[0].predict(pixels) == found[1].predict(pixels)).all()


def test_a_window_larger_than_the_split_was_made_for_is_refused() -> None:
    scene = fields()
    with pytest.raises(ConfigError, match="parts would overlap"):
        CONTENDERS["cnn3d"].fit(scene, block_split(scene.labels, window=3), seed=0)


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    scene = fields()
    windows = Windows(np.full((2, 48, 48), np.nan, np.float32), 1)
    with pytest.raises(TrainingDiverged, match="epoch 1, step 1"):
        train_net(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(2, 3)),
            windows,
            examples(scene, block_split(scene.labels, window=1), "train"),
            Examples(np.empty((0, 2), np.int64), np.empty(0, np.int64)),
            Schedule(epochs=1),
            seed=0,
        )


def test_the_net_of_the_best_validation_epoch_is_kept() -> None:
    scene = fields()
    split = block_split(scene.labels, window=1)
    windows = Windows(Preparation("pca", 3).fit(scene.cube.reshape(20, -1).T)(scene.cube), 1)
    train, val = examples(scene, split, "train"), examples(scene, split, "val")
    # a rate at which the weights jump about: the last epoch is not the best
    settings = Schedule(epochs=12, batch_size=32, lr=3.0)
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 3))  # noqa: E731
    kept = train_net(build, windows, train, val, settings, seed=0)
    right = lambda net: float((net(windows(val.pixels)).argmax(1).numpy() == val.labels).mean())  # noqa: E731
    shorter = [
        train_net(build, windows, train, Examples(val.pixels[:0], val.labels[:0]), Schedule(n, 32, 3.0), seed=0)
        for n in range(1, 13)
    ]
    assert right(kept) == max(map(right, shorter))


@pytest.mark.parametrize(("bands", "parameters"), [(20, 50_000), (200, 70_000)])
def test_nets_take_windows_of_their_size_and_every_weight_learns(bands: int, parameters: int) -> None:
    for net in (SpectralSpatialMamba(bands, 5), SpectralSpatialCNN(bands, 5)):
        x = torch.randn(2, bands, net.window, net.window)
        logits = net.eval()(x)
        assert logits.shape == (2, 5)
        logits.square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
        assert sum(p.numel() for p in net.parameters()) < parameters
        with pytest.raises(ShapeError, match=r"needs \[B"):
            net(x[:, :, :-1])


def test_the_control_without_scan_has_the_rest() -> None:
    net = SpectralSpatialMamba(20, 5)
    names = {name for name, _ in net.named_parameters()}
    control = {name for name, _ in without_scan(net).named_parameters()}
    assert control < names and net.eval()(torch.randn(1, 20, 7, 7)).shape == (1, 5)


def test_the_table_has_every_contender_on_every_split_and_goes_into_json(tmp_path: Path) -> None:
    result = compare(fields(), contenders=("svm", "morpmamba"), seeds=(0, 1), epochs=1)
    assert [(run["split"], run["contender"], run["seed"]) for run in result["runs"]] == [
        (split, name, seed) for split in ("blocks", "random-leaky") for seed in (0, 1) for name in ("svm", "morpmamba")
    ]
    for run in result["runs"]:
        assert np.sum(run["confusion"]) == run["pixels"]["test"] > 0
        assert run["scores"]["OA"] == pytest.approx(np.trace(run["confusion"]) / run["pixels"]["test"])
        leaks = run["share_of_test_windows_with_training_pixels"]
        assert (leaks > 0.9) == ((run["split"], run["contender"]) == ("random-leaky", "morpmamba"))
    both = [run["scores"]["OA"] for run in result["runs"] if (run["split"], run["contender"]) == ("blocks", "svm")]
    assert result["spread"]["blocks"]["svm"]["OA"]["mean"] == pytest.approx(np.mean(both))
    write_json(tmp_path / "result.json", result)
    read = json.loads((tmp_path / "result.json").read_text())
    assert read["spread"]["blocks"]["svm"]["OA"]["runs"] == 2
    lines = table(result).splitlines()
    assert len(lines) == 8 and f"| blocks | svm | {100 * np.mean(both):.2f} ± " in lines[4]


def test_a_larger_window_leaves_the_pixels_that_others_would_have() -> None:
    runs = [
        compare(fields(), contenders=names, splits=("blocks",), seeds=(0,), epochs=1, window=window)["runs"][0]
        for names, window in ((("svm", "morpmamba"), 1), (("svm",), 4), (("svm",), 1))
    ]
    assert runs[0]["pixels"] == runs[1]["pixels"] and runs[0]["confusion"] == runs[1]["confusion"]
    assert runs[2]["pixels"]["test"] > runs[1]["pixels"]["test"]


@pytest.mark.parametrize("suffix", [".tif", ".dat"])
def test_a_map_keeps_the_place_of_its_scene(suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene = fields()
    write_raster(tmp_path / f"map{suffix}", scene.labels, scene.info.classes, scene.meta)
    assert not caplog.records  # GDAL reports here what it could not write
    driver = "GTiff" if suffix == ".tif" else "ENVI"
    with rasterio.open(tmp_path / f"map{suffix}", driver=driver) as file:
        assert (file.read(1) == scene.labels + 1).all()
        assert tuple(file.transform)[:6] == PLACE and file.crs.to_epsg() == 32616
        assert [file.colormap(1)[value][:3] for value in range(4)] == [tuple(c) for c in palette(3).tolist()]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == (["map.tif"] if suffix == ".tif" else ["map.dat", "map.hdr"])
    if suffix == ".tif":
        values, header = read_single_band(tmp_path / "map.tif")
        assert header.nodata == 0 and values.dtype == np.uint8
        with rasterio.open(tmp_path / "map.tif") as file:
            assert file.tags(1)["CLASS_2"] == "b"
    else:
        text = (tmp_path / "map.hdr").read_text()
        assert "file type = ENVI Classification" in text and "class names = {no_class, a, b, c}" in text
        assert "description = {map of classes, map.dat}" in text and str(tmp_path) not in text


def test_a_picture_has_the_colour_of_each_class_and_black_without(tmp_path: Path) -> None:
    scene = fields()
    write_picture(tmp_path / "map.png", scene.labels, 3)
    picture = np.asarray(Image.open(tmp_path / "map.png").convert("RGB"))
    assert (picture == palette(3)[scene.labels + 1]).all()
    assert len(np.unique(palette(20)[1:], axis=0)) == 20


def test_a_scene_is_predicted_pixel_by_pixel() -> None:
    found = predict_scene(lambda pixels: pixels[:, 0] * 100 + pixels[:, 1], (37, 5))
    assert (found == np.arange(37)[:, None] * 100 + np.arange(5)).all()


def test_maps_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    labels = fields().labels
    with pytest.raises(LabelError, match="allow -1 to 1"):
        write_raster(tmp_path / "map.tif", labels, ("a", "b"), fields().meta)
    for name in ("map.jpg", "map"):
        with pytest.raises(ConfigError, match="end in"):
            write_raster(tmp_path / name, labels, ("a", "b", "c"), fields().meta)
        with pytest.raises(ConfigError, match=r"end in \.png"):
            write_picture(tmp_path / name, labels, 3)
    assert not list(tmp_path.iterdir())


def test_flips_of_windows_without_a_middle_are_refused() -> None:
    scene = fields()
    contender = NetContender(
        lambda channels, classes: nn.Sequential(nn.Flatten(), nn.Linear(16 * channels, classes)),
        window=4,
        preparation=Preparation("bands", 2),
        schedule=Schedule(epochs=1, flips=True),
    )
    with pytest.raises(ConfigError, match="odd side"):
        contender.fit(scene, block_split(scene.labels, window=4), seed=0)
