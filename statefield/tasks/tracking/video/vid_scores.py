"""ImageNet-VID's average precision at IoU 0.5, over all objects and over slow, medium and fast ones, in two forms.

`coco_speed_scores` asks pycocotools. `vid_speed_scores` follows the evaluation that papers on video detection report
(FGFA, MEGA; read in guanxiongsun/vfe.pytorch a44d847, mmdet/datasets/mamba/vid_eval.py), which differs from COCO's:
 - two pixels are added to width and height before overlaps are taken, one by the evaluation and one by its overlap;
 - precision is integrated over every recall that occurs, not over 101;
 - of several free objects above the threshold a detection takes the one of the highest overlap, also if it is of
   another speed; such a detection counts neither way;
 - a detection of no object counts as false if it overlaps objects of the speed more than others, not at all in the
   opposite case, and otherwise by the share of its frame's objects of the class that are of other speeds, or by 1 where
   that share is 0; in a frame without the class it counts by the share of all objects that are of the speed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from statefield.datasets.tracking.coco_json import Annotations, Detections, Entry
from statefield.tasks.tracking.video.coco_scores import indexed_detections, indexed_truth, quiet
from statefield.tasks.tracking.video.motion import SPEEDS, motion_ious

Array = NDArray[np.float64]
_IOU = 0.5


@dataclass(frozen=True)
class SpeedScores:
    """AP50 as fractions. `mean`: "all", "slow", "medium", "fast" -> mean over classes with such objects.

    `per_class`: class -> the same four, NaN where the class has no object of the speed. `num_objects`: speed -> count.
    """

    mean: dict[str, float]
    per_class: dict[str, dict[str, float]]
    num_objects: dict[str, int]


def coco_speed_scores(truth: Annotations, detections: Detections) -> SpeedScores:
    """AP50 by pycocotools; objects of other speeds are ignored as COCO ignores objects of other sizes.

    COCO's sizes carry the speed: an object's area is set to its motion IoU, and the ranges of area to those of speed.
    So detections matched to objects of another speed do not count, and unmatched ones are false for every speed.
    """
    motion = motion_ious(truth)
    annotations = [
        {**one, "area": float(value), "iscrowd": int(bool(one.get("iscrowd", 0)))}
        for one, value in zip(truth.annotations, motion, strict=True)
    ]
    indexed = indexed_truth(truth, annotations)
    found = indexed_detections(
        indexed,
        [{name: one[name] for name in ("image_id", "category_id", "score", "bbox")} for one in detections.entries],
    )
    values: dict[str, Array] = {}
    for name, (low, high) in _ranges().items():
        for one in found.anns.values():
            one["area"] = (low + high) / 2  # within the range: an unmatched detection is never ignored
        evaluation = COCOeval(indexed, found, "bbox")
        evaluation.params.iouThrs = np.array([_IOU])
        evaluation.params.areaRng = [[low, high]]
        evaluation.params.areaRngLbl = [name]
        evaluation.params.maxDets = [300]  # as video detectors keep
        with quiet():
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"][0, :, :, 0, 0]  # [recall, class]
        means = precision.mean(axis=0)
        values[name] = np.where((precision > -1).all(axis=0), means, np.nan)
    names = [str(indexed.cats[number].get("name", number)) for number in indexed.getCatIds()]
    return _summed_up(names, values, motion)


def vid_speed_scores(truth: Annotations, detections: Detections) -> SpeedScores:
    """AP50 by the rules of FGFA and MEGA (see the top of this file)."""
    motion = motion_ious(truth)
    categories = sorted(one["id"] for one in truth.categories)
    objects = _by_class_and_image(truth.annotations)
    proposals = _by_class_and_image(detections.entries)
    boxes = _corners([one["bbox"] for one in truth.annotations])
    found = _corners([one["bbox"] for one in detections.entries])
    scores = np.array([one["score"] for one in detections.entries], dtype=np.float64)
    values: dict[str, Array] = {}
    for speed, (low, high) in _ranges().items():
        is_other = (motion < low) | (motion > high)
        share = 1.0 - float(is_other.mean()) if len(is_other) else 0.0
        weight_without_objects = 1.0 if share in (0.0, 1.0) else share
        precisions = []
        for category in categories:
            true_of = objects.get(category, {})
            hits, weights, ordered = [], [], []
            for image, members in proposals.get(category, {}).items():
                indices = np.array(members)
                indices = indices[np.argsort(-scores[indices], kind="stable")]
                if image in true_of:
                    true = np.array(true_of[image])
                    hit, weight = _matched(found[indices], boxes[true], is_other[true])
                else:
                    hit, weight = np.zeros(len(indices), bool), np.full(len(indices), weight_without_objects)
                hits.append(hit)
                weights.append(weight)
                ordered.append(scores[indices])
            num_objects = sum(int((~is_other[members]).sum()) for members in true_of.values())
            precisions.append(_average_precision(hits, weights, ordered, num_objects))
        values[speed] = np.array(precisions)
    by_id = {one["id"]: str(one.get("name", one["id"])) for one in truth.categories}
    return _summed_up([by_id[number] for number in categories], values, motion)


def _by_class_and_image(entries: list[Entry]) -> dict[Any, dict[Any, list[int]]]:
    """Class -> image -> indices of the entries."""
    found: dict[Any, dict[Any, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, one in enumerate(entries):
        found[one["category_id"]][one["image_id"]].append(index)
    return found


def _ranges() -> dict[str, tuple[float, float]]:
    return {"all": (0.0, 1.0), **SPEEDS}


def _summed_up(names: list[str], values: Mapping[str, Array], motion: Array) -> SpeedScores:
    per_class = {name: {speed: float(values[speed][i]) for speed in values} for i, name in enumerate(names)}
    mean = {
        speed: float(np.nanmean(scores)) if (~np.isnan(scores)).any() else float("nan")
        for speed, scores in values.items()
    }
    counts = {speed: int(((motion >= low) & (motion <= high)).sum()) for speed, (low, high) in _ranges().items()}
    return SpeedScores(mean, per_class, counts)


def _corners(boxes: list[list[float]]) -> Array:
    """[N, 4] x1, y1, x2, y2, two pixels larger than the boxes [N, 4] x, y, width, height."""
    values = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    values[:, 2:] += values[:, :2] + 2.0
    return values


def _matched(found: Array, true: Array, is_other: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], Array]:
    """Whether each detection, from the highest score on, meets an object, and how much it counts (0 to 1)."""
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, 2:], true[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (found, true)]
    overlap = shared / (areas[0][:, None] + areas[1][None, :] - shared)
    best_other = np.where(is_other, overlap, -1.0).max(axis=1)
    best_own = np.where(is_other, -1.0, overlap).max(axis=1)
    undecided = is_other.mean() or 1.0
    weights = np.where(best_own > best_other, 1.0, np.where(best_other > best_own, 0.0, undecided))
    hits = np.zeros(len(found), dtype=bool)
    free = np.ones(len(true), dtype=bool)
    for row in np.flatnonzero(overlap.max(axis=1) >= _IOU):
        candidates = np.where(free & (overlap[row] >= _IOU), overlap[row], -1.0)
        top = candidates.max()
        if top < 0:
            continue
        equal = np.flatnonzero(candidates == top)
        own = equal[~is_other[equal]]
        taken = int(own[0] if len(own) else equal[-1])
        free[taken] = False
        hits[row] = True
        weights[row] = 0.0 if is_other[taken] else 1.0
    return hits, weights


def _average_precision(
    hits: list[NDArray[np.bool_]], weights: list[Array], scores: list[Array], num_objects: int
) -> float:
    if not num_objects:
        return float("nan")
    if not hits:
        return 0.0
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit, weight = np.concatenate(hits)[order], np.concatenate(weights)[order]
    true = np.cumsum(hit & (weight > 0))
    false = np.cumsum(np.where(hit, 0.0, weight))
    precision = true / np.maximum(true + false, np.finfo(np.float64).tiny)
    recall = np.concatenate([[0.0], true / num_objects, [1.0]])
    precision = np.maximum.accumulate(np.concatenate([[0.0], precision, [0.0]])[::-1])[::-1]
    return float((np.diff(recall) * precision[1:]).sum())
