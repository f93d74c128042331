"""Hyperspectral scenes: the embedded one, the published layouts in MATLAB and ENVI files, and files that are wrong."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import scipy.io
from rasterio import Affine

from statefield.datasets.hyperspectral import SCENE_ADAPTERS, Scene, SceneAdapter, open_scene
from statefield.datasets.hyperspectral import published as layouts
from statefield.datasets.hyperspectral.cubes import read_cube
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


WITH_OFFICIAL = [name for name, adapter in SCENE_ADAPTERS.items() if getattr(adapter, "train_stems", ())]


def halves(scene: PublishedScene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels with every class, and their upper and lower rows as an official split."""
    labels = (np.arange(np.prod(scene.size)).reshape(scene.size) % (len(scene.classes) + 1)).astype(np.uint8)
    train, test = labels.copy(), labels.copy()
    train[4:], test[:4] = 0, 0
    return labels, train, test


def write_official(folder: Path, scene: PublishedScene, train: np.ndarray, test: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    scipy.io.savemat(folder / f"{scene.train_stems[0]}.mat", {"anything": train})
    scipy.io.savemat(folder / f"{scene.test_stems[0]}.mat", {"whatever": test})


def regions(labels: np.ndarray, names: list[str]) -> str:
    """ENVI's text of the regions of a map of labels 1 .. K."""
    heads = "".join(
        f"; ROI name: {name}\n; ROI rgb value: {{0, 205, 0}}\n; ROI npts: {(labels == number).sum()}\n;\n"
        for number, name in enumerate(names, 1)
    )
    rows = "\n".join(
        "".join(
            f"{index:6d}{column + 1:6d}{row + 1:6d}  271460.3 3290891.1\n"
            for index, (row, column) in enumerate(np.argwhere(labels == number), 1)
        )
        for number in range(1, len(names) + 1)
    )
    size = f"{labels.shape[1]} x {labels.shape[0]}"
    return (
        f"; ENVI Output of ROIs (4.8) [Tue Mar 26 2013]\n; Number of ROIs: {len(names)}\n; File Dimension: {size}\n;\n"
        f"{heads};    ID     X     Y      MapX      MapY\n{rows}"
    )


@pytest.mark.parametrize("name", WITH_OFFICIAL)
def test_the_official_split_is_read_where_the_folder_has_it(name: str, tmp_path: Path) -> None:
    scene = dataclasses.replace(small(SCENE_ADAPTERS[name]), size=(8, 6))  # type: ignore[arg-type]
    cube = np.ones((8, 6, 3), np.uint16)
    labels, train, test = halves(scene)
    write_mat(tmp_path, scene, cube, labels)
    assert scene.load(tmp_path).official is None
    write_official(tmp_path / scene.official_folder, scene, train, test)
    official = scene.load(tmp_path).official
    assert official is not None
    assert (official[0] == train.astype(int) - 1).all() and (official[1] == test.astype(int) - 1).all()
    assert scene.train_stems[0] in scene.layout and scene.official_folder in scene.layout


def test_the_contests_regions_of_houston_are_its_labels(tmp_path: Path) -> None:
    scene = dataclasses.replace(small(layouts.HOUSTON_2013), size=(8, 6))
    labels, train, test = halves(scene)
    stem = "2013_IEEE_GRSS_DF_Contest"
    with rasterio.open(
        tmp_path / f"{stem}_CASI.tif", "w", driver="GTiff", height=8, width=6, count=3, dtype="uint16",
        crs="EPSG:32615", transform=Affine(2.5, 0, 271_460, 0, -2.5, 3_290_891),
    ) as file:  # fmt: skip
        file.write(np.arange(144, dtype=np.uint16).reshape(3, 8, 6))
    names = [f"region_{number}" for number in range(15)]
    (tmp_path / f"{stem}_Samples_TR.txt").write_text(regions(train, names))
    # the test file has the same regions in another order
    order = [*range(5, 15), *range(5)]
    turned = np.where(test == 0, 0, 1 + np.argsort(order)[np.maximum(test, 1) - 1])
    (tmp_path / f"{stem}_Samples_VA.txt").write_text(regions(turned, [names[index] for index in order]))
    found = open_scene_as(scene, tmp_path)
    assert found.official is not None
    assert (found.official[0] == train.astype(int) - 1).all() and (found.official[1] == test.astype(int) - 1).all()
    assert (found.labels == labels.astype(int) - 1).all()  # the contest gives no other map
    assert found.meta["transform"][2] == 271_460
    for change, error, message in (
        (lambda text: text[:-60], DataError, "cut off or altered"),
        (lambda text: text.replace("6 x 8", "6 x 9"), ShapeError, r"\(9, 6\) rows and columns"),
        (lambda text: text.replace("; ROI npts", "; npts"), DataError, "15 names and 0 sizes"),
        (lambda text: re.sub(r"\n     1 +\d+ +\d+ ", "\n     1     9     1 ", text, count=1), DataError, "outside the"),
    ):
        (tmp_path / f"{stem}_Samples_VA.txt").write_text(change(regions(turned, [names[index] for index in order])))
        with pytest.raises(error, match=message):
            open_scene_as(scene, tmp_path)
    (tmp_path / f"{stem}_Samples_VA.txt").write_text(regions(np.minimum(test, 14), names[:14]))
    with pytest.raises(LabelError, match="14 regions found"):
        open_scene_as(scene, tmp_path)


def open_scene_as(scene: PublishedScene, root: Path) -> Scene:
    assert scene.mismatch(root) is None
    return scene.load(root)


def test_official_maps_that_contradict_are_refused(tmp_path: Path) -> None:
    scene = dataclasses.replace(small(SCENE_ADAPTERS["whu_hi_longkou"]), size=(8, 6))  # type: ignore[arg-type]
    labels, train, test = halves(scene)
    write_mat(tmp_path, scene, np.ones((8, 6, 3)), labels)
    wrong = train.copy()
    wrong[0, 1] = 9
    for parts, message in (
        ((train, np.maximum(train, test)), "too; others are needed|are in Train100.mat"),
        ((wrong, test), "1 pixels have another label"),
        ((train + 9, test), "are no class of whu_hi_longkou"),
    ):
        write_official(tmp_path, scene, *parts)
        with pytest.raises(LabelError, match=message):
            scene.load(tmp_path)


@pytest.mark.parametrize("suffix", [".mat", ".npy", ".tif", ".dat", ".hdr"])
def test_a_cube_without_labels_is_read_from_any_of_its_forms(suffix: str, tmp_path: Path) -> None:
    cube = np.random.default_rng(0).integers(1, 999, (7, 5, 4)).astype(np.uint16)
    path = tmp_path / f"scene{'.dat' if suffix == '.hdr' else suffix}"
    if suffix == ".mat":
        scipy.io.savemat(path, {"anything": cube})
    elif suffix == ".npy":
        np.save(path, cube)
    else:
        cube[2, 3] = 0  # nodata
        with rasterio.open(
            path, "w", driver="GTiff" if suffix == ".tif" else "ENVI", height=7, width=5, count=4, dtype="uint16",
            crs="EPSG:32610", transform=Affine(3.7, 0, 600_000, 0, -3.7, 4_000_000), nodata=0,
        ) as file:  # fmt: skip
            file.write(np.moveaxis(cube, -1, 0))
    found = read_cube(path.with_suffix(suffix))
    assert (found.values == np.moveaxis(cube, -1, 0)).all() and found.values.dtype == np.float32
    assert (found.valid == (cube > 0).all(-1)).all() and found.meta["case"] == "scene"
    assert ("crs" in found.meta) == (suffix in (".tif", ".dat", ".hdr"))


def test_files_that_hold_no_cube_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", np.ones((3, 4)))
    np.save(tmp_path / "words.npy", np.array([[["a"]]]))
    (tmp_path / "lonely.hdr").write_text("ENVI\n")
    (tmp_path / "text.npy").write_text("no array")
    for name, message in (
        ("flat.npy", "shape \\(3, 4\\)"),
        ("words.npy", "real numbers"),
        ("lonely.hdr", "no data file beside"),
        ("text.npy", "no array that can be read"),
        ("none.mat", "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            read_cube(tmp_path / name)
    with pytest.raises(ConfigError, match="on this machine"):
        read_cube("/vsicurl/elsewhere.tif")


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
