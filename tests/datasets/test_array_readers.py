"""HDF5, npz and multi-page TIFF: what is read, what is not followed, and sizes judged before decoding."""

from __future__ import annotations

import pickle
import zipfile

import h5py
import numpy as np
import pytest
from fakes.published import write_hdf5, write_pages
from numpy.lib import format as npy
from PIL import Image

from statefield.datasets.readers import hdf5, npz
from statefield.datasets.readers.image import num_pages_of, read_pages
from statefield.datasets.readers.limits import LIMIT_VARIABLE
from statefield.errors import DataError


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, bool])
@pytest.mark.parametrize("shape", [(3, 4), (1, 1), (5, 1)])
def test_arrays_are_read_as_they_were_written(tmp_path, dtype, shape):
    values = (np.arange(np.prod(shape)).reshape(shape) % 2).astype(dtype)
    write_hdf5(tmp_path / "a.h5", image=values)
    np.savez_compressed(tmp_path / "a.npz", image=values)
    for found in (
        hdf5.read_array(tmp_path / "a.h5", "image", 2),
        npz.read_array(tmp_path / "a.npz", "image", 2),
    ):
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("reader", [hdf5, npz])
def test_missing_names_other_axes_and_no_files_are_named(tmp_path, reader):
    path = tmp_path / ("a.h5" if reader is hdf5 else "a.npz")
    with pytest.raises(DataError, match="no such file"):
        reader.read_array(path, "image", 2)
    write_hdf5(path, image=np.zeros((2, 3))) if reader is hdf5 else np.savez(path, image=np.zeros((2, 3)))
    with pytest.raises(DataError, match="there is no 'label' in it, but image"):
        reader.read_array(path, "label", 2)
    with pytest.raises(DataError, match=r"'image' has the shape \(2, 3\); 3 axes"):
        reader.read_array(path, "image", 3)


@pytest.mark.parametrize("reader", [hdf5, npz])
@pytest.mark.parametrize(
    "content", [b"", b"no such format", b"\x89HDF\r\n\x1a\n" + bytes(64), b"PK\x03\x04" + bytes(64)]
)
def test_damaged_files_are_named(tmp_path, reader, content):
    path = tmp_path / "broken.h5"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.h5: this is no"):
        reader.read_array(path, "image", 2)


@pytest.mark.parametrize("reader", [hdf5, npz])
def test_a_file_cut_off_is_named(tmp_path, reader):
    path = tmp_path / "cut"
    values = np.random.default_rng(0).normal(size=(50, 50))
    if reader is hdf5:
        write_hdf5(path, image=values)
    else:
        with path.open("wb") as stream:
            np.savez_compressed(stream, image=values)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="cut: this is no"):
        reader.read_array(path, "image", 2)


def test_hdf5_links_virtual_and_external_arrays_are_not_followed(tmp_path):
    secret = write_hdf5(tmp_path / "secret.h5", image=np.ones((2, 2)))
    (tmp_path / "raw.bin").write_bytes(bytes(64))
    layout = h5py.VirtualLayout(shape=(2, 2), dtype="f8")
    layout[:] = h5py.VirtualSource(secret, "image", shape=(2, 2))
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["kept"] = np.zeros((2, 2))
        file["external_link"] = h5py.ExternalLink(str(secret), "image")
        file["soft_link"] = h5py.SoftLink("/kept")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("external", (2, 2), "u1", external=[(str(tmp_path / "raw.bin"), 0, 4)])
        file.create_group("group")
    for name in ("external_link", "soft_link"):
        with pytest.raises(DataError, match=f"{name!r} is a link to another place"):
            hdf5.read_array(path, name, 2)
    for name in ("virtual", "external"):
        with pytest.raises(DataError, match=f"{name!r} keeps its values in other files"):
            hdf5.read_array(path, name, 2)
    with pytest.raises(DataError, match="'group' is no array"):
        hdf5.read_array(path, "group", 2)
    assert hdf5.read_array(path, "kept", 2).shape == (2, 2)


def test_objects_and_strings_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("words", data=[["a", "b"]], dtype=h5py.string_dtype())
        file.create_dataset("pairs", data=np.zeros((2, 2), [("x", "f4"), ("y", "f4")]))
    for name in ("words", "pairs"):
        with pytest.raises(DataError, match=f"{name!r} holds values of type"):
            hdf5.read_array(tmp_path / "a.h5", name, 2)
    np.savez(tmp_path / "a.npz", words=np.array([["a", "b"]]), things=np.array([[{}, []]], dtype=object))
    for name in ("words", "things"):
        with pytest.raises(DataError, match=f"{name!r} holds values of type"):
            npz.read_array(tmp_path / "a.npz", name, 2)


def test_a_pickle_in_an_npz_is_never_opened(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match=r"this is no \.npz file that can be read"):
        npz.read_array(path, "image", 2)


def test_sizes_are_judged_before_anything_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "0.001")
    side = 2000  # 16 MB of zeros in a few kB
    write_hdf5(tmp_path / "a.h5", image=np.zeros((side, side), np.float32))
    np.savez_compressed(tmp_path / "a.npz", image=np.zeros((side, side), np.float32))
    write_pages(tmp_path / "a.tif", np.zeros((20, 200, 200)))
    assert (tmp_path / "a.npz").stat().st_size < 50_000
    with pytest.raises(DataError, match=r"claims 2000 x 2000 values of float32"):
        hdf5.read_array(tmp_path / "a.h5", "image", 2)
    with pytest.raises(DataError, match=r"claims 2000 x 2000 values of float32"):
        npz.read_array(tmp_path / "a.npz", "image", 2)
    with pytest.raises(DataError, match="claims 20 pages of 200 x 200 pixels"):
        read_pages(tmp_path / "a.tif")


def test_a_chunk_larger_than_its_array_is_judged_too(tmp_path, monkeypatch):
    monkeypatch.setenv(LIMIT_VARIABLE, "0.001")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", (2, 2), "f4", chunks=(2000, 2000), maxshape=(None, None), compression="gzip")
    with pytest.raises(DataError, match=r"claims 2000 x 2000 values of float32 in one chunk"):
        hdf5.read_array(tmp_path / "a.h5", "image", 2)


def test_an_npz_member_shorter_than_its_header_says_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("image.npy", "w") as stream:
        npy.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (100, 100)})
        stream.write(bytes(40))
    with pytest.raises(DataError, match=r"this is no \.npz file"):
        npz.read_array(path, "image", 2)


def test_pages_of_a_tiff_are_read_from_first_to_last(tmp_path):
    pages = np.random.default_rng(0).integers(0, 255, (5, 6, 7)).astype(np.uint8)
    path = write_pages(tmp_path / "a.tif", pages)
    assert num_pages_of(path) == 5
    np.testing.assert_array_equal(read_pages(path), pages)
    np.testing.assert_array_equal(read_pages(path, 1, 3), pages[1:4])
    for first, last in ((2, 5), (-1, 2), (3, 2)):
        with pytest.raises(DataError, match=r"wanted, 5 found"):
            read_pages(path, first, last)


def test_pages_of_several_sizes_or_colours_are_refused(tmp_path):
    first = Image.fromarray(np.zeros((4, 4), np.uint8))
    for other in (Image.fromarray(np.zeros((4, 5), np.uint8)), Image.fromarray(np.zeros((4, 4, 3), np.uint8))):
        first.save(tmp_path / "a.tif", save_all=True, append_images=[other])
        with pytest.raises(DataError, match=r"page 1 has colour mode .* grey pages of 4 x 4 pixels"):
            read_pages(tmp_path / "a.tif")
