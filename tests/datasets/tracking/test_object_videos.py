"""Sequences and their frames: where publishers keep them, and what is said where they do not belong together."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from fakes.moving_targets import moving_target, write_otb
from PIL import Image

from statefield.datasets.events.frames import EventFrameConfig
from statefield.datasets.tracking.frames import HeldFrames, VideoFrames
from statefield.datasets.tracking.object_videos import find_object_videos
from statefield.errors import DataError, DatasetLayoutError

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[3] / "../shared/data"))
PEDRO = DATA / "events/pedro_person_detection"
BAG, VOT2018 = DATA / "sot/bag_video/bag.avi", DATA / "sot/vot_gt/vot2018/VOT2018.json"


def pictures(folder, count, first=1):
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        Image.fromarray(np.full((12, 16, 3), number, np.uint8)).save(folder / f"{number}.png")


def boxes(path, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{number},2,5,6\n" for number in range(count)))


def events_csv(path, times):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "t,x,y,p\n" + "".join(f"{time},{number % 16},{number % 12},1\n" for number, time in enumerate(times))
    )


def test_otb_keeps_frames_in_img_and_ten_comes_after_nine(tmp_path):
    write_otb(tmp_path, {"Ball": 1, "Car": 2}, 12)
    ball, car = find_object_videos(tmp_path)
    assert (ball.case, car.case) == ("Ball", "Car")
    frames = ball.open()
    assert len(frames) == 12 and frames.name_of(9).endswith("0010.png")
    wanted, truth = moving_target(1, 12)
    assert np.array_equal(frames[9], wanted[9])
    assert np.array_equal(ball.boxes, truth)
    assert [one.case for one in find_object_videos(tmp_path, names=["Car"])] == ["Car"]


@pytest.mark.parametrize(
    ("truth", "extra", "frames"),
    [
        ("airplane/airplane-1/groundtruth.txt", ("full_occlusion.txt", "out_of_view.txt"), "airplane/airplane-1/img"),
        ("GOT_1/groundtruth.txt", ("meta_info.ini",), "GOT_1"),
        ("anno/video.txt", (), "frames/video"),
        ("seq/groundtruth.txt", ("absent.txt",), "seq/img"),
        ("seq/groundtruth.txt", (), "seq"),
        ("anno/UAV123/car1.txt", (), "data_seq/UAV123/car1"),
    ],
    ids=["lasot", "got10k", "trackingnet", "eventvot", "plain", "uav123"],
)
def test_frames_are_found_where_benchmarks_keep_them(tmp_path, truth, extra, frames):
    pictures(tmp_path / frames, 11, first=0)
    boxes(tmp_path / truth, 11)
    for name in extra:
        flags = "1" if name == "absent.txt" else "0"
        (tmp_path / truth).with_name(name).write_text(
            "\n".join([flags] * 11) if name.endswith("txt") else "[METAINFO]\n"
        )
    (video,) = find_object_videos(tmp_path)
    assert video.place == tmp_path / frames
    assert [int(frame[0, 0, 0]) for frame in video.open()] == list(range(11))
    assert video.visible.all()


def test_visevent_has_pictures_of_both_cameras_and_the_recording(tmp_path):
    boxes(tmp_path / "annos/gt_rect/night.txt", 3)
    (tmp_path / "annos/absent").mkdir()
    (tmp_path / "annos/absent/night.txt").write_text("0\n1\n0\n")
    pictures(tmp_path / "night/vis_imgs", 3)
    pictures(tmp_path / "night/event_imgs", 3, first=100)
    events_csv(tmp_path / "night/night.csv", range(0, 3000, 10))
    assert find_object_videos(tmp_path, kind="pictures")[0].open()[0][0, 0, 0] == 1
    assert find_object_videos(tmp_path, kind="event_pictures")[0].open()[0][0, 0, 0] == 100
    (video,) = find_object_videos(tmp_path, kind="events")
    assert len(video.open()) == 3 and video.open()[1].shape == (12, 16, 3)
    assert video.visible.tolist() == [True, False, True]


def test_one_sequence_and_one_folder_of_pictures_can_be_named(tmp_path):
    write_otb(tmp_path, {"Ball": 1}, 4)
    assert len(find_object_videos(tmp_path / "Ball")[0].open()) == 4
    (alone,) = find_object_videos(tmp_path / "Ball/img")
    assert len(alone.boxes) == 0 and len(alone.open()) == 4


def test_a_recording_is_divided_by_its_boxes_or_by_a_window(tmp_path):
    events_csv(tmp_path / "fly.csv", range(1000, 5000, 5))
    (video,) = find_object_videos(tmp_path / "fly.csv", events=EventFrameConfig(window_us=500))
    assert len(video.open()) == 8
    boxes(tmp_path / "fly.txt", 5)
    (video,) = find_object_videos(tmp_path / "fly.csv")
    assert len(video.open()) == 5
    (video,) = find_object_videos(tmp_path / "fly.csv", events=EventFrameConfig(window_us=2000))
    with pytest.raises(DataError, match="5 boxes"):
        video.open()


def test_another_number_of_frames_than_boxes_is_an_error_that_names_both(tmp_path):
    write_otb(tmp_path, {"Ball": 1}, 4)
    boxes(tmp_path / "Ball/groundtruth_rect.txt", 5)
    with pytest.raises(DataError, match=r"4 frames, and 5 boxes in .*groundtruth_rect\.txt"):
        find_object_videos(tmp_path)[0].open()


def test_a_damaged_frame_is_named(tmp_path):
    write_otb(tmp_path, {"Ball": 1}, 3)
    (tmp_path / "Ball/img/0002.png").write_bytes(b"no picture")
    frames = find_object_videos(tmp_path)[0].open()
    with pytest.raises(DataError, match=r"0002\.png"):
        frames[1]


@pytest.mark.parametrize("name", ["nothing", "empty", "notes.pdf"])
def test_what_holds_no_sequence_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.pdf").write_text("x")
    with pytest.raises((DatasetLayoutError, DataError), match=name):
        find_object_videos(tmp_path / name)


def test_sequences_without_frames_are_named(tmp_path):
    boxes(tmp_path / "gone/groundtruth_rect.txt", 3)
    with pytest.raises(DatasetLayoutError, match="no frames of 'gone'"):
        find_object_videos(tmp_path)


def test_a_video_and_vots_json(tmp_path):
    import cv2

    frames, truth = moving_target(3, 6)
    writer = cv2.VideoWriter(str(tmp_path / "toy.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (128, 96))
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    polygons = [[x, y, x + w, y, x + w, y + h, x, y + h] for x, y, w, h in truth]
    (tmp_path / "VOT.json").write_text(json.dumps({"toy": {"gt_rect": polygons, "width": 128, "height": 96}}))
    (video,) = find_object_videos(tmp_path / "toy.avi", truth=tmp_path / "VOT.json")
    np.testing.assert_allclose(video.boxes, truth)
    opened = video.open()
    assert isinstance(opened, VideoFrames) and len(opened) == 6
    backwards = [opened[number] for number in (4, 1)]
    held = HeldFrames(opened)
    assert all(np.array_equal(one, held[number]) for one, number in zip(backwards, (4, 1), strict=True))
    assert np.abs(held[4].astype(int) - frames[4]).mean() < 12  # JPEG
    cut = (tmp_path / "toy.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(cut[: len(cut) // 8])
    with pytest.raises(DataError, match=r"cut\.avi"):
        find_object_videos(tmp_path / "cut.avi")[0].open()


@pytest.mark.shared_data
def test_pedros_stills_become_windows_that_can_pan():
    if not PEDRO.is_dir():
        pytest.skip(f"no PEDRo at {PEDRO} (STATEFIELD_DATA)")
    still = find_object_videos(PEDRO, names=["frame0013230-1"])[0]
    assert (len(still.open()), still.split) == (4, "train")
    assert (still.boxes == still.boxes[0]).all()
    moving = find_object_videos(PEDRO, names=["frame0013230-1"], events=EventFrameConfig(pan_px=6.0))[0]
    frames, plain = moving.open(), still.open()
    assert len(frames) == len(moving.boxes) == 24
    steps = np.abs(np.diff(moving.boxes[:, :2], axis=0))
    assert 1 < steps.max() <= 7 and (moving.boxes[:, 2:] == still.boxes[0, 2:]).all()
    for number in (1, 7, 20):
        right, down = (moving.boxes[number, :2] - still.boxes[0, :2]).astype(int)
        row, column = 130 + max(down, 0), 170 + max(right, 0)
        here = frames[number][row : row + 40, column : column + 40]
        there = plain[number % 4][row - down : row - down + 40, column - right : column - right + 40]
        assert np.array_equal(here, there)


@pytest.mark.shared_data
def test_the_bag_has_a_polygon_for_each_frame():
    if not BAG.is_file():
        pytest.skip(f"no video at {BAG} (STATEFIELD_DATA)")
    (video,) = find_object_videos(BAG, truth=VOT2018)
    assert len(video.open()) == len(video.boxes) == 196
    assert video.open()[0].shape == (360, 480, 3)
