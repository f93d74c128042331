"""COCO's average precision through pycocotools, which is the definition of these numbers."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from statefield.datasets.tracking.coco_json import Annotations, Detections, Entry, Kind
from statefield.errors import DataError

_BOX_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_KEYPOINT_NAMES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
_KEYPOINTS = 17


@dataclass(frozen=True)
class CocoScores:
    """One kind of region.

    Args:
        overall: COCO's list of scores by name, fractions; -1 where there is nothing to score, as in pycocotools.
        per_class: class -> AP and AP50 over all sizes, NaN where a class has no ground truth.
        precision: class -> [101] precision at IoU 0.5 over recall 0, 0.01, ..., 1.
    """

    overall: dict[str, float]
    per_class: dict[str, dict[str, float]]
    precision: dict[str, NDArray[np.float64]]


def coco_scores(truth: Annotations, detections: Detections, kind: Kind) -> CocoScores:
    """Score detections by the COCO protocol: IoU 0.5 to 0.95, 101 recalls, 100 detections an image (20 for keypoints).

    Raises:
        DataError: ground truth without the kind of region, or keypoints that are not COCO's 17.
    """
    _require(truth, detections, kind)
    annotations = [_with_defaults(one) for one in truth.annotations]
    if kind == "keypoints":
        annotations = [one for one in annotations if one.get("keypoints")]
    indexed = indexed_truth(truth, annotations)
    entries = [_only(one, kind) for one in detections.entries]
    evaluation = COCOeval(indexed, indexed_detections(indexed, entries), kind)
    with quiet():
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = _KEYPOINT_NAMES if kind == "keypoints" else _BOX_NAMES
    precision = evaluation.eval["precision"]  # [IoU, recall, class, size, most detections]
    per_class, curves = {}, {}
    for index, category in enumerate(evaluation.params.catIds):
        name = str(indexed.cats[category].get("name", category))
        values = precision[:, :, index, 0, -1]
        per_class[name] = {"AP": _mean(values), "AP50": _mean(values[0])}
        if (values[0] > -1).all():
            curves[name] = values[0].copy()
    overall = dict(zip(names, (float(value) for value in evaluation.stats), strict=True))
    return CocoScores(overall, per_class, curves)


def indexed_truth(truth: Annotations, annotations: list[Entry]) -> COCO:
    """pycocotools' object for these annotations of the truth's images and categories.

    They are numbered from 1: pycocotools keeps the ids of matches as floats, in which 0 means that there was none, so
    that an annotation of id 0 would never be found.
    """
    indexed = COCO()
    numbered = [{**one, "id": number} for number, one in enumerate(annotations, start=1)]
    indexed.dataset = {"images": truth.images, "categories": truth.categories, "annotations": numbered}
    with quiet():
        indexed.createIndex()
    return indexed


def indexed_detections(indexed: COCO, entries: Sequence[Entry]) -> COCO:
    """pycocotools' object for detections; it fails on an empty list, which is a result like any other."""
    with quiet():
        if entries:
            return indexed.loadRes([deepcopy(one) for one in entries])
        nothing = COCO()
        nothing.dataset = {**indexed.dataset, "annotations": []}
        nothing.createIndex()
        return nothing


def quiet() -> contextlib.AbstractContextManager[object]:
    """pycocotools prints its progress; the command line prints tables."""
    return contextlib.redirect_stdout(io.StringIO())


def _require(truth: Annotations, detections: Detections, kind: Kind) -> None:
    key = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}[kind]
    lacking = next((one for one in truth.annotations if not one.get(key)), None)
    if kind == "keypoints":
        lacking = None if any(one.get(key) for one in truth.annotations) else lacking
        for path, entries in ((truth.path, truth.annotations), (detections.path, detections.entries)):
            for index, one in enumerate(entries):
                if one.get(key) and len(one[key]) != 3 * _KEYPOINTS:
                    raise DataError(
                        f"{path}: entry {index} has {len(one[key]) // 3} keypoints; COCO's tolerances are for "
                        f"{_KEYPOINTS}."
                    )
    if lacking is not None:
        raise DataError(f"{truth.path}: the annotation {lacking['id']!r} has no {key}, so {kind} cannot be scored.")
    without = next((i for i, one in enumerate(detections.entries) if not one.get(key)), None)
    if without is not None:
        raise DataError(f"{detections.path}: entry {without} has no {key}, so {kind} cannot be scored.")


def _with_defaults(one: Entry) -> Entry:
    """What pycocotools looks up in every annotation and many files leave out."""
    width, height = (one.get("bbox") or [0, 0, 0, 0])[2:]
    given = {"iscrowd": int(bool(one.get("iscrowd", 0))), "area": one.get("area", width * height)}
    if one.get("keypoints"):
        given["num_keypoints"] = one.get("num_keypoints", sum(v > 0 for v in one["keypoints"][2::3]))
    return {**one, **given}


def _only(one: Entry, kind: Kind) -> Entry:
    """The entry with one kind of region, as pycocotools takes the first that it finds."""
    key = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}[kind]
    return {name: one[name] for name in ("image_id", "category_id", "score", key)}


def _mean(values: NDArray[np.float64]) -> float:
    known = values[values > -1]
    return float(known.mean()) if known.size else float("nan")
