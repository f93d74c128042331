"""What the app's screens do without a browser: the numbers are those of the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from fakes.medical import write_pairs
from fakes.rasters import change_pair
from PIL import Image

from statefield.app.change_job import ChangeJob
from statefield.app.examples import change_example, tracking_example
from statefield.app.medical_job import MedicalJob
from statefield.app.tracking_job import show_tracks
from statefield.cli.main import main
from statefield.datasets.readers.video import find_frames
from statefield.errors import ConfigError, DataError
from statefield.tasks.common.config import TrainerConfig
from statefield.tasks.medical.recipe import DataConfig, ModelConfig, SegmentationRecipe
from statefield.tasks.medical.run import train
from statefield.tasks.remote_sensing.nets import MambaBCD


@pytest.fixture(scope="module")
def medical(tmp_path_factory) -> tuple[Path, Path]:
    """(run folder, folder of pictures)."""
    folder = tmp_path_factory.mktemp("medical")
    data = write_pairs(folder / "data", num_cases=5)
    recipe = SegmentationRecipe(
        run=folder / "run",
        data=DataConfig(root=data, patch_size=(16, 16), batch_size=2, augment="none"),
        model=ModelConfig(encoder="test_resnet", detail_channels=4),
        trainer=TrainerConfig(fast_dev_run=True, accelerator="cpu"),
    )
    train(recipe)
    return folder / "run", data / "images"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A small net of change with random weights, as its authors' file."""
    folder = tmp_path_factory.mktemp("change")
    torch.manual_seed(0)
    torch.save(MambaBCD(encoder="test_resnet", width=8).state_dict(), folder / "net.pth")
    words = ["convert", str(folder / "net.pth"), str(folder / "net.safetensors"), "--model", "mamba_bcd"]
    assert main([*words, "--set", "encoder=test_resnet"]) == 0
    return folder / "net.safetensors"


def test_a_picture_is_segmented_as_the_command_line_does(medical, tmp_path):
    run, images = medical
    path = images / "case_000.png"
    (tmp_path / "app").mkdir()
    found = MedicalJob([run], "cpu").segment([path], tmp_path / "app")
    words = ["medical", "predict", "--run", str(run), str(path), "--output", str(tmp_path / "cli.png")]
    assert main([*words, "--device", "cpu"]) == 0
    expected = np.asarray(Image.open(tmp_path / "cli.png"))
    assert np.array_equal(np.load(found.labels)[0], expected)
    assert np.array_equal(np.asarray(Image.open(found.files[0])), expected)
    assert [share.count for share in found.shares] == [int((expected == 1).sum())]
    assert (found.num_slices, found.is_volume) == (1, False)


def test_opacity_reaches_from_the_image_to_the_full_colour(medical, tmp_path):
    run, images = medical
    found = MedicalJob([run], "cpu").segment([images / "case_000.png"], tmp_path)
    np.save(found.labels, np.ones_like(np.load(found.labels)))
    bare, full = found.slice(0, 0.0), found.slice(0, 1.0)
    assert np.array_equal(bare[..., 0], bare[..., 1])  # a grey picture without any colour
    assert np.array_equal(np.unique(full.reshape(-1, 3), axis=0), [[0xE6, 0x9F, 0x00]])


def test_two_cases_are_refused_with_what_to_do(medical, tmp_path):
    run, images = medical
    with pytest.raises(ConfigError, match="2 cases were given"):
        MedicalJob([run], "cpu").segment(sorted(images.iterdir())[:2], tmp_path)


def test_change_of_rasters_has_map_polygons_and_files(weights, tmp_path):
    before, after = change_pair(tmp_path, 96, 128)
    (tmp_path / "app").mkdir()
    found = ChangeJob(weights, "cpu").map(before.path, after.path, tmp_path / "app")
    words = ["change", "predict", str(before.path), str(after.path), "-o", str(tmp_path / "cli.tif")]
    assert main([*words, "--weights", str(weights), "--polygons", str(tmp_path / "cli.geojson")]) == 0
    with rasterio.open(tmp_path / "cli.tif") as a, rasterio.open(found.files[0]) as b:
        assert np.array_equal(a.read(), b.read()) and a.transform == b.transform
    assert json.loads(found.files[1].read_text()) == json.loads((tmp_path / "cli.geojson").read_text())
    assert found.map_html.count("<path ") == found.num_polygons
    assert [path.name for path in found.files] == ["change.tif", "change.geojson", "change.gpkg", "map.html"]
    assert "upper left" in found.map_html and "sf-scale" in found.map_html


def test_pictures_without_a_place_have_polygons_in_pixels(weights, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "app").mkdir()
    found = ChangeJob(weights, "cpu").map(tmp_path / "a.png", tmp_path / "b.png", tmp_path / "app")
    assert [path.name for path in found.files] == ["change.tif", "change.gpkg", "map.html"]
    assert "the polygons are in pixels" in found.map_html


def test_the_example_of_change_lies_on_the_ground_at_two_dates(tmp_path):
    before, after = change_example(tmp_path, side=128)
    with rasterio.open(before) as a, rasterio.open(after) as b:
        assert a.crs == b.crs and a.transform == b.transform and not np.array_equal(a.read(), b.read())


def test_tracks_with_a_truth_have_the_command_line_s_scores_and_a_video(tmp_path, capsys):
    (tmp_path / "given").mkdir()
    (tmp_path / "app").mkdir()
    results, truth, frames = tracking_example(tmp_path / "given")
    found = show_tracks(results, truth, frames, tmp_path / "app")
    row = found.tables[0].rows["street"]
    assert list(row)[:3] == ["HOTA", "DetA", "AssA"] and 50 < row["HOTA"] < 95
    assert row["IDSW"] == 1  # one person is given a new number
    (tmp_path / "gt" / "street" / "gt").mkdir(parents=True)
    (tmp_path / "gt" / "street" / "gt" / "gt.txt").write_bytes(truth.read_bytes())
    (tmp_path / "tracker").mkdir()
    (tmp_path / "tracker" / "street.txt").write_bytes(results.read_bytes())
    words = ["mot", "evaluate", "--gt", str(tmp_path / "gt"), "--results", str(tmp_path / "tracker")]
    assert main([*words, "--output", str(tmp_path / "cli")]) == 0
    capsys.readouterr()
    said, expected = (json.loads((tmp_path / folder / "scores.json").read_text()) for folder in ("app", "cli"))
    assert said["trackers"]["street"] == expected["trackers"]["tracker"]
    (video,) = find_frames([found.video])
    assert video.size == (480, 270) and len(list(video)) == 60 and found.video.suffix == ".webm"


def test_tracks_alone_are_drawn_over_an_empty_field(tmp_path):
    path = tmp_path / "walk.txt"
    path.write_text("".join(f"{frame},7,{10 * frame},20,30,60,1,-1,-1,-1\n" for frame in range(1, 13)))
    (tmp_path / "app").mkdir()
    found = show_tracks(path, None, [], tmp_path / "app")
    assert found.tables[0].rows["walk"] == {"frames": 12, "tracks": 1, "boxes": 12, "median length (frames)": 12.0}
    (video,) = find_frames([found.video])
    frames = list(video)
    assert len(frames) == 12
    below_title = frames[5][30:].astype(int)
    rows, columns = np.nonzero(np.abs(below_title - [0x23, 0x27, 0x2E]).sum(axis=2) > 150)
    assert 30 + rows.max() in range(76, 86) and columns.max() in range(86, 96)  # the box of frame 6 ends at (90, 80)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1,1,10,20,abc,60\n", "line 1"),
        ("999999,1,10,20,30,60,1\n", "frame 999999"),
        ("1,1,9e9,20,30,60,1\n", "pixels"),
    ],
)
def test_results_that_cannot_be_meant_are_said(tmp_path, text, reason):
    path = tmp_path / "walk.txt"
    path.write_text(text)
    (tmp_path / "app").mkdir()
    with pytest.raises(DataError, match=reason):
        show_tracks(path, None, [], tmp_path / "app")


def test_a_result_without_a_box_has_no_video(tmp_path):
    path = tmp_path / "none.txt"
    path.write_text("\n")
    (tmp_path / "app").mkdir()
    found = show_tracks(path, None, [], tmp_path / "app")
    assert found.video is None and found.tables[0].rows["none"]["boxes"] == 0
