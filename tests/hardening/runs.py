"""Run folders of each kind, trained for as short as can be: what `predict`, `track` and `detect` need to begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.io
from fakes.medical import write_pairs
from fakes.moving_targets import write_otb

from statefield.cli.main import main

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


def write_scene(folder: Path) -> Path:
    """A scene of 40 x 40 pixels and 6 bands under the names of Pavia University."""
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 10, (10, 10)), np.ones((4, 4))).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(folder / "PaviaU.mat", {"paviaU": rng.normal(size=(40, 40, 6))})
    scipy.io.savemat(folder / "PaviaU_gt.mat", {"paviaU_gt": labels})
    return folder


RUNS: dict[str, Callable[[Path], Path]] = {
    "pictures": pictures,
    "sot": single_object,
}
