"""`statefield hyperspectral train`, on a crop of a published scene's layout."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from statefield.cli.datasets import table
from statefield.cli.main import main
from statefield.datasets.hyperspectral import SCENE_ADAPTERS, published


@pytest.fixture
def salinas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the layout of Salinas, made small: 64 x 48 pixels, 20 bands, three of its classes."""
    small = dataclasses.replace(published.SALINAS, size=(64, 48), bands=20)
    monkeypatch.setitem(SCENE_ADAPTERS._entries, "salinas", small)
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 4, (8, 6)), np.ones((8, 8))).astype(np.uint8)
    cube = rng.normal(size=(4, 20))[labels] * 2 + rng.normal(size=(64, 48, 20))
    folder = tmp_path / "Salinas"
    folder.mkdir()
    scipy.io.savemat(folder / "Salinas_corrected.mat", {"salinas_corrected": cube})
    scipy.io.savemat(folder / "Salinas_gt.mat", {"salinas_gt": labels})
    return folder


def test_one_command_writes_the_table_and_the_maps(
    salinas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    words = [str(salinas), "--classifier", "svm", "--classifier", "morpmamba", "--seeds", "2", "--epochs", "2"]
    assert main(["hyperspectral", "train", *words, "--maps", "--output", str(output)]) == 0
    result = json.loads((output / "result.json").read_text())
    assert [(run["split"], run["contender"], run["seed"]) for run in result["runs"]] == [
        ("blocks", name, seed) for seed in (0, 1) for name in ("svm", "morpmamba")
    ]
    assert all(run["share_of_test_windows_with_training_pixels"] == 0 for run in result["runs"])
    assert (output / "table.md").read_text() == capsys.readouterr().out
    assert sorted(path.name for path in (output / "maps").iterdir()) == [
        f"blocks_{name}_seed0.{suffix}" for name in ("morpmamba", "svm") for suffix in ("png", "tif")
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classifier", "smv"], "did you mean 'svm'?"),
        (["--split", "random"], "did you mean 'random-leaky'?"),
        (["--seeds", "0"], "1 or more"),
        (["--block", "4"], "larger blocks"),
    ],
)
def test_settings_that_cannot_work_are_told_in_one_paragraph(
    words: list[str], message: str, salinas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["hyperspectral", "train", str(salinas), "--output", str(tmp_path / "run"), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_the_page_lists_every_scene() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "hyperspectral.md").read_text(encoding="utf-8")
    assert page.split("<!-- scenes -->\n")[1].split("\n<!-- /scenes -->")[0] == table(SCENE_ADAPTERS)
