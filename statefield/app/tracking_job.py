"""A tracker's result of one sequence: a video with its tracks and, with a ground truth, its scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from statefield.app.uploads import VIDEOS, placed
from statefield.datasets.readers.video import Frames, find_frames
from statefield.datasets.tracking.bad_rows import OnBad
from statefield.datasets.tracking.multi_object import BENCHMARKS
from statefield.errors import ConfigError, DataError
from statefield.files import write_json, write_text
from statefield.tasks.tracking.mot_evaluation.evaluate import evaluate_mot
from statefield.tasks.tracking.mot_evaluation.score_views import as_json, score_tables
from statefield.tasks.tracking.mot_evaluation.track_video import (
    TrackSummary,
    read_tracks,
    write_scored_video,
    write_track_video,
)
from statefield.tasks.tracking.score_tables import ScoreTable, csv_text

# KITTI's files have another form, which is told by their folders; `statefield mot evaluate` reads them
SCORED_BY = ("auto", *(name for name in BENCHMARKS if name != "KITTI"))


@dataclass(frozen=True)
class TrackingResult:
    """video: None for a result without any box. tables: scores, or without a ground truth what the result holds."""

    video: Path | None
    tables: tuple[ScoreTable, ...]
    notes: tuple[str, ...]
    files: tuple[Path, ...]


def show_tracks(
    results: Path,
    truth: Path | None,
    pictures: Sequence[Path],
    folder: Path,
    *,
    benchmark: str = "auto",
    frame_rate: float | None = None,
    skip_bad: bool = False,
) -> TrackingResult:
    """Draw and score one sequence as `statefield mot evaluate --draw` does.

    Args:
        results: MOTChallenge's form; its name without the suffix names the sequence, and so the benchmark.
        truth: gt.txt, or None. pictures: the frames in the order of their numbers, or one video; empty: none.
        folder: for the result's files. benchmark: whose rules score, one of `SCORED_BY`.
        frame_rate: frames a second; None: the video's own, or 25. skip_bad: leave out rows that cannot be meant.

    Raises: errors of `statefield.errors` for files that cannot be read or scored.
    """
    if benchmark not in SCORED_BY:
        raise ConfigError(f"benchmark {benchmark!r}: one of {', '.join(SCORED_BY)} is needed.")
    if frame_rate is not None and not 0 < frame_rate <= 240:
        raise ConfigError(f"{frame_rate} frames a second: more than 0 and at most 240 are needed.")
    name = re.sub(r"[^\w.-]+", "_", results.stem).lstrip(".") or "sequence"
    tracks = placed(results, folder / "given" / name, f"{name}.txt")  # the folder's name is the tracker's
    frames = _frames(pictures, folder / "frames")
    target = folder / f"{name}_tracks"
    on_bad: OnBad = "skip" if skip_bad else "error"
    if truth is None:
        boxes, notes = read_tracks(tracks, on_bad=on_bad)
        drawn = write_track_video(target, boxes, name=name, frames=frames, frame_rate=frame_rate)
        tables = [_summary_table(name, TrackSummary.of(boxes))]
        content = {"sequence": name, **tables[0].rows[name], "notes": notes}
    else:
        placed(truth, folder / "truth" / name / "gt", "gt.txt")
        evaluation = evaluate_mot(folder / "truth", [tracks.parent], benchmark=benchmark, on_bad=on_bad)
        drawn = write_scored_video(target, evaluation, frames=frames, frame_rate=frame_rate)
        tables = score_tables(evaluation, sequences=False)
        scored = evaluation.ground_truth
        notes = [f"Scored by the rules of {scored.benchmark}, recognised by {scored.recognised_by}.", *evaluation.notes]
        content = as_json(evaluation) | {"ground_truth": truth.name, "notes": notes}
    scores = folder / "scores.json", folder / "scores.csv"
    write_json(scores[0], content)
    write_text(scores[1], csv_text(tables))
    video = target.with_name(f"{target.name}.webm")
    if not drawn:
        video.unlink(missing_ok=True)
    files = (video, *scores) if drawn else scores
    return TrackingResult(video if drawn else None, tuple(tables), tuple(notes), files)


def _frames(pictures: Sequence[Path], folder: Path) -> Frames | None:
    """The frames that were given: one video, or pictures by the numbers in their names."""
    if not pictures:
        return None
    videos = [path for path in pictures if path.suffix.lower() in VIDEOS]
    if videos and len(pictures) > 1:
        raise DataError(f"{videos[0].name} and {len(pictures) - 1} more files: give one video, or pictures alone.")
    if videos:
        return find_frames([placed(videos[0], folder)])[0]
    names = [path.name for path in pictures]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{twice} was given twice: each frame needs a name of its own, such as 000001.jpg.")
    for path in pictures:
        placed(path, folder)
    return find_frames([folder])[0]


def _summary_table(name: str, summary: TrackSummary) -> ScoreTable:
    row = {
        "frames": summary.num_frames,
        "tracks": summary.num_tracks,
        "boxes": summary.num_boxes,
        "median length (frames)": summary.median_length,
    }
    lead = "What the result holds. With a ground truth, it is scored."
    return ScoreTable("The result", lead, "sequence", {name: row}, digits=1, unranked=frozenset(row))
