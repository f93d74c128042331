"""What the app lets in: files that it was given, of the kinds asked for, small enough; and nothing else."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from statefield.app.results import ResultFolders
from statefield.app.uploads import PICTURES, TRACKS, VIDEOS, VOLUMES, Uploads, placed
from statefield.errors import DataError


@pytest.fixture
def door(tmp_path: Path) -> Uploads:
    (tmp_path / "uploads").mkdir()
    return Uploads(tmp_path / "uploads", 100_000)


def picture(path: Path) -> Path:
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
def test_volumes_are_known_by_their_first_bytes(door, name):
    path = door.folder / name
    nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)).to_filename(path)
    assert door.admit(str(path), VOLUMES, "a volume") == path.resolve()
    other = door.folder / f"other_{name}"
    other.write_bytes(gzip.compress(b"x" * 600) if name.endswith("gz") else b"x" * 600)
    with pytest.raises(DataError, match="first bytes"):
        door.admit(str(other), VOLUMES, "a volume")


def test_nifti_2_is_a_volume(door):
    path = door.folder / "two.nii.gz"
    nib.Nifti2Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)).to_filename(path)
    assert door.admit(str(path), VOLUMES, "a volume")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".gif"])
def test_pictures_are_known_by_their_first_bytes(door, suffix):
    path = picture(door.folder / f"a{suffix}")
    assert door.admit(str(path), PICTURES, "a picture") == path.resolve()
    path.rename(path.with_suffix(".jpeg" if suffix != ".jpg" else ".png"))
    with pytest.raises(DataError, match="first bytes"):
        door.admit(str(path.with_suffix(".jpeg" if suffix != ".jpg" else ".png")), PICTURES, "a picture")


def test_tracks_are_numbers_alone(door):
    path = door.folder / "street.txt"
    path.write_text("1,1,10.5,20,30,60,1e0,-1,-1,-1\n")
    assert door.admit(str(path), TRACKS, "a result")
    path.write_text("root:x:0:0\n")
    with pytest.raises(DataError, match="first bytes"):
        door.admit(str(path), TRACKS, "a result")
    path.write_text("")
    with pytest.raises(DataError, match="empty"):
        door.admit(str(path), TRACKS, "a result")


def test_a_script_that_is_named_as_a_video_is_refused(door):
    path = door.folder / "clip.mp4"
    path.write_text("#EXTM3U\nhttp://127.0.0.1/x\n")
    with pytest.raises(DataError, match="first bytes"):
        door.admit(str(path), VIDEOS, "a video")


@pytest.mark.parametrize("given", ["/etc/passwd", "/proc/self/environ", "uploads/../secret.png", "\0", "nowhere.png"])
def test_no_path_outside_the_uploads_is_opened(door, given):
    picture(door.folder.parent / "secret.png")
    if given.startswith("uploads"):
        given = str(door.folder / ".." / "secret.png")
    with pytest.raises(DataError, match="not a file that was uploaded here") as said:
        door.admit(given, (*PICTURES, ".txt", ""), "anything")
    assert str(door.folder) not in str(said.value)


def test_a_link_out_of_the_uploads_is_not_followed(door):
    secret = picture(door.folder.parent / "secret.png")
    (door.folder / "link.png").symlink_to(secret)
    with pytest.raises(DataError, match="not a file that was uploaded here"):
        door.admit(str(door.folder / "link.png"), PICTURES, "a picture")


def test_size_and_suffix_are_said_before_the_file_is_read(door):
    large = door.folder / "large.png"
    large.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200_000))
    with pytest.raises(DataError, match="--max-upload"):
        door.admit(str(large), PICTURES, "a picture")
    other = door.folder / "notes.pdf"
    other.write_bytes(b"%PDF")
    with pytest.raises(DataError, match=r"ends in \.nii\.gz, \.nii"):
        door.admit(str(other), VOLUMES, "a volume")
    with pytest.raises(DataError, match="No file was given: a volume is needed"):
        door.admit(None, VOLUMES, "a volume")


def test_a_placed_upload_has_a_plain_name_below_its_folder(tmp_path):
    source = picture(tmp_path / "a b'c.png")
    path = placed(source, tmp_path / "given")
    assert path == tmp_path / "given" / "a_b_c.png" and path.read_bytes() == source.read_bytes()
    assert placed(source, tmp_path / "given", "../../up.png").parent == tmp_path / "given"


def test_results_are_private_bounded_and_removed():
    folders = ResultFolders(kept=2)
    assert folders.root.stat().st_mode & 0o777 == 0o700
    made = [folders.new() for _ in range(3)]
    assert [folder.exists() for folder in made] == [False, True, True]
    folders.remove()
    assert not folders.root.exists()
