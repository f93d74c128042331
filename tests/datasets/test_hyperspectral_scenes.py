"""Hyperspectral scenes: the embedded one, the published layouts in MATLAB and ENVI files, and files that are wrong."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import scipy.io
from rasterio import Affine

from statefield.datasets.hyperspectral import SCENE_ADAPTERS, SceneAdapter, open_scene
from statefield.datasets.hyperspectral import published as layouts
from statefield.datasets.hyperspectral.published import PublishedScene
from statefield.datasets.readers.matlab import read_matlab
from statefield.errors import ConfigError, DataError, DatasetLayoutError, LabelError, ShapeError
from statefield.labels import UNLABELLED

# labelled pixels of each class as the collection's page lists them
INDIAN_PINES_COUNTS = [46, 1428, 830, 237, 483, 730, 28, 478, 20, 972, 2455, 593, 205, 1265, 386, 93]
PAVIA_COUNTS = [6631, 18649, 2099, 3064, 1345, 5029, 1330, 3682, 947]
SMALL = (7, 5)  # rows, columns of the stand-ins


def small(scene: PublishedScene) -> PublishedScene:
    """The layout of a published scene with few pixels and bands, whose files a test can write."""
    return dataclasses.replace(scene, size=SMALL, bands=3)


def arrays(scene: PublishedScene) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    cube = rng.integers(0, 4000, (*scene.size, scene.bands)).astype(np.uint16)
    return cube, rng.integers(0, len(scene.classes) + 1, scene.size).astype(np.uint8)


def write_mat(root: Path, scene: PublishedScene, cube: np.ndarray, labels: np.ndarray) -> None:
    root.mkdir(exist_ok=True)
    scipy.io.savemat(root / f"{scene.stems[0]}.mat", {scene.variables[0]: cube}, do_compression=True)
    scipy.io.savemat(root / f"{scene.label_stems[0]}.mat", {scene.label_variables[0]: labels.astype(float)})


def test_the_embedded_scene_has_the_published_size_and_counts() -> None:
    pytest.importorskip("tensorly")
    scene = open_scene(None, "indian_pines")
    assert scene.cube.shape == (200, 145, 145) and scene.cube.dtype == np.float32
    assert scene.cube.min() == 955 and scene.cube.max() == 9604
    assert np.bincount(scene.labels[scene.labels != UNLABELLED]).tolist() == INDIAN_PINES_COUNTS
    assert scene.info.classes[10] == "soybean_mintill"  # 2455 pixels, the most


def test_the_embedded_scene_takes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="embedded"):
        open_scene(tmp_path, "indian_pines")


@pytest.mark.parametrize("name", [name for name, adapter in SCENE_ADAPTERS.items() if not adapter.embedded])
def test_each_published_layout_is_read_from_its_matlab_files(name: str, tmp_path: Path) -> None:
    assert isinstance(SCENE_ADAPTERS[name], SceneAdapter)
    scene = small(SCENE_ADAPTERS[name])  # type: ignore[arg-type]
    cube, labels = arrays(scene)
    write_mat(tmp_path, scene, cube, labels)
    found = scene.load(tmp_path)
    assert (found.cube == np.moveaxis(cube, -1, 0)).all()
    assert (found.labels == labels.astype(np.int64) - 1).all()
    assert SCENE_ADAPTERS[name].mismatch(tmp_path) is None
    others = [other for other in SCENE_ADAPTERS if other != name]
    assert all(SCENE_ADAPTERS[other].mismatch(tmp_path) for other in others)


def test_a_matlab_7_3_file_is_read_in_the_same_order_of_axes(tmp_path: Path) -> None:
    scene = small(layouts.PAVIA_UNIVERSITY)
    cube, labels = arrays(scene)
    write_mat(tmp_path, scene, cube, labels)
    (tmp_path / "PaviaU.mat").unlink()
    with h5py.File(tmp_path / "PaviaU.mat", "w", userblock_size=512) as file:
        file["paviaU"] = cube.T  # as MATLAB writes it
    assert (scene.load(tmp_path).cube == np.moveaxis(cube, -1, 0)).all()


@pytest.mark.parametrize("interleave", ["BSQ", "BIL", "BIP"])
def test_envi_files_are_read_with_their_place(interleave: str, tmp_path: Path) -> None:
    scene = small(layouts.SALINAS)
    cube, labels = arrays(scene)
    for name, array in (("salinas_corrected.dat", np.moveaxis(cube, -1, 0)), ("Salinas_gt.img", labels[None])):
        with rasterio.open(
            tmp_path / name,
            "w",
            driver="ENVI",
            INTERLEAVE=interleave,
            height=7,
            width=5,
            count=len(array),
            dtype=array.dtype,
            crs="EPSG:32610",
            transform=Affine(3.7, 0, 600_000, 0, -3.7, 4_000_000),
        ) as file:
            file.write(array)
    found = scene.load(tmp_path)
    assert (found.cube == np.moveaxis(cube, -1, 0)).all() and (found.labels == labels.astype(int) - 1).all()
    assert found.meta["transform"][2] == 600_000 and "UTM zone 10N" in found.meta["crs"]


def test_another_name_of_the_only_cube_is_accepted_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scipy.io.savemat(tmp_path / "x.mat", {"ori_data": np.ones((3, 4, 5)), "note": "a"})
    with caplog.at_level("INFO"):
        assert read_matlab(tmp_path / "x.mat", ["Houston"], 3).shape == (3, 4, 5)
    assert "'ori_data'" in caplog.text


def test_two_cubes_are_not_chosen_between(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "x.mat", {"a": np.ones((3, 4, 5)), "b": np.ones((3, 4, 5))})
    with pytest.raises(DataError, match="2 arrays of 3 axes"):
        read_matlab(tmp_path / "x.mat", ["Houston"], 3)


def test_files_that_are_not_the_published_scene_are_refused(tmp_path: Path) -> None:
    scene = small(layouts.PAVIA_UNIVERSITY)
    cube, labels = arrays(scene)
    write_mat(tmp_path, scene, cube[:, :, :2], labels)
    with pytest.raises(ShapeError, match="published scene pavia_university has"):
        scene.load(tmp_path)
    write_mat(tmp_path, scene, cube, labels + 9)
    with pytest.raises(LabelError, match="0 \\(no label\\) and 1 to 9"):
        scene.load(tmp_path)
    write_mat(tmp_path, scene, cube, 0 * labels)
    with pytest.raises(LabelError, match="no pixel has a label"):
        scene.load(tmp_path)
    broken = cube.astype(float)
    broken[0, 0, 0] = np.nan
    write_mat(tmp_path, scene, broken, labels)
    with pytest.raises(DataError, match="NaN"):
        scene.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 150, 400])
def test_a_matlab_file_that_is_cut_off_is_named(keep: int, tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "x.mat", {"a": np.arange(600.0).reshape(10, 10, 6)})
    whole = (tmp_path / "x.mat").read_bytes()
    (tmp_path / "x.mat").write_bytes(whole[:keep])
    with pytest.raises(DataError, match=r"x\.mat"):
        read_matlab(tmp_path / "x.mat", ["a"], 3)


def test_a_matlab_array_beyond_the_limit_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy.io.savemat(tmp_path / "x.mat", {"a": np.ones((20, 20, 20))})
    monkeypatch.setenv("STATEFIELD_MEMORY_LIMIT_GB", "0.00001")
    with pytest.raises(DataError, match="limit"):
        read_matlab(tmp_path / "x.mat", ["a"], 3)


def test_a_folder_without_the_files_is_told_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DatasetLayoutError, match="no cube PaviaU"):
        open_scene(tmp_path, "pavia_university")


@pytest.mark.shared_data
def test_published_label_maps_have_the_published_counts() -> None:
    root = Path(os.environ.get("STATEFIELD_DATA", "")) / "hyperspectral" / "label_maps_only"
    if not root.is_dir():
        pytest.skip("STATEFIELD_DATA names no folder with the label maps")
    for layout, counts in ((layouts.INDIAN_PINES, INDIAN_PINES_COUNTS), (layouts.PAVIA_UNIVERSITY, PAVIA_COUNTS)):
        labels = read_matlab(root / f"{layout.label_stems[0]}.mat", layout.label_variables, 2)
        assert labels.shape == layout.size
        assert np.bincount(labels.astype(int).ravel())[1:].tolist() == counts
    labels = read_matlab(root / "Salinas_gt.mat", layouts.SALINAS.label_variables, 2)
    assert labels.shape == layouts.SALINAS.size and (labels > 0).sum() == 54129
