"""NIfTI in and out: geometry kept exactly, and every kind of damage named."""

from __future__ import annotations

import gzip
import itertools
import struct

import nibabel as nib
import numpy as np
import pytest
from fakes.medical import write_volume

from statefield.datasets.readers.nifti import (
    meta_of,
    num_channels_of,
    read_labels,
    read_volume,
    restore,
    same_place,
    write_nifti,
)
from statefield.errors import ConfigError, DataError, LabelError, ShapeError


def _all_orientations():
    """The 48 ways in which a file's axes can lie: permutations times flips."""
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            linear = np.zeros((3, 3))
            for file_axis, world_axis in enumerate(axes):
                linear[world_axis, file_axis] = signs[file_axis] * (0.5, 1.25, 3.0)[file_axis]
            affine = np.eye(4)
            affine[:3, :3] = linear
            affine[:3, 3] = (10.0, -20.0, 30.0)
            yield affine


def _numbered(shape=(3, 4, 5)):
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def _header_of(path):
    return bytearray(path.read_bytes()[:348])


def _with_header_field(path, offset, kind, *values):
    """Overwrite one field of an uncompressed NIfTI-1 header."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<" + kind * len(values), content, offset, *values)
    path.write_bytes(content)
    return path


def test_each_of_48_orientations_is_read_canonically_and_restored_exactly(tmp_path):
    stored = _numbered()
    for index, affine in enumerate(_all_orientations()):
        path = write_volume(tmp_path / f"{index}.nii", stored, affine)
        volume = read_volume(path)
        # D, H, W grow to superior, anterior, right
        towards = volume.affine[:3, :3]
        assert (towards[2, 0] > 0) and (towards[1, 1] > 0) and (towards[0, 2] > 0)
        assert np.count_nonzero(towards) == 3
        # a voxel keeps its value and its place in the world
        ijk = np.array([2, 1, 3])
        world = affine @ [*ijk, 1]
        dhw = np.rint(np.linalg.solve(volume.affine, world)).astype(int)[:3]
        assert volume.array[0][tuple(dhw)] == stored[tuple(ijk)]
        assert sorted(volume.spacing) == [0.5, 1.25, 3.0]
        meta = meta_of(volume, case="x", path=path)
        np.testing.assert_array_equal(restore(volume.array[0], meta), stored)
        np.testing.assert_array_equal(restore(volume.array, meta)[..., 0], stored)


def test_spacing_follows_the_array_axes(tmp_path):
    volume = read_volume(write_volume(tmp_path / "a.nii.gz", _numbered(), np.diag([0.5, 1.25, 3.0, 1.0])))
    assert volume.array.shape == (1, 5, 4, 3)
    assert volume.spacing == (3.0, 1.25, 0.5)


def test_oblique_affine_keeps_every_corner_in_its_place(tmp_path):
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-0.7, 0.7, 2.0])
    affine[:3, 3] = (5, 6, 7)
    volume = read_volume(write_volume(tmp_path / "a.nii.gz", _numbered(), affine))
    corner = affine @ [2, 0, 0, 1]  # i is flipped, so the last i is w = 0
    np.testing.assert_allclose(volume.affine @ [0, 0, 0, 1], corner, atol=1e-5)
    assert volume.spacing == (2.0, 0.7, 0.7)


@pytest.mark.parametrize(("units", "scale"), [("mm", 1.0), ("micron", 1e-3), ("meter", 1e3), ("unknown", 1.0)])
def test_units_of_the_header_become_millimetres(tmp_path, units, scale):
    image = nib.Nifti1Image(_numbered(), np.diag([2.0, 2.0, 4.0, 1.0]))
    image.header.set_xyzt_units(units)
    image.to_filename(tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.spacing, np.array([4.0, 2.0, 2.0]) * scale, rtol=1e-6)
    np.testing.assert_allclose(np.diag(volume.affine[:3, 2::-1]), np.array([2.0, 2.0, 4.0]) * scale, rtol=1e-6)


def test_fourth_axis_becomes_channels(tmp_path):
    stored = _numbered((3, 4, 5, 2))
    path = write_volume(tmp_path / "a.nii.gz", stored)
    volume = read_volume(path)
    assert volume.array.shape == (2, 5, 4, 3)
    assert num_channels_of(path) == 2
    np.testing.assert_array_equal(volume.array[1], stored[..., 1].transpose(2, 1, 0))


def test_intensity_scaling_of_the_header_is_applied(tmp_path):
    image = nib.Nifti1Image(_numbered(), np.eye(4))
    image.header.set_slope_inter(0.5, -3.0)
    image.to_filename(tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    assert volume.array[0, 4, 3, 2] == 0.5 * 59 - 3
    np.testing.assert_array_equal(volume.array[0].T, nib.load(tmp_path / "a.nii").get_fdata())


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endian", ["<", ">"])
def test_written_labels_keep_sform_qform_and_their_codes(tmp_path, kind, endian):
    sform = np.array([[0, -0.8, 0, 90], [0, 0, 2.5, -30], [0.8, 0, 0, 12], [0, 0, 0, 1.0]])
    qform = np.array([[0, -0.8, 0, 80], [0, 0, 2.5, -35], [0.8, 0, 0, 11], [0, 0, 0, 1.0]])
    header = (nib.Nifti1Header if kind is nib.Nifti1Image else nib.Nifti2Header)(endianness=endian)
    header.set_data_dtype(np.dtype(np.float32).newbyteorder(endian))
    image = kind(_numbered().astype(np.float32), sform, header)
    image.set_sform(sform, code=4)
    image.set_qform(qform, code=1)
    image.header.set_xyzt_units("mm")
    image.to_filename(tmp_path / "image.nii.gz")

    volume = read_volume(tmp_path / "image.nii.gz")
    labels = (volume.array[0] % 3).astype(np.int64)
    meta = meta_of(volume, case="x", path=tmp_path / "image.nii.gz")
    write_nifti(tmp_path / "labels.nii.gz", labels, meta)

    source, written = nib.load(tmp_path / "image.nii.gz"), nib.load(tmp_path / "labels.nii.gz")
    assert type(written) is kind
    np.testing.assert_array_equal(written.affine, source.affine)
    for field in (
        "sform_code",
        "qform_code",
        "srow_x",
        "srow_y",
        "srow_z",
        "quatern_b",
        "quatern_c",
        "quatern_d",
        "qoffset_x",
        "qoffset_y",
        "qoffset_z",
        "pixdim",
        "xyzt_units",
    ):
        np.testing.assert_array_equal(written.header[field], source.header[field], err_msg=field)
    assert written.shape == source.shape
    assert written.get_data_dtype().newbyteorder("=") == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj), _numbered() % 3)
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.nii.gz", 3).array[0], labels)


@pytest.mark.parametrize(("largest", "dtype"), [(255, np.uint8), (256, np.int16), (40000, np.int32)])
def test_written_type_is_the_smallest_that_holds_the_labels(tmp_path, largest, dtype):
    volume = read_volume(write_volume(tmp_path / "a.nii", _numbered()))
    labels = np.zeros(volume.array.shape[1:], np.int64)
    labels[0, 0, 0] = largest
    write_nifti(tmp_path / "out.nii", labels, meta_of(volume, case="a", path=tmp_path / "a.nii"))
    written = nib.load(tmp_path / "out.nii")
    assert written.get_data_dtype() == dtype
    assert int(np.asarray(written.dataobj)[0, 0, 0]) == largest


def test_labels_of_a_four_axis_image_are_three_axis_and_of_a_two_axis_image_two_axis(tmp_path):
    for shape in ((3, 4, 5, 2), (3, 4)):
        path = write_volume(tmp_path / "a.nii", _numbered(shape))
        volume = read_volume(path)
        write_nifti(tmp_path / "out.nii", np.zeros(volume.array.shape[1:], int), meta_of(volume, case="a", path=path))
        assert nib.load(tmp_path / "out.nii").shape == shape[:3]


def test_same_labels_give_the_same_bytes(tmp_path):
    volume = read_volume(write_volume(tmp_path / "a.nii", _numbered()))
    meta = meta_of(volume, case="a", path=tmp_path / "a.nii")
    for name in ("one.nii.gz", "two.nii.gz"):
        write_nifti(tmp_path / name, np.ones(volume.array.shape[1:], int), meta)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


def test_wrong_labels_leave_no_file(tmp_path):
    volume = read_volume(write_volume(tmp_path / "a.nii", _numbered()))
    meta = meta_of(volume, case="a", path=tmp_path / "a.nii")
    shape = volume.array.shape[1:]
    for labels, error in (
        (np.full(shape, -1), LabelError),
        (np.full(shape, 0.5), LabelError),
        (np.zeros((2, 2, 2), int), ShapeError),
    ):
        with pytest.raises(error):
            write_nifti(tmp_path / "out.nii.gz", labels, meta)
    with pytest.raises(ConfigError, match=r"\.nii"):
        write_nifti(tmp_path / "out.png", np.zeros(shape, int), meta)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii"]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kept", [0.98, 0.5, 0.01])
def test_truncated_file_is_named(tmp_path, name, kept):
    path = write_volume(tmp_path / name, np.random.default_rng(0).integers(0, 1000, (12, 12, 12)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DataError, match=rf"{name}: .*(cut off|damaged)"):
        read_volume(path)


def test_flipped_bits_in_the_compressed_data_are_found(tmp_path):
    path = write_volume(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 1000, (12, 12, 12)))
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # in the checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read_volume(path)


def test_header_that_claims_more_memory_than_allowed_is_refused_before_decoding(tmp_path, monkeypatch):
    path = write_volume(tmp_path / "a.nii", _numbered())
    _with_header_field(path, 40, "h", 3, 30000, 30000, 30000)
    with pytest.raises(DataError, match=r"30000 x 30000 x 30000.*STATEFIELD_MEMORY_LIMIT_GB"):
        read_volume(path)
    monkeypatch.setenv("STATEFIELD_MEMORY_LIMIT_GB", "much")
    with pytest.raises(ConfigError, match="STATEFIELD_MEMORY_LIMIT_GB='much'"):
        read_volume(path)


def test_gzip_that_unpacks_to_more_than_its_header_announces_is_refused(tmp_path):
    plain = write_volume(tmp_path / "a.nii", _numbered()).read_bytes()
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(plain + bytes(50_000_000)))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"bomb\.nii\.gz: .*dimensions do not match"):
        read_volume(bomb)


def test_few_trailing_bytes_are_ignored_and_logged(tmp_path, caplog):
    path = write_volume(tmp_path / "a.nii", _numbered())
    path.write_bytes(path.read_bytes() + bytes(16))
    assert read_volume(path).array.shape == (1, 5, 4, 3)
    assert "16 bytes after the voxels" in caplog.text


@pytest.mark.parametrize(("value", "where"), [(np.nan, (1, 2, 3)), (np.inf, (0, 0, 0)), (-np.inf, (2, 3, 4))])
def test_voxels_that_are_no_numbers_are_counted_and_placed(tmp_path, value, where):
    stored = _numbered().astype(np.float32)
    stored[where] = value
    path = write_volume(tmp_path / "a.nii.gz", stored, dtype=np.float32)
    with pytest.raises(DataError, match=rf"1 of 60 voxels are NaN or infinite, the first at index \({where[0]}, "):
        read_volume(path)


def test_affine_without_volume_is_refused(tmp_path):
    path = write_volume(tmp_path / "a.nii", _numbered())
    _with_header_field(path, 296, "f", *([0.0] * 12))  # srow_z, srow_y, srow_x: the sform
    _with_header_field(path, 280, "f", *([0.0] * 12))
    with pytest.raises(DataError, match="cannot be inverted"):
        read_volume(path)


def test_damaged_headers_raise_our_errors_and_no_other(tmp_path):
    rng = np.random.default_rng(0)
    sound = write_volume(tmp_path / "a.nii", _numbered()).read_bytes()
    refused = 0
    for _ in range(400):
        content = bytearray(sound)
        for place in rng.choice(352, 4):
            content[place] = rng.integers(256)
        (tmp_path / "b.nii").write_bytes(content)
        try:
            volume = read_volume(tmp_path / "b.nii")
        except DataError as error:
            refused += 1
            assert "b.nii: " in str(error)
        else:  # what is read can be written and lies where it was read from
            meta = meta_of(volume, case="b", path=tmp_path / "b.nii")
            write_nifti(tmp_path / "c.nii", np.zeros(volume.array.shape[1:], int), meta)
            np.testing.assert_array_equal(read_labels(tmp_path / "c.nii").affine, volume.affine)
    assert 20 < refused < 300


def test_affine_in_metres_of_small_voxels_is_sound(tmp_path):
    image = nib.Nifti1Image(_numbered(), np.diag([5e-6, 5e-6, 1e-5, 1.0]))
    image.header.set_xyzt_units("meter")
    image.to_filename(tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").spacing == (0.01, 0.005, 0.005)


def test_files_that_are_no_single_nifti_are_refused(tmp_path):
    (tmp_path / "text.nii").write_text("not an image " * 100)
    with pytest.raises(DataError, match="no NIfTI file"):
        read_volume(tmp_path / "text.nii")
    (tmp_path / "text.nii.gz").write_text("not an image " * 100)
    with pytest.raises(DataError, match="damaged"):
        read_volume(tmp_path / "text.nii.gz")
    (tmp_path / "empty.nii").write_bytes(b"")
    with pytest.raises(DataError, match="0 bytes found"):
        read_volume(tmp_path / "empty.nii")
    with pytest.raises(DataError, match="no such file"):
        read_volume(tmp_path / "absent.nii")
    pair = write_volume(tmp_path / "pair.nii", _numbered())
    content = bytearray(pair.read_bytes())
    content[344:348] = b"ni1\0"
    pair.write_bytes(content)
    with pytest.raises(DataError, match="apart from its voxels"):
        read_volume(pair)


def test_dimensions_that_cannot_be_are_refused(tmp_path):
    path = write_volume(tmp_path / "five.nii", _numbered((2, 2, 2, 2, 2)))
    with pytest.raises(DataError, match="5 axes"):
        read_volume(path)
    path = write_volume(tmp_path / "zero.nii", _numbered())
    _with_header_field(path, 40, "h", 3, 3, 0, 5)
    with pytest.raises(DataError, match="dimensions"):
        read_volume(path)
    path = write_volume(tmp_path / "negative.nii", _numbered())
    _with_header_field(path, 40, "h", 3, 3, -4, 5)
    with pytest.raises(DataError, match="dimensions"):
        read_volume(path)


def test_colour_and_complex_voxels_are_refused(tmp_path):
    rgb = np.zeros((3, 4, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(rgb, np.eye(4)).to_filename(tmp_path / "rgb.nii")
    nib.Nifti1Image(np.zeros((3, 4, 5), np.complex64), np.eye(4)).to_filename(tmp_path / "complex.nii")
    for name in ("rgb.nii", "complex.nii"):
        with pytest.raises(DataError, match="scalar"):
            read_volume(tmp_path / name)


def test_float_labels_are_read_when_whole_and_refused_when_not(tmp_path):
    whole = (_numbered() % 3).astype(np.float32)
    volume = read_labels(write_volume(tmp_path / "whole.nii", whole, dtype=np.float32), 3)
    assert volume.array.dtype == np.int64
    np.testing.assert_array_equal(volume.array[0], whole.transpose(2, 1, 0))
    for bad in (0.5, np.nan, 1e30):
        soft = whole.copy()
        soft[1, 1, 1] = bad
        with pytest.raises(LabelError, match=r"soft\.nii: 1 label values are no integers"):
            read_labels(write_volume(tmp_path / "soft.nii", soft, dtype=np.float32), 3)


def test_labels_outside_the_classes_are_listed(tmp_path):
    stored = _numbered() % 3
    stored[0, 0, :2] = (7, 9)
    path = write_volume(tmp_path / "a.nii", stored)
    with pytest.raises(LabelError, match=r"label values 7, 9 found in 2 places; the declared classes are 0 to 2"):
        read_labels(path, 3)
    assert int(read_labels(path).array.max()) == 9
    stored[0, 0, 0] = -1
    with pytest.raises(LabelError, match="-1"):
        read_labels(write_volume(tmp_path / "b.nii", stored))


def test_label_map_with_four_axes_is_refused(tmp_path):
    with pytest.raises(DataError, match="three axes"):
        read_labels(write_volume(tmp_path / "a.nii", _numbered((3, 4, 5, 2)) % 2))


@pytest.mark.parametrize(("shift", "same"), [(0.0, True), (5e-4, True), (0.1, False)])
def test_grids_are_the_same_within_a_thousandth(tmp_path, shift, same):
    moved = np.eye(4)
    moved[0, 3] = shift
    first = read_volume(write_volume(tmp_path / "a.nii", _numbered()))
    second = read_volume(write_volume(tmp_path / "b.nii", _numbered(), moved))
    assert (same_place(first, second) is None) == same


def test_a_mask_stored_in_another_orientation_lies_on_its_image(tmp_path):
    stored = _numbered()
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    flipped[0, 3] = 2  # i = 0 is the old i = 2
    image = read_volume(write_volume(tmp_path / "a.nii", stored))
    mask = read_labels(write_volume(tmp_path / "b.nii", stored[::-1], flipped))
    assert same_place(image, mask) is None
    np.testing.assert_array_equal(image.array, mask.array)


def test_restore_refuses_another_size_and_pictures(tmp_path):
    volume = read_volume(write_volume(tmp_path / "a.nii", _numbered()))
    meta = meta_of(volume, case="a", path=tmp_path / "a.nii")
    with pytest.raises(ShapeError, match=r"\(3, 4, 4\)"):
        restore(np.zeros((4, 4, 3)), meta)
    with pytest.raises(ConfigError, match="PNG"):
        restore(np.zeros((4, 4, 3)), {**meta, "file": None})
