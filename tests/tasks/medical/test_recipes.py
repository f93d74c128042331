"""Every recipe of the repository is run, its own nets and settings, for two steps on fake data of its layout.

Nets of volumes are run with few channels, and with patches of a size that all of them take in training.
"""

from __future__ import annotations

import dataclasses
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from fakes.medical import write_msd, write_nnunet, write_pairs
from fakes.published import write_acdc_h5, write_drive, write_isbi2012

from statefield.errors import ConfigError
from statefield.tasks.medical.recipe import SegmentationRecipe, difference, read_recipe, recipe_text
from statefield.tasks.medical.run import train

RECIPES = sorted((Path(__file__).parents[3] / "recipes" / "medical").glob("*.yaml"))
FAKES = {
    "acdc_h5": write_acdc_h5,
    "drive": write_drive,
    "isbi2012": write_isbi2012,
    "msd": lambda root: write_msd(root, num_cases=5, num_test=0, num_classes=2, shape=(32, 32, 3)),
    "nnunet": lambda root: write_nnunet(root, num_cases=5, num_test=0, shape=(32, 32, 3)),
    "pairs": lambda root: write_pairs(root, num_cases=5, num_channels=3),
}
FAKE_VOLUMES = {
    "msd": lambda root: write_msd(root, num_cases=5, num_test=0, num_classes=2, shape=(24, 28, 8)),
    "nnunet": lambda root: write_nnunet(root, num_cases=5, num_test=0, shape=(24, 28, 8)),
}
FEW_CHANNELS = {
    "lightm_unet": {"filters": 8},
    "residual_unet": {"features": [4, 4, 8, 8]},
    "segmamba": {"features": [4, 4, 4, 4], "depths": [1, 1, 1, 1], "hidden": 4},
}


def _narrow(recipe: SegmentationRecipe) -> SegmentationRecipe:
    def few(net: str, net_args: dict) -> dict:
        if "features" in net_args:
            return net_args | {"features": [4, 4, *(8 for _ in net_args["features"][2:])]}
        return net_args | FEW_CHANNELS[net]

    model, control = (
        dataclasses.replace(part, net_args=few(part.net, part.net_args)) for part in (recipe.model, recipe.control)
    )
    return dataclasses.replace(recipe, model=model, control=control)


def test_there_are_recipes_for_every_layout():
    assert {read_recipe(path).data.layout for path in RECIPES} >= {"mni152", *FAKES}


# u_mamba_3d stands for nets of volumes, demo and pairs for encoders of full size
SLOW = {path.stem for path in RECIPES} - {"demo", "pairs", "u_mamba_3d"}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else []) for path in RECIPES],
)
def test_a_recipe_trains_its_model_and_control_and_writes_their_comparison(path, tmp_path):
    recipe = read_recipe(path)
    if recipe.data.layout == "mni152" and find_spec("nilearn") is None:
        pytest.skip("nilearn, which ships the data of this recipe, is not installed (pip install statefield[demo])")
    patch, fakes = (32, 32), FAKES
    if recipe.data.spatial_dims == 3:
        patch, fakes, recipe = (32, 32, 32), FAKE_VOLUMES, _narrow(recipe)
    data = dataclasses.replace(recipe.data, patch_size=patch, batch_size=2, workers=0)
    if recipe.data.layout in fakes:
        data = dataclasses.replace(data, root=fakes[recipe.data.layout](tmp_path / "data"))
    trainer = dataclasses.replace(recipe.trainer, fast_dev_run=True, accelerator="cpu", threads=1)
    window = patch
    if recipe.data.layout == "mni152":  # large slices, and few
        window = (128, 128) if len(patch) == 2 else (8, 128, 128)
    inference = dataclasses.replace(recipe.inference, roi=window, overlap=0.0, mirror=False)
    result = train(dataclasses.replace(recipe, run=tmp_path / "run", data=data, trainer=trainer, inference=inference))
    roles = [row.role for row in result.comparison]
    assert roles == ["model", "control"] + (["baseline"] if recipe.data.layout == "mni152" else [])
    stored = json.loads(result.folder.metrics.read_text())
    assert [row["name"] for row in stored["comparison"][:2]] == [
        recipe.model.name,
        recipe.control.net or recipe.control.encoder,
    ]
    assert result.report.stat().st_size > 10_000


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_written_out_in_full_reads_back_as_itself(path, tmp_path):
    recipe = read_recipe(path)
    (tmp_path / "full.yaml").write_text(recipe_text(recipe))
    assert read_recipe(tmp_path / "full.yaml") == recipe


def test_difference_names_what_differs_but_not_the_run_folder():
    base = SegmentationRecipe()
    other = dataclasses.replace(
        base, run=Path("elsewhere"), seed=1, model=dataclasses.replace(base.model, decoder_args={"x": 1})
    )
    assert difference(base, other) == ["model.decoder_args", "model.decoder_args.x", "seed"]
    assert difference(base, dataclasses.replace(base, run=Path("elsewhere"))) == []


def test_a_missing_recipe_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        read_recipe(Path("nowhere.yaml"))
