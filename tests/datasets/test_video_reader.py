"""Frames of video files and of folders: in order, by name, and errors that name the file."""

import numpy as np
import pytest
from fakes.videos import CLASSES, moving_shapes, write_video
from PIL import Image

from statefield.datasets.readers.limits import LIMIT_VARIABLE
from statefield.datasets.readers.video import find_frames, read_frame
from statefield.errors import ConfigError, DataError, DatasetLayoutError


@pytest.fixture
def frames():
    return moving_shapes(np.random.default_rng(0), 5, (64, 48), CLASSES, 0.0)[0]


def test_a_folder_is_read_by_the_numbers_in_its_names(tmp_path, frames):
    for number in (10, 9, 2):
        Image.fromarray(np.full((8, 9, 3), number, np.uint8)).save(tmp_path / f"frame_{number}.png")
    (video,) = find_frames([tmp_path])
    assert (video.name, video.length, video.size) == (tmp_path.name, 3, (9, 8))
    assert [int(frame[0, 0, 0]) for frame in video] == [2, 9, 10]
    assert [int(frame[0, 0, 0]) for frame in video.at([2, 0])] == [10, 2]
    assert video.frame_names(3)[2].endswith("frame_10.png")


def test_a_video_file_gives_the_frames_that_went_in(tmp_path, frames):
    (video,) = find_frames([write_video(tmp_path / "clip.mp4", frames)])
    assert (video.name, video.length, video.size, video.rate) == ("clip", 5, (64, 48), 10.0)
    found = list(video)
    assert len(found) == 5
    assert all(one.dtype == np.uint8 and one.shape == (48, 64, 3) for one in found)
    # the codec loses a little; other frames, or blue for red, would be far more
    assert np.abs(found[3].astype(float) - frames[3]).mean() < 8
    assert np.array_equal(video.at([3])[0], found[3])
    assert video.frame_names(2) == ["clip/000001.jpg", "clip/000002.jpg"]


def test_a_folder_of_sequences_is_one_video_each(tmp_path, frames):
    for name in ("b", "a"):
        (tmp_path / name / "img1").mkdir(parents=True)
        Image.fromarray(frames[0]).save(tmp_path / name / "img1" / "000001.jpg")
    write_video(tmp_path / "c.mp4", frames)
    assert [video.name for video in find_frames([tmp_path])] == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="two videos are named 'a'"):
        find_frames([tmp_path, tmp_path / "a"])


def test_a_grey_picture_has_three_equal_channels(tmp_path):
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "grey.png")
    frame = read_frame(tmp_path / "grey.png")
    assert frame.shape == (3, 4, 3)
    assert (frame[..., 0] == frame[..., 2]).all()
    Image.fromarray(np.full((3, 4), 700, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png.*8 bits"):
        read_frame(tmp_path / "deep.png")


def test_what_is_no_video_is_named(tmp_path, frames, monkeypatch):
    with pytest.raises(DatasetLayoutError, match="no such file"):
        find_frames([tmp_path / "none.mp4"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetLayoutError, match="holds no frames"):
        find_frames([tmp_path / "empty"])
    (tmp_path / "text.mp4").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"text\.mp4: this is no video"):
        find_frames([tmp_path / "text.mp4"])
    whole = write_video(tmp_path / "whole.mp4", frames)
    monkeypatch.setenv(LIMIT_VARIABLE, "0.000001")
    with pytest.raises(DataError, match=r"whole\.mp4: its header claims frames of 48 x 64"):
        find_frames([whole])


def test_a_video_that_ends_early_is_an_error(tmp_path):
    """The frames' data is overwritten from the middle on; the header still says how many there are."""
    frames = moving_shapes(np.random.default_rng(1), 60, (64, 48), CLASSES, 0.0)[0]
    path = write_video(tmp_path / "cut.mp4", frames)
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 2000
    content[start : content.index(b"moov") - 8] = bytes(content.index(b"moov") - 8 - start)
    path.write_bytes(content)
    (video,) = find_frames([path])
    with pytest.raises(DataError, match=r"cut\.mp4: \d+ of 60 frames could be decoded"):
        list(video)
