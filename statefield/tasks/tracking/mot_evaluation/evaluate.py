"""Trackers against a ground truth: read, prepared by the benchmark's rules, scored, combined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Protocol, Self, cast

from statefield.datasets.tracking.bad_rows import BadRows, OnBad
from statefield.datasets.tracking.kitti_text import read_kitti_tracks
from statefield.datasets.tracking.mot_text import read_mot_ground_truth, read_mot_results
from statefield.datasets.tracking.multi_object import (
    GroundTruthFolder,
    SequenceFiles,
    open_ground_truth,
    tracker_folders,
)
from statefield.datasets.tracking.track_boxes import TrackBoxes
from statefield.errors import DataError, DatasetLayoutError, UnknownName
from statefield.tasks.tracking.mot_evaluation.clear import ClearState, observe_clear
from statefield.tasks.tracking.mot_evaluation.counts import CountState, observe_counts
from statefield.tasks.tracking.mot_evaluation.hota import HotaState, observe_hota
from statefield.tasks.tracking.mot_evaluation.identity import IdentityState, observe_identity
from statefield.tasks.tracking.mot_evaluation.protocols import evaluated_classes, kitti_sequence, mot_sequence
from statefield.tasks.tracking.mot_evaluation.sequence import MotSequence
from statefield.tasks.tracking.mot_evaluation.track_map import TrackMapState, observe_track_map
from statefield.tasks.tracking.mot_evaluation.vace import VaceState, observe_vace
from statefield.tasks.tracking.mot_evaluation.workers import in_threads


class State(Protocol):
    """What a metric keeps of sequences: a sum."""

    def __add__(self, other: Self, /) -> Self: ...

    def summary(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Metric:
    """A family of metrics.

    Args:
        observe: one sequence -> its state.
        empty: the state of no sequence.
    """

    observe: Callable[[MotSequence], State]
    empty: Callable[[], State]


METRICS: dict[str, Metric] = {
    "HOTA": Metric(observe_hota, HotaState.empty),
    "CLEAR": Metric(observe_clear, ClearState.empty),
    "Identity": Metric(observe_identity, IdentityState.empty),
    "VACE": Metric(observe_vace, VaceState.empty),
    "TrackMAP": Metric(observe_track_map, TrackMapState.empty),
    "Count": Metric(observe_counts, CountState.empty),
}
DEFAULT_METRICS = ("HOTA", "CLEAR", "Identity")

Summary = dict[str, dict[str, Any]]  # metric -> field -> number, or array over thresholds


@dataclass
class TrackerScores:
    """One tracker.

    Args:
        name: of its folder.
        states: class -> sequence -> metric -> state.
        files: the results of each sequence; None where there are none.
    """

    name: str
    states: dict[str, dict[str, dict[str, State]]]
    files: dict[str, Path | None]

    def of_sequence(self, class_name: str, sequence: str) -> Summary:
        """The scores of one sequence."""
        states = self.states[class_name][sequence]
        return {metric: dict(state.summary()) for metric, state in states.items()}

    def combined(self, class_name: str) -> Summary:
        """The scores of all sequences together, from the sums of their counts: no mean of means."""
        by_sequence = self.states[class_name]
        metrics = next(iter(by_sequence.values())).keys()
        return {
            metric: dict(
                reduce(
                    lambda total, state: total + state,
                    (by_sequence[sequence][metric] for sequence in sorted(by_sequence)),
                    METRICS[metric].empty(),
                ).summary()
            )
            for metric in metrics
        }


@dataclass
class MotEvaluation:
    """Every tracker on every sequence.

    Args:
        ground_truth: what was scored against.
        trackers: in the order in which they were named.
        classes: scored each on its own.
        metrics: names of `METRICS`.
        notes: what a reader of the scores should know: rows left out, files not sorted, ...
    """

    ground_truth: GroundTruthFolder
    trackers: list[TrackerScores]
    classes: tuple[str, ...]
    metrics: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


def evaluate_mot(
    gt: Path,
    results: Sequence[Path],
    *,
    benchmark: str = "auto",
    metrics: Sequence[str] = DEFAULT_METRICS,
    split: str | None = None,
    sequences: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    on_bad: OnBad = "error",
    on_start: Callable[[int], None] | None = None,
    on_sequence: Callable[[str], None] | None = None,
) -> MotEvaluation:
    """Score trackers as their benchmark's official evaluation does.

    Args:
        gt: the folder of the ground truth (`datasets.tracking.multi_object` tells the layouts).
        results: folders, each of a tracker or of several.
        benchmark: whose rules; "auto" recognises it.
        metrics: names of `METRICS`; Count is always there.
        split: of the ground truth, where it has several.
        sequences: score only these.
        classes: score only these (KITTI: car, pedestrian).
        on_bad: "error" stops at the first bad row or missing file; "skip" leaves such rows out, scores a missing or
            empty file as a tracker that found nothing, and says so in `notes`.
        on_start: called with the number of files to read.
        on_sequence: called with a name for each sequence of each tracker.

    Raises: errors of `statefield.errors` for input that cannot be scored.
    """
    for name in metrics:
        if name not in METRICS:
            raise UnknownName.among("metric", name, METRICS)
    chosen = tuple(name for name in METRICS if name in metrics or name == "Count")
    truth = open_ground_truth(gt, benchmark=benchmark, split=split, sequences=sequences)
    known = evaluated_classes(truth.benchmark)
    for name in classes or ():
        if name not in known:
            raise UnknownName.among(f"class of {truth.benchmark}", name, known)
    scored = tuple(name for name in known if classes is None or name in classes)
    trackers = tracker_folders(results, truth)
    evaluation = MotEvaluation(truth, [], scored, chosen)
    _require_files(trackers, truth, on_bad, evaluation.notes)
    if on_start is not None:
        on_start(len(truth.sequences) * len(trackers))
    evaluation.trackers = [
        TrackerScores(name, {each: {} for each in scored}, files) for name, files in trackers.items()
    ]

    def score(sequence: SequenceFiles) -> _SequenceScores:
        return _scores_of(sequence, evaluation, on_bad, on_sequence)

    for sequence, (states, notes) in zip(truth.sequences, in_threads(score, truth.sequences, _size), strict=True):
        evaluation.notes += notes
        for tracker, class_name, of_metric in states:
            tracker.states[class_name][sequence.name] = of_metric
    return evaluation


_SequenceScores = tuple[list[tuple[TrackerScores, str, dict[str, State]]], list[str]]


def _scores_of(
    sequence: SequenceFiles, evaluation: MotEvaluation, on_bad: OnBad, on_sequence: Callable[[str], None] | None
) -> _SequenceScores:
    """Every tracker's states of one sequence, by class, and the notes on it."""
    states: list[tuple[TrackerScores, str, dict[str, State]]] = []
    notes: list[str] = []
    reader = _Reader(evaluation.ground_truth, sequence, on_bad, notes)
    for tracker in evaluation.trackers:
        for class_name in evaluation.classes:
            ready = reader.ready(tracker.files[sequence.name], class_name)
            states.append((tracker, class_name, {name: METRICS[name].observe(ready) for name in evaluation.metrics}))
        if on_sequence is not None:
            on_sequence(f"{tracker.name}, {sequence.name}")
    return states, notes


def _size(sequence: SequenceFiles) -> int:
    return sequence.ground_truth.stat().st_size


def read_sequence(
    evaluation: MotEvaluation, tracker: TrackerScores, sequence: SequenceFiles, class_name: str
) -> MotSequence:
    """The boxes of one sequence as they were scored, read again (rows that cannot be meant are left out)."""
    reader = _Reader(evaluation.ground_truth, sequence, "skip", [])
    return reader.ready(tracker.files[sequence.name], class_name)


class _Reader:
    """One sequence's ground truth, read once for all trackers."""

    def __init__(self, truth: GroundTruthFolder, sequence: SequenceFiles, on_bad: OnBad, notes: list[str]) -> None:
        self.truth, self.sequence, self.on_bad, self.notes = truth, sequence, on_bad, notes
        self.bad = BadRows(sequence.ground_truth, on_bad)
        if truth.benchmark == "KITTI":
            self.gt = read_kitti_tracks(
                sequence.ground_truth, num_frames=sequence.num_frames, is_ground_truth=True, bad=self.bad
            )
        else:
            self.gt = read_mot_ground_truth(
                sequence.ground_truth, num_frames=sequence.num_frames, has_classes=truth.has_classes, bad=self.bad
            )
        _require_rows(self.gt, sequence.ground_truth, on_bad, notes, "a sequence without any object")
        self.num_frames = sequence.num_frames
        if self.num_frames is None:  # nothing says how long it is: to the last frame that has ground truth
            self.num_frames = int(self.gt.frame[-1]) + 1 if len(self.gt) else 0
        self._tell(self.gt, self.bad)
        self._read: tuple[Path | None, TrackBoxes] | None = None

    def ready(self, path: Path | None, class_name: str) -> MotSequence:
        """The sequence of one tracker and class."""
        num_frames = cast(int, self.num_frames)
        results = self._results(path)
        if self.truth.benchmark == "KITTI":
            tracker_bad = BadRows(path or self.sequence.ground_truth, self.on_bad)
            gt_bad = BadRows(self.sequence.ground_truth, self.on_bad)
            scored = kitti_sequence(
                self.gt, results, num_frames, name=class_name, gt_bad=gt_bad, tracker_bad=tracker_bad
            )
            self.notes += [*tracker_bad.told(), *(told for told in gt_bad.told() if told not in self.notes)]
            return scored
        return mot_sequence(
            self.gt, results, num_frames, benchmark=self.truth.benchmark, has_classes=self.truth.has_classes
        )

    def _results(self, path: Path | None) -> TrackBoxes:
        if self._read is not None and self._read[0] == path:
            return self._read[1]
        if path is None:
            boxes = self.gt.where(self.gt.frame < 0)
        else:
            bad = BadRows(path, self.on_bad)
            num_frames = self.num_frames
            if self.truth.benchmark == "KITTI":
                boxes = read_kitti_tracks(path, num_frames=num_frames, is_ground_truth=False, bad=bad)
            else:
                boxes = read_mot_results(path, num_frames=num_frames, bad=bad)
            if not bad.counts:
                _require_rows(boxes, path, self.on_bad, self.notes, "a tracker that found nothing")
            self._tell(boxes, bad)
        self._read = (path, boxes)
        return boxes

    def _tell(self, boxes: TrackBoxes, bad: BadRows) -> None:
        self.notes += bad.told()
        if len(boxes) > 1 and not bool((boxes.lines[1:] > boxes.lines[:-1]).all()) and self._frames_mixed(boxes, bad):
            self.notes.append(f"{bad.path}: rows are not sorted by frame, which is fine.")

    def _frames_mixed(self, boxes: TrackBoxes, bad: BadRows) -> bool:
        """Whether the file is sorted neither by frame nor, as MOTChallenge's ground truth is, by track."""
        by_line = boxes.lines.argsort()
        frame, ids = boxes.frame[by_line], boxes.ids[by_line]
        return bool((frame[1:] < frame[:-1])[ids[1:] == ids[:-1]].any())


def _require_files(
    trackers: Mapping[str, Mapping[str, Path | None]], truth: GroundTruthFolder, on_bad: OnBad, notes: list[str]
) -> None:
    for name, files in trackers.items():
        for sequence, path in files.items():
            if path is not None:
                continue
            told = f"tracker {name} has no results of {sequence} ({sequence}.txt)"
            if on_bad == "error":
                raise DatasetLayoutError(
                    f"{told}, of which {truth.root} has the ground truth. Add the file, choose sequences with "
                    "--sequences, or count it as a sequence in which the tracker found nothing with --on-bad skip."
                )
            notes.append(f"{told}: scored as a tracker that found nothing there.")


def _require_rows(boxes: TrackBoxes, path: Path, on_bad: OnBad, notes: list[str], meaning: str) -> None:
    if len(boxes):
        return
    if on_bad == "error":
        raise DataError(
            f"{path}, line 1: the file is empty. Check that it was written whole; if it is meant as {meaning}, "
            "say --on-bad skip."
        )
    notes.append(f"{path}: empty, scored as {meaning}.")
