"""The recipes of scene classification are run, their own nets and settings, for two steps on fakes of their layouts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from fakes.scenes import write_aid, write_resisc45, write_uc_merced

from statefield.datasets.scenes import SCENE_SETS
from statefield.tasks.common.recipes import difference, recipe_text
from statefield.tasks.remote_sensing.scene_recipe import read_recipe, require_sound
from statefield.tasks.remote_sensing.scene_run import train

HOME = Path(__file__).parents[3] / "recipes" / "remote_sensing"
WRITERS = {"ucmerced": write_uc_merced, "aid": write_aid, "resisc45": write_resisc45}
PUBLISHED_TRAINING_SCENES = {"ucmerced": 2100 * 0.63, "aid": 10000 * 0.45, "resisc45": 31500 * 0.63}


@pytest.mark.parametrize("name", WRITERS)
def test_recipe_is_sound_and_says_what_the_paper_does(name):
    recipe = read_recipe(HOME / f"{name}.yaml")
    require_sound(recipe)
    assert SCENE_SETS[recipe.data.layout] and recipe.data.resized_edge == 256 and recipe.data.image_size == 224
    assert (recipe.model.net, recipe.model.lr, recipe.model.weight_decay) == ("rsmamba", 5e-4, 0.05)
    steps_of_ten_epochs = 10 * -(-int(PUBLISHED_TRAINING_SCENES[name]) // recipe.data.batch_size)
    assert recipe.model.warmup_steps == steps_of_ten_epochs
    assert recipe.of_control(Path("control")).model.name == "convnextv2_pico"


def test_recipe_written_and_read_is_the_same(tmp_path):
    recipe = read_recipe(HOME / "aid.yaml")
    (tmp_path / "again.yaml").write_text(recipe_text(recipe))
    assert difference(recipe, read_recipe(tmp_path / "again.yaml")) == []


@pytest.mark.parametrize("name", ["ucmerced", *(pytest.param(n, marks=pytest.mark.slow) for n in ("aid", "resisc45"))])
def test_recipe_trains_its_model_and_control_and_writes_their_comparison(name, tmp_path):
    recipe = read_recipe(HOME / f"{name}.yaml")
    root = WRITERS[name](tmp_path / "data", per_class=3)
    data = dataclasses.replace(recipe.data, root=root, image_size=32, short_edge=None, batch_size=2, workers=0)
    trainer = dataclasses.replace(recipe.trainer, fast_dev_run=True, accelerator="cpu", threads=1)
    result = train(dataclasses.replace(recipe, run=tmp_path / "run", data=data, trainer=trainer))
    assert result is not None and result.report.is_file()
    said = json.loads(result.folder.metrics.read_text())
    assert [row["role"] for row in said["comparison"]] == ["model", "control"]
    assert 6e6 < said["model"]["parameters"] < 7e6 < said["controls"][0]["parameters"] < 9e6
    assert len(said["classes"]) == len(SCENE_SETS[recipe.data.layout].classes)
