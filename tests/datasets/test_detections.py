"""Detections of every form are the same detections, and what cannot be meant is named."""

import json

import numpy as np
import pytest

from statefield.datasets.tracking.bad_rows import BadRows
from statefield.datasets.tracking.detections import read_detections
from statefield.errors import ConfigError, DataError, DatasetLayoutError

ROWS = "2,-1,30,40,10,20,0.8,-1,-1,-1\n1,-1,10,20,10,20,0.9,-1,-1,-1\n2,-1,12,20,10,20,0.7,-1,-1,-1\n"
SEQINFO = "[Sequence]\nname=street\nseqLength=4\nframeRate=30\nimWidth=640\nimHeight=480\n"


def mot(root):
    (root / "street" / "det").mkdir(parents=True)
    (root / "street" / "det" / "det.txt").write_text(ROWS)
    (root / "street" / "seqinfo.ini").write_text(SEQINFO)
    return root


def coco(root, *, with_video=False):
    """Images and results of the same detections; frames by name, or by a frame_id from 0 and a video."""
    images, results = [], []
    for frame in range(1, 5):
        image = {"id": 100 + frame, "width": 640, "height": 480}
        image |= {"video_id": 7, "frame_id": frame - 1} if with_video else {"file_name": f"street/img1/{frame:06d}.jpg"}
        images.append(image)
    for line in ROWS.splitlines():
        cells = [float(cell) for cell in line.split(",")]
        results.append({"image_id": 100 + int(cells[0]), "category_id": 1, "bbox": cells[2:6], "score": cells[6]})
    about = {"images": images, "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}]}
    about |= {"videos": [{"id": 7, "name": "clips/street"}]} if with_video else {}
    (root / "images.json").write_text(json.dumps(about))
    (root / "results.json").write_text(json.dumps(results))
    (root / "whole.json").write_text(json.dumps(about | {"annotations": results}))
    return root


def same(found):
    (one,) = found
    assert one.name == "street"
    assert one.num_frames == 4
    assert one.image_size == (640, 480)
    assert one.frame.tolist() == [1, 2, 2]
    assert np.array_equal(one.boxes, [[10, 20, 20, 40], [30, 40, 40, 60], [12, 20, 22, 40]])
    assert one.scores.tolist() == [0.9, 0.8, 0.7]


def test_names_may_count_from_zero(tmp_path):
    about = json.loads((coco(tmp_path) / "images.json").read_text())
    for number, image in enumerate(about["images"]):
        image["file_name"] = f"street/img1/{number:06d}.jpg"
    (tmp_path / "images.json").write_text(json.dumps(about))
    same(read_detections(tmp_path / "results.json", images=tmp_path / "images.json"))


@pytest.mark.parametrize("with_video", [False, True])
def test_every_form_gives_the_same_detections(tmp_path, with_video):
    (tmp_path / "coco").mkdir()
    coco(tmp_path / "coco", with_video=with_video)
    same(read_detections(tmp_path / "coco" / "whole.json"))
    same(read_detections(tmp_path / "coco" / "results.json", images=tmp_path / "coco" / "images.json"))
    root = mot(tmp_path / "mot")
    for path in (root, root / "street", root / "street" / "det" / "det.txt"):
        same(read_detections(path))


def test_a_bare_file_is_named_as_it_is_and_ends_with_its_last_frame(tmp_path):
    (tmp_path / "road.txt").write_text(ROWS)
    for path in (tmp_path, tmp_path / "road.txt"):
        (one,) = read_detections(path)
        assert (one.name, one.num_frames, one.image_size) == ("road", 2, None)


def test_frames_without_detections_are_told_too(tmp_path):
    (one,) = read_detections(mot(tmp_path))
    assert [(number, len(boxes), len(scores)) for number, boxes, scores in one.frames()] == [
        (1, 1, 1),
        (2, 2, 2),
        (3, 0, 0),
        (4, 0, 0),
    ]


def test_categories_and_sequences_can_be_chosen(tmp_path):
    coco(tmp_path)
    assert len(read_detections(tmp_path / "whole.json", categories=["person"])[0]) == 3
    assert len(read_detections(tmp_path / "whole.json", categories=["2"])[0]) == 0
    with pytest.raises(ConfigError, match="'dog'; there are person, car"):
        read_detections(tmp_path / "whole.json", categories=["dog"])
    with pytest.raises(ConfigError, match="'lane'; there are street"):
        read_detections(tmp_path / "whole.json", sequences=["lane"])


BAD = {
    "0,-1,1,1,5,5,0.5": "line 4: frame 0; frames are whole numbers from 1",
    "9,-1,1,1,5,5,0.5": "line 4: frame 9 is beyond the sequence, which has 4",
    "1,-1,1,1,-5,5,0.5": "line 4: a box of -5 by 5 pixels has no area",
    "1,-1,nan,1,5,5,0.5": "line 4: column 3 is nan",
    "1,-1,1,1,5": "line 4: 5 columns",
    "1,-1,one,1,5,5,0.5": "line 4: column 3 is 'one'",
}


@pytest.mark.parametrize("row", BAD)
def test_a_bad_row_is_named_by_file_and_line_or_counted(tmp_path, row):
    path = mot(tmp_path) / "street" / "det" / "det.txt"
    padded = row + ",-1,-1,-1" if row.count(",") == 6 else row
    path.write_text(ROWS + padded + "\n")
    with pytest.raises(DataError, match=BAD[row]):
        read_detections(tmp_path)
    told = []

    def skip(file):
        told.append(BadRows(file, "skip"))
        return told[-1]

    same(read_detections(tmp_path, bad=skip))
    assert len(told[0].told()) == 1


def test_a_bad_result_is_named_by_its_number(tmp_path):
    coco(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    for entry, message in (
        ({"image_id": 5, "bbox": [1, 1, 5, 5], "score": 0.5}, "result 4 is of image 5"),
        ({"image_id": 101, "bbox": [1, 1, 5], "score": 0.5}, "result 4 has no bbox"),
        ({"image_id": 101, "bbox": [1, 1, 0, 5], "score": 0.5}, "0 by 5 pixels"),
        ({"image_id": 101, "bbox": [1, 1, 5, 5]}, "result 4 has no bbox"),
    ):
        (tmp_path / "results.json").write_text(json.dumps([*results, entry]))
        with pytest.raises(DataError, match=message):
            read_detections(tmp_path / "results.json", images=tmp_path / "images.json")


def test_what_is_no_file_of_detections_is_refused(tmp_path):
    with pytest.raises(DatasetLayoutError, match="no such file"):
        read_detections(tmp_path / "nowhere")
    with pytest.raises(DatasetLayoutError, match="holds no detections"):
        read_detections(tmp_path)
    (tmp_path / "ids.txt").write_text("1,2,10,20,10,20\n")
    with pytest.raises(DataError, match="6 columns, 7 or more"):
        read_detections(tmp_path / "ids.txt")
    coco(tmp_path)
    with pytest.raises(ConfigError, match="--images"):
        read_detections(tmp_path / "results.json")
    with pytest.raises(ConfigError, match="COCO"):
        read_detections(tmp_path / "ids.txt", images=tmp_path / "images.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match="no JSON"):
        read_detections(tmp_path / "broken.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="images and annotations"):
        read_detections(tmp_path / "other.json")


@pytest.mark.parametrize("part", ["seqinfo.ini", "img1", "gt"])
def test_a_sequence_without_detections_is_named_and_not_passed_over(tmp_path, part):
    mot(tmp_path)
    (tmp_path / "square" / part).mkdir(parents=True)
    (tmp_path / "notes").mkdir()  # no sequence
    with pytest.raises(DatasetLayoutError, match=r"square is a sequence without detections: .*det\.txt is missing"):
        read_detections(tmp_path)
    with pytest.raises(DatasetLayoutError, match="square is a sequence"):
        read_detections(tmp_path, sequences=["street", "square"])
    same(read_detections(tmp_path, sequences=["street"]))
