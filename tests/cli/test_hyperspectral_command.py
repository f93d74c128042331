"""`statefield hyperspectral train`, on a crop of a published scene's layout."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import scipy.io
import yaml

from statefield.cli import hyperspectral
from statefield.cli.datasets import table
from statefield.cli.main import main
from statefield.datasets.hyperspectral import SCENE_ADAPTERS, published
from statefield.datasets.readers.raster import opened
from statefield.tasks.remote_sensing.hyperspectral.contenders import CONTENDERS
from statefield.tasks.remote_sensing.hyperspectral.splits import SPLIT_NAMES


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


ROOT = Path(__file__).resolve().parents[2]
TWO = ("--classifier", "svm", "--classifier", "morpmamba", "--epochs", "2")


def trained(salinas: Path, run: Path, *words: str) -> Path:
    assert main(["hyperspectral", "train", str(salinas), *TWO, "--jobs", "1", "--run", str(run), *words]) == 0
    return run


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_command_writes_the_table_the_maps_and_the_page(
    salinas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = trained(salinas, tmp_path / "run", "--seeds", "2")
    result = json.loads((output / "result.json").read_text())
    assert [(run["split"], run["contender"], run["seed"]) for run in result["runs"]] == [
        ("blocks", name, seed) for seed in (0, 1) for name in ("svm", "morpmamba")
    ]
    assert all(run["share_of_test_windows_with_training_pixels"] == 0 for run in result["runs"])
    assert (output / "table.md").read_text() == capsys.readouterr().out
    assert sorted(path.name for path in (output / "maps").iterdir()) == sorted(
        [
            *(f"blocks_{n}_seed0.{suffix}" for n in ("morpmamba", "svm") for suffix in ("dat", "hdr", "png", "tif")),
            "blocks_parts_seed0.png",
            "labels.png",
        ]
    )
    with (
        opened(output / "maps" / "blocks_svm_seed0.tif") as tif,
        opened(output / "maps" / "blocks_svm_seed0.dat", driver="ENVI") as envi,
    ):
        assert (tif.read() == envi.read()).all() and tif.shape == (64, 48)
    page = (output / "report.html").read_text()
    for text in ("split blocks, seed 0", "broccoli green weeds 1", "morpmamba", "labelled pixels are used", "--config"):
        assert text in page
    assert page.count("data:image/png") == 5  # the scene, labels, parts, and a map by each of the two
    assert yaml.safe_load((output / "config.yaml").read_text())["classifier"] == ["svm", "morpmamba"]


def test_a_run_that_was_stopped_is_finished_to_the_same_bits(salinas: Path, tmp_path: Path) -> None:
    run = trained(salinas, tmp_path / "run", "--seeds", "2")
    whole = files_of(run / "classifiers")
    kept = run / "classifiers" / "blocks_svm_seed0" / "result.json"
    kept.write_text(kept.read_text().replace('"seed": 0', '"seed": 0, "kept": true'))
    (run / "classifiers" / "blocks_morpmamba_seed1" / "result.json").unlink()
    (run / "classifiers" / "blocks_morpmamba_seed1" / "classifier.safetensors").write_bytes(b"half")
    (run / "result.json").unlink()
    assert main(["hyperspectral", "train", "--run", str(run), "--resume", "--seeds", "1"]) == 2
    assert main(["hyperspectral", "train", "--run", str(run), "--resume"]) == 0
    again = files_of(run / "classifiers")
    assert set(again) == set(whole)
    assert all(again[name] == whole[name] for name in whole if not name.endswith("result.json"))
    result = json.loads((run / "result.json").read_text())
    assert [run.get("kept", False) for run in result["runs"]] == [True, False, False, False]
    assert result["seconds"]["runs made before"] == 3


def test_the_scores_do_not_depend_on_the_number_of_processes(salinas: Path, tmp_path: Path) -> None:
    alone = trained(salinas, tmp_path / "alone", "--seeds", "1")
    words = ["--config", str(alone / "config.yaml"), "--jobs", "2", "--run", str(tmp_path / "two")]
    assert main(["hyperspectral", "train", *words]) == 0
    one, two = files_of(alone), files_of(tmp_path / "two")
    assert set(one) == set(two)
    timed = ("result.json", "report.html")
    assert [name for name in one if one[name] != two[name] and not name.endswith(timed)] == []
    scores = [
        [run["confusion"] for run in json.loads((run / "result.json").read_text())["runs"]]
        for run in (alone, tmp_path / "two")
    ]
    assert scores[0] == scores[1]


def test_a_run_is_not_replaced_unless_asked_to(
    salinas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(salinas, tmp_path / "run", "--seeds", "1", "--no-maps")
    assert not (run / "maps").exists()
    before = files_of(run)
    assert main(["hyperspectral", "train", str(salinas), *TWO, "--run", str(run)]) == 2
    assert "--overwrite" in capsys.readouterr().err and files_of(run) == before
    assert main(["hyperspectral", "train", "--run", str(tmp_path / "none"), "--resume"]) == 2
    config = ["--config", str(run / "config.yaml"), "--classifier", "svm"]
    assert main(["hyperspectral", "train", *config, "--run", str(run), "--overwrite", "--jobs", "1"]) == 0
    assert [path.name for path in (run / "classifiers").iterdir()] == ["blocks_svm_seed0"]


def test_a_scene_is_mapped_with_a_trained_classifier(
    salinas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(salinas, tmp_path / "run", "--seeds", "1")
    scene = str(salinas / "Salinas_corrected.mat")
    for name in ("svm", "morpmamba"):
        words = ["--run", str(run), "--classifier", name, scene, "-o", str(tmp_path / f"{name}.tif")]
        assert main(["hyperspectral", "predict", *words]) == 0
        assert f"classifier blocks_{name}_seed0" in capsys.readouterr().err
        assert (tmp_path / f"{name}.tif").read_bytes() == (run / "maps" / f"blocks_{name}_seed0.tif").read_bytes()
    assert main(["hyperspectral", "predict", "--run", str(run), scene, "-o", str(tmp_path / "any.dat")]) == 0
    assert "class names = {no_class, broccoli" in (tmp_path / "any.hdr").read_text()


def test_pixels_without_data_are_no_class_and_the_place_returns(salinas: Path, tmp_path: Path) -> None:
    run = trained(salinas, tmp_path / "run", "--seeds", "1", "--no-maps")
    cube = np.moveaxis(scipy.io.loadmat(salinas / "Salinas_corrected.mat")["salinas_corrected"], -1, 0)
    cube = cube.astype(np.float32)
    cube[3, 10:20, 10:20] = -9999
    place = rasterio.Affine(3.7, 0, 600_000, 0, -3.7, 4_000_000)
    with rasterio.open(
        tmp_path / "scene.dat", "w", driver="ENVI", height=64, width=48, count=20, dtype="float32", nodata=-9999,
        crs="EPSG:32610", transform=place,
    ) as file:  # fmt: skip
        file.write(cube)
    for suffix, driver in ((".tif", "GTiff"), (".dat", "ENVI")):
        target = tmp_path / f"map{suffix}"
        assert (
            main(["hyperspectral", "predict", "--run", str(run), str(tmp_path / "scene.hdr"), "-o", str(target)]) == 0
        )
        with rasterio.open(target, driver=driver) as file:
            values = file.read(1)
            assert file.crs.to_epsg() == 32610 and file.transform == place and file.nodata == 0
        assert (values[10:20, 10:20] == 0).all() and (values == 0).sum() == 100


def test_scenes_and_runs_that_do_not_fit_are_told(
    salinas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(salinas, tmp_path / "run", "--seeds", "1", "--no-maps")
    np.save(tmp_path / "other.npy", np.ones((9, 9, 19)))
    np.save(tmp_path / "empty.npy", np.full((9, 9, 20), np.nan))
    (tmp_path / "there.tif").write_text("mine")
    scene = str(salinas / "Salinas_corrected.mat")
    for words, message in (
        (["--run", str(run), str(tmp_path / "other.npy"), "-o", "map.tif"], "trained on 20"),
        (["--run", str(run), str(tmp_path / "empty.npy"), "-o", "map.tif"], "no pixel has data"),
        (["--run", str(run), scene, "-o", str(tmp_path / "there.tif")], "exists already"),
        (["--run", str(run), scene, "-o", "map.jpg"], "end in .tif"),
        (["--run", str(run), scene, "-o", "map.tif", "--classifier", "cnn3d"], "no classifier with contender cnn3d"),
        (["--run", str(tmp_path), scene, "-o", "map.tif"], "no trained classifier"),
    ):
        assert main(["hyperspectral", "predict", *words]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "there.tif").read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sedes: 3", "unknown settings sedes"),
        ("seeds: three", "seeds: 'three' given; int is needed"),
        ("- seeds", "settings, name: value, are needed"),
        ("seeds: [", "cannot be read as YAML"),
    ],
)
def test_a_recipe_that_cannot_work_is_told(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    words = ["--config", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run")]
    assert main(["hyperspectral", "train", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classifier", "smv"], "did you mean 'svm'?"),
        (["--split", "random"], "did you mean 'random-leaky'?"),
        (["--seeds", "0"], "1 or more"),
        (["--block", "4"], "larger blocks"),
        (["--jobs", "0"], "1 or more"),
        (["--split", "official"], "salinas has no official split"),
        (["--device", "tpu"], "--device tpu"),
    ],
)
def test_settings_that_cannot_work_are_told_in_one_paragraph(
    words: list[str], message: str, salinas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["hyperspectral", "train", str(salinas), "--output", str(tmp_path / "run"), *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes" / "hyperspectral").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_recipe_names_what_there_is(recipe: Path) -> None:
    options = hyperspectral._options(["--config", str(recipe), "--run", "runs/any", "--seeds", "1"])
    assert options.layout in SCENE_ADAPTERS and set(options.split) <= set(SPLIT_NAMES)
    assert set(options.classifier or CONTENDERS) <= set(CONTENDERS)
    assert options.seeds == 1  # an option beside the recipe replaces its setting


def test_an_option_replaces_a_recipes_setting_even_by_the_default(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seeds: 5\nblock: 20\nmaps: false\n")
    words = ["--config", str(tmp_path / "recipe.yaml"), "--run", "runs/any"]
    options = hyperspectral._options([*words, "--seeds", "3", "--maps"])
    assert (options.seeds, options.block, options.window, options.maps) == (3, 20, 1, True)


def test_the_page_lists_every_scene() -> None:
    page = (ROOT / "docs" / "hyperspectral.md").read_text(encoding="utf-8")
    assert page.split("<!-- scenes -->\n")[1].split("\n<!-- /scenes -->")[0] == table(SCENE_ADAPTERS)
