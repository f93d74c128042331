"""What is particular to each layout of image pairs, and what is refused with the file's name."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from fakes.change import (
    PLACE,
    pair,
    write_cdd,
    write_change_pairs,
    write_dsifn,
    write_levir,
    write_levir_plus,
    write_oscd,
    write_pairs_in,
    write_second,
    write_split_folders,
    write_sysu,
    write_sztaki,
    write_tiff,
    write_whu,
    write_xbd,
)
from fakes.medical import write_picture
from rasterio import Affine

from statefield.datasets.change import open_change_dataset
from statefield.datasets.change.oscd import BANDS
from statefield.datasets.sample import UNLABELLED
from statefield.errors import ConfigError, DataError, DatasetLayoutError, EmptySplit, LabelError, ShapeError

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[3] / "shared" / "data"))


def first(root, split="train", layout="auto", **options):
    """(adapter, first record, its sample)."""
    adapter, _ = open_change_dataset(root, layout, options)
    record = adapter.records(root, split)[0]
    return adapter, record, adapter.load(record)


def cases(root, **options):
    """{split: case names} of the splits that have any."""
    adapter, _ = open_change_dataset(root, "auto", options)
    found = {}
    for split in ("train", "val", "test", "unlabelled"):
        try:
            found[split] = [record.case for record in adapter.records(root, split)]
        except EmptySplit:
            continue
    return found


# labels


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_masks_of_0_255_and_of_0_1_are_the_same(tmp_path, suffix):
    samples = []
    for value in (1, 255):
        root = write_pairs_in(
            tmp_path / str(value), ("A", "B", "label"), list("abcdef"), suffix=suffix, changed_value=value
        )
        samples.append(first(root)[2]["mask"])
    np.testing.assert_array_equal(*samples)
    assert set(np.unique(samples[0])) == {0, 1}


@pytest.mark.parametrize("values", [(0, 2), (0, 1, 255), (0, 128), (0, 254)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_other_label_values_are_refused_with_the_files_name(tmp_path, values, suffix):
    root = write_pairs_in(tmp_path, ("A", "B", "label"), list("abcdef"), suffix=suffix)
    adapter, record, _ = first(root)
    bad = np.resize(np.array(values, np.uint8), (32, 40))
    (write_picture if suffix == ".png" else write_tiff)(record.mask, bad)
    with pytest.raises(LabelError, match=rf"{record.mask.name}: label values {max(values)} found"):
        adapter.load(record)


def test_jpeg_masks_are_refused_but_where_they_were_published_so(tmp_path):
    root = write_pairs_in(tmp_path / "a", ("A", "B", "label"), list("abcdef"), mask_suffix=".jpg")
    adapter, _ = open_change_dataset(root)
    with pytest.raises(LabelError, match="a JPEG mask"):
        adapter.load(adapter.records(root, "train")[0])
    root = write_cdd(tmp_path / "b")
    adapter, record, sample = first(root)
    np.testing.assert_array_equal(sample["mask"], pair(seed=0)[2])  # as it was before compression
    write_picture(record.mask, np.tile(np.arange(256, dtype=np.uint8), (32, 1)))
    with pytest.raises(LabelError, match=rf"{record.mask.name}: 4\d\.\d % of the values are far from 0 and from 255"):
        adapter.load(record)


def test_pixels_without_data_at_a_date_are_unlabelled(tmp_path):
    root = write_change_pairs(tmp_path, suffix=".tif")
    adapter, record, whole = first(root)
    image = whole["after"].astype(np.uint8)
    image[1, 2, 3] = image[0, 5, 7] = 0
    write_tiff(record.after[0], image, nodata=0)
    sample = adapter.load(record)
    hole = (image == 0).any(axis=0)
    assert hole[2, 3] and hole[5, 7]
    np.testing.assert_array_equal(sample["mask"], np.where(hole, UNLABELLED, whole["mask"]))
    for path in (record.after[0], record.images[0]):
        write_tiff(path, np.zeros_like(image), nodata=0)
        with pytest.raises(DataError, match=rf"{path.parent.name}/{path.name}: no pixel has data"):
            adapter.load(record)


# pairs that do not fit


def test_dates_of_different_sizes_places_and_channels_are_refused(tmp_path):
    root = write_change_pairs(tmp_path, suffix=".tif")
    adapter, record, sample = first(root)
    image = sample["after"].astype(np.uint8)
    write_tiff(record.after[0], image[:, :-1])
    with pytest.raises(ShapeError, match=r"A/tile_\d.tif is 32 x 40 pixels but .*B/tile_\d.tif is 31 x 40"):
        adapter.load(record)
    write_tiff(record.after[0], image, transform=Affine(10, 0, 500_100, 0, -10, 4_000_000))
    with pytest.raises(
        ShapeError, match="both dates must be on the same pixels, but their corners lie 10 pixels apart"
    ):
        adapter.load(record)
    write_tiff(record.after[0], image, crs="EPSG:32634")
    with pytest.raises(ShapeError, match="reference systems differ"):
        adapter.load(record)
    write_tiff(record.after[0], image[:2])
    with pytest.raises(ShapeError, match=r"has 3 channels but .*B/tile_\d.tif has 2"):
        adapter.load(record)
    write_tiff(record.images[0], image[:2])
    with pytest.raises(ShapeError, match=r"2 channels found; the dataset has 3 \(red, green, blue\)"):
        adapter.load(record)
    write_tiff(record.images[0], image)
    write_tiff(record.after[0], image)
    write_tiff(record.mask, np.zeros((32, 41), np.uint8))
    with pytest.raises(ShapeError, match=r"label/tile_\d.tif is 32 x 41"):
        adapter.load(record)


def test_rasters_carry_their_place_and_pictures_have_none(tmp_path):
    meta = first(write_change_pairs(tmp_path / "a", suffix=".tif"))[2]["meta"]
    assert "32633" in meta["crs"] and meta["transform"] == tuple(PLACE)[:6]
    assert "crs" not in first(write_change_pairs(tmp_path / "b"))[2]["meta"]


def test_missing_second_images_and_stray_masks_are_named(tmp_path):
    root = write_change_pairs(tmp_path)
    adapter, _ = open_change_dataset(root)
    (root / "B" / "tile_3.png").rename(root / "label" / "tile_x.png")
    with pytest.raises(DatasetLayoutError, match=r"B: 1 of 10 images of A/ have no file .* such as tile_3\.png"):
        adapter.records(root, "train")
    (root / "A" / "tile_3.png").unlink()
    with pytest.raises(DatasetLayoutError, match=r"label: 2 files have no image .* such as tile_3.png, tile_x.png"):
        adapter.records(root, "train")
    write_picture(root / "A" / "tile_4.bmp", np.zeros((4, 4)))
    with pytest.raises(DatasetLayoutError, match=r"tile_4\.bmp and tile_4\.png name the same case"):
        adapter.records(root, "train")


def test_pair_without_a_mask_is_unlabelled_and_told_once(tmp_path, caplog):
    root = write_change_pairs(tmp_path)
    (root / "label" / "tile_3.png").unlink()
    with caplog.at_level(logging.WARNING):
        found = cases(root)
    assert found["unlabelled"] == ["tile_3"]
    assert "tile_3" not in found["train"] + found["val"] + found["test"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{root}: 1 of 10 pairs have no mask: they are unlabelled cases"
    ]


# lists, split folders and names


def test_lists_divide_the_pairs_with_or_without_suffixes(tmp_path):
    root = write_change_pairs(tmp_path, lists=True)
    assert cases(root) == {
        "train": [f"tile_{i}" for i in range(6)],
        "val": ["tile_6"],
        "test": ["tile_7", "tile_8", "tile_9"],
    }
    (root / "list" / "val.txt").unlink()
    found = cases(root, fractions=(0.5, 0.5, 0.0))
    assert len(found["train"]) == len(found["val"]) == 3 and found["test"] == ["tile_7", "tile_8", "tile_9"]
    (root / "list" / "test.txt").write_text("tile_7.png\n\n")  # tile_8 and tile_9 are in no list any more
    assert sum(map(len, cases(root).values())) == 7


def test_lists_that_contradict_the_folder_or_one_another_are_refused(tmp_path):
    root = write_change_pairs(tmp_path, lists=True)
    adapter, _ = open_change_dataset(root)
    with (root / "list" / "test.txt").open("a") as file:
        file.write("tile_0\n")
    with pytest.raises(DatasetLayoutError, match=r"test\.txt: 'tile_0' is named in .*train\.txt already"):
        adapter.records(root, "train")
    (root / "list" / "test.txt").write_text("tile_77.png\n")
    with pytest.raises(DatasetLayoutError, match="it names 'tile_77', of which"):
        adapter.records(root, "train")
    (root / "list" / "test.txt").write_text("tile_7\n")
    (root / "test_list.txt").write_text("tile_7\n")
    with pytest.raises(DatasetLayoutError, match="two lists for test; keep one"):
        adapter.records(root, "train")
    (root / "test_list.txt").unlink()
    (root / "list" / "train.txt").unlink()
    with pytest.raises(DatasetLayoutError, match="none for train"):
        adapter.records(root, "train")


def test_tiles_of_a_scene_stay_together_by_group_pattern(tmp_path):
    names = [f"scene{index // 4}_{index % 4}" for index in range(24)]
    root = write_pairs_in(tmp_path, ("A", "B", "label"), names)
    found = cases(root, group_pattern=r"(scene\d+)_")
    scenes = [{case.split("_")[0] for case in part} for part in found.values()]
    assert sum(map(len, scenes)) == len(set().union(*scenes)) == 6
    with pytest.raises(ConfigError, match="not found in the case name"):
        cases(root, group_pattern=r"(city\d+)_")


def test_cases_are_told_apart_where_every_split_is_numbered_from_0(tmp_path):
    assert cases(write_sysu(tmp_path / "a"))["val"] == ["val_00001", "val_00002"]
    assert cases(write_levir(tmp_path / "b"))["val"] == ["val_1", "val_2"]


def test_levir_cd_and_its_successor_are_told_apart_by_val(tmp_path):
    assert open_change_dataset(write_levir(tmp_path / "a"))[0].name == "levir_cd"
    assert open_change_dataset(write_levir_plus(tmp_path / "b"))[0].name == "levir_cd_plus"
    part = write_split_folders(tmp_path / "c", counts=(("train", 5),), name="train_{index}")
    assert open_change_dataset(part)[0].name == "change_pairs"  # train alone is neither


def test_split_folder_of_another_form_is_refused(tmp_path):
    root = write_sysu(tmp_path)
    (root / "val" / "time2").rename(root / "val" / "time3")
    with pytest.raises(DatasetLayoutError, match=r"val: it has not time1/, time2/, label/, as sysu_cd has it"):
        open_change_dataset(root)


def test_published_sets_need_every_mask(tmp_path):
    root = write_dsifn(tmp_path)
    next((root / "train" / "mask").iterdir()).unlink()
    adapter, _ = open_change_dataset(root)
    with pytest.raises(DatasetLayoutError, match=r"train/mask: 1 of 6 images of t1/ have no file"):
        adapter.records(root, "train")


# SECOND


@pytest.mark.parametrize("colours", [True, False])
def test_second_gives_the_classes_of_both_dates_where_changed(tmp_path, colours):
    _, _, sample = first(write_second(tmp_path, colours=colours), fractions=(1.0, 0.0, 0.0))
    changed = pair(seed=0)[2]
    np.testing.assert_array_equal(sample["mask"], changed)
    np.testing.assert_array_equal(sample["before_mask"], changed * 1)  # water
    np.testing.assert_array_equal(sample["after_mask"], changed * 3)  # low vegetation


def test_colours_that_are_none_of_seconds_are_refused(tmp_path):
    adapter, record, _ = first(write_second(tmp_path))
    write_picture(record.before_mask, np.full((32, 40, 3), (1, 2, 3)))
    with pytest.raises(LabelError, match=rf"label1/{record.before_mask.name}: 1 colours .* such as \(1,2,3\)"):
        adapter.load(record)
    write_picture(record.before_mask, np.full((32, 40), 7))
    with pytest.raises(LabelError, match="label values 7 found"):
        adapter.load(record)


def test_date_without_a_class_where_the_other_has_one_is_unlabelled(tmp_path):
    adapter, record, _ = first(write_second(tmp_path))
    mask = np.full((32, 40, 3), 255)
    mask[0, 0] = (128, 0, 0)
    write_picture(record.before_mask, mask)
    write_picture(record.after_mask, np.full((32, 40, 3), 255))
    sample = adapter.load(record)
    assert sample["mask"].sum() == 1
    assert sample["before_mask"][0, 0] == 5 and sample["after_mask"][0, 0] == UNLABELLED
    assert (sample["after_mask"] == UNLABELLED).sum() == 1


# xBD


def test_xbd_gives_buildings_before_and_damage_after(tmp_path):
    adapter, record, sample = first(write_xbd(tmp_path), fractions=(1.0, 0.0, 0.0))
    assert record.case == "disaster-0_00000000" and record.images[0].name == "disaster-0_00000000_pre_disaster.png"
    np.testing.assert_array_equal(sample["mask"], pair(seed=0)[2])  # no damage: 1
    np.testing.assert_array_equal(sample["before_mask"], pair(seed=0)[2])
    assert "after_mask" not in sample
    found = cases(tmp_path)
    assert len(found["train"]) == 8 and [name[:10] for name in found["val"]] == ["disaster-2"] * 2
    write_picture(record.mask, np.full((32, 40), 5))
    with pytest.raises(LabelError, match="label values 5 found"):
        adapter.load(record)


def test_xbd_without_targets_in_test_is_unlabelled_and_its_pairs_are_whole(tmp_path):
    root = write_xbd(tmp_path)
    for path in (root / "test" / "targets").iterdir():
        path.unlink()
    (root / "test" / "targets").rmdir()
    found = cases(root)
    assert found["unlabelled"] == [f"disaster-3_{index:08d}" for index in range(3)]
    assert not set(found["test"]) & set(found["unlabelled"])  # drawn from train
    next((root / "train" / "targets").glob("*pre_disaster*")).unlink()
    adapter, _ = open_change_dataset(root)
    with pytest.raises(DatasetLayoutError, match="needs two masks"):
        adapter.records(root, "train")
    write_xbd(tmp_path / "again")
    next((tmp_path / "again" / "hold" / "images").glob("*post_disaster*")).unlink()
    with pytest.raises(DatasetLayoutError, match="the second date of disaster-2_0000000"):
        adapter.records(tmp_path / "again", "val")


def test_crops_of_a_scene_of_xbd_never_part(tmp_path):
    root = write_xbd(tmp_path, masks="masks", crops=True)
    adapter, _ = open_change_dataset(root)
    groups = {record.group for record in adapter.records(root, "train")}
    assert groups == {f"disaster-{n}_{scene:08d}" for n in (0, 1) for scene in (0, 1)}


# SZTAKI and WHU-CD


def test_sztaki_tests_on_the_two_usual_pairs(tmp_path):
    root = write_sztaki(tmp_path)
    found = cases(root)
    assert found["test"] == ["Szada_1", "Tiszadob_3"] and len(found["train"]) + len(found["val"]) == 11
    (root / "Szada" / "2" / "gt.bmp").unlink()
    with pytest.raises(DatasetLayoutError, match=r"Szada/2/gt\.bmp: not found"):
        cases(root)


def test_tiles_of_whu_cover_each_image_once_and_know_their_place(tmp_path):
    root = write_whu(tmp_path)
    adapter, _ = open_change_dataset(root, "whu_cd", {"tile": 40})
    seen = np.zeros((96, 250), int)
    for split in ("train", "val"):
        for record in adapter.records(root, split):
            row, column, height, width = record.extra["window"]
            sample = adapter.load(record)
            assert sample["before"].shape == (3, height, width) == (3, min(40, 96 - row), min(40, 250 - column))
            assert sample["meta"]["transform"][2::3] == (500_000 + 10 * column, 4_000_000 - 10 * row)
            seen[row : row + height, column : column + width] += 1 + sample["mask"]
    expected = 1 + np.tile(pair((48, 50), seed=0)[2], (2, 5))
    np.testing.assert_array_equal(seen, expected)
    with pytest.raises(ConfigError, match="tile = 0"):
        open_change_dataset(root, "whu_cd", {"tile": 0})[0].records(root, "train")


def test_mask_of_whu_of_another_size_is_refused(tmp_path):
    root = write_whu(tmp_path, divided=False)
    adapter, record, _ = first(root)
    write_tiff(record.mask, np.zeros((97, 250), np.uint8))
    with pytest.raises(ShapeError, match=r"is 96 x 250 pixels but .*change_label\.tif is 97 x 250"):
        adapter.load(record)
    write_tiff(record.mask.with_name("other.tif"), np.zeros((4, 4), np.uint8))
    with pytest.raises(DatasetLayoutError, match="change label: 2 rasters found"):
        adapter.records(root, "train")


# OSCD


def test_oscd_repeats_coarser_bands_to_10_metres(tmp_path):
    _, record, sample = first(write_oscd(tmp_path, form="bands"), fractions=(1.0, 0.0, 0.0))
    assert [path.stem[-3:] for path in record.images] == list(BANDS)
    assert sample["before"].shape == (13, 36, 42)
    image = (100 * pair((36, 42), num_channels=13, seed=0)[0]).astype(np.uint16).transpose(2, 0, 1)
    np.testing.assert_array_equal(sample["before"][1], image[1])
    for index, step in ((0, 6), (4, 2), (8, 2)):
        np.testing.assert_array_equal(
            sample["before"][index], np.kron(image[index, ::step, ::step], np.ones((step, step)))
        )
    np.testing.assert_array_equal(sample["mask"], pair((36, 42), num_channels=13, seed=0)[2])
    assert "32633" in sample["meta"]["crs"]


def test_oscd_reads_pictures_or_bands_by_option_and_keeps_the_official_cities(tmp_path):
    root = write_oscd(tmp_path, form="official")
    for bands, channels in (("auto", 3), ("rgb", 3), ("all", 13)):
        adapter, info = open_change_dataset(root, "oscd", {"bands": bands})
        records = adapter.records(root, "test")
        assert len(info.channels) == channels and [record.case for record in records] == ["brasilia", "rio"]
        assert len(adapter.load(records[0])["after"]) == channels
        assert records[0].mask.name == "cm.png"
    with pytest.raises(ConfigError, match="one of auto, rgb, all"):
        open_change_dataset(root, "oscd", {"bands": "red"})
    pictures = write_oscd(tmp_path / "rgb")
    with pytest.raises(DatasetLayoutError, match="no folder in it has the files of bands = 'all'"):
        open_change_dataset(pictures, "oscd", {"bands": "all"})


def test_cities_of_oscd_are_set_apart_by_name(tmp_path):
    root = write_oscd(tmp_path)
    options = {"val_cities": ("bercy",), "test_cities": ("paris", "nantes")}
    adapter, _ = open_change_dataset(root, "oscd", options)
    splits = {split: [record.case for record in adapter.records(root, split)] for split in ("train", "val", "test")}
    assert splits["val"] == ["bercy"]
    assert splits["test"] == ["brasilia", "nantes", "paris", "rio"]  # with the official ones, where they are there
    assert splits["train"] == ["aguasclaras", "bordeaux", "rennes"]
    for wrong, said in (({"test_cities": ("atlantis",)}, "no folder"), (options | {"val_cities": ("paris",)}, "both")):
        adapter, _ = open_change_dataset(root, "oscd", wrong)
        with pytest.raises(ConfigError, match=said):
            adapter.records(root, "train")


def test_label_rasters_of_oscd_code_change_as_2(tmp_path):
    adapter, record, sample = first(write_oscd(tmp_path, form="bands"))
    changed = sample["mask"].astype(np.uint8)
    assert 0 < changed.sum() < changed.size
    write_tiff(record.mask, changed, crs=None)  # as the README has it
    np.testing.assert_array_equal(adapter.load(record)["mask"], changed)
    for values in (changed * 2, changed + 3, np.ones_like(changed), changed * 255):  # of 1 alone nothing can be said
        write_tiff(record.mask, values, crs=None)
        with pytest.raises(LabelError, match=rf"{record.mask.name}: label values .* Use cm\.png"):
            adapter.load(record)


def test_bands_of_oscd_that_are_missing_or_lie_elsewhere_are_named(tmp_path):
    root = write_oscd(tmp_path, form="bands")
    adapter, record, _ = first(root)
    write_tiff(record.after[4], np.ones((18, 21), np.uint16), transform=Affine(20, 0, 500_500, 0, -20, 4_000_000))
    with pytest.raises(ShapeError, match=r"B05\.tif and .*: bands must cover the same ground, but their corners lie"):
        adapter.load(record)
    record.after[4].unlink()
    with pytest.raises(DatasetLayoutError, match="imgs_2: no file of B05; the 13 bands"):
        adapter.records(root, "train")


# real files


def real(name):
    if not (DATA / name).is_dir():
        pytest.skip(f"{DATA / name} is not there; set STATEFIELD_DATA to a folder that holds {name}")
    return DATA / name


def reference():
    return json.loads((DATA / "REFERENCE.json").read_text(encoding="utf-8"))


@pytest.mark.shared_data
def test_share_of_change_in_every_city_of_oscd_is_what_was_measured():
    """One city's cm.png is blurred; the figures are of its values above 127."""
    root = real("change_detection/oscd")
    adapter, _ = open_change_dataset(root)
    records = [record for split in ("train", "val", "test") for record in adapter.records(root, split)]
    measured = {record.case: round(float(adapter.load(record)["mask"].mean()), 4) for record in records}
    assert measured == reference()["oscd_change_ratio"]


@pytest.mark.shared_data
def test_bands_of_oscd_are_the_cities_of_the_pictures():
    root, pictures = real("remote_sensing/oscd_s2_geotiff"), real("change_detection/oscd")
    adapter, _ = open_change_dataset(root, "auto", {"fractions": (1.0, 0.0, 0.0)})
    other, _ = open_change_dataset(pictures, "auto", {"fractions": (1.0, 0.0, 0.0)})
    seen = {record.case: record for record in other.records(pictures, "train")}
    assert [record.case for record in adapter.records(root, "train")] == ["bercy", "paris", "rennes"]
    for record in adapter.records(root, "train"):
        sample, picture = adapter.load(record), other.load(seen[record.case])
        np.testing.assert_array_equal(sample["mask"], picture["mask"])  # 1 and 2 there, 0 and 255 here
        assert sample["before"].shape == (13, *picture["before"].shape[1:])
        assert 'EPSG","4326' in sample["meta"]["crs"]
        red = np.corrcoef(sample["after"][BANDS.index("B04")].ravel(), picture["after"][0].ravel())[0, 1]
        assert red > 0.8  # the picture is made of these bands, with the brightest values cut


@pytest.mark.shared_data
@pytest.mark.parametrize("samples, num_labelled", [("samples_LEVIR", 11), ("samples_DSIFN", 10)])
def test_stored_samples_of_published_networks_are_read(samples, num_labelled):
    root = real("change_detection/changeformer_samples") / samples
    adapter, info = open_change_dataset(root, "auto", {"fractions": (1.0, 0.0, 0.0)})
    records = adapter.records(root, "train")
    assert adapter.name == "change_pairs" and len(records) == num_labelled
    for record in records:
        sample = adapter.load(record)
        assert sample["before"].shape == sample["after"].shape == (len(info.channels), 256, 256)
        assert set(np.unique(sample["mask"])) <= {0, 1}


@pytest.mark.shared_data
def test_stored_pair_of_different_heights_is_refused():
    root = real("change_detection/changeformer_samples") / "samples_LEVIR"
    adapter, _ = open_change_dataset(root)
    (record,) = adapter.records(root, "unlabelled")
    with pytest.raises(ShapeError, match=r"is 384 x 768 pixels but .* is 383 x 768"):
        adapter.load(record)
