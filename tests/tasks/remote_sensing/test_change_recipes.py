"""Every recipe of change detection is run, its own nets and settings, for two steps on fake data of its layout."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from fakes.change import OSCD_CITIES, write_change_pairs, write_oscd
from fakes.medical import write_picture

from statefield.tasks.remote_sensing.change_recipe import read_recipe
from statefield.tasks.remote_sensing.change_training import train

RECIPES = sorted((Path(__file__).parents[3] / "recipes" / "remote_sensing").glob("*.yaml"))
CHANGE = [path for path in RECIPES if "mamba_bcd" in path.read_text() or "mamba_scd" in path.read_text()]


def _write_named_oscd(root: Path, cities: list[str]) -> Path:
    """The fake OSCD with these cities among others."""
    from fakes import change

    write_oscd(root)
    for seed, city in enumerate(cities):
        before, after, changed = change.pair((36, 42), seed=100 + seed)
        write_picture(root / city / "pair" / "img1.png", before)
        write_picture(root / city / "pair" / "img2.png", after)
        write_picture(root / city / "cm" / "cm.png", changed * 255)
    return root


def test_there_are_recipes():
    assert {path.stem for path in CHANGE} >= {"levir_sample", "oscd"}


# its two nets are of full size
SLOW = {"oscd"}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else []) for path in CHANGE],
)
def test_a_recipe_trains_its_model_and_control_and_writes_their_comparison(path, tmp_path):
    recipe = read_recipe(path)
    if recipe.data.layout == "oscd":
        named = [*recipe.data.options["test_cities"], *recipe.data.options["val_cities"]]
        root = _write_named_oscd(tmp_path / "data", [city for city in named if city not in OSCD_CITIES])
    else:
        root = write_change_pairs(tmp_path / "data")
    data = dataclasses.replace(recipe.data, root=root, patch_size=(32, 32), batch_size=2, workers=0)
    trainer = dataclasses.replace(recipe.trainer, fast_dev_run=True, accelerator="cpu", threads=1)
    inference = dataclasses.replace(recipe.inference, roi=(32, 32), overlap=0.0, mirror=False)
    result = train(dataclasses.replace(recipe, run=tmp_path / "run", data=data, trainer=trainer, inference=inference))
    assert [row.role for row in result.comparison] == ["model", "control"]
    stored = json.loads(result.folder.metrics.read_text())
    assert stored["comparison"][0]["name"] == recipe.model.name
    assert result.report.exists()
