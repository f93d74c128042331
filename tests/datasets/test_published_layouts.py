"""Published medical datasets: official splits, label codings, pixels without a label, and folders not whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fakes.medical import write_picture, write_volume
from fakes.published import (
    UMAMBA,
    write_acdc,
    write_acdc_h5,
    write_btcv,
    write_drive,
    write_hdf5,
    write_isbi2012,
    write_isic,
    write_lits,
    write_montgomery,
    write_shenzhen,
    write_synapse,
    write_umamba,
)
from PIL import Image

from statefield.cli.datasets import table
from statefield.datasets import ADAPTERS, open_dataset
from statefield.datasets.readers.nifti import read_labels, write_nifti
from statefield.datasets.sample import UNLABELLED
from statefield.datasets.splits import official_split, split_into_blocks
from statefield.errors import ConfigError, DataError, DatasetLayoutError, EmptySplit, LabelError, ShapeError
from statefield.tasks.common.segmentation_metrics import SegmentationMetrics

DOCUMENT = Path(__file__).parents[2] / "docs" / "datasets.md"


def cases(adapter, root, split):
    return [record.case for record in adapter.records(root, split)]


def first(root, split="train", layout="auto", **options):
    adapter, _ = open_dataset(root, layout, options)
    record = adapter.records(root, split)[0]
    return record, adapter.load(record)


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_drive_codes_of_both_annotators_become_one_and_the_rim_is_unlabelled(tmp_path):
    root = write_drive(tmp_path)
    for annotator, folder, one in ((1, "1st_manual", 255), (2, "2nd_manual", 1)):
        record, sample = first(root, "test", annotator=annotator)
        stored = picture(root / "test" / folder / f"01_manual{annotator}.gif")
        inside = picture(root / "test" / "mask" / "01_test_mask.gif") == 255
        assert set(np.unique(stored)) == {0, one}
        assert record.case == "01_test"
        np.testing.assert_array_equal(sample["mask"][inside], (stored == one)[inside])
        assert (sample["mask"][~inside] == UNLABELLED).all()
        assert (~inside).sum() == 36 * 40 - 32 * 34


def test_drive_test_images_without_tracings_are_unlabelled_and_never_train(tmp_path):
    root = write_drive(tmp_path, labelled_test=False)
    adapter, _ = open_dataset(root)
    assert cases(adapter, root, "unlabelled") == ["01_test", "02_test", "03_test", "04_test"]
    assert "mask" not in adapter.load(adapter.records(root, "unlabelled")[0])
    with pytest.raises(EmptySplit, match="'test' has no case"):
        adapter.records(root, "test")
    drawn, _ = open_dataset(root, "auto", {"fractions": (0.6, 0.2, 0.2)})
    assert all(case.endswith("_training") for case in cases(drawn, root, "test"))


def test_drive_says_which_tracing_or_field_of_view_is_missing_or_of_another_size(tmp_path):
    root = write_drive(tmp_path, num_train=3, num_test=1)
    adapter, _ = open_dataset(root)
    record = adapter.records(root, "test")[0]
    write_picture(record.extra["field_of_view"], np.full((5, 6), 255))
    with pytest.raises(ShapeError, match=r"01_test_mask\.gif is 5 x 6 pixels, but the labels .* are 36 x 40"):
        adapter.load(record)
    (root / "test" / "2nd_manual" / "01_manual2.gif").unlink()
    with pytest.raises(DatasetLayoutError, match=r"2nd_manual: no file 01_\* for 01_test"):
        open_dataset(root, "auto", {"annotator": 2})[0].records(root, "test")
    with pytest.raises(ConfigError, match="annotators 1 and 2"):
        open_dataset(root, "auto", {"annotator": 3})[0].records(root, "test")


@pytest.mark.parametrize("stacks", [True, False])
def test_isbi2012_membranes_are_the_foreground_and_both_layouts_agree(tmp_path, stacks):
    root = write_isbi2012(tmp_path, stacks=stacks)
    record, sample = first(root)
    flat = write_isbi2012(tmp_path / "flat", stacks=False)
    cells = picture(flat / "train" / "label" / "0.png")
    assert record.case == "train_00"
    np.testing.assert_array_equal(sample["mask"], cells == 0)
    np.testing.assert_array_equal(sample["image"][0], picture(flat / "train" / "image" / "0.png"))


def test_isbi2012_volumes_are_the_same_sections_in_blocks(tmp_path):
    root = write_isbi2012(tmp_path)
    pictures, _ = open_dataset(root)
    volumes, info = open_dataset(root, "auto", {"volume": True})
    assert info.spatial_dims == 3
    for split in ("train", "val", "test"):
        sections = [pictures.load(record)["mask"] for record in pictures.records(root, split)]
        (record,) = volumes.records(root, split)
        np.testing.assert_array_equal(volumes.load(record)["mask"], np.stack(sections))
    assert cases(volumes, root, "train") == ["train_00-06"]
    assert cases(volumes, root, "unlabelled") == ["test_00-02"]


@pytest.mark.parametrize("seed", range(7))
def test_blocks_of_neighbours_cover_a_stack_once_and_wrap_around_its_end(seed):
    blocks = split_into_blocks(30, seed=seed)
    assert sorted(index for parts in blocks.values() for part in parts for index in part) == list(range(30))
    assert {name: sum(map(len, parts)) for name, parts in blocks.items()} == {"train": 21, "val": 3, "test": 6}
    assert all(len(parts) <= 2 for parts in blocks.values())
    assert seed > 0 or blocks == {"train": [range(21)], "val": [range(21, 24)], "test": [range(24, 30)]}


def test_isbi2012_refuses_labels_that_are_not_of_two_values_and_sections_without_labels(tmp_path):
    root = write_isbi2012(tmp_path, stacks=False)
    write_picture(root / "train" / "label" / "0.png", np.full((36, 40), 128))
    with pytest.raises(LabelError, match="label values 128 found"):
        first(root)
    (root / "train" / "label" / "3.png").unlink()
    with pytest.raises(DatasetLayoutError, match=r"9 sections of labels found for 10 in .* \(none for 3\.png\)"):
        first(root)


def test_acdc_scribbles_leave_pixels_unlabelled_in_training_alone(tmp_path):
    root = write_acdc_h5(tmp_path)
    _, full = first(root)
    _, scribbled = first(root, labels="scribble")
    known = scribbled["mask"] != UNLABELLED
    assert 0.1 < known.mean() < 0.3
    np.testing.assert_array_equal(scribbled["mask"][known], full["mask"][known])
    for split in ("val", "test"):
        assert (first(root, split, labels="scribble")[1]["mask"] >= 0).all()


def test_acdc_slices_are_the_slices_of_the_volumes(tmp_path):
    root = write_acdc_h5(tmp_path, volumes="data", slices="data/slices")
    record, volume = first(root)
    assert volume["image"].shape == (1, 3, 36, 40)
    adapter, info = open_dataset(root, "auto", {"slices": True})
    assert info.spatial_dims == 2
    found = [r for r in adapter.records(root, "train") if r.case.startswith(record.case)]
    assert [r.case for r in found] == [f"{record.case}_slice_{z:02d}" for z in (1, 2, 3)]
    np.testing.assert_array_equal(np.stack([adapter.load(r)["mask"] for r in found]), volume["mask"])


def test_acdc_lists_beside_the_data_are_the_split(tmp_path):
    root = write_acdc_h5(tmp_path, lists=True)
    adapter, _ = open_dataset(root)
    assert cases(adapter, root, "test") == [f"patient00{p}_frame{f}" for p in (1, 2) for f in ("01", "12")]
    assert cases(adapter, root, "val") == ["patient003_frame01", "patient003_frame12"]
    (root / "val.list").write_text("patient001_frame01\n")
    with pytest.raises(DatasetLayoutError, match="patient001 is listed for val too"):
        adapter.records(root, "train")


def test_acdc_lists_that_go_by_other_frame_numbers_still_divide_patients(tmp_path):
    root = write_acdc_h5(tmp_path, lists=True)
    for part in ("train", "val", "test"):
        path = root / f"{part}.list"
        path.write_text(path.read_text().replace("frame12", "frame02"))
    assert cases(open_dataset(root)[0], root, "val") == ["patient003_frame01", "patient003_frame12"]


def test_official_list_of_acdc_has_100_patients_once():
    split_of = official_split("acdc_ssl4mis")
    assert sorted(split_of) == [f"patient{n:03d}" for n in range(1, 101)]
    counts = {split: list(split_of.values()).count(split) for split in ("train", "val", "test")}
    assert counts == {"train": 70, "val": 10, "test": 20}


def test_official_list_of_btcv_divides_its_30_labelled_scans_in_18_and_12(tmp_path):
    split_of = official_split("btcv_transunet")
    assert sorted(split_of) == [f"img{n:04d}" for n in (*range(1, 11), *range(21, 41))]
    root = write_btcv(tmp_path)
    adapter, info = open_dataset(root)
    assert cases(adapter, root, "test") == ["img0001", "img0002", "img0003", "img0004"]
    assert cases(adapter, root, "unlabelled") == ["img0061", "img0062"]
    assert info.classes[1] == "spleen"
    assert info.classes[13] == "left_adrenal_gland"
    assert len(info.classes) == 14


@pytest.mark.parametrize("write", [write_acdc, write_acdc_h5])
@pytest.mark.parametrize("seed", range(3))
def test_patients_are_never_in_two_splits(tmp_path, write, seed):
    root = write(tmp_path)
    adapter, _ = open_dataset(root, "auto", {"seed": seed})
    patients = [{r.group for r in adapter.records(root, split)} for split in ("train", "val", "test")]
    assert all(group.startswith("patient") for part in patients for group in part)
    assert sum(map(len, patients)) == len(set().union(*patients))
    counts = [len(adapter.records(root, split)) for split in ("train", "val", "test")]
    assert counts == [2 * len(part) for part in patients]


def test_acdc_testing_without_labels_is_unlabelled_and_training_needs_them(tmp_path):
    root = write_acdc(tmp_path)
    for path in (root / "testing").rglob("*_gt.nii.gz"):
        path.unlink()
    adapter, _ = open_dataset(root)
    assert cases(adapter, root, "unlabelled")[0] == "patient101_frame01"
    assert all(case < "patient100" for case in cases(adapter, root, "test"))
    (root / "training" / "patient002" / "patient002_frame12_gt.nii.gz").unlink()
    with pytest.raises(DatasetLayoutError, match=r"patient002_frame12_gt\.nii\.gz: not found, the labels of"):
        adapter.records(root, "train")


def test_synapse_slices_become_the_volume_they_were_cut_from(tmp_path):
    root = write_synapse(tmp_path)
    record, sample = first(root)
    number = record.case.removeprefix("case")
    assert sample["image"].shape == (1, 4, 24, 20)
    for z in range(4):
        with np.load(root / "train_npz" / f"case{number}_slice{z:03d}.npz") as stored:
            np.testing.assert_array_equal(sample["image"][0, z], stored["image"])
            np.testing.assert_array_equal(sample["mask"][z], stored["label"])
    assert cases(open_dataset(root)[0], root, "test") == ["case0001", "case0002"]


def test_synapse_refuses_a_case_in_both_parts_and_a_missing_slice(tmp_path):
    root = write_synapse(tmp_path)
    (root / "train_npz" / "case0006_slice002.npz").unlink()
    with pytest.raises(DatasetLayoutError, match="case0006 has 3 slices but not number 2"):
        open_dataset(root)[0].records(root, "train")
    root = write_synapse(tmp_path / "again")
    (root / "test_vol_h5" / "case0001.npy.h5").rename(root / "test_vol_h5" / "case0005.npy.h5")
    with pytest.raises(DatasetLayoutError, match="case0005 in both train_npz/ and test_vol_h5/"):
        open_dataset(root)[0].records(root, "train")
    with pytest.raises(LabelError, match="the declared classes are 0 to 2"):
        first(write_synapse(tmp_path / "few"), classes=("background", "one", "two"))


def test_lits_matches_volumes_and_segmentations_across_batches(tmp_path):
    root = write_lits(tmp_path)
    (root / "Training Batch 1" / "segmentation-0.nii").rename(root / "Training Batch 2" / "segmentation-0.nii")
    adapter, info = open_dataset(root)
    found = {r.case: r for split in ("train", "val", "test") for r in adapter.records(root, split)}
    assert sorted(found) == [f"volume-{n:03d}" for n in range(6)]
    assert found["volume-000"].mask == root / "Training Batch 2" / "segmentation-0.nii"
    assert info.classes == ("background", "liver", "tumour")
    assert cases(adapter, root, "unlabelled") == ["test-volume-000"]


@pytest.mark.parametrize("year", [2017, 2018])
def test_isic_folders_are_the_split_and_superpixels_are_left_out(tmp_path, year):
    root = write_isic(tmp_path, year)
    adapter, _ = open_dataset(root)
    assert cases(adapter, root, "train") == [f"ISIC_{n:07d}" for n in range(4)]
    assert cases(adapter, root, "val") == ["ISIC_0000004", "ISIC_0000005"]
    assert cases(adapter, root, "test") == ["ISIC_0000006", "ISIC_0000007"]
    assert set(np.unique(first(root)[1]["mask"])) == {0, 1}
    next(root.glob("*Training*GroundTruth*/ISIC_0000001_segmentation.png")).unlink()
    with pytest.raises(DatasetLayoutError, match=r"ISIC_0000001_segmentation\.png: not found, the mask of"):
        adapter.records(root, "train")


def test_montgomery_lungs_are_one_class_or_two(tmp_path):
    root = write_montgomery(tmp_path)
    record, both = first(root)
    _, sides = first(root, sides=True)
    left = picture(root / "ManualMask" / "leftMask" / f"{record.case}.png") == 255
    right = picture(root / "ManualMask" / "rightMask" / f"{record.case}.png") == 255
    np.testing.assert_array_equal(both["mask"], left | right)
    np.testing.assert_array_equal(sides["mask"], left + 2 * right)


def test_shenzhen_radiographs_are_grey_in_one_channel_or_three_and_those_without_mask_unlabelled(tmp_path):
    root = write_shenzhen(tmp_path)
    adapter, _ = open_dataset(root)
    for split in ("train", "val", "test"):
        for record in adapter.records(root, split):
            sample = adapter.load(record)
            stored = picture(record.images[0])
            np.testing.assert_array_equal(sample["image"][0], stored if stored.ndim == 2 else stored[..., 0])
    assert cases(adapter, root, "unlabelled") == ["CHNCXR_0007_0"]
    record = adapter.records(root, "train")[0]
    write_picture(record.images[0], np.arange(24 * 32 * 3).reshape(24, 32, 3) % 251)
    with pytest.raises(DataError, match="real colours found"):
        adapter.load(record)


@pytest.mark.parametrize("name", UMAMBA)
def test_sets_of_the_umamba_benchmark_are_read_as_nnunet_raw_folders(tmp_path, name):
    root = write_umamba(tmp_path, name)
    adapter, info = open_dataset(root)
    channels, classes = UMAMBA[name]
    assert (adapter.name, info.channels, info.classes) == ("nnunet", channels, classes)
    assert len(first(root)[1]["image"]) == len(channels)
    assert json.loads((root / "dataset.json").read_text())["name"] == name


def test_volumes_without_spacing_say_so_and_return_to_their_own_axes(tmp_path):
    _, sample = first(write_acdc_h5(tmp_path))
    assert sample["meta"]["spacing"] == (1.0, 1.0, 1.0)
    assert not sample["meta"]["spacing_known"]
    write_nifti(tmp_path / "labels.nii.gz", sample["mask"], sample["meta"])
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.nii.gz").array[0], sample["mask"])
    stored = nib.load(tmp_path / "labels.nii.gz")
    assert stored.shape == sample["mask"].shape[::-1]
    np.testing.assert_array_equal(stored.affine, np.eye(4))


def test_scribbles_outside_the_classes_and_arrays_of_other_shapes_are_refused(tmp_path):
    root = write_acdc_h5(tmp_path)
    record, _ = first(root)
    shape = (3, 36, 40)
    image, label = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    write_hdf5(record.images[0], image=image, label=label, scribble=np.full(shape, 5, np.uint16))
    with pytest.raises(LabelError, match=r"scribble.*label values 5"):
        first(root, labels="scribble")
    write_hdf5(record.images[0], image=image, label=label[:2])
    with pytest.raises(ShapeError, match=r"\(3, 36, 40\) and label of \(2, 36, 40\)"):
        first(root)
    write_hdf5(record.images[0], image=np.full(shape, np.nan, np.float32), label=label)
    with pytest.raises(DataError, match="NaN"):
        first(root)


def test_two_files_of_one_case_are_named(tmp_path):
    root = write_acdc(tmp_path)
    home = root / "training" / "patient001"
    write_volume(home / "patient001_frame01.nii", np.zeros((20, 24, 3)))
    write_volume(home / "patient001_frame01_gt.nii", np.zeros((20, 24, 3)), dtype=np.uint8)
    adapter, _ = open_dataset(root)
    with pytest.raises((DatasetLayoutError, ConfigError), match="patient001_frame01"):
        adapter.records(root, "train")


def test_unlabelled_pixels_of_drive_count_in_no_metric(tmp_path):
    _, target = first(write_drive(tmp_path), "test")
    metrics = SegmentationMetrics(("background", "vessel"), unit="px")
    perfect = np.where(target["mask"] == UNLABELLED, 1, target["mask"])
    state = metrics.observe(perfect, target["mask"], case="01_test", spacing=(1.0, 1.0))
    assert metrics.summarise(state)["metrics"]["Dice"]["classes"]["vessel"]["case_mean"] == 1.0


def test_table_of_the_documents_is_the_registrys():
    text = DOCUMENT.read_text(encoding="utf-8")
    begin, end = "<!-- statefield datasets --table -->\n", "\n<!-- end -->"
    written = text[text.index(begin) + len(begin) : text.index(end)]
    assert written == table(), "replace the table in docs/datasets.md by what `statefield datasets --table` prints"
    assert len(written.splitlines()) == 2 + len(ADAPTERS)


def test_options_of_the_documents_are_those_of_the_layouts():
    text = DOCUMENT.read_text(encoding="utf-8")
    told = text[text.index("| option |") : text.index("## Splits")]
    for name, adapter in ADAPTERS.items():
        for option in (field.name for field in dataclasses.fields(adapter)):
            (row,) = [line for line in told.splitlines() if line.count("|") > 3 and f"`{option}`" in line.split("|")[1]]
            layouts = row.split("|")[2]
            assert f"`{name}`" in layouts or layouts.strip() == "all but `mni152`", (name, option)
