"""Folders of images beside folders of masks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from fakes.medical import LPS, blobs, write_pairs, write_pairs_of_volumes, write_picture, write_volume

from statefield.datasets import open_dataset
from statefield.errors import ConfigError, DatasetLayoutError, LabelError, ShapeError


def _cases(adapter, root, split):
    return [record.case for record in adapter.records(root, split)]


def test_split_folders_are_the_split(tmp_path):
    root = write_pairs(tmp_path, split_folders=True)
    adapter, _ = open_dataset(root)
    assert _cases(adapter, root, "val") == ["case_003", "case_008"]
    assert _cases(adapter, root, "test") == ["case_004", "case_009"]
    assert len(_cases(adapter, root, "train")) == 6


def test_val_is_taken_from_train_where_it_has_no_folder(tmp_path):
    root = write_pairs(tmp_path, num_cases=20, split_folders=True)
    shutil.rmtree(root / "val")
    adapter, _ = open_dataset(root)
    train, val = _cases(adapter, root, "train"), _cases(adapter, root, "val")
    assert (len(train), len(val)) == (10, 2)  # 12 in train/, divided 7 : 1
    assert not set(train) & set(val)
    assert len(_cases(adapter, root, "test")) == 4
    shutil.rmtree(root / "test")
    with pytest.raises(DatasetLayoutError, match=r"'test' has no case: there is no test/images/"):
        adapter.records(root, "test")


def test_unlabelled_images_have_a_folder_of_their_own(tmp_path):
    root = write_pairs(tmp_path, num_cases=4)
    write_picture(root / "unlabelled" / "images" / "new.png", np.zeros((8, 8)))
    adapter, _ = open_dataset(root)
    record = adapter.records(root, "unlabelled")[0]
    assert (record.case, record.mask) == ("new", None)
    assert "mask" not in adapter.load(record)


def test_class_names_are_declared_or_counted(tmp_path):
    root = write_pairs(tmp_path, num_classes=3)
    assert open_dataset(root)[1].classes == ("background", "class_1", "class_2")
    (root / "classes.txt").write_text("ground\nleft\n\nright\n")
    assert open_dataset(root)[1].classes == ("ground", "left", "right")
    assert open_dataset(root, "pairs", {"classes": ("a", "b", "c")})[1].classes == ("a", "b", "c")
    (root / "classes.txt").write_text("ground\n")
    with pytest.raises(ConfigError, match=r"classes\.txt: 1 lines"):
        open_dataset(root)


def test_masks_of_0_255_and_of_0_1_in_one_dataset_are_both_read(tmp_path):
    # DRIVE: the first observer writes 0/255, the second 0/1
    root = write_pairs(tmp_path, num_cases=4, foreground_255=True)
    _, labels = blobs((40, 48), seed=0)
    write_picture(root / "masks" / "case_000.png", labels)
    adapter, info = open_dataset(root)
    assert info.classes == ("background", "foreground")
    for split in ("train", "val", "test"):
        assert all(set(np.unique(adapter.load(r)["mask"])) == {0, 1} for r in adapter.records(root, split))


def test_a_changed_mask_is_counted_again(tmp_path):
    root = write_pairs(tmp_path, num_cases=3)
    assert len(open_dataset(root)[1].classes) == 2
    path = root / "masks" / "case_000.png"
    write_picture(path, np.arange(40 * 48).reshape(40, 48) % 4)
    os.utime(path, ns=(1, 1))  # a clock too coarse for the test must not hide the change
    assert len(open_dataset(root)[1].classes) == 4


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([0], "nothing but 0"),
        ([0, 1, 3], "gaps"),
        ([0, 128, 255], "gaps"),
        (list(range(100)), "soft or resampled"),
    ],
)
def test_values_that_make_no_classes_are_refused_with_the_remedy(tmp_path, values, reason):
    root = write_pairs(tmp_path, num_cases=2)
    for path in (root / "masks").iterdir():
        write_picture(path, np.resize(values, (40, 48)))
    with pytest.raises(LabelError, match=reason) as caught:
        open_dataset(root)
    assert "classes.txt" in str(caught.value)


def test_a_declared_class_may_be_absent(tmp_path):
    root = write_pairs(tmp_path, num_cases=3)
    (root / "classes.txt").write_text("ground\nobject\nrare\n")
    adapter, info = open_dataset(root)
    assert info.classes[2] == "rare"
    assert adapter.load(adapter.records(root, "train")[0])["mask"].max() == 1


def test_mask_name_endings_of_common_datasets_are_matched(tmp_path):
    root = write_pairs(tmp_path, num_cases=3)
    for path in list((root / "masks").iterdir()):
        path.rename(path.with_name(path.stem + "_segmentation.png"))
    assert len(open_dataset(root)[0].records(root, "train")) == 1


def _break_missing_mask(root: Path) -> None:
    (root / "masks" / "case_001.png").unlink()


def _break_missing_image(root: Path) -> None:
    (root / "images" / "case_001.png").unlink()


def _break_two_masks(root: Path) -> None:
    shutil.copy(root / "masks" / "case_001.png", root / "masks" / "case_001_mask.png")


def _break_case_twice(root: Path) -> None:
    shutil.copy(root / "images" / "case_001.png", root / "images" / "case_001.tif")


def _break_mixed_kinds(root: Path) -> None:
    write_volume(root / "images" / "v.nii.gz", np.zeros((2, 2, 2)))


def _break_jpeg_mask(root: Path) -> None:
    (root / "masks" / "case_001.png").rename(root / "masks" / "case_001.jpg")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_break_missing_mask, r"masks: 1 of 3 images have no mask of the same name, such as case_001\.png"),
        (_break_missing_image, r"masks: 1 masks have no image of the same name in .*images, such as case_001\.png"),
        (_break_two_masks, r"two masks fit"),
        (_break_case_twice, r"case_001\.png and case_001\.tif name the same case"),
        (_break_mixed_kinds, r"mixed"),
        (_break_jpeg_mask, r"JPEG masks found"),
    ],
)
def test_folders_that_do_not_pair_up_are_refused(tmp_path, damage, reason):
    root = write_pairs(tmp_path, num_cases=3)
    damage(root)
    with pytest.raises(DatasetLayoutError, match=reason):
        open_dataset(root)


def test_hidden_and_foreign_files_are_left_out(tmp_path):
    root = write_pairs(tmp_path, num_cases=3)
    (root / "images" / "._case_000.png").write_bytes(b"fork")
    (root / "images" / "notes.txt").write_text("hello")
    adapter, _ = open_dataset(root)
    assert sum(len(_cases(adapter, root, split)) for split in ("train", "val", "test")) == 3


def test_image_and_mask_of_different_size_are_both_named(tmp_path):
    root = write_pairs(tmp_path, num_cases=3)
    write_picture(root / "masks" / "case_001.png", np.eye(10))
    adapter, _ = open_dataset(root)
    record = next(r for s in ("train", "val", "test") for r in adapter.records(root, s) if r.case == "case_001")
    with pytest.raises(
        ShapeError, match=r"images/case_001\.png is 44 x 48 pixels but .*masks/case_001\.png is 10 x 10"
    ):
        adapter.load(record)


def test_volume_and_mask_on_other_voxels_are_both_named(tmp_path):
    root = write_pairs_of_volumes(tmp_path, num_cases=3)
    adapter, _ = open_dataset(root)
    record = adapter.records(root, "train")[0]
    _, labels = blobs((20, 24, 8), seed=0)
    moved = LPS @ np.diag([0.8, 0.9, 2.5, 1.0])
    moved[:3, 3] = (1.5, 0, 0)
    write_volume(record.mask, labels, moved, np.uint8)
    with pytest.raises(ShapeError, match=r"affines differ by up to 1\.5"):
        adapter.load(record)
    write_volume(record.mask, labels[:, :, :-1], LPS @ np.diag([0.8, 0.9, 2.5, 1.0]), np.uint8)
    with pytest.raises(ShapeError, match=r"shapes \(D, H, W\) \(8, 24, 20\) and \(7, 24, 20\) differ"):
        adapter.load(record)


def test_empty_folders_and_too_few_cases_are_refused(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    with pytest.raises(DatasetLayoutError, match="no image found"):
        open_dataset(tmp_path / "empty")
    root = write_pairs(tmp_path / "one", num_cases=1)
    adapter, _ = open_dataset(root)
    with pytest.raises(DatasetLayoutError, match="'test' has no case: there are too few cases"):
        adapter.records(root, "test")


def test_both_mask_folders_are_refused(tmp_path):
    root = write_pairs(tmp_path, num_cases=3)
    shutil.copytree(root / "masks", root / "labels")
    with pytest.raises(DatasetLayoutError, match="both masks/ and labels/"):
        open_dataset(root, "pairs")
