"""Folders of results against folders of ground truth: what `statefield sot evaluate` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from statefield.datasets.tracking.single_object import ObjectSequence
from statefield.datasets.tracking.single_object_results import Corners, TrackerResults, read_boxes
from statefield.errors import DataError, DatasetLayoutError
from statefield.tasks.tracking.score_plots import CurvePlot
from statefield.tasks.tracking.score_tables import ScoreTable
from statefield.tasks.tracking.sot.one_pass import (
    Curves,
    FrameErrors,
    curves,
    error_thresholds,
    frame_errors,
    mean_curves,
    overlap_thresholds,
    pooled_errors,
    scores,
)
from statefield.tasks.tracking.sot.protocols import Protocol

OnBad = Literal["error", "skip"]
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """The scores of all trackers under one protocol.

    Args:
        protocol, title, source: see `Protocol`.
        overall: tracker -> score -> value.
        per_sequence: tracker -> sequence -> score -> value.
        per_attribute: attribute -> tracker -> score -> value; the attribute's name ends with its number of sequences.
        main: the scores that tables of sequences and attributes show, the first ranks.
        plots: curves of all trackers.
        notes: what a reader must know, counts of what was left out or replaced included.
        lower_is_better: scores of which less is better.
        digits: decimals that are shown.
        unit: of the scores, in words.
    """

    protocol: str
    title: str
    source: str
    overall: dict[str, Scores]
    per_sequence: dict[str, dict[str, Scores]]
    per_attribute: dict[str, dict[str, Scores]]
    main: tuple[str, ...]
    plots: list[CurvePlot]
    notes: list[str] = field(default_factory=list)
    lower_is_better: frozenset[str] = frozenset()
    digits: int = 2
    unit: str = "percent"

    @property
    def num_sequences(self) -> int:
        return len(next(iter(self.per_sequence.values())))

    def tables(self) -> list[ScoreTable]:
        """The scores of all sequences together first, then by attribute and by sequence."""
        ranked = sorted(self.overall, key=lambda name: self._order(self.overall[name][self.main[0]]))
        many = f"{self.num_sequences} sequence{'s' if self.num_sequences != 1 else ''}"
        shared: dict[str, Any] = {"digits": self.digits, "lower_is_better": self.lower_is_better}
        result = [
            ScoreTable(
                f"{self.title}: {many}",
                f"{self.unit}; rules: {self.source}",
                "tracker",
                {name: self.overall[name] for name in ranked},
                **shared,
            )
        ]
        for score in self.main:
            lower = frozenset(ranked) if score in self.lower_is_better else frozenset()
            if any(score in values for by in self.per_attribute.values() for values in by.values()):
                rows = {
                    name: {tracker: by_tracker[tracker].get(score) for tracker in ranked}
                    for name, by_tracker in self.per_attribute.items()
                }
                lead = f"{self.unit}; sequences or frames with the attribute, their number in brackets"
                title = f"{self.title}: {score} by attribute"
                result.append(ScoreTable(title, lead, "attribute", rows, self.digits, lower, best_by_row=True))
            sequences = next(iter(self.per_sequence.values()))
            by_sequence = {
                sequence: {tracker: self.per_sequence[tracker][sequence].get(score) for tracker in ranked}
                for sequence in sequences
                if all(score in self.per_sequence[tracker][sequence] for tracker in ranked)
            }
            if by_sequence:
                title = f"{self.title}: {score} by sequence"
                result.append(
                    ScoreTable(title, self.unit, "sequence", by_sequence, self.digits, lower, best_by_row=True)
                )
        return result

    def as_json(self) -> dict[str, Any]:
        """Everything, with all digits."""
        return {
            "protocol": self.protocol,
            "title": self.title,
            "source": self.source,
            "unit": self.unit,
            "num_sequences": self.num_sequences,
            "notes": self.notes,
            "trackers": {
                name: {
                    "overall": dict(self.overall[name]),
                    "attributes": {key: dict(by[name]) for key, by in self.per_attribute.items()},
                    "sequences": {key: dict(value) for key, value in self.per_sequence[name].items()},
                    "curves": {plot.name: np.asarray(plot.lines[name]).tolist() for plot in self.plots},
                }
                for name in self.overall
            },
            "thresholds": {plot.name: np.asarray(plot.x).tolist() for plot in self.plots},
        }

    def _order(self, value: float) -> float:
        return np.inf if np.isnan(value) else value if self.main[0] in self.lower_is_better else -value


@dataclass(frozen=True)
class _Scored:
    """One tracker on one sequence: its curve (the mean over repetitions) and the frames of all repetitions."""

    curve: Curves
    frames: FrameErrors


def evaluate_one_pass(
    protocols: Sequence[Protocol],
    sequences: Sequence[ObjectSequence],
    trackers: Sequence[TrackerResults],
    *,
    corners: Corners = "xywh",
    on_bad: OnBad = "error",
    on_sequence: Callable[[str], None] = lambda _: None,
) -> list[Evaluation]:
    """Score trackers under each protocol, all on the same sequences.

    Args:
        corners: what the four numbers of a predicted box are.
        on_bad: "error" raises at the first sequence without a result or with one that cannot be scored; "skip" leaves
            the sequence out for all trackers and says so in the notes.
        on_sequence: called with each sequence's name.

    Raises:
        DatasetLayoutError: a sequence without a result, or none left to be scored.
        DataError: a result that cannot be read or that a protocol refuses.
    """
    left_out = complete(sequences, trackers, on_bad)
    scored: dict[str, dict[str, dict[str, _Scored]]] = {p.name: {t.name: {} for t in trackers} for p in protocols}
    kept: list[ObjectSequence] = []
    for sequence in sequences:
        on_sequence(sequence.name)
        if sequence.name in left_out:
            continue
        try:
            found = {
                (protocol.name, tracker.name): _score(protocol, sequence, tracker.files[sequence.name], corners)
                for tracker in trackers
                for protocol in protocols
            }
        except DataError as error:
            if on_bad == "error":
                raise
            left_out[sequence.name] = str(error)
            continue
        kept.append(sequence)
        for (protocol_name, tracker_name), value in found.items():
            scored[protocol_name][tracker_name][sequence.name] = value
    require_some(kept, left_out)
    return [_evaluation(protocol, kept, scored[protocol.name], left_out) for protocol in protocols]


def complete(sequences: Sequence[Any], trackers: Sequence[TrackerResults], on_bad: OnBad) -> dict[str, str]:
    """Sequences that some tracker has no result of, with the reason; an error unless they are to be skipped."""
    left_out: dict[str, str] = {}
    for tracker in trackers:
        missing = [sequence.name for sequence in sequences if sequence.name not in tracker.files]
        if missing and on_bad == "error":
            raise DatasetLayoutError(
                f"{tracker.root}: {len(missing)} of {len(sequences)} sequences have no result, the first is "
                f"{missing[0]!r}. Add them, name those to be scored with --sequences, or score those that all trackers "
                "have with --on-bad skip."
            )
        for name in missing:
            left_out.setdefault(name, f"no result of {tracker.name}")
    return left_out


def require_some(kept: Sequence[Any], left_out: Mapping[str, str]) -> None:
    """Raise where every sequence was left out, with the first reason."""
    if not kept:
        name, reason = next(iter(left_out.items()))
        raise DatasetLayoutError(f"no sequence is left to be scored; {name}: {reason}.")


def told(left_out: Mapping[str, str], most: int = 5) -> list[str]:
    """Notes on the sequences that were left out."""
    if not left_out:
        return []
    shown = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:most])
    more = f"; and {len(left_out) - most} more" if len(left_out) > most else ""
    count = f"{len(left_out)} sequence{'s were' if len(left_out) > 1 else ' was'}"
    return [f"{count} left out for all trackers. {shown}{more}."]


def _score(protocol: Protocol, sequence: ObjectSequence, files: Sequence[Path], corners: Corners) -> _Scored:
    parts = [
        frame_errors(
            protocol, read_boxes(path, corners), sequence.boxes, sequence.present, sequence.image_size, str(path)
        )
        for path in files
    ]
    of_runs = [curves(protocol, part) for part in parts]
    mean = of_runs[0]
    if len(of_runs) > 1:
        mean = Curves(
            *(
                np.mean([getattr(run, name) for run in of_runs], axis=0)
                for name in ("success", "precision", "normalised")
            )
        )
    return _Scored(mean, pooled_errors(parts))


def _evaluation(
    protocol: Protocol,
    sequences: Sequence[ObjectSequence],
    scored: Mapping[str, Mapping[str, _Scored]],
    left_out: Mapping[str, str],
) -> Evaluation:
    names = [sequence.name for sequence in sequences]
    means = {tracker: _mean(protocol, [by[name] for name in names]) for tracker, by in scored.items()}
    overall = {tracker: _scores(protocol, [by[name] for name in names]) for tracker, by in scored.items()}
    attributes: dict[str, list[str]] = {}
    for sequence in sequences:
        for attribute in sequence.attributes:
            attributes.setdefault(attribute, []).append(sequence.name)
    success, precision, _ = protocol.names
    return Evaluation(
        protocol=protocol.name,
        title=protocol.title,
        source=protocol.source,
        overall=overall,
        per_sequence={
            tracker: {name: _scores(protocol, [by[name]]) for name in names} for tracker, by in scored.items()
        },
        per_attribute={
            f"{attribute} ({len(members)})": {
                tracker: _scores(protocol, [by[name] for name in members]) for tracker, by in scored.items()
            }
            for attribute, members in sorted(attributes.items())
        },
        main=(success,) if protocol.pooled else (success, precision),
        plots=_plots(protocol, means, overall),
        notes=_notes(protocol, scored, sequences, left_out),
    )


def _mean(protocol: Protocol, parts: Sequence[_Scored]) -> Curves:
    if protocol.pooled:
        return curves(protocol, pooled_errors([part.frames for part in parts]))
    return mean_curves(protocol, [part.curve for part in parts])


def _scores(protocol: Protocol, parts: Sequence[_Scored]) -> Scores:
    frames = pooled_errors([part.frames for part in parts]) if protocol.pooled else None
    curve = parts[0].curve if len(parts) == 1 else _mean(protocol, parts)
    return scores(protocol, curve, frames)


def _plots(protocol: Protocol, means: Mapping[str, Curves], overall: Mapping[str, Scores]) -> list[CurvePlot]:
    success, precision, normalised = protocol.names
    errors = error_thresholds(protocol)
    wanted = [
        ("success", success, "overlap threshold", "success rate", overlap_thresholds(protocol), None),
        ("precision", precision, "centre error threshold (pixels)", "precision", errors, 20.0),
        ("normalised", normalised, "normalised centre error threshold", "normalised precision", errors / 100, 0.2),
    ]
    return [
        CurvePlot(
            name=f"{protocol.name}_{kind}",
            title=f"{protocol.title}: {label}",
            x_label=x_label,
            y_label=y_label,
            x=x,
            lines={tracker: getattr(curve, kind) for tracker, curve in means.items()},
            scores={tracker: values[score] for tracker, values in overall.items()},
            unit=" %",
            mark=mark,
        )
        for (kind, score, x_label, y_label, x, mark), label in zip(
            wanted, ("success", "precision", "normalised precision"), strict=True
        )
        if kind == "success" or not protocol.pooled
    ]


def _notes(
    protocol: Protocol,
    scored: Mapping[str, Mapping[str, _Scored]],
    sequences: Sequence[ObjectSequence],
    left_out: Mapping[str, str],
) -> list[str]:
    notes = [protocol.note] if protocol.note else []
    notes += told(left_out)
    for tracker, by_sequence in scored.items():
        frames = pooled_errors([part.frames for part in by_sequence.values()])
        became = "are zero boxes" if protocol.length == "fill" else "are left out"
        for count, what in (
            (frames.num_repeated, "predictions without a size repeat the one before"),
            (frames.num_missing, f"frames after the last prediction {became}"),
            (frames.num_beyond, "predictions after the last frame are cut off"),
        ):
            if count:
                notes.append(f"{tracker}: {count} {what}, as in the toolkit.")
    uncounted = [name for name, part in next(iter(scored.values())).items() if part.frames.num_frames == 0]
    if uncounted:
        notes.append(f"Without a frame that counts, and in no mean: {', '.join(uncounted)}.")
    if protocol.overlap == "bounded":
        unbounded = sum(sequence.image_size is None for sequence in sequences)
        if unbounded:
            notes.append(f"{unbounded} sequences tell no image size; their boxes were not cut to the image.")
    return notes
