"""A detector over whole videos, frame by frame, as it is used: its memory begins with the video and goes along."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from statefield.datasets.tracking.coco_json import Entry
from statefield.tasks.tracking.video_detection.detector import Found, VideoDetector
from statefield.tasks.tracking.video_detection.examples import as_tensor

__all__ = ["entries_of", "follow", "spread"]

Frame = NDArray[np.uint8]  # [H, W, 3]


def follow(net: nn.Module, frames: Iterable[Frame], *, seed: int, references: Sequence[Frame] = ()) -> Iterator[Found]:
    """What is in each frame of one video, in order, on the net's device; the net has to be in eval mode.

    The result is a function of the weights, the seed and the frames so far, and of the references where there are any.

    Args: references: frames of the video that the memory is filled with before the first.
    """
    assert isinstance(net, VideoDetector)
    device = next(net.parameters()).device
    with torch.inference_mode():
        net.start(seed, [_on(one, device) for one in references])
        for frame in frames:
            yield net.detect(_on(frame, device))


def _on(frame: Frame, device: torch.device) -> torch.Tensor:
    return as_tensor(frame).to(device).float() / 255


def spread(count: int, length: int) -> list[int]:
    """Positions of `count` frames spread evenly over a video of `length`, the first and the last among them.

    >>> spread(4, 10)
    [0, 3, 6, 9]
    """
    if count >= length:
        return list(range(length))
    return np.linspace(0, length - 1, count).round().astype(int).tolist()


def entries_of(found: Found, image_id: int | str, category_ids: Sequence[int | str]) -> list[Entry]:
    """COCO's results of one frame; boxes in hundredths of a pixel, scores with six decimals."""
    boxes, scores, labels = (one.cpu().double().numpy() for one in (found.boxes, found.scores, found.labels))
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[int(label) - 1],
            "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
            "score": round(score, 6),
        }
        for (left, top, right, bottom), score, label in zip(boxes.tolist(), scores.tolist(), labels, strict=True)
    ]
