"""`statefield mot evaluate --gt DIR --results DIR`: score trackers of many objects."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statefield.datasets.tracking.multi_object import BENCHMARKS
from statefield.errors import ConfigError

if TYPE_CHECKING:
    from statefield.tasks.tracking.mot_evaluation.evaluate import MotEvaluation

_METRICS = ("HOTA", "CLEAR", "Identity", "VACE", "TrackMAP")
_SLOW_AFTER = 8  # sequences: below, nothing takes long enough for a bar
_FILE_WIDTH = 200
_EPILOG = """
Ground truth: SEQUENCE/gt/gt.txt (MOTChallenge, DanceTrack, SportsMOT), label_02/ (KITTI), SEQUENCE/gt.txt or
SEQUENCE.txt (plain). Results: SEQUENCE.txt in DIR or DIR/data; a DIR that holds folders of such files is several
trackers. The numbers are those of TrackEval 1.3.0; docs/tracking.md tells the rules of each benchmark.

examples:
  statefield mot evaluate --gt MOT17/train --results results/bytetrack results/sort
  statefield mot evaluate --gt dancetrack/val --results results/ --output runs/dancetrack
  statefield mot evaluate --gt KITTI/training --results results/ab3dmot --classes car
  statefield mot evaluate --gt MOT20/train --results results/ --metrics all --on-bad skip
  statefield mot evaluate --gt MOT17/train --results results/sort --output runs/sort --draw frames
"""


def evaluate(argv: list[str]) -> int:
    """The verb: returns 0, or raises one of our errors."""
    arguments = _parser().parse_args(argv)
    if arguments.draw is not None and arguments.output is None:
        raise ConfigError("--draw needs --output DIR, below which the pictures go.")
    metrics = _METRICS if "all" in arguments.metrics else tuple(arguments.metrics)

    from statefield.tasks.tracking.mot_evaluation.evaluate import evaluate_mot

    with _progress() as (on_start, on_sequence):
        evaluation = evaluate_mot(
            arguments.gt,
            arguments.results,
            benchmark=arguments.benchmark,
            metrics=metrics,
            split=arguments.split,
            sequences=arguments.sequences,
            classes=arguments.classes,
            on_bad=arguments.on_bad,
            on_start=on_start,
            on_sequence=on_sequence,
        )
    if arguments.draw is not None:
        from statefield.tasks.tracking.mot_evaluation.drawing import find_frames

        find_frames(evaluation, form=arguments.draw, images=arguments.images)  # before anything is written
    _print(evaluation, details=arguments.details)
    if arguments.output is not None:
        import shlex

        command = shlex.join(["statefield", "mot", "evaluate", *argv])
        _write(arguments.output, evaluation, command)
        if arguments.draw is not None:
            _draw(arguments, evaluation)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="statefield mot evaluate",
        description="Score trackers of many objects against a ground truth: HOTA, CLEAR (MOTA), Identity (IDF1), VACE\n"
        "and track mAP, by the rules of the benchmark, which is recognised by itself.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gt", type=Path, required=True, metavar="DIR", help="folder of the ground truth")
    parser.add_argument(
        "--results",
        type=Path,
        required=True,
        nargs="+",
        metavar="DIR",
        help="folders of results, each of a tracker or of several",
    )
    parser.add_argument(
        "--benchmark", default="auto", metavar="NAME", help=f"whose rules: auto (default), {', '.join(BENCHMARKS)}"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["HOTA", "CLEAR", "Identity"],
        choices=[*_METRICS, "all"],
        metavar="NAME",
        help=f"of {', '.join(_METRICS)}, or all (default: HOTA CLEAR Identity)",
    )
    parser.add_argument(
        "--split", metavar="NAME", help="of a ground truth that has several: train, val, MOT17-train, ..."
    )
    parser.add_argument("--sequences", nargs="+", metavar="NAME", help="score only these")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="score only these (KITTI: car, pedestrian)")
    parser.add_argument(
        "--on-bad",
        choices=["error", "skip"],
        default="error",
        help="stop at a row that cannot be meant (default), or leave such rows out, count them and say so",
    )
    parser.add_argument("--details", action="store_true", help="print every score, and each sequence of each tracker")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write scores.json, scores.csv, tables.tex, report.html, curves, and TrackEval's files for each tracker",
    )
    parser.add_argument(
        "--draw",
        choices=["frames", "mp4", "webp"],
        help="draw boxes, misses, false positives and switches of identity, below --output (mp4 needs ffmpeg)",
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="folder of the frames, DIR/SEQUENCE or DIR/SEQUENCE/img1, for --draw"
    )
    return parser


@contextmanager
def _progress() -> Iterator[tuple[Any, Any]]:
    """A bar on a terminal, once there is enough to do."""
    bars: list[Any] = []

    def on_start(count: int) -> None:
        if count <= _SLOW_AFTER:
            return
        from rich.console import Console

        screen = Console(stderr=True)
        if not screen.is_terminal:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            TextColumn("scoring"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=screen,
            transient=True,
        )
        bar.start()
        bars.append((bar, bar.add_task("", total=count)))

    def on_sequence(name: str) -> None:
        for bar, task in bars:
            bar.update(task, advance=1, description=name)

    try:
        yield on_start, on_sequence
    finally:
        for bar, _ in bars:
            bar.stop()


def _print(evaluation: MotEvaluation, *, details: bool) -> None:
    from rich.console import Console

    from statefield.tasks.tracking.mot_evaluation.score_views import score_tables
    from statefield.tasks.tracking.score_tables import screen_table

    console = Console(highlight=False)
    if not console.is_terminal:  # a file is as wide as it must be: names stay whole
        console = Console(highlight=False, width=_FILE_WIDTH)
    truth = evaluation.ground_truth
    count = f"{len(truth.sequences)} {'sequence' if len(truth.sequences) == 1 else 'sequences'}"
    console.print(
        f"{truth.root}: {truth.benchmark}, {count}; recognised by {truth.recognised_by}.",
        soft_wrap=True,
        markup=False,
    )
    for table in score_tables(evaluation, sequences=details or len(evaluation.trackers) == 1, details=details):
        console.print(screen_table(table, console.width))
    for note in evaluation.notes:
        console.print(note, soft_wrap=True, markup=False)


def _write(folder: Path, evaluation: MotEvaluation, command: str) -> None:
    from statefield.files import write_json, write_text
    from statefield.tasks.tracking.mot_evaluation.score_views import as_json, curve_plots, score_tables
    from statefield.tasks.tracking.mot_evaluation.trackeval_files import write_trackeval_files
    from statefield.tasks.tracking.score_plots import save_plots
    from statefield.tasks.tracking.score_report import write_score_report
    from statefield.tasks.tracking.score_tables import csv_text, latex_text

    folder.mkdir(parents=True, exist_ok=True)
    tables, plots = score_tables(evaluation), curve_plots(evaluation)
    truth = evaluation.ground_truth
    write_json(folder / "scores.json", as_json(evaluation) | {"command": command})
    write_text(folder / "scores.csv", csv_text(tables))
    write_text(folder / "tables.tex", latex_text(tables))
    save_plots(folder / "curves", plots)
    write_trackeval_files(folder / "trackeval", evaluation)
    write_score_report(
        folder / "report.html",
        title=f"{', '.join(tracker.name for tracker in evaluation.trackers)} on {truth.benchmark}",
        tables=tables,
        plots=plots,
        notes=[f"Benchmark: {truth.benchmark}, recognised by {truth.recognised_by}.", *evaluation.notes],
        command=command,
    )
    print(f"written: {folder} (scores.json, scores.csv, tables.tex, report.html, curves/, trackeval/)")


def _draw(arguments: argparse.Namespace, evaluation: MotEvaluation) -> None:
    from statefield.tasks.tracking.mot_evaluation.drawing import draw_evaluation

    written = draw_evaluation(arguments.output / "drawn", evaluation, form=arguments.draw, images=arguments.images)
    print(f"written: {arguments.output / 'drawn'} ({written})")
