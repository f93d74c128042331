"""How fast an object moves: its motion IoU, by which ImageNet-VID's scores are split.

The motion IoU of an object in a frame is the mean overlap of its box with its own boxes in the frames up to ten before
and after (Zhu et al., Flow-guided feature aggregation, ICCV 2017, section 5.1). Slow is above 0.9, medium from 0.7 to
0.9, fast below 0.7; an object at 0.7 or 0.9 exactly belongs to both, as in the code of FGFA and its followers.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from statefield.datasets.tracking.coco_json import Annotations

SPEEDS: dict[str, tuple[float, float]] = {"slow": (0.9, 1.0), "medium": (0.7, 0.9), "fast": (0.0, 0.7)}
NEIGHBOURS = 10


def motion_ious(truth: Annotations, neighbours: int = NEIGHBOURS) -> NDArray[np.float64]:
    """[annotations] float64 in [0, 1]; 0 for an object that is seen in one frame alone, as in FGFA's file.

    Args:
        truth: with tracks (`Annotations.has_tracks`); `frame_id` counts frames.
    """
    frames = {image["id"]: (image["video_id"], image["frame_id"]) for image in truth.images}
    tracks: dict[tuple[object, object], list[int]] = defaultdict(list)
    for index, one in enumerate(truth.annotations):
        tracks[frames[one["image_id"]][0], one["instance_id"]].append(index)
    result = np.zeros(len(truth.annotations))
    for members in tracks.values():
        at = np.array([frames[truth.annotations[index]["image_id"]][1] for index in members])
        order = np.argsort(at, kind="stable")
        indices, at = np.array(members)[order], at[order]
        boxes = np.array([truth.annotations[index]["bbox"] for index in indices], dtype=np.float64)
        total, count = np.zeros(len(boxes)), np.zeros(len(boxes))
        for step in range(1, min(neighbours, len(boxes) - 1) + 1):  # at most so many boxes lie within ten frames
            near = np.flatnonzero(at[step:] - at[:-step] <= neighbours)
            overlap = _overlaps(boxes[near], boxes[near + step])
            for side in (near, near + step):
                total[side] += overlap
                count[side] += 1
        result[indices] = np.divide(total, count, out=np.zeros(len(boxes)), where=count > 0)
    return result


def _overlaps(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    shared = np.maximum(high - low, 0).prod(axis=1)
    union = first[:, 2:].prod(axis=1) + second[:, 2:].prod(axis=1) - shared
    return np.divide(shared, union, out=np.zeros(len(first)), where=union > 0)
