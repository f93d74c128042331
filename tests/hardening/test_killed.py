"""Killed with signal 9 at 50 random moments each, training and prediction end with the bits of an undisturbed run.

Kills of one run are chained: it is killed, resumed, killed again, until it ends. After each kill no file under its own
name is less than whole. The seeds are fixed; what fails names the kill and its moment.
"""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import rasterio
import torch
from fakes.medical import write_pairs, write_pairs_of_volumes
from fakes.rasters import change_pair
from hardening.kills import Moments, killed_until_done, run
from hardening.runs import MEDICAL, SHORT
from PIL import Image

from statefield.cli.main import main
from statefield.tasks.common.checkpointing import read_checkpoint, read_weights
from statefield.tasks.remote_sensing.nets import MambaBCD

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.name != "posix", reason="no process can be forked, and none killed, on Windows"),
]
_TIMES = ("seconds", "train_seconds", "predict_seconds", "training", "environment")


def whole(path: Path) -> None:
    """Raises unless the file is one of its kind from beginning to end."""
    if path.suffix == ".ckpt":
        read_checkpoint(path)
    elif path.suffix == ".safetensors":
        read_weights(path)
    elif path.suffix in (".json", ".geojson"):
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".tif":
        with rasterio.open(path) as raster:
            raster.read()
    elif path.suffix == ".gz":
        np.asanyarray(nib.load(path).dataobj)
    elif path.suffix == ".html":
        assert path.read_text(encoding="utf-8").rstrip().endswith("</html>"), path
    elif path.suffix == ".csv":
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        assert rows and all(len(row) == len(rows[0]) for row in rows), path
    elif path.suffix == ".yaml":
        assert path.read_text(encoding="utf-8").endswith("\n"), path
    else:
        raise AssertionError(f"{path}: of a kind that no test knows")


def named(folder: Path) -> list[Path]:
    """The files below `folder` under a name of their own: none of those at work, whose names begin with a dot."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def content(path: Path) -> Any:
    """What the file says, without the times of day and of work in it; None of what was left at work."""
    if path.name.startswith("."):
        return None
    if path.suffix == ".ckpt":
        return _plain(read_checkpoint(path))
    if path.suffix == ".json":
        return _plain(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".csv":
        return [_plain(row) for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines())]
    if path.suffix == ".html":
        return None  # it says when it was made, and how long the training took
    return path.read_bytes()


def _plain(value: Any) -> Any:
    """Tensors as bytes and dictionaries as sorted pairs, so that == compares bit for bit; without times."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return [(key, _plain(value[key])) for key in sorted(value, key=str) if key not in _TIMES]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def contents(folder: Path) -> dict[str, Any]:
    """Every file below the folder, hidden ones too; None of those."""
    return {str(path.relative_to(folder)): content(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises, naming the files, unless there are the same with the same content."""
    assert sorted(found) == sorted(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []


def kill_chains(
    words: Callable[[bool], list[str]],
    folder: Path,
    log: Path,
    begin: Callable[[], object],
    *,
    seed: int,
    kills: int = 50,
    tidies: bool = True,
) -> None:
    """Begin, kill and resume until there were so many `kills`; each chain must end with an undisturbed run's files.

    words: of the command; given is whether it is the first time after `begin`. tidies: the command removes what its
    killed runs had at work.
    """
    begin()
    undisturbed = run(words(True), folder, log)
    assert undisturbed.status == 0, undisturbed.printed
    wanted = contents(folder)
    moments = Moments(seed, undisturbed)
    count = 0

    def check() -> None:
        for path in named(folder):
            whole(path)

    while count < kills:
        begin()
        count += killed_until_done(words, folder, log, moments, check, at_most=kills - count)
        found = contents(folder)
        same(found if tidies else {name: found[name] for name in found if not name.startswith(".")}, wanted)


def test_training_killed_at_50_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    home = tmp_path / "home"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"run: {home / 'run'}\ndata: {{root: {write_pairs(tmp_path / 'data', num_cases=5)}}}\n")
    short = "--trainer.max_epochs 3 --trainer.steps_per_epoch 4 --trainer.save_every_steps 2 --trainer.threads 1"
    small = "--trainer.accelerator cpu --model.average_decay 0.8 --model.decoder_args.decoder_channels [8,8,8,8,8]"
    words = [*f"medical train {MEDICAL} {short} {small} --config".split(), str(recipe)]

    def again(first: bool) -> list[str]:
        return words if first or not (home / "run").exists() else [*words, "--resume"]

    def begin() -> None:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()

    kill_chains(again, home, tmp_path / "log", begin, seed=8)


def test_prediction_of_rasters_killed_at_50_moments_ends_with_the_same_bytes(tmp_path: Path) -> None:
    home, weights = tmp_path / "home", tmp_path / "net.safetensors"
    torch.manual_seed(0)
    torch.save(MambaBCD(encoder="test_resnet", width=8).state_dict(), tmp_path / "net.pth")
    made = f"convert {tmp_path / 'net.pth'} {weights} --model mamba_bcd --set encoder=test_resnet"
    assert main(made.split()) == 0
    before, after = change_pair(tmp_path, 1400, 700, nodata=255)
    more = "--tile 96 --overlap 0.25 --batch-size 8 --threads 1 --device cpu"
    words = f"change predict {before.path} {after.path} --weights {weights} {more} -o {home / 'out.tif'}"
    words += f" --probabilities {home / 'p.tif'} --polygons {home / 'out.geojson'} --resume"

    def begin() -> None:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()

    kill_chains(lambda first: words.split(), home, tmp_path / "log", begin, seed=9)


def test_prediction_of_volumes_killed_at_any_moment_ends_with_the_same_bytes(tmp_path: Path) -> None:
    home, data = tmp_path / "home", write_pairs_of_volumes(tmp_path / "data", num_cases=8)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"run: {tmp_path / 'run'}\ndata: {{root: {data}}}\n")
    assert main([*f"medical train {MEDICAL} {SHORT} --config".split(), str(recipe)]) == 0
    words = f"medical predict --run {tmp_path / 'run'} {data / 'images'} --output {home} --probabilities --threads 1"

    def begin() -> None:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()

    kill_chains(lambda first: words.split(), home, tmp_path / "log", begin, seed=10, kills=12, tidies=False)
