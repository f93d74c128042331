"""`statefield bench raster`: its quick run measures what it says, on pairs that are what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from statefield.bench.raster.pair import patches_of, write_pair
from statefield.cli.main import main
from statefield.errors import DatasetLayoutError


@pytest.mark.slow
def test_a_quick_run_measures_every_case_and_writes_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    target = tmp_path / "numbers.json"
    assert main(["bench", "raster", "--quick", "--json", str(target), "--scratch", str(tmp_path)]) == 0
    found = json.loads(target.read_text())
    assert [(row["raster"], row["data"]) for row in found["rows"]] == [
        ("600 x 600", "512 rows"),
        ("700 x 700", "512 rows"),
        ("800 x 800", "512 rows"),
        ("1,100 x 1,100", "512 rows"),
        ("600 x 600", "everywhere"),
    ]
    for row in found["rows"]:
        assert row["same_grid"] and row["tiles"] > 0 and 0 < row["net_share"] < 1 and row["peak_gb"] > 0
    assert len(found["seams"]) == 2 and all(seam["error"] <= 1e-5 for seam in found["seams"])
    assert all(goal["met"] for goal in found["goals"]) and found["correct"]
    assert "synthetic textures" in found["patches"] and "Spatial-Mamba" in found["net"]
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.json"]
    assert "seam" in capsys.readouterr().out


def test_pairs_are_sparse_with_one_row_of_blocks_of_patches_that_differ_between_the_dates(tmp_path: Path) -> None:
    patches, words = patches_of([])
    assert words == "synthetic textures with squares that differ"
    before, after = write_pair(tmp_path, 1300, patches, full=False)
    with rasterio.open(before) as first, rasterio.open(after) as second:
        assert first.nodata == 255 and first.block_shapes[0] == (512, 512) and first.transform == second.transform
        assert first.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1) is None  # not in the file
        a, b = first.read(), second.read()
    data = (a != 255).all(axis=0)
    assert data[512:1024].all() and not data[:512].any() and not data[1024:].any()
    assert 0.01 < (a != b).any(axis=0)[data].mean() < 0.5
    full, _ = write_pair(tmp_path, 600, patches, full=True)
    with rasterio.open(full) as dataset:
        assert (dataset.read() != 255).all()


def test_pictures_of_two_dates_are_taken_by_name_and_none_is_an_error(tmp_path: Path) -> None:
    for date in "AB":
        (tmp_path / date).mkdir()
        Image.fromarray(np.full((256, 256, 3), 255, np.uint8)).save(tmp_path / date / "one.png")
    Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(tmp_path / "A/alone.png")
    patches, words = patches_of([tmp_path])
    assert len(patches) == 1 and words == f"1 pairs of pictures of {tmp_path.name}"
    assert patches[0][0].max() == 254  # 255 is the rasters' value for no data
    with pytest.raises(DatasetLayoutError, match="no pictures of 256 x 256"):
        patches_of([tmp_path / "A"])
