"""Average precision of detections in images and videos."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as masks

from statefield.datasets.tracking.coco_json import _runs, read_annotations, read_detections
from statefield.errors import ConfigError, DataError
from statefield.tasks.tracking.video.coco_scores import coco_scores
from statefield.tasks.tracking.video.evaluation import evaluate_detections
from statefield.tasks.tracking.video.motion import motion_ious
from statefield.tasks.tracking.video.vid_scores import coco_speed_scores, vid_speed_scores

DATA = Path(os.environ.get("STATEFIELD_DATA", Path(__file__).parents[4] / "../shared/data"))
COCO = DATA / "detection/coco_val2014_100"


def _write(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def video(tmp_path):
    """One video of five frames: a car that stands, a dog that moves by half its width in each frame."""
    images = [
        {"id": n + 1, "video_id": 1, "frame_id": n, "width": 400, "height": 300, "file_name": f"{n}.jpg"}
        for n in range(5)
    ]
    annotations = []
    for n in range(5):
        common = {"image_id": n + 1, "video_id": 1, "iscrowd": 0}
        boxes = ([10, 10, 40, 40], 1, 1), ([10 + 20 * n, 100, 40, 40], 2, 2)
        for box, category, instance in boxes:
            number = len(annotations) + 1
            annotations.append({"id": number, "bbox": box, "category_id": category, "instance_id": instance, **common})
    truth = {
        "videos": [{"id": 1, "name": "v"}],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "dog"}],
    }
    return truth, _write(tmp_path / "truth.json", truth)


def _found(truth, keep=lambda one: True, score=0.9):
    return [
        {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"], "score": score}
        for one in truth["annotations"]
        if keep(one)
    ]


def test_motion_is_the_mean_overlap_with_the_object_itself(video):
    truth, path = video
    values = motion_ious(read_annotations(path))
    assert values[::2].tolist() == [1.0] * 5
    # moved by n half widths, boxes share (2 - n) of (2 + n) halves: 1/3, 0, 0, 0
    assert values[1::2] == pytest.approx([1 / 12, 2 / 12, 2 / 12, 2 / 12, 1 / 12])
    assert motion_ious(read_annotations(path), neighbours=1)[1] == pytest.approx(1 / 3)
    truth["annotations"] = truth["annotations"][:1]
    assert motion_ious(read_annotations(_write(path, truth))).tolist() == [0.0]  # one frame alone


def test_ten_frames_are_counted_by_their_number_and_not_by_their_place(video):
    truth, path = video
    for image, frame in zip(truth["images"], (0, 10, 11, 30, 31), strict=True):
        image["frame_id"] = frame
    values = motion_ious(read_annotations(_write(path, truth)))[1::2]
    assert values == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1 / 3, 1 / 3])  # each has neighbours one step away alone


@pytest.mark.parametrize("rules", [vid_speed_scores, coco_speed_scores])
def test_scores_are_split_by_speed(video, tmp_path, rules):
    truth, path = video
    annotations = read_annotations(path)
    everything = rules(annotations, read_detections(_write(tmp_path / "all.json", _found(truth)), annotations))
    assert everything.num_objects == {"all": 10, "slow": 5, "medium": 0, "fast": 5}
    assert everything.mean["all"] == pytest.approx(1.0)
    assert everything.per_class["car"]["slow"] == pytest.approx(1.0)
    assert np.isnan(everything.per_class["car"]["fast"])
    assert np.isnan(everything.mean["medium"])
    cars = _write(tmp_path / "cars.json", _found(truth, lambda one: one["category_id"] == 1))
    slow_only = rules(annotations, read_detections(cars, annotations))
    assert (slow_only.mean["slow"], slow_only.mean["fast"]) == (pytest.approx(1.0), 0.0)


def test_detections_of_objects_of_another_speed_count_neither_way(video, tmp_path):
    truth, path = video
    for one in truth["annotations"]:
        one["category_id"] = 1  # both are cars now, one slow, one fast
    annotations = read_annotations(_write(path, truth))
    found = _found(truth, lambda one: one["instance_id"] == 2, score=0.9)
    found += _found(truth, lambda one: one["instance_id"] == 1, score=0.5)
    scores = vid_speed_scores(annotations, read_detections(_write(tmp_path / "d.json", found), annotations))
    assert scores.per_class["car"] == {
        "all": 1.0,
        "slow": 1.0,
        "medium": pytest.approx(np.nan, nan_ok=True),
        "fast": 1.0,
    }


def test_false_detections_weigh_by_the_share_of_objects_as_in_fgfa(video, tmp_path):
    truth, path = video
    # dogs are moved to frames 1 to 4, so that the first frame has none; a false dog there, before the true ones
    truth["annotations"] = [one for one in truth["annotations"] if (one["category_id"], one["image_id"]) != (2, 1)]
    annotations = read_annotations(_write(path, truth))
    false = {"image_id": 1, "category_id": 2, "bbox": [200, 200, 40, 40], "score": 0.99}
    found = [false, *_found(truth, lambda one: one["category_id"] == 2)]
    scores = vid_speed_scores(annotations, read_detections(_write(tmp_path / "d.json", found), annotations))
    # after n true dogs precision is n / (n + weight), highest after all four, and recall steps by a quarter
    assert scores.per_class["dog"]["all"] == pytest.approx(4 / (4 + 1))
    assert scores.per_class["dog"]["fast"] == pytest.approx(4 / (4 + 4 / 9))  # 4 of the 9 objects are fast
    by_coco = coco_speed_scores(annotations, read_detections(tmp_path / "d.json", annotations))
    assert by_coco.per_class["dog"]["fast"] == pytest.approx(4 / 5)


@pytest.mark.parametrize("first", [0, "a"])
def test_annotations_are_found_whatever_their_ids(video, tmp_path, first):
    truth, path = video
    truth["annotations"][0]["id"] = first
    annotations = read_annotations(_write(path, truth))
    found = read_detections(_write(tmp_path / "d.json", _found(truth)), annotations)
    assert coco_scores(annotations, found, "bbox").overall["AR100"] == pytest.approx(1.0)


def test_frames_without_numbers_are_no_tracks(video):
    truth, path = video
    truth["images"][1]["frame_id"] = "second"
    assert not read_annotations(_write(path, truth)).has_tracks


def test_no_detection_at_all_scores_zero(video, tmp_path):
    _, path = video
    evaluation = evaluate_detections(path, [_write(tmp_path / "none.json", [])])
    assert evaluation.coco["bbox"]["none"].overall["AP"] == 0.0
    assert evaluation.speeds["FGFA"]["none"].mean["slow"] == 0.0
    assert any("no detection" in note for note in evaluation.notes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": 77}, "image_id is not among the images: 77"),
        ({"image_id": [1]}, "image_id is not among the images"),
        ({"category_id": None}, "category_id is not among the categories: None"),
        ({"score": "high"}, "score is no number: 'high'"),
        ({"score": float("nan")}, "score is no number: nan"),
        ({"bbox": [1, 2, 3]}, "bbox is not four numbers"),
        ({"bbox": [1, 2, -3, 4]}, "bbox has a negative size"),
        ({"bbox": None}, "neither a bbox nor"),
        ({"segmentation": [[1, 2, 3]]}, "six numbers or more"),
        ({"segmentation": {"size": [3, 3], "counts": [9]}}, "not of its image's size"),
        ({"segmentation": {"size": [300, 400], "counts": [9]}}, "do not fill its size"),
        ({"segmentation": {"size": [300, 400], "counts": "~~~"}}, "do not fill its size"),
        ({"keypoints": [1, 2]}, "keypoints are not numbers in threes"),
    ],
)
def test_broken_entries_are_named_or_left_out_and_counted(video, tmp_path, change, said):
    truth, path = video
    annotations = read_annotations(path)
    entries = _found(truth)
    entries[3] = {**entries[3], **change}
    results = _write(tmp_path / "d.json", entries)
    with pytest.raises(DataError, match="entry 3: ") as raised:
        read_detections(results, annotations)
    assert said in str(raised.value)
    kept = read_detections(results, annotations, on_bad="skip")
    assert len(kept.entries) == 9
    assert sum(kept.skipped.values()) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "line 1: this is no JSON"),
        ("[]", "ground truth is an object"),
        ('{"images": [], "annotations": []}', "no 'categories'"),
        ('{"images": [{"id": 1}, {"id": 1}], "annotations": [], "categories": []}', "id 1 twice"),
        ('{"images": [{"id": null}], "annotations": [], "categories": []}', r"images\[0\] has the id None"),
        (
            '{"images": [{"id": 1, "video_id": 3}], "annotations": [], "categories": [], "videos": [{"id": 1}]}',
            "video 3",
        ),
        ('{"images": [{"id": 1}], "annotations": [{"id": 5, "image_id": 2}], "categories": []}', r"annotations\[0\]"),
    ],
)
def test_broken_ground_truth_is_named(tmp_path, content, said):
    path = tmp_path / "truth.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"truth\.json.*{said}"):
        read_annotations(path)


def test_run_lengths_are_read_as_pycocotools_writes_them():
    generator = np.random.default_rng(0)
    for shape in ((7, 9), (40, 30), (1, 1), (300, 200)):
        for density in (0.0, 0.02, 0.5, 1.0):
            drawn = np.asfortranarray(generator.random(shape) < density, dtype=np.uint8)
            runs = _runs(masks.encode(drawn)["counts"].decode())
            values = np.repeat(np.arange(len(runs)) % 2, runs)
            assert values.tolist() == drawn.ravel(order="F").tolist()


def test_kinds_and_speed_must_be_there(video, tmp_path):
    truth, path = video
    results = _write(tmp_path / "d.json", _found(truth))
    with pytest.raises(DataError, match="has no segmentation, so segm cannot be scored"):
        evaluate_detections(path, [results], kinds=["segm"])
    del truth["videos"]
    with pytest.raises(ConfigError, match="no tracks to measure speed by"):
        evaluate_detections(_write(path, truth), [results], by_speed=True)
    assert evaluate_detections(path, [results]).speeds == {}
    with pytest.raises(ConfigError, match="two files have one name"):
        evaluate_detections(path, [results, results])


@pytest.mark.shared_data
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_the_hundred_images_of_the_cocoapi(kind):
    if not COCO.is_dir():
        pytest.skip(f"no COCO sample at {COCO} (STATEFIELD_DATA)")
    reference = json.loads((DATA / "REFERENCE.json").read_text())["coco_val2014_100"]
    truth = read_annotations(COCO / "instances_val2014_100.json")
    found = read_detections(COCO / f"instances_val2014_fake{kind}100_results.json", truth)
    scores = coco_scores(truth, found, kind)
    assert list(scores.overall) == reference["order"].split()
    # sixteen digits: of the seventeen printed, the last depends on the order in which NumPy adds
    assert list(scores.overall.values()) == pytest.approx(reference[kind], rel=3e-16, abs=0)
    assert scores.per_class["person"]["AP"] > 0.2


@pytest.mark.shared_data
def test_keypoints_and_polygons_of_the_samples():
    if not COCO.is_dir():
        pytest.skip(f"no COCO sample at {COCO} (STATEFIELD_DATA)")
    truth = read_annotations(COCO / "keypoints/gt_dataset.json")
    found = read_detections(COCO / "keypoints/dt_dataset.json", truth)
    assert coco_scores(truth, found, "keypoints").overall["AP"] == pytest.approx(0.5049, abs=5e-5)
    truth = read_annotations(COCO / "extra/gt_dataset.json")
    found = read_detections(COCO / "extra/dt_dataset.json", truth)
    assert coco_scores(truth, found, "bbox").overall["AP"] == pytest.approx(0.6947, abs=5e-5)


@pytest.mark.shared_data
def test_cocovid_samples():
    root = DATA / "detection/mmtracking_cocovid"
    if not root.is_dir():
        pytest.skip(f"no CocoVID samples at {root} (STATEFIELD_DATA)")
    truth = read_annotations(root / "demo_cocovid_data/ann.json")
    assert (len(truth.images), truth.has_tracks) == (8, True)
    assert motion_ious(truth).max() < 1
    assert read_annotations(root / "demo_vis_data/ann.json").has_tracks
    with pytest.raises(DataError, match=r"annotations\[1\] \(id 3\): category_id is not among the categories: 95"):
        read_annotations(root / "demo_tao_data/ann.json")
    assert read_annotations(root / "demo_tao_data/ann.json", on_bad="skip").skipped
