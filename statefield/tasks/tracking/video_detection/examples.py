"""Training examples of video detection: a key frame, and reference frames of the same video.

An endless numbered list: key frame n belongs to pass `n // len(keys)` over the data, in an order of (seed, pass), and
its references and its mirroring follow from (seed, n). Any run that comes to number n sees the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from statefield.datasets.readers.video import read_frame
from statefield.datasets.tracking.video_objects import LabelledVideo, VideoSet
from statefield.errors import DataError
from statefield.tasks.common.data import NumberedBatches
from statefield.tasks.tracking.video_detection.detector import Target
from statefield.tasks.tracking.video_detection.recipe import VideoDataConfig

__all__ = ["FrameBatch", "VideoData", "as_tensor"]


class FrameItem(TypedDict):
    """A training example: frames uint8 [3, H, W], boxes and labels of the key frame, where it is from, its number n."""

    frame: Tensor
    target: Target
    references: list[Tensor]
    origin: str
    number: int


class FrameBatch(TypedDict):
    """Examples side by side; frames may have different sizes."""

    frames: list[Tensor]
    targets: list[Target]
    references: list[list[Tensor]]
    origin: list[str]


def as_tensor(frame: NDArray[np.uint8]) -> Tensor:
    """uint8 [H, W, 3] -> uint8 [3, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))


class KeyFrames(Dataset[FrameItem]):
    """The endless list; its length is that of one pass.

    Args: references: frames beside each key frame; 0: none. The others are those of `VideoDataConfig`.

    Raises: DataError: no frame to learn from.
    """

    def __init__(self, videos: VideoSet, config: VideoDataConfig, *, references: int, seed: int) -> None:
        self.videos, self.config, self.references, self.seed = videos.videos, config, references, seed
        self.keys = [
            (place, number)
            for place, video in enumerate(self.videos)
            for number, frame in enumerate(video.frames)
            if config.with_empty or len(frame.boxes)
        ]
        if not self.keys:
            raise DataError(
                f"{videos.truth.path}: none of its frames has an object, so there is nothing to learn from. Name other "
                "annotations with --data.train."
            )

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> FrameItem:
        count = len(self.keys)
        order = np.random.default_rng((self.seed, 0, number // count)).permutation(count)
        place, position = self.keys[order[number % count]]
        rng = np.random.default_rng((self.seed, 1, number))
        video = self.videos[place]
        mirror = rng.random() < 0.5 and self.config.flip
        chosen = self._reference_positions(video, position, rng)
        key = video.frames[position]
        frame = _mirrored(read_frame(key.path), mirror)
        known = {position: frame}
        for each in chosen:
            if each not in known:
                known[each] = _mirrored(read_frame(video.frames[each].path), mirror)
        boxes, labels = _within(key.boxes, key.labels, frame.shape[1], frame.shape[0])
        if mirror:
            boxes[:, [0, 2]] = frame.shape[1] - boxes[:, [2, 0]]
        return {
            "frame": as_tensor(frame),
            "target": {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)},
            "references": [as_tensor(known[each]) for each in chosen],
            "origin": f"{key.path} (video {video.case}, frame {position + 1})",
            "number": number,
        }

    def _reference_positions(self, video: LabelledVideo, position: int, rng: np.random.Generator) -> list[int]:
        """Drawn evenly from both sides of the key frame; the key frame itself where its video has no other."""
        reach = self.config.reference_range
        near = [
            each
            for each in range(max(0, position - reach), min(len(video.frames), position + reach + 1))
            if each != position
        ]
        if not near:
            return [position] * self.references
        return [int(each) for each in rng.choice(near, self.references, replace=len(near) < self.references)]


def collate(items: Sequence[FrameItem]) -> FrameBatch:
    return {
        "frames": [one["frame"] for one in items],
        "targets": [one["target"] for one in items],
        "references": [one["references"] for one in items],
        "origin": [one["origin"] for one in items],
    }


class VideoCases(Dataset[LabelledVideo]):
    """Whole videos; their frames are read as they are looked at."""

    def __init__(self, videos: Sequence[LabelledVideo]) -> None:
        self.videos = list(videos)

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> LabelledVideo:
        return self.videos[index]


class VideoData(NumberedBatches):
    """Key frames with their references, and whole videos for validation."""

    def __init__(
        self, train: VideoSet, val: VideoSet, config: VideoDataConfig, *, references: int, steps: int | None, seed: int
    ) -> None:
        super().__init__(
            KeyFrames(train, config, references=references, seed=seed),
            VideoCases(val.videos),
            batch_size=config.batch_size,
            steps_per_epoch=steps,
            workers=config.workers,
            collate=collate,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        if isinstance(batch, LabelledVideo):
            return batch  # paths and truth alone
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


def _mirrored(frame: NDArray[np.uint8], mirror: bool) -> NDArray[np.uint8]:
    return frame[:, ::-1] if mirror else frame


def _within(
    boxes: NDArray[np.float32], labels: NDArray[np.int64], width: int, height: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Boxes cut to the frame, without those that are outside of it."""
    cut = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    kept = (cut[:, 2] > cut[:, 0]) & (cut[:, 3] > cut[:, 1])
    return cut[kept], labels[kept]
