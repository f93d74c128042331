"""Every registered layout of scenes, and what is said of folders that are not as they should be."""

from __future__ import annotations

import dataclasses
import io
import itertools
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fakes.bad_input import write_bomb_png, write_bomb_tiff
from fakes.change import write_tiff
from fakes.medical import write_picture
from fakes.scenes import (
    CLASSES,
    texture,
    write_aid,
    write_class_folders,
    write_lists,
    write_resisc45,
    write_split_folders,
    write_uc_merced,
)
from PIL import Image

from statefield.cli.datasets import table
from statefield.datasets import ADAPTERS, mismatches
from statefield.datasets.change import CHANGE_ADAPTERS
from statefield.datasets.hyperspectral import SCENE_ADAPTERS
from statefield.datasets.scenes import SCENE_SETS, SceneSet, label_of, open_scenes
from statefield.errors import ConfigError, DataError, DatasetLayoutError, EmptySplit, ShapeError, UnknownName

DOCUMENT = Path(__file__).parents[2] / "docs" / "datasets.md"
WRITERS = {
    "class_folders": write_class_folders,
    "class_folders, split folders": write_split_folders,
    "class_folders, GeoTIFF of four bands": lambda root: write_class_folders(root, num_channels=4, suffix=".tif"),
    "class_folders, grey": lambda root: write_class_folders(root, num_channels=1),
    "uc_merced": write_uc_merced,
    "uc_merced, the folder of the classes": lambda root: write_uc_merced(root, home="."),
    "uc_merced, the folder above": lambda root: write_uc_merced(root, home="UCMerced_LandUse/Images"),
    "aid": write_aid,
    "aid, the folder above": lambda root: write_aid(root / "AID").parent,
    "resisc45": write_resisc45,
}


@pytest.fixture(params=WRITERS)
def dataset(request, tmp_path):
    """(layout name, root, adapter, info) of each fake."""
    name, root = request.param.split(",")[0], WRITERS[request.param](tmp_path / "data")
    adapter, info = open_scenes(root)
    assert adapter.name == name
    return name, root, adapter, info


def test_every_registered_layout_has_a_fake_and_a_name_of_its_own():
    assert {name.split(",")[0] for name in WRITERS} == set(SCENE_SETS)
    assert not set(SCENE_SETS) & {*ADAPTERS, *CHANGE_ADAPTERS, *SCENE_ADAPTERS}


def test_layout_is_described_and_no_other_claims_the_folder(dataset):
    name, root, adapter, info = dataset
    assert isinstance(adapter, SceneSet)
    assert info == adapter.describe(root) and info.spatial_dims == 2 and info.channels
    assert list(info.classes) == sorted(set(info.classes)) and len(info.classes) >= 2
    assert [other for other, reason in mismatches(root, SCENE_SETS).items() if reason is None] == [name]
    for others in (ADAPTERS, CHANGE_ADAPTERS, SCENE_ADAPTERS):
        assert all(mismatches(root, others).values())
    assert all(text == text.strip() and text for text in dataclasses.asdict(adapter.about).values())


def test_published_sets_have_the_published_classes():
    counts = {name: len(adapter.classes) for name, adapter in SCENE_SETS.items() if name != "class_folders"}
    assert counts == {"uc_merced": 21, "aid": 30, "resisc45": 45}
    assert all(len(set(SCENE_SETS[name].classes)) == count for name, count in counts.items())


def test_splits_are_disjoint_sorted_stable_and_show_every_class(dataset):
    _, root, adapter, info = dataset
    splits = {split: adapter.records(root, split) for split in ("train", "val", "test")}
    names = {split: [record.case for record in records] for split, records in splits.items()}
    everything = list(itertools.chain(*names.values()))
    assert len(set(everything)) == len(everything)
    assert all(cases == sorted(cases) for cases in names.values())
    for split, records in splits.items():
        of_class = Counter(label_of(record) for record in records)
        assert set(of_class) == set(range(len(info.classes))) and len(set(of_class.values())) == 1
        assert [record.case for record in adapter.records(root, split)] == names[split]
        for record in records:
            assert record.images[0].is_file() and record.images[0].parent.name == info.classes[label_of(record)]
    with pytest.raises(EmptySplit, match="folder of its class"):
        adapter.records(root, "unlabelled")


def test_samples_hold_the_files_own_pixels_and_travel_to_worker_processes(dataset):
    _, root, adapter, info = dataset
    for record in [adapter.records(root, split)[0] for split in ("train", "val", "test")]:
        again, other = pickle.loads(pickle.dumps((record, adapter)))
        sample = other.load(again)
        image = sample["image"]
        assert image.dtype == np.float32 and image.ndim == 3 and len(image) == len(info.channels)
        assert image.shape[1:] in ((24, 24), (22, 25)) and 0 <= image.min() < image.max() <= 255
        assert sample["label"] == label_of(record) and sample["meta"]["case"] == record.case
        with Image.open(record.images[0]) as picture:
            if picture.mode in ("RGB", "L"):
                stored = np.asarray(picture, np.float32).reshape(*image.shape[1:], -1).transpose(2, 0, 1)
                np.testing.assert_array_equal(image, stored)


def test_classes_are_split_in_the_shares_of_the_paper(tmp_path):
    root = write_uc_merced(tmp_path, per_class=10)
    adapter, _ = open_scenes(root)
    counts = {split: len(adapter.records(root, split)) for split in ("train", "val", "test")}
    assert counts == {"train": 21 * 6, "val": 21 * 1, "test": 21 * 3}
    drawn = {tuple(r.case for r in open_scenes(root, "auto", {"seed": s})[0].records(root, "train")) for s in range(3)}
    assert len(drawn) == 3
    assert {name: SCENE_SETS[name].fractions[2] for name in ("uc_merced", "aid", "resisc45")} == {
        "uc_merced": 0.3,
        "aid": 0.5,
        "resisc45": 0.3,
    }


def test_lists_as_rsmamba_has_them_make_val_the_test_and_take_val_from_train(tmp_path):
    root = write_uc_merced(tmp_path, per_class=10)
    write_lists(root / "Images", root / "Images", [("train", 0, 7), ("val", 7, 10)])
    adapter, _ = open_scenes(root)
    found = {split: adapter.records(root, split) for split in ("train", "val", "test")}
    assert {split: len(records) for split, records in found.items()} == {"train": 126, "val": 21, "test": 63}
    numbers = {split: {int(r.case[-2:]) for r in records} for split, records in found.items()}
    assert numbers["test"] == {7, 8, 9} and numbers["train"] | numbers["val"] == set(range(7))


@pytest.mark.parametrize("with_class", [True, False])
def test_lists_of_three_splits_are_kept_and_unlisted_scenes_told(tmp_path, caplog, with_class):
    root = write_class_folders(tmp_path / "data")
    write_lists(root, root, [("train", 0, 5), ("val", 5, 7), ("test", 7, 9)], with_class=with_class)
    adapter, _ = open_scenes(root)
    for split, first, last in (("train", 0, 5), ("val", 5, 7), ("test", 7, 9)):
        numbers = {int(record.case[-3:]) for record in adapter.records(root, split)}
        assert numbers == set(range(first, last))
    assert "4 scenes are in no list" in caplog.text


def test_lists_may_lie_elsewhere(tmp_path):
    root = write_class_folders(tmp_path / "data")
    place = tmp_path / "lists"
    place.mkdir()
    with pytest.raises(DatasetLayoutError, match="no list of scenes"):
        open_scenes(root, "auto", {"lists": place})[0].records(root, "train")
    write_lists(place, root, [("train", 0, 8), ("test", 8, 10)])
    adapter, _ = open_scenes(root, "auto", {"lists": place, "fractions": (0.5, 0.25, 0.25)})
    assert {s: len(adapter.records(root, s)) for s in ("train", "val", "test")} == {"train": 20, "val": 12, "test": 8}


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"train": "fields/fields_000.png\nfields/absent.png"}, r"train.txt, line 2: no image .* 'fields/absent.png'"),
        ({"train": "fields/fields_000.png", "val": "fields_000.png"}, r"val.txt, line 1: .*train.txt, line 1 already"),
        ({"train": "\n\n"}, "train.txt: the list names no scene"),
        ({"val": "fields/fields_000.png"}, "none for train"),
        ({"train": "fields/fields_000.png", "train_list": "trees/trees_000.png"}, "two lists for train"),
    ],
)
def test_lists_that_cannot_be_followed_are_named_with_the_line(tmp_path, lists, said):
    root = write_class_folders(tmp_path)
    for name, text in lists.items():
        (root / f"{name}.txt").write_text(text)
    with pytest.raises(DatasetLayoutError, match=said):
        open_scenes(root)[0].records(root, "train")


def test_order_of_the_classes_can_be_that_of_the_authors_checkpoints(tmp_path):
    root = write_aid(tmp_path)
    adapter, info = open_scenes(root, "aid", {"class_order": "rsmamba"})
    assert info.classes[:3] == ("Port", "Square", "River") and set(info.classes) == set(open_scenes(root)[1].classes)
    for record in adapter.records(root, "test"):
        assert record.images[0].parent.name == info.classes[label_of(record)]
    with pytest.raises(ConfigError, match="'name' or 'rsmamba'"):
        open_scenes(root, "aid", {"class_order": "paper"})


def test_empty_class_is_named(tmp_path):
    root = write_aid(tmp_path)
    for path in (root / "Pond").iterdir():
        path.unlink()
    adapter, _ = open_scenes(root)
    with pytest.raises(DatasetLayoutError, match="Pond: no image in the folder of the class 'Pond'"):
        adapter.records(root, "train")


def test_missing_and_unknown_classes_are_named(tmp_path, caplog):
    root = write_aid(tmp_path)
    write_class_folders(root, ("Volcano",))
    with pytest.raises(DatasetLayoutError, match="Volcano is no class of it"):
        open_scenes(root, "aid")
    (root / "Volcano").rename(tmp_path.parent / f"{tmp_path.name}_moved")
    (root / "Viaduct").rename(tmp_path.parent / f"{tmp_path.name}_away")
    with pytest.raises(DatasetLayoutError, match="no folder of the class Viaduct"):
        open_scenes(root, "aid")
    assert open_scenes(root)[0].name == "class_folders"
    assert "AID but for Viaduct" in caplog.text


def test_class_of_the_test_folder_that_training_lacks_is_unknown(tmp_path):
    root = write_split_folders(tmp_path)
    write_class_folders(root / "test", ("volcano",))
    with pytest.raises(DatasetLayoutError, match="unknown classes, volcano"):
        open_scenes(root)[0].records(root, "test")


def test_two_files_of_one_name_are_refused(tmp_path):
    root = write_class_folders(tmp_path)
    write_picture(root / "trees" / "trees_003.jpg", texture(2))
    with pytest.raises(DatasetLayoutError, match=r"trees_003.*both are the case 'trees/trees_003'"):
        open_scenes(root)[0].records(root, "train")


def _load(root: Path, name: str):
    adapter, _ = open_scenes(root)
    records = [record for split in ("train", "val", "test") for record in adapter.records(root, split)]
    return adapter.load(next(record for record in records if record.images[0].name == name))


def test_grey_palette_and_opaque_alpha_become_three_channels(tmp_path):
    root = write_class_folders(tmp_path)
    folder = root / "trees"
    grey = texture(2)[..., 0].astype(np.uint8)
    Image.fromarray(grey).save(folder / "grey.png")
    assert (_load(root, "grey.png")["image"] == grey).all()
    Image.fromarray(grey).convert("P").save(folder / "palette.tif")
    Image.fromarray(np.dstack([grey] * 3 + [np.full_like(grey, 255)])).save(folder / "opaque.png")
    for name in ("palette.tif", "opaque.png"):
        assert _load(root, name)["image"].shape == (3, 24, 24)


def test_raster_keeps_its_bands_type_and_place(tmp_path):
    root = write_class_folders(tmp_path, num_channels=4, suffix=".tif")
    values = np.arange(4 * 24 * 24, dtype=np.uint16).reshape(4, 24, 24) * 20
    write_tiff(root / "water" / "deep.tif", values)
    sample = _load(root, "deep.tif")
    np.testing.assert_array_equal(sample["image"], values.astype(np.float32))
    assert "33N" in sample["meta"]["crs"] and sample["meta"]["transform"][:3] == (10.0, 0.0, 500_000.0)


def _transparent(path: Path) -> None:
    Image.fromarray(np.full((16, 16, 4), 90, np.uint8)).save(path)


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("cut.jpg", lambda p: p.write_bytes(_jpeg()[:300]), "damaged or cut off"),
        ("page.png", lambda p: p.write_bytes(b"<html>404</html>"), "no picture"),
        ("empty.tif", lambda p: p.write_bytes(b""), "no GTiff raster"),
        ("bomb.png", write_bomb_png, "too many pixels"),
        ("bomb.tif", write_bomb_tiff, "GB decoded; the limit is|cut off"),
        ("glass.png", _transparent, "transparent"),
        ("nan.tif", lambda p: write_tiff(p, np.full((3, 8, 8), np.nan, np.float32)), "192 values are NaN"),
        ("void.tif", lambda p: write_tiff(p, np.zeros((3, 8, 8), np.uint8), nodata=0), "no pixel has data"),
        ("wide.tif", lambda p: write_tiff(p, np.ones((4, 8, 8), np.uint8)), "4 channels found where 3 are needed"),
    ],
)
def test_broken_image_is_named(tmp_path, name, spoil, said):
    root = write_class_folders(tmp_path)
    spoil(root / "trees" / name)
    with pytest.raises((DataError, ShapeError), match=said) as raised:
        _load(root, name)
    assert str(raised.value).startswith(str(root / "trees" / name))


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(texture(0).astype(np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_classes_of_other_channels_are_refused_before_training(tmp_path):
    root = write_class_folders(tmp_path, ("a", "b"))
    write_class_folders(root, ("c",), num_channels=4, suffix=".tif")
    with pytest.raises(ShapeError, match=r"a_000.png: 3 channels found, but .*c_000.tif has 4"):
        open_scenes(root)


@pytest.mark.parametrize("name", list(SCENE_SETS))
def test_folder_of_another_layout_is_refused_with_the_tree(name, tmp_path):
    (tmp_path / "stray.txt").write_text("nothing of use")
    with pytest.raises(DatasetLayoutError) as caught:
        open_scenes(tmp_path, name)
    assert SCENE_SETS[name].layout in str(caught.value)
    with pytest.raises(DatasetLayoutError, match="dataset's folder is needed"):
        open_scenes(tmp_path / "absent", name)
    with pytest.raises(ConfigError, match="folder"):
        open_scenes(None, name)


def test_unknown_names_are_refused(tmp_path):
    root = write_class_folders(tmp_path, CLASSES[:2])
    with pytest.raises(ConfigError, match="'training'"):
        open_scenes(root)[0].records(root, "training")
    with pytest.raises(ConfigError, match="no option sead"):
        open_scenes(root, "auto", {"sead": 1})
    with pytest.raises(UnknownName, match="did you mean 'uc_merced'"):
        open_scenes(root, "ucmerced")


def test_table_of_the_documents_is_the_registrys():
    text = DOCUMENT.read_text(encoding="utf-8")
    begin, end = "<!-- statefield datasets --field scene --table -->\n", "\n<!-- end of scenes -->"
    written = text[text.index(begin) + len(begin) : text.index(end)]
    assert written == table(SCENE_SETS), (
        "replace the table in docs/datasets.md by what `statefield datasets --field scene --table` prints"
    )
