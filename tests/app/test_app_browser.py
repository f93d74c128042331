"""The three screens in a headless Chromium: load, upload, run, look, download."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import app_screens as screens
import nibabel as nib
import numpy as np
import pytest
import rasterio
from fakes.medical import write_pairs_of_volumes
from fakes.rasters import change_pair
from PIL import Image

WHY_NOT = screens.why_no_browser()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,  # a browser and three nets
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path, Path]:
    """(run of a segmentation of volumes, folder of volumes, weights of a net of change)."""
    import torch

    from statefield.cli.main import main
    from statefield.tasks.common.config import TrainerConfig
    from statefield.tasks.medical.recipe import DataConfig, ModelConfig, SegmentationRecipe
    from statefield.tasks.medical.run import train
    from statefield.tasks.remote_sensing.nets import MambaBCD

    folder = tmp_path_factory.mktemp("browser")
    data = write_pairs_of_volumes(folder / "data", num_cases=5)
    recipe = SegmentationRecipe(
        run=folder / "run",
        data=DataConfig(root=data, patch_size=(16, 16), batch_size=2, augment="none"),
        model=ModelConfig(encoder="test_resnet", detail_channels=4),
        trainer=TrainerConfig(fast_dev_run=True, accelerator="cpu"),
    )
    train(recipe)
    torch.manual_seed(0)
    torch.save(MambaBCD(encoder="test_resnet", width=8).state_dict(), folder / "net.pth")
    words = ["convert", str(folder / "net.pth"), str(folder / "net.safetensors"), "--model", "mamba_bcd"]
    assert main([*words, "--set", "encoder=test_resnet"]) == 0
    return folder / "run", data / "images", folder / "net.safetensors"


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    words = ["--medical", str(runs[0]), "--change", str(runs[2])]
    server = screens.served(words, tmp_path_factory.mktemp("server"), signal.SIGINT)
    with server as address, screens.open_page(address) as found:
        yield found
        others = [url for url in found.asked if not url.startswith((address, "data:", "blob:"))]
        assert not others  # the page asks nobody else for anything
        assert not found.said


def test_a_volume_becomes_a_mask_with_sliders_of_slices_and_opacity(page, runs, tmp_path):
    volume = runs[1] / "case_000.nii.gz"
    screens.medical(page, volume)
    shown = page.locator("#medical-picture img")
    first = shown.get_attribute("src")
    slices = page.locator("#medical-slice input[type=number]")
    slices.fill("2" if slices.input_value() != "2" else "3")
    slices.press("Enter")
    page.wait_for_function("(old) => document.querySelector('#medical-picture img').src !== old", arg=first)
    second = shown.get_attribute("src")
    opacity = page.locator("#medical-opacity input[type=number]")
    opacity.fill("0")
    opacity.press("Enter")
    page.wait_for_function("(old) => document.querySelector('#medical-picture img').src !== old", arg=second)
    labels = nib.load(screens.downloaded(page, "medical-files", ".nii.gz", tmp_path))
    assert labels.shape == nib.load(volume).shape and np.array_equal(labels.affine, nib.load(volume).affine)
    with Image.open(screens.picture(page, tmp_path / "page.png")) as shot:
        assert shot.width == screens.VIEW["width"]


def test_two_dates_become_a_map_with_polygons_that_can_be_hidden(page, tmp_path):
    before, after = change_pair(tmp_path, 96, 128)
    screens.change(page, before.path, after.path)
    page.locator("#change-map image.sf-after").wait_for(state="visible")
    page.locator("#change-date").get_by_label("earlier date").check()
    page.locator("#change-map image.sf-after").wait_for(state="hidden")
    page.locator("#change-polygons input").uncheck()
    page.wait_for_function("getComputedStyle(document.querySelector('.sf-polygons')).display === 'none'")
    with rasterio.open(screens.downloaded(page, "change-files", "change.tif", tmp_path)) as labels:
        assert labels.shape == (96, 128) and labels.transform == before.transform
    polygons = json.loads(screens.downloaded(page, "change-files", "geojson", tmp_path).read_text())
    assert len(polygons["features"]) == page.locator("#change-map path").count()


def test_a_result_and_its_truth_become_a_video_and_a_table(page, tmp_path):
    screens.tracks(page)
    assert screens.video_in(page) == {"width": 480, "height": 270, "seconds": pytest.approx(2.4, abs=0.1)}
    table = page.locator("#tracks-scores table").first.inner_text()
    assert table.split()[:4] == ["tracker", "HOTA", "DetA", "AssA"]
    scores = json.loads(screens.downloaded(page, "tracks-files", "scores.json", tmp_path).read_text())
    hota = float(np.mean(scores["trackers"]["street"]["pedestrian"]["combined"]["HOTA"]["HOTA"]))
    assert f"{100 * hota:.2f}" in table
    assert screens.downloaded(page, "tracks-files", ".webm", tmp_path).read_bytes()[:4] == b"\x1a\x45\xdf\xa3"


def test_a_file_that_is_none_of_these_is_one_paragraph_on_the_page(page, tmp_path):
    path = tmp_path / "notes.nii.gz"
    path.write_text("not a volume")
    page.reload()
    screens.medical(page, path)
    said = page.locator("#medical-message .sf-error").inner_text()
    assert said.startswith("DataError: notes.nii.gz: its first bytes") and "\n" not in said
