"""Tracks of a ground truth as MTP learns from them: the steps up to a frame, and the box in the next one.

Training draws an endless numbered list of windows; window n, and everything random in it, follows from (seed, n).
Symbols   K boxes of a sequence · q steps that are read
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from statefield.datasets.readers.digits import whole_number
from statefield.datasets.tracking.bad_rows import BadRows
from statefield.datasets.tracking.mot_text import read_mot_ground_truth
from statefield.datasets.tracking.multi_object import open_ground_truth, read_sequence_info
from statefield.errors import ConfigError, DataError
from statefield.tasks.tracking.motion.model import centred
from statefield.tasks.tracking.motion.steps import Unit, steps_of, unit_of

__all__ = ["MotionWindows", "SequenceTracks", "WindowItem", "read_tracks"]

_PEDESTRIAN = 1


@dataclass(frozen=True)
class SequenceTracks:
    """The tracks of a sequence, one after the other, frame by frame.

    Attributes:
        case: the sequence's name.
        frame: int64 [K], from 0. ids: int64 [K].
        boxes: float64 [K, 4], centres and sides in pixels.
        since: int64 [K], frames in a row that the track was there before each.
        image_size: width and height in pixels, where seqinfo.ini says it.
    """

    case: str
    frame: NDArray[np.int64]
    ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    since: NDArray[np.int64]
    image_size: tuple[int, int] | None

    @property
    def present(self) -> NDArray[np.intp]:
        """The boxes from which a next one can be learned: there is one, and there is a step before."""
        goes_on = np.zeros(len(self.since), dtype=bool)
        goes_on[:-1] = self.since[1:] == self.since[:-1] + 1
        return np.flatnonzero(goes_on & (self.since > 0))

    def window(self, at: NDArray[np.intp], q: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Boxes up to `at` [M], newest last, [M, q + 1, 4] (the first one again before it), and the known steps [M]."""
        lengths = np.minimum(self.since[at], q)
        back = np.minimum(np.arange(q, -1, -1), lengths[:, None])
        return self.boxes[at[:, None] - back], lengths


def read_tracks(
    root: Path, *, sequences: Sequence[str] | None = None, split: str | None = None
) -> list[SequenceTracks]:
    """The tracks of people in a ground truth in MOTChallenge's layout, sequence by sequence.

    Boxes that the ground truth marks as not to be evaluated are left out, and so are classes other than pedestrians.

    Raises: DatasetLayoutError, DataError: files that cannot be read. ConfigError: a sequence that is not there.
    """
    folder = open_ground_truth(root, sequences=sequences, split=split)
    if folder.benchmark == "KITTI":
        raise ConfigError(f"{root}: motion is learned from MOTChallenge text, and this is KITTI's: convert it first.")
    found = []
    for each in folder.sequences:
        truth = read_mot_ground_truth(
            each.ground_truth,
            num_frames=each.num_frames,
            has_classes=folder.has_classes,
            bad=BadRows(each.ground_truth),
        )
        wanted = truth.counts & (truth.size > 0).all(axis=1)
        if folder.has_classes:
            wanted &= truth.classes == _PEDESTRIAN
        order = np.lexsort((truth.frame[wanted], truth.ids[wanted]))
        frame, ids = truth.frame[wanted][order], truth.ids[wanted][order]
        boxes = centred(truth.corners[wanted][order])
        found.append(SequenceTracks(each.name, frame, ids, boxes, _since(frame, ids), _image_size(each.ground_truth)))
    return found


def _since(frame: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    count = len(frame)
    begins = np.ones(count, dtype=bool)
    begins[1:] = (ids[1:] != ids[:-1]) | (frame[1:] != frame[:-1] + 1)
    places = np.arange(count)
    return places - np.maximum.accumulate(np.where(begins, places, 0))


def _image_size(ground_truth: Path) -> tuple[int, int] | None:
    info = ground_truth.parent.parent / "seqinfo.ini"
    if not info.is_file():
        return None
    section = read_sequence_info(info)
    width, height = whole_number(section.get("imwidth", "")), whole_number(section.get("imheight", ""))
    return None if width is None or height is None else (width, height)


class WindowItem(TypedDict):
    """`steps` float32 [q, 4], `length` of them known, `target` float32 [4] the next one, and where it is from."""

    steps: Tensor
    length: int
    target: Tensor
    origin: str


class MotionWindows(Dataset[WindowItem]):
    """Windows of the training sequences.

    Args:
        tracks: of each sequence. history: q. unit: what steps are measured in.
        jitter: the boxes of a window's history are moved by normal noise of a share of their sides, which is drawn
            evenly from 0 to this: so the net learns what to make of detections, which are not as smooth as annotations.
        clean: the probability that a window has no noise all the same.
        shorten: the probability that only the last steps are given, their number drawn evenly.
        mirror: exchange left and right with probability 1/2.
    """

    def __init__(
        self,
        tracks: Sequence[SequenceTracks],
        *,
        history: int,
        unit: Unit,
        jitter: float,
        clean: float = 0.0,
        shorten: float,
        mirror: bool,
        seed: int,
    ) -> None:
        self.tracks, self.history, self.unit, self.seed = list(tracks), history, unit, seed
        self.jitter, self.clean, self.shorten, self.mirror = jitter, clean, shorten, mirror
        self.at = [each.present for each in self.tracks]
        self.ends = np.cumsum([len(at) for at in self.at])
        if not len(self.ends) or not self.ends[-1]:
            raise DataError("the training sequences have no track of three frames in a row, so no motion to learn.")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def spread(self) -> NDArray[np.float32]:
        """The standard deviation of the steps to be predicted, [4]."""
        targets = []
        for each, at in zip(self.tracks, self.at, strict=True):
            if len(at):
                last = each.boxes[at]
                targets.append((each.boxes[at + 1] - last) / unit_of(self.unit, last, each.image_size))
        return np.maximum(np.concatenate(targets).std(axis=0), 1e-6).astype(np.float32)

    def __getitem__(self, number: int) -> WindowItem:
        pass_, place = divmod(number, len(self))
        order = self._order(pass_)
        rng = np.random.default_rng((self.seed, 1, number))
        index = int(order[place])
        which = int(np.searchsorted(self.ends, index, side="right"))
        each = self.tracks[which]
        at = self.at[which][[index - (int(self.ends[which - 1]) if which else 0)]]
        boxes, lengths = each.window(at, self.history)
        if rng.random() < self.shorten:
            lengths = rng.integers(1, lengths + 1)
        if self.jitter and not (self.clean and rng.random() < self.clean):
            share = rng.uniform(0, self.jitter)
            boxes = boxes + rng.normal(0, share, boxes.shape) * boxes[..., [2, 3, 2, 3]]
            boxes[..., 2:] = np.maximum(boxes[..., 2:], 1.0)
        unit = unit_of(self.unit, boxes[:, -1], each.image_size)
        steps = steps_of(boxes, lengths, unit)[0]
        target = ((each.boxes[at + 1] - boxes[:, -1]) / unit)[0]
        if self.mirror and rng.random() < 0.5:
            steps[:, 0], target[0] = -steps[:, 0], -target[0]
        return {
            "steps": torch.from_numpy(steps).float(),
            "length": int(lengths[0]),
            "target": torch.from_numpy(target).float(),
            "origin": f"{each.case}, track {each.ids[at[0]]}, frame {each.frame[at[0]] + 1}",
        }

    def _order(self, pass_: int) -> NDArray[np.int64]:
        """The order of the windows in a pass; the last one asked for is kept, as a pass goes on for many windows."""
        held = getattr(self, "_held", None)
        if held is None or held[0] != pass_:
            held = (pass_, np.random.default_rng((self.seed, 0, pass_)).permutation(len(self)))
            self._held = held
        return held[1]
