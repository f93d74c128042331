"""VOT's protocols over folders of results; the scores are those of `statefield.tasks.tracking.sot.vot`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from statefield.datasets.tracking.regions import read_regions
from statefield.datasets.tracking.single_object_results import TrackerResults
from statefield.datasets.tracking.vot import VotSequence
from statefield.errors import ConfigError, DataError
from statefield.tasks.tracking.score_plots import CurvePlot
from statefield.tasks.tracking.sot.evaluation import Evaluation, OnBad, Scores, complete, require_some, told
from statefield.tasks.tracking.sot.vot import (
    EAO_INTERVALS,
    RESET_YEARS,
    AnchorRun,
    Array,
    ResetRun,
    anchor_eao_curve,
    anchor_run,
    eao,
    eao_curve,
    reset_run,
)

_SOURCE = "votchallenge/toolkit 56f0053, overlaps counted in pixels"


def evaluate_vot(
    year: str,
    sequences: Sequence[VotSequence],
    trackers: Sequence[TrackerResults],
    *,
    interval: tuple[int, int] | None = None,
    on_bad: OnBad = "error",
    on_sequence: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """EAO, accuracy and robustness of trackers.

    Args:
        year: "vot2016" to "vot2019" (resets), "vot2020" to "vot2022" (anchors).
        interval: lengths in frames that EAO is the mean of, both included; None is the year's.
        on_bad: see `evaluate_one_pass`.

    Raises:
        ConfigError: an interval of no length, or anchors asked for that the ground truth does not have.
        DatasetLayoutError, DataError: results that are missing, or that cannot be read or scored.
    """
    low, high = interval or EAO_INTERVALS[year]
    if not 1 <= low <= high:
        raise ConfigError(f"--eao-interval {low} {high}: two lengths in frames are needed, 1 <= LOW <= HIGH.")
    is_reset = year in RESET_YEARS
    require_anchors(year, sequences)
    left_out = complete(sequences, trackers, on_bad)
    resets: dict[str, dict[str, list[ResetRun]]] = {tracker.name: {} for tracker in trackers}
    anchored: dict[str, dict[str, list[AnchorRun]]] = {tracker.name: {} for tracker in trackers}
    kept: list[VotSequence] = []
    for sequence in sequences:
        on_sequence(sequence.name)
        if sequence.name in left_out:
            continue
        try:
            for tracker in trackers:
                files = tracker.files[sequence.name]
                if is_reset:
                    resets[tracker.name][sequence.name] = [
                        reset_run(sequence, read_regions(path), str(path)) for path in files
                    ]
                else:
                    anchored[tracker.name][sequence.name] = [
                        anchor_run(sequence, frame, backward, read_regions(path), str(path))
                        for (frame, backward), path in zip(sequence.anchor_runs(), files, strict=True)
                    ]
        except DataError as error:
            if on_bad == "error":
                raise
            left_out[sequence.name] = str(error)
            continue
        kept.append(sequence)
    require_some(kept, left_out)
    curves: dict[str, Array] = {}
    overall: dict[str, Scores] = {}
    per_sequence: dict[str, dict[str, Scores]] = {}
    for tracker in trackers:
        if is_reset:
            runs = {sequence.name: resets[tracker.name][sequence.name] for sequence in kept}
            per_sequence[tracker.name] = {name: _reset_scores(parts) for name, parts in runs.items()}
            curves[tracker.name] = eao_curve(
                [part for parts in runs.values() for run in parts for part in run.fragments]
            )
            overall[tracker.name] = _reset_overall(kept, runs, eao(curves[tracker.name], (low, high)))
        else:
            starts = {sequence.name: anchored[tracker.name][sequence.name] for sequence in kept}
            per_sequence[tracker.name] = {name: _anchor_scores(parts) for name, parts in starts.items()}
            curves[tracker.name] = anchor_eao_curve(list(starts.values()), high)
            overall[tracker.name] = _anchor_overall(kept, starts, eao(curves[tracker.name], (low, high)))
    title = year.upper()
    longest = max(len(curve) for curve in curves.values())
    plot = CurvePlot(
        name=f"{year}_eao",
        title=f"{title}: expected average overlap",
        x_label="length of a run (frames)",
        y_label="expected average overlap",
        x=np.arange(1, longest),
        lines={name: _padded(curve, longest)[1:] for name, curve in curves.items()},
        scores={name: values["EAO"] for name, values in overall.items()},
        band=(low, high),
    )
    notes = [
        f"EAO is the mean over runs of {low} to {high} frames"
        + (
            ", A is over frames after the burn-in, R counts failures in 100 frames."
            if is_reset
            else ", R is the share of frames before a failure, A is over these frames."
        )
    ]
    if any(sequence.image_size is None for sequence in kept):
        notes.append("Some sequences tell no image size; their regions were not cut to the image.")
    if longest <= low:
        notes.append(f"No run is as long as {low} frames, so there is no EAO; see --eao-interval.")
    return Evaluation(
        protocol=year,
        title=title,
        source=_SOURCE,
        overall=overall,
        per_sequence=per_sequence,
        per_attribute=_by_tag(kept, resets) if is_reset else {},
        main=("EAO", "A", "failures" if is_reset else "R"),
        plots=[plot],
        notes=notes + told(left_out),
        lower_is_better=frozenset({"R", "failures"}) if is_reset else frozenset(),
        digits=4,
        unit="fractions; R in failures per 100 frames" if is_reset else "fractions",
    )


def require_anchors(year: str, sequences: Sequence[VotSequence]) -> None:
    """Raise `ConfigError` where a protocol starts trackers at anchors that the ground truth does not have."""
    without = [sequence.name for sequence in sequences if year not in RESET_YEARS and not sequence.anchor_runs()]
    if without:
        raise ConfigError(
            f"--protocol {year} starts trackers at anchors, but {without[0]!r} has none (SEQ/anchor.value). For "
            "results with resets say --protocol vot2018 or vot2019."
        )


def _reset_scores(runs: Sequence[ResetRun]) -> Scores:
    return {
        "A": float(np.mean([run.accuracy for run in runs])),
        "failures": float(np.mean([len(run.failures) for run in runs])),
    }


def _reset_overall(sequences: Sequence[VotSequence], runs: Mapping[str, Sequence[ResetRun]], score: float) -> Scores:
    frames = np.array([len(sequence.regions) for sequence in sequences], dtype=np.float64)
    scores = [_reset_scores(runs[sequence.name]) for sequence in sequences]
    failures = sum(one["failures"] for one in scores)
    return {
        "EAO": score,
        "A": float(np.average([one["A"] for one in scores], weights=frames)),
        "R": 100.0 * failures / float(frames.sum()),
        "failures": failures,
    }


def _anchor_scores(runs: Sequence[AnchorRun]) -> Scores:
    progress = sum(run.progress for run in runs)
    total = sum(len(run.overlaps) for run in runs)
    return {
        "A": sum(float(run.overlaps.sum()) for run in runs) / progress if progress else 0.0,
        "R": progress / total,
    }


def _anchor_overall(sequences: Sequence[VotSequence], runs: Mapping[str, Sequence[AnchorRun]], score: float) -> Scores:
    scores = [_anchor_scores(runs[sequence.name]) for sequence in sequences]
    progress = np.array([sum(run.progress for run in runs[s.name]) for s in sequences], dtype=np.float64)
    frames = np.array([len(sequence.regions) for sequence in sequences], dtype=np.float64)
    accuracy = np.array([one["A"] for one in scores])
    return {
        "EAO": score,
        "A": float((accuracy * progress).sum() / progress.sum()) if progress.sum() else 0.0,
        "R": float(np.average([one["R"] for one in scores], weights=frames)),
    }


def _by_tag(
    sequences: Sequence[VotSequence], resets: Mapping[str, Mapping[str, Sequence[ResetRun]]]
) -> dict[str, dict[str, Scores]]:
    """Accuracy over the counted frames with a tag, and failures at them (mean over repetitions)."""
    names = sorted({tag for sequence in sequences for tag in sequence.tags})
    table: dict[str, dict[str, Scores]] = {}
    for tag in names:
        tagged = [sequence for sequence in sequences if tag in sequence.tags and sequence.tags[tag].any()]
        num_frames = sum(int(sequence.tags[tag].sum()) for sequence in tagged)
        if not num_frames:
            continue
        table[f"{tag} ({num_frames})"] = {}
        for tracker, runs in resets.items():
            overlaps, failures = [], 0.0
            for sequence in tagged:
                for run in runs[sequence.name]:
                    overlaps.append(run.overlaps[run.counted & sequence.tags[tag]])
                    failures += int(sequence.tags[tag][run.failures].sum()) / len(runs[sequence.name])
            values = np.concatenate(overlaps)
            table[f"{tag} ({num_frames})"][tracker] = {
                "A": float(values.mean()) if len(values) else float("nan"),
                "failures": failures,
            }
    return table


def _padded(curve: Array, length: int) -> Array:
    return np.concatenate([curve, np.full(length - len(curve), np.nan)])
