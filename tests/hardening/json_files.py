"""COCO's JSON as ground truth, results and detections, and VOT's JSON of regions."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hardening.case import Case, Write, both, write_bytes, write_text

_TRUTH: dict[str, Any] = {
    "videos": [{"id": 1, "name": "v"}],
    "images": [
        {"id": n, "video_id": 1, "frame_id": n, "width": 100, "height": 100, "file_name": f"v/{n}.jpg"}
        for n in (1, 2, 3)
    ],
    "categories": [{"id": 1, "name": "car"}],
    "annotations": [
        {"id": n, "image_id": n, "category_id": 1, "instance_id": 1, "bbox": [10, 10, 20, 20]} for n in (1, 2, 3)
    ],
}
_RESULTS = [{"image_id": n, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9} for n in (1, 2, 3)]
_HUGE = 10**400  # JSON's integers have no largest; float64 has
_SCORE = "video evaluate --gt AT/truth.json --results AT/found.json --json AT/o.json --csv AT/o.csv --report AT/o.html"
_LINK = "mot track AT/found.json --images AT/truth.json --output AT/out"
_VOT = "sot evaluate --gt AT/VOT2018.json --results AT/results --protocol vot2018 --json AT/o.json"
_MASK = {"size": [100, 100], "counts": [10_000]}


def _changed(content: Any, change: Callable[[Any], object]) -> str:
    other = copy.deepcopy(content)
    change(other)
    return json.dumps(other)


def _files(truth: str | None = None, found: str | None = None) -> Write:
    return both(
        write_text("truth.json", json.dumps(_TRUTH) if truth is None else truth),
        write_text("found.json", json.dumps(_RESULTS) if found is None else found),
    )


def _texts() -> dict[str, tuple[bytes, str]]:
    """What is no JSON, or none that is meant, whatever was to be in it."""
    return {
        "empty": (b"", "JSON"),
        "cut_off": (json.dumps(_TRUTH).encode()[:150], "JSON"),
        "invalid_utf8": (b'{"images": "\xff\xfe"}', "JSON"),
        "utf16": (json.dumps(_TRUTH).encode("utf-16"), "JSON"),
        "deep": (b"[" * 100_000, "JSON"),
        "deep_objects": (b'{"a":' * 100_000, "JSON"),
        "5000_digits": (b'{"images": ' + b"9" * 5000 + b"}", "JSON"),
        "a_number": (b"3", "a int|object"),
        "a_string": (b'"images"', "a str|object"),
        "null": (b"null", "NoneType|object"),
        "trailing": (b"[] []", "JSON"),
    }


def detection_scores() -> list[Case]:
    """What `video evaluate` is given."""
    cases = [
        Case(f"results_{name}", both(_files(), write_bytes("found.json", text)), _SCORE, ("found.json", "JSON|results"))
        for name, (text, _) in _texts().items()
    ]
    cases += [
        Case(
            f"truth_{name}",
            both(_files(), write_bytes("truth.json", text)),
            _SCORE,
            ("truth.json", "JSON|ground truth"),
        )
        for name, (text, _) in _texts().items()
    ]
    truths: dict[str, tuple[Callable[[Any], object], str]] = {
        "without_images": (lambda t: t.pop("images"), "no 'images'"),
        "images_an_object": (lambda t: t.update(images={"id": 1}), "no 'images'"),
        "images_of_numbers": (lambda t: t.update(images=[1, 2]), "no 'images'"),
        "image_without_id": (lambda t: t["images"][1].pop("id"), r"images\[1\] has the id None"),
        "image_id_a_list": (lambda t: t["images"][1].update(id=[2]), r"images\[1\] has the id"),
        "image_id_twice": (lambda t: t["images"][1].update(id=1), "id 1 twice"),
        "category_id_twice": (lambda t: t["categories"].append({"id": 1, "name": "bus"}), "id 1 twice"),
        "unknown_video": (lambda t: t["images"][0].update(video_id=9), "video 9"),
        "video_a_list": (lambda t: t["images"][0].update(video_id=[1]), "video"),
        "unknown_image": (lambda t: t["annotations"][0].update(image_id=77), "77"),
        "image_an_object": (lambda t: t["annotations"][0].update(image_id={}), "image_id"),
        "box_of_three": (lambda t: t["annotations"][0].update(bbox=[1, 2, 3]), "four numbers"),
        "box_of_words": (lambda t: t["annotations"][0].update(bbox=["1", "2", "3", "4"]), "four numbers"),
        "box_nan": (lambda t: t["annotations"][0].update(bbox=[float("nan"), 2, 3, 4]), "four numbers"),
        "box_huge": (lambda t: t["annotations"][0].update(bbox=[_HUGE, 2, 3, 4]), "four numbers"),
        "box_negative": (lambda t: t["annotations"][0].update(bbox=[1, 2, -3, 4]), "negative"),
        "area_huge": (lambda t: t["annotations"][0].update(area=_HUGE), "area"),
        "nothing_to_score": (lambda t: t["annotations"][0].pop("bbox"), "neither"),
        "polygon_odd": (lambda t: t["annotations"][0].update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "polygon"),
        "polygon_huge": (lambda t: t["annotations"][0].update(segmentation=[[_HUGE] * 6]), "coordinate"),
    }
    cases += [
        Case(f"truth_{name}", _files(truth=_changed(_TRUTH, change)), _SCORE, ("truth.json", says))
        for name, (change, says) in truths.items()
    ]
    results: dict[str, tuple[Callable[[Any], object], str]] = {
        "without_score": (lambda r: r[0].pop("score"), "entry 0: score"),
        "score_huge": (lambda r: r[0].update(score=_HUGE), "entry 0: score"),
        "score_true": (lambda r: r[1].update(score=True), "entry 1: score"),
        "score_infinite": (lambda r: r[0].update(score=float("inf")), "entry 0: score"),
        "unknown_category": (lambda r: r[2].update(category_id=5), "entry 2: category_id"),
        "of_numbers": (lambda r: r.append(3), "entry 3"),
        "mask_size_0": (lambda r: r[0].update(segmentation=_MASK | {"size": [0, 0]}), "size"),
        "mask_of_another_size": (lambda r: r[0].update(segmentation=_MASK | {"size": [50, 200]}), "size"),
        "mask_runs_beyond": (lambda r: r[0].update(segmentation=_MASK | {"counts": [10_001]}), "run lengths"),
        "mask_runs_huge": (lambda r: r[0].update(segmentation=_MASK | {"counts": [_HUGE]}), "run lengths"),
        "mask_runs_negative": (lambda r: r[0].update(segmentation=_MASK | {"counts": [-5, 10_005]}), "run lengths"),
        "mask_text_damaged": (lambda r: r[0].update(segmentation=_MASK | {"counts": "\u00ff~~~"}), "run lengths"),
        "keypoints_of_four": (lambda r: r[0].update(keypoints=[1, 2, 3, 4]), "keypoints"),
    }
    cases += [
        Case(f"results_{name}", _files(found=_changed(_RESULTS, change)), _SCORE, ("found.json", says))
        for name, (change, says) in results.items()
    ]
    return cases


def linked_detections() -> list[Case]:
    """What `mot track` is given as COCO, and what it is told of its images."""
    cases = [
        Case(f"link_{name}", both(_files(), write_bytes("found.json", text)), _LINK, ("found.json", "JSON|COCO"))
        for name, (text, _) in _texts().items()
    ]
    truths: dict[str, tuple[Callable[[Any], object], str]] = {
        "images_of_numbers": (lambda t: t.update(images=[1]), "image 1"),
        "image_id_a_list": (lambda t: t["images"][1].update(id=[2]), "image 2"),
        "video_id_a_list": (lambda t: t["images"][1].update(video_id=[2]), "image 2"),
        "videos_of_numbers": (lambda t: t.update(videos=[1]), "videos"),
        "videos_a_number": (lambda t: t.update(videos=1), "videos"),
        "video_without_id": (lambda t: t.update(videos=[{"name": "a"}]), "videos"),
        "no_images": (lambda t: t.update(images=[]), "images"),
        "frame_of_5000_digits": (lambda t: t["images"][0].update(file_name="9" * 5000), "digits"),
        "frame_beyond": (lambda t: t["images"][0].update(file_name="v/99999999999.jpg"), "frame"),
        "no_frame": (lambda t: [t["images"][0].pop(key) for key in ("file_name", "frame_id")], "frame"),
    }
    cases += [
        Case(f"link_{name}", _files(truth=_changed(_TRUTH, change)), _LINK, ("truth.json", says))
        for name, (change, says) in truths.items()
    ]
    results: dict[str, tuple[Callable[[Any], object], str]] = {
        "image_a_list": (lambda r: r[0].update(image_id=[1]), "no known image|of image"),
        "unknown_image": (lambda r: r[0].update(image_id=9), "of image 9"),
        "box_huge": (lambda r: r[0].update(bbox=[_HUGE, 0, 1, 1]), "four finite numbers"),
        "box_nan": (lambda r: r[0].update(bbox=[float("nan"), 0, 1, 1]), "four finite numbers"),
        "score_null": (lambda r: r[0].update(score=None), "score"),
        "no_area": (lambda r: r[0].update(bbox=[1, 1, 0, 1]), "no area"),
    }
    cases += [
        Case(f"link_{name}", _files(found=_changed(_RESULTS, change)), _LINK, ("found.json", says))
        for name, (change, says) in results.items()
    ]
    odd = _changed(_TRUTH, lambda t: t.update(categories=[["car"]]))
    cases.append(
        Case("link_categories_of_lists", _files(truth=odd), f"{_LINK} --category car", ("truth.json", "categories"))
    )
    leaves = _changed(
        _TRUTH, lambda t: [i.pop("video_id") for i in t["images"]] + [t["images"][0].update(file_name="a/../1.jpg")]
    )
    cases.append(Case("link_name_of_dots", _files(truth=leaves), _LINK, ("truth.json", "name")))
    for name, video in (("nul", "a\0b"), ("half_a_character", "\ud800"), ("300_letters", "v" * 300)):
        odd = _changed(_TRUTH, lambda t, video=video: t["videos"][0].update(name=video))
        cases.append(Case(f"link_name_of_{name}", _files(truth=odd), _LINK, ("truth.json", "cannot be a file's")))
    return cases


def regions() -> list[Case]:
    """VOT's ground truth as one JSON file."""
    sound = {"ants": {"gt_rect": [[1, 1, 9, 1, 9, 9, 1, 9]] * 3, "width": 20, "height": 20, "occlusion": [0, 0, 1]}}
    result = write_text("results/near/baseline/ants/ants_001.txt", "1\n1,1,8,8\n1,1,8,8\n")
    changes: dict[str, tuple[Callable[[Any], object], str]] = {
        "without_rectangles": (lambda v: v["ants"].pop("gt_rect"), "ants.*gt_rect"),
        "rectangles_of_words": (lambda v: v["ants"].update(gt_rect=["a"]), "frame 1"),
        "row_of_words": (lambda v: v["ants"].update(gt_rect=[["a"] * 4]), "frame 1"),
        "row_huge": (lambda v: v["ants"].update(gt_rect=[[_HUGE, 1, 1, 1]]), "frame 1"),
        "row_infinite": (lambda v: v["ants"].update(gt_rect=[[float("inf"), 1, 1, 1]]), "frame 1"),
        "row_of_five": (lambda v: v["ants"].update(gt_rect=[[1, 2, 3, 4, 5]]), "frame 1"),
        "flags_of_objects": (lambda v: v["ants"].update(occlusion=[{}, 0, 1]), "occlusion"),
        "flags_too_few": (lambda v: v["ants"].update(occlusion=[0]), "occlusion"),
        "sequence_a_list": (lambda v: v.update(ants=[]), "no sequences"),
        "name_leaves": (lambda v: v.update({"../../ants": v.pop("ants")}), "cannot be a file's"),
    }
    cases = [
        Case(
            f"vot_{name}",
            both(result, write_text("VOT2018.json", _changed(sound, change))),
            _VOT,
            ("VOT2018.json|results", says),
        )
        for name, (change, says) in changes.items()
    ]
    cases += [
        Case(
            f"vot_{name}", both(result, write_bytes("VOT2018.json", text)), _VOT, ("VOT2018.json", "JSON|no sequences")
        )
        for name, (text, _) in _texts().items()
    ]
    return cases
