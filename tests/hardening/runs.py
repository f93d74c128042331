"""Run folders of each kind, trained for as short as can be: what `predict`, `track` and `detect` need to begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from fakes.medical import write_pairs
from fakes.moving_targets import write_otb

from statefield.cli.main import main
from statefield.datasets.hyperspectral import Scene
from statefield.datasets.sample import DatasetInfo
from statefield.tasks.remote_sensing.hyperspectral.comparison import compare

SHORT = "--trainer.accelerator cpu --trainer.threads 1 --trainer.fast_dev_run true"
MEDICAL = "--data.patch_size [16,16] --data.batch_size 2 --model.encoder test_resnet --model.detail_channels 4"
SOT = (
    "--data.val [b] --data.test [c] --data.templates 1 --data.batch_size 2 --model.template_size 16 "
    "--model.search_size 32 --model.patch_size 8 --model.dim 8 --model.num_layers 1 --model.d_state 2 "
    "--model.head_channels 8"
)


def train(words: str, *more: str | Path) -> None:
    """The command has to go well."""
    assert main([*words.split(), *map(str, more)]) == 0


def pictures(home: Path) -> Path:
    """A segmentation of grey pictures in two classes."""
    recipe = home / "recipe.yaml"
    recipe.write_text(f"run: {home / 'run'}\ndata: {{root: {write_pairs(home / 'data', num_cases=5)}}}\n")
    train(f"medical train {MEDICAL} {SHORT} --config", recipe)
    return home / "run"


def single_object(home: Path) -> Path:
    """A tracker of one object."""
    root = write_otb(home / "otb", {"a": 1, "b": 2, "c": 3}, 4)
    train(f"sot train {SOT} {SHORT} --data.root", root, "--run", home / "run")
    return home / "run"


def scene(home: Path) -> Path:
    """A classifier of pixels of 6 bands in three classes."""
    from rasterio.transform import Affine

    rng = np.random.default_rng(0)
    labels = np.kron(rng.permuted(np.tile([0, 1, 2], 12)).reshape(6, 6), np.ones((8, 8))).astype(np.int64)
    cube = (np.moveaxis(rng.normal(size=(3, 6))[labels], -1, 0) + rng.normal(size=(6, 48, 48))).astype(np.float32)
    meta = {"case": "fields", "path": "fields", "spacing": (1.0, 1.0), "spacing_known": False}
    meta |= {"affine": None, "file": None, "crs": None, "transform": tuple(Affine.identity())[:6]}
    info = DatasetInfo(("a", "b", "c"), tuple(map(str, range(6))), 2)
    compare(Scene(cube, labels, info, meta), contenders=("svm",), splits=("blocks",), seeds=(0,), folder=home / "run")
    return home / "run"


RUNS: dict[str, Callable[[Path], Path]] = {
    "pictures": pictures,
    "sot": single_object,
    "scene": scene,
}
