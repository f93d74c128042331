"""Labelled videos: every layout becomes the lists of a CocoVID file, and what cannot be meant is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from fakes.videos import write_cocovid
from PIL import Image

from statefield.datasets.tracking.video_objects import open_videos
from statefield.errors import ConfigError, DataError, DatasetLayoutError

XML = """<annotation><folder>v</folder><filename>{}</filename><size><width>40</width><height>30</height></size>
<object><trackid>{}</trackid><name>n02958343</name><bndbox><xmax>20</xmax><xmin>5</xmin><ymax>25</ymax><ymin>10</ymin>
</bndbox><occluded>0</occluded><generated>0</generated></object></annotation>"""


def picture(path: Path, size=(40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(path)


def write_imagenet_vid(root: Path) -> Path:
    for video in ("ILSVRC2015_val_00000000", "ILSVRC2015_val_00000001"):
        for frame in range(2):
            place = root / "Annotations" / "VID" / "val" / video / f"{frame:06d}.xml"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(XML.format(f"{frame:06d}", 3))
            picture(root / "Data" / "VID" / "val" / video / f"{frame:06d}.JPEG")
    return root / "Annotations" / "VID" / "val"


def write_mot(root: Path) -> Path:
    folder = root / "MOT17-02-FRCNN"
    (folder / "gt").mkdir(parents=True)
    (folder / "gt" / "gt.txt").write_text(
        "1,1,5,10,15,15,1,1,1\n2,1,6,10,15,15,1,1,1\n1,2,1,1,5,5,0,1,1\n2,3,1,1,5,5,1,3,1\n"
    )
    for frame in (1, 2, 3):
        picture(folder / "img1" / f"{frame:06d}.jpg")
    return root


def test_cocovid_frames_are_in_order_with_boxes_and_labels(tmp_path):
    found = open_videos(write_cocovid(tmp_path, num_videos=3, num_frames=4))
    assert found.layout == "CocoVID"
    assert found.classes == ("disc", "square", "triangle")
    assert [video.case for video in found.videos] == ["video_001", "video_002", "video_003"]
    frames = found.videos[1].frames
    assert [frame.path.name for frame in frames] == [f"{n:06d}.jpg" for n in range(4)]
    content = json.loads((tmp_path / "annotations.json").read_text())
    of_frame = [one for one in content["annotations"] if one["image_id"] == frames[2].image_id]
    assert len(of_frame) == len(frames[2].boxes) > 0
    x, y, width, height = of_frame[0]["bbox"]
    assert frames[2].boxes[0].tolist() == [x, y, x + width, y + height]
    assert frames[2].labels[0] == of_frame[0]["category_id"]
    assert found.truth.has_tracks


def test_videos_are_held_out_by_name(tmp_path):
    found = open_videos(write_cocovid(tmp_path, num_videos=3, num_frames=4))
    held, rest = found.only(["video_002"]), found.without(["video_002"])
    assert [video.case for video in held.videos] == ["video_002"]
    assert [video.case for video in rest.videos] == ["video_001", "video_003"]
    assert len(held.truth.images) == 4 and len(rest.truth.images) == 8
    assert len(held.truth.annotations) + len(rest.truth.annotations) == len(found.truth.annotations)
    assert len(held.first_frames(2).truth.images) == 2
    with pytest.raises(ConfigError, match="no video 'video_9'"):
        found.only(["video_9"])


def test_a_plain_coco_file_is_videos_of_one_frame(tmp_path):
    path = write_cocovid(tmp_path, num_videos=2, num_frames=2)
    content = json.loads(path.read_text())
    del content["videos"]
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    found = open_videos(path)
    assert found.layout == "COCO"
    assert [len(video.frames) for video in found.videos] == [1, 1, 1, 1]
    first = content["annotations"][0]["image_id"]
    (frame,) = [one for video in found.videos for one in video.frames if one.image_id == first]
    assert len(frame.boxes) == sum(one["image_id"] == first for one in content["annotations"]) - 1


def test_imagenet_vid_is_read_as_published(tmp_path):
    found = open_videos(write_imagenet_vid(tmp_path / "ILSVRC2015"))
    assert found.layout == "ImageNet-VID"
    assert len(found.classes) == 30
    assert [video.case for video in found.videos] == ["ILSVRC2015_val_00000000", "ILSVRC2015_val_00000001"]
    frame = found.videos[0].frames[1]
    assert frame.boxes.tolist() == [[5, 10, 20, 25]]
    assert found.classes[frame.labels[0] - 1] == "car"
    assert found.truth.has_tracks
    place = frame.path.parents[4] / "Annotations" / "VID" / "val" / "ILSVRC2015_val_00000001" / "000000.xml"
    place.write_text(place.read_text().replace("n02958343", "n00000000"))
    with pytest.raises(DataError, match=r"000000\.xml: object 1 is of 'n00000000'"):
        open_videos(tmp_path / "ILSVRC2015")


def test_motchallenge_is_one_class(tmp_path):
    found = open_videos(write_mot(tmp_path))
    assert (found.layout, found.classes) == ("MOTChallenge", ("pedestrian",))
    (video,) = found.videos
    assert [frame.boxes.tolist() for frame in video.frames] == [[[5, 10, 20, 25]], [[6, 10, 21, 25]], []]
    assert found.truth.images[0]["file_name"] == "MOT17-02-FRCNN/img1/000001.jpg"


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DatasetLayoutError, match=r"none\.json: no such file"):
        open_videos(tmp_path / "none.json")
    path = write_cocovid(tmp_path / "vid", num_videos=1, num_frames=2)
    with pytest.raises(DatasetLayoutError, match=r"elsewhere/video_001/000000\.jpg: no such file.*--data\.images"):
        open_videos(path, tmp_path / "elsewhere")
    root = write_mot(tmp_path / "mot")
    for picture_file in (root / "MOT17-02-FRCNN" / "img1").iterdir():
        picture_file.unlink()
    with pytest.raises(DatasetLayoutError, match="MOT17-02-FRCNN, whose frames are not there"):
        open_videos(root)
    with pytest.raises(ConfigError, match=r"data\.images is of COCO files"):
        open_videos(root, tmp_path)
