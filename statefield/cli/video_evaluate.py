"""`statefield video evaluate`: average precision of detections in images and videos."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from rich.console import Console

_EPILOG = """
Ground truth with tracks (CocoVID: videos, video_id and frame_id of images, instance_id of annotations) is also scored
by speed, as ImageNet-VID is: slow, medium and fast objects by their motion IoU. docs/tracking_sot.md tells the rules.

examples:
  statefield video evaluate --gt imagenet_vid_val.json --results mamba.json selsa.json --report report.html
  statefield video evaluate --gt instances_val2014.json --results boxes.json --json scores.json --csv scores.csv
  statefield video evaluate --gt instances_val2014.json --results masks.json --kind segm
"""
_MOST_ROWS_SHOWN = 40


def evaluate(argv: list[str]) -> int:
    """The verb: returns 0, or raises one of our errors."""
    arguments = _parser().parse_args(argv)
    from statefield.files import write_json, write_text
    from statefield.tasks.tracking.score_tables import csv_text, latex_text, screen_table
    from statefield.tasks.tracking.video.evaluation import evaluate_detections

    screen = Console(stderr=True)
    with screen.status("reading") as status:
        evaluation = evaluate_detections(
            arguments.gt,
            arguments.results,
            kinds=arguments.kind,
            by_speed=arguments.by_speed,
            on_bad=arguments.on_bad,
            on_file=lambda name: status.update(f"scoring {name}"),
        )
    console = Console()
    tables = evaluation.tables()
    for table in tables:
        if table.heading == "class" and len(table.rows) > _MOST_ROWS_SHOWN and not arguments.all:
            console.print(
                f"not shown: {table.title}, {len(table.rows)} rows; see --all, --csv or --json", soft_wrap=True
            )
        else:
            console.print(screen_table(table, console.width))
    for note in evaluation.notes:
        console.print(note, soft_wrap=True, highlight=False)
    command = shlex.join(["statefield", "video", "evaluate", *argv])
    if arguments.json is not None:
        write_json(arguments.json, {"command": command} | evaluation.as_json())
        console.print(f"written: {arguments.json} (every number)", soft_wrap=True)
    if arguments.csv is not None:
        write_text(arguments.csv, csv_text(tables))
        console.print(f"written: {arguments.csv} (one row for each number)", soft_wrap=True)
    if arguments.latex is not None:
        write_text(arguments.latex, latex_text(tables))
        console.print(f"written: {arguments.latex} (the tables)", soft_wrap=True)
    if arguments.plots is not None:
        from statefield.tasks.tracking.score_plots import save_plots

        written = save_plots(arguments.plots, evaluation.plots())
        console.print(f"written: {len(written)} files in {arguments.plots} (PNG and PDF)", soft_wrap=True)
    if arguments.report is not None:
        from statefield.tasks.tracking.score_report import write_score_report

        title = f"Detections on {arguments.gt.stem}"
        write_score_report(
            arguments.report,
            title=title,
            tables=tables,
            plots=evaluation.plots(),
            notes=evaluation.notes,
            command=command,
        )
        console.print(f"written: {arguments.report} (tables and curves on one page)", soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="statefield video evaluate",
        description="Score detections in COCO's JSON form against COCO or CocoVID annotations: AP, AP50, AP75,\n"
        "AP and AR by size, AP by class, and AP50 of slow, medium and fast objects.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gt", type=Path, required=True, metavar="FILE", help="annotations (COCO or CocoVID JSON)")
    parser.add_argument(
        "--results", type=Path, nargs="+", required=True, metavar="FILE", help="detections, a file for each detector"
    )
    parser.add_argument(
        "--kind",
        nargs="+",
        choices=("bbox", "segm", "keypoints"),
        help="regions to score (default: those that the detections have)",
    )
    parser.add_argument(
        "--by-speed",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="scores of slow, medium and fast objects (default: where the annotations have tracks)",
    )
    parser.add_argument(
        "--on-bad",
        choices=("error", "skip"),
        default="error",
        help="entries that cannot be scored are an error, or left out, counted and told",
    )
    parser.add_argument("--all", action="store_true", help="show long tables of classes whole")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one row for each number of the tables")
    parser.add_argument("--latex", type=Path, metavar="FILE", help="write the tables for a paper")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write precision over recall as PNG and PDF")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML page with tables and curves")
    return parser
