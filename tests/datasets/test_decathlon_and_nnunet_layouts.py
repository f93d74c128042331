"""The two layouts that dataset.json describes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from fakes.medical import write_msd, write_nnunet, write_picture

from statefield.datasets import ADAPTERS, open_dataset
from statefield.errors import DatasetLayoutError, ShapeError


def _edit(root, **changes):
    """Change fields of dataset.json; None takes a field away."""
    path = root / "dataset.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_decathlon_task_is_read_as_described(tmp_path):
    root = write_msd(tmp_path, modalities=("FLAIR", "T1w"))
    adapter, info = open_dataset(root)
    assert info.classes == ("background", "small", "large")
    assert info.channels == ("FLAIR", "T1w")
    record = adapter.records(root, "train")[0]
    sample = adapter.load(record)
    assert sample["image"].shape == (2, 8, 24, 20)
    assert sample["meta"]["spacing"] == (3.0, 0.8, 0.8)
    # bright where labelled: image and mask are turned alike
    assert sample["image"][:, sample["mask"] == 2].mean() > sample["image"][:, sample["mask"] == 0].mean() + 50
    assert len(adapter.records(root, "unlabelled")) == 2


def test_decathlon_test_list_of_tables_is_read(tmp_path):
    root = write_msd(tmp_path)
    names = json.loads((root / "dataset.json").read_text())["test"]
    _edit(root, test=[{"image": name} for name in names])
    assert len(open_dataset(root)[0].records(root, "unlabelled")) == 2


def test_wrong_count_in_the_description_is_logged(tmp_path, caplog):
    root = write_msd(tmp_path)
    _edit(root, numTraining=99)
    open_dataset(root)[0].records(root, "train")
    assert "numTraining is 99, but 8 cases are listed" in caplog.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": {"0": "background", "2": "organ"}}, r'"labels" numbers \[0, 2\]; 0 to 1 without gaps'),
        ({"labels": {"0": "background", "1": "background"}}, "distinct names"),
        ({"labels": {"a": "b"}}, "a number and a name"),
        ({"labels": []}, "a table of numbers and names"),
        ({"modality": {"0": True}}, "a number and a name"),
        ({"training": {}}, "must be a list"),
        ({"training": [{"image": "../../etc/passwd", "label": "x"}]}, "points out of the dataset's folder"),
        ({"training": [{"image": 3, "label": "x"}]}, "name of a file"),
        ({"training": []}, "'train' has no case: 0 labelled cases"),
        ({"training": None}, "has no training"),
    ],
)
def test_description_that_cannot_work_is_refused(tmp_path, changes, reason):
    root = write_msd(tmp_path, num_cases=3)
    _edit(root, **changes)
    with pytest.raises(DatasetLayoutError, match=reason):
        open_dataset(root, "msd")[0].records(root, "train")


def test_damaged_description_is_named(tmp_path):
    root = write_msd(tmp_path, num_cases=3)
    (root / "dataset.json").write_text('{"labels": ')
    with pytest.raises(DatasetLayoutError, match=r"dataset\.json: this is no valid JSON"):
        open_dataset(root, "msd")
    (root / "dataset.json").write_text("[1, 2]")
    with pytest.raises(DatasetLayoutError, match="a JSON list found"):
        open_dataset(root, "nnunet")


def test_listed_files_that_are_missing_are_counted(tmp_path):
    root = write_msd(tmp_path, num_cases=3)
    (root / "labelsTr" / "fake_001.nii.gz").unlink()
    with pytest.raises(
        DatasetLayoutError, match=r"1 of the 6 files it lists are not there, such as .*fake_001\.nii\.gz"
    ):
        open_dataset(root)[0].records(root, "train")


def test_nnunet_channels_are_files_in_order(tmp_path):
    root = write_nnunet(tmp_path, channels=("T1", "T2"))
    adapter, info = open_dataset(root)
    assert info.channels == ("T1", "T2")
    record = adapter.records(root, "train")[0]
    assert [path.name[-11:] for path in record.images] == ["0000.nii.gz", "0001.nii.gz"]
    sample = adapter.load(record)
    assert sample["image"].shape == (2, 8, 24, 20)
    assert sample["image"][:, sample["mask"] == 2].mean() > sample["image"][:, sample["mask"] == 0].mean() + 50


def test_nnunet_labelled_test_folder_is_the_test_split(tmp_path):
    root = write_nnunet(tmp_path, num_cases=8, num_test=3, labelled_test=True)
    adapter, _ = open_dataset(root)
    assert [record.case for record in adapter.records(root, "test")] == ["fake_008", "fake_009", "fake_010"]
    assert sum(len(adapter.records(root, split)) for split in ("train", "val")) == 8
    (root / "labelsTs" / "fake_010.nii.gz").unlink()
    assert [record.case for record in adapter.records(root, "unlabelled")] == ["fake_010"]


def test_nnunet_version_1_is_told_from_the_decathlon(tmp_path):
    root = write_nnunet(tmp_path, num_cases=4, num_test=0, channels=("CT",))
    _edit(
        root,
        channel_names=None,
        file_ending=None,
        modality={"0": "CT"},
        labels={"0": "background", "1": "small", "2": "large"},
        training=[
            {"image": f"./imagesTr/fake_{i:03d}.nii.gz", "label": f"./labelsTr/fake_{i:03d}.nii.gz"} for i in range(4)
        ],
    )
    adapter, info = open_dataset(root)
    assert adapter.name == "nnunet"
    assert (info.classes, info.channels) == (("background", "small", "large"), ("CT",))
    assert adapter.load(adapter.records(root, "train")[0])["image"].shape == (1, 8, 24, 20)


def test_nnunet_rgb_png_is_one_file_of_three_channels(tmp_path):
    root = write_nnunet(tmp_path, num_cases=4, num_test=0, shape=(24, 32), channels=("R",), file_ending=".png")
    for path in (root / "imagesTr").iterdir():
        write_picture(path, np.dstack([np.full((24, 32), v) for v in (10, 20, 30)]))
    for names, channels in (
        ({"0": "R", "1": "G", "2": "B"}, ("R", "G", "B")),
        ({"0": "RGB"}, ("red", "green", "blue")),
    ):
        _edit(root, channel_names=names)
        adapter, info = open_dataset(root)
        assert info.channels == channels
        sample = adapter.load(adapter.records(root, "train")[0])
        assert sample["image"][:, 0, 0].tolist() == [10, 20, 30]


def test_nnunet_channels_of_one_kind_are_numbered(tmp_path):
    root = write_nnunet(tmp_path, num_cases=3)
    _edit(root, channel_names={"0": "MRI", "1": "MRI"})
    assert open_dataset(root)[1].channels == ("MRI_0", "MRI_1")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, r"'whole' as a region of several values, \[1, 2\]"),
        ({"labels": {"background": 0, "organ": 1, "ignore": 2}}, "an ignore label"),
        ({"labels": {"background": 0, "organ": 0}}, "gives 0 to both"),
        ({"file_ending": ".mha"}, r'"file_ending" is \'\.mha\''),
        ({"channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"}}, "3 are declared"),
        ({"channel_names": {"0": "T1"}}, r"has the channels \[0, 1\]; 1 are declared"),
        ({"labels": None}, "has no labels"),
    ],
)
def test_nnunet_description_that_cannot_work_is_refused(tmp_path, changes, reason):
    root = write_nnunet(tmp_path, num_cases=3)
    _edit(root, **changes)
    with pytest.raises(DatasetLayoutError, match=reason):
        open_dataset(root, "nnunet")[0].records(root, "train")


def test_nnunet_files_that_do_not_fit_are_refused(tmp_path):
    root = write_nnunet(tmp_path, num_cases=4)
    adapter = ADAPTERS["nnunet"]
    stray = root / "imagesTr" / "fake_000.nii.gz"
    shutil.copy(root / "imagesTr" / "fake_000_0000.nii.gz", stray)
    with pytest.raises(DatasetLayoutError, match=r"the name has no channel number; CASE_0000\.nii\.gz is needed"):
        adapter.records(root, "train")
    stray.unlink()
    (root / "labelsTr" / "fake_001.nii.gz").unlink()
    with pytest.raises(DatasetLayoutError, match=r"1 of 4 cases have no file in labelsTr/, such as fake_001"):
        adapter.records(root, "train")
    for channel in (0, 1):
        (root / "imagesTr" / f"fake_001_{channel:04d}.nii.gz").unlink()
    (root / "imagesTr" / "fake_002_0001.nii.gz").unlink()
    with pytest.raises(DatasetLayoutError, match=r"the case 'fake_002' has the channels \[0\]; 2 are declared"):
        adapter.records(root, "train")


def test_channels_on_other_voxels_are_refused(tmp_path):
    root = write_nnunet(tmp_path, num_cases=4)
    adapter, _ = open_dataset(root)
    record = adapter.records(root, "train")[0]
    other = write_nnunet(tmp_path / "other", num_cases=1, shape=(20, 24, 9))
    shutil.copy(other / "imagesTr" / "fake_000_0001.nii.gz", record.images[1])
    with pytest.raises(ShapeError, match="channels must be on the same voxels"):
        adapter.load(record)
