"""Defective and odd files where they are read; tests/cli/test_bad_input.py puts the same through the commands."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fakes.bad_input import Defect, accepted_labels, image_defects, label_defects, picture_defects
from fakes.medical import LPS, blobs, write_picture, write_volume
from numpy.lib import format as npy

from statefield.datasets.adapter import load_files
from statefield.datasets.readers import nifti, npz
from statefield.datasets.sample import DatasetInfo
from statefield.errors import DataError, ShapeError

AFFINE = LPS @ np.diag([0.8, 0.9, 2.5, 1.0])
INFO = DatasetInfo(("ground", "small", "large"), ("CT",), spatial_dims=3)


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path]:
    """A sound volume and its labels."""
    image, labels = blobs((20, 24, 8), num_classes=3)
    return (
        write_volume(tmp_path / "images" / "case.nii.gz", image[..., 0], AFFINE),
        write_volume(tmp_path / "labels" / "case.nii.gz", labels, AFFINE, np.uint8),
    )


@pytest.mark.parametrize("defect", image_defects(), ids=lambda defect: defect.name)
def test_a_defective_image_is_one_error_with_its_name(defect: Defect, case: tuple[Path, Path]) -> None:
    defect.spoil(case[0])
    with pytest.raises((DataError, ShapeError)) as raised:
        load_files([case[0]], case[1], info=INFO)
    assert str(raised.value).startswith(str(case[0]))
    assert re.search(defect.reason, str(raised.value))


@pytest.mark.parametrize("defect", label_defects(), ids=lambda defect: defect.name)
def test_defective_labels_are_one_error_with_their_name(defect: Defect, case: tuple[Path, Path]) -> None:
    defect.spoil(case[1])
    with pytest.raises((DataError, ShapeError)) as raised:
        load_files([case[0]], case[1], info=INFO)
    assert str(case[1]) in str(raised.value)
    assert re.search(defect.reason, str(raised.value))


@pytest.mark.parametrize("accepted", accepted_labels(), ids=lambda accepted: accepted.name)
def test_odd_but_sound_labels_are_read_as_the_others_are(accepted: Defect, case, caplog) -> None:
    expected = np.zeros((20, 24, 8))
    expected[2:6, 2:6, 2:6] = 1
    write_volume(case[1], expected, AFFINE, np.uint8)
    before = load_files([case[0]], case[1], info=INFO)["mask"]
    accepted.spoil(case[1])
    np.testing.assert_array_equal(load_files([case[0]], case[1], info=INFO)["mask"], before)
    assert accepted.reason in caplog.text
    assert bool(accepted.reason) == (str(case[1].parent) in caplog.text)


@pytest.mark.parametrize("defect", picture_defects(), ids=lambda defect: defect.name)
def test_a_defective_picture_is_one_error_with_its_name(defect: Defect, tmp_path: Path) -> None:
    path = tmp_path / defect.name
    defect.spoil(path)
    with pytest.raises((DataError, ShapeError)) as raised:
        load_files([path], info=DatasetInfo(("a", "b"), ("grey",), spatial_dims=2))
    assert str(raised.value).startswith(str(path))
    assert re.search(defect.reason, str(raised.value))


def test_an_image_without_contrast_is_read_and_said_once(tmp_path: Path, caplog) -> None:
    path = write_picture(tmp_path / "flat.png", np.full((6, 5), 9))
    for _ in range(3):
        assert (load_files([path])["image"] == 9).all()
    assert caplog.text.count("flat.png: every value of channel 0 is 9: it shows nothing") == 1


def test_spacing_zero_beside_a_sound_sform_is_of_no_consequence(case: tuple[Path, Path]) -> None:
    before = nifti.read_volume(case[0])
    plain = case[0].with_name("plain.nii")
    write_volume(plain, before.array[0].transpose(2, 1, 0), AFFINE)
    content = bytearray(plain.read_bytes())
    content[80:92] = np.zeros(3, "<f4").tobytes()  # pixdim[1:4]
    plain.write_bytes(content)
    assert nifti.read_volume(plain).spacing == (2.5, 0.9, 0.8)


def test_a_file_that_may_not_be_opened_is_named(case: tuple[Path, Path], monkeypatch) -> None:
    def refused(path: Path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(DataError, match=r"images/case\.nii\.gz: the file cannot be opened \(Permission denied\)"):
        nifti.read_volume(case[0])


def test_sizes_beyond_64_bits_are_not_taken_for_small_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("image.npy", "w") as stream:
        npy.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1 << 24)})
    with pytest.raises(DataError, match=r"a\.npz: its header claims 1099511627776 x 16777216 values .* the limit is"):
        npz.read_array(path, "image", 2)
