"""`statefield medical evaluate PREDICTIONS TARGETS`: score label files against label files."""

from __future__ import annotations

import argparse
import csv
import io
import math
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from statefield.errors import ConfigError
from statefield.files import write_json, write_text
from statefield.tasks.medical.evaluate import Evaluation, evaluate_folders

_EPILOG = """
Spacing comes from the NIfTI files; pictures have none, so their distances are in pixels unless --spacing-mm is given.

examples:
  statefield medical evaluate predictions/ labelsTs/ --tolerance-mm 2 --json scores.json --csv scores.csv
  statefield medical evaluate predictions/ labels/ --labels background liver tumour --lesions tumour
  statefield medical evaluate predictions/ masks/ --classes 2 --mask fields_of_view/
  statefield medical evaluate predictions/ labels/ --ignore-label 255 --no-distances --jobs 8
"""
_MOST_CASES_SHOWN = 40
_MOST_CLASSES = 1024
# the table of cases would be too wide with them
_SHOWN_PER_CLASS_ONLY = ("sensitivity", "specificity", "precision", "lesion_sens", "lesion_prec", "lesion_FP")


def evaluate(argv: list[str]) -> int:
    """The verb: returns 0, or raises one of our errors."""
    arguments = _parser().parse_args(argv)
    screen = Console(stderr=True)
    with Progress(
        TextColumn("scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    ) as progress:
        bar = progress.add_task("", total=None)
        evaluation = evaluate_folders(
            arguments.predictions,
            arguments.targets,
            classes=_class_names(arguments),
            tolerance_mm=arguments.tolerance_mm,
            spacing_mm=tuple(arguments.spacing_mm) if arguments.spacing_mm else None,
            distances=not arguments.no_distances,
            ignore_label=arguments.ignore_label,
            masks=arguments.mask,
            lesions=arguments.lesions if arguments.lesions else arguments.lesions is not None,
            lesion_iou=arguments.lesion_iou,
            jobs=arguments.jobs,
            on_start=lambda count: progress.update(bar, total=count),
            on_case=lambda case: progress.update(bar, advance=1, description=case),
        )
    summary = evaluation.summary()
    console = Console()
    _print_report(console, evaluation, summary)
    if arguments.json is not None:
        inputs = {"predictions": str(arguments.predictions), "targets": str(arguments.targets)}
        write_json(arguments.json, inputs | summary)
        console.print(f"written: {arguments.json} (every number above, and every case's)", soft_wrap=True)
    if arguments.csv is not None:
        write_text(arguments.csv, _csv(evaluation))
        console.print(f"written: {arguments.csv} (one row a case and class)", soft_wrap=True)
    if arguments.report is not None:
        from statefield.tasks.medical.evaluation_report import write_evaluation_report

        command = shlex.join(["statefield", "medical", "evaluate", *argv])
        title = f"{arguments.predictions} against {arguments.targets}"
        write_evaluation_report(arguments.report, evaluation, title=title, commands=[command])
        console.print(f"written: {arguments.report} (scores, and the best, median and worst case)", soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="statefield medical evaluate",
        description="Score label files against label files of the same name (NIfTI volumes, PNG or TIFF masks): Dice,\n"
        "IoU, HD95, ASSD, NSD, sensitivity, specificity and precision for each case and class, with 95 %%\n"
        "intervals; docs/metrics.md defines each.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("predictions", type=Path, help="folder of predicted label files (or one file)")
    parser.add_argument("targets", type=Path, help="folder of true label files (or one file)")
    named = parser.add_mutually_exclusive_group()
    named.add_argument("--classes", type=int, metavar="N", help="number of classes, background included")
    named.add_argument("--labels", nargs="+", metavar="NAME", help="class names in the order of label values 0, 1, ...")
    parser.add_argument(
        "--tolerance-mm",
        type=float,
        default=1.0,
        metavar="MM",
        help="tolerance of NSD (pixels for pictures without --spacing-mm)",
    )
    parser.add_argument(
        "--spacing-mm",
        type=float,
        nargs=2,
        metavar=("ROW", "COLUMN"),
        help="pixel spacing of pictures, which carry none",
    )
    parser.add_argument("--no-distances", action="store_true", help="Dice and IoU alone, which is several times faster")
    parser.add_argument(
        "--ignore-label", type=int, metavar="N", help="the targets' value for pixels without a label, scored nowhere"
    )
    parser.add_argument(
        "--mask", type=Path, metavar="DIR", help="fields of view, a file a case (CASE, CASE_mask): 0 is scored nowhere"
    )
    parser.add_argument(
        "--lesions",
        nargs="*",
        metavar="CLASS",
        help="count connected components of these classes (none named: of all but the background) as lesions",
    )
    parser.add_argument(
        "--lesion-iou", type=float, metavar="T", help="a lesion is detected from this IoU on (default: any overlap)"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result as JSON")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write an HTML page with scores and pictures")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write one row for each case and class")
    return parser


def _class_names(arguments: argparse.Namespace) -> list[str] | None:
    if arguments.labels:
        if len(set(arguments.labels)) < len(arguments.labels) or len(arguments.labels) < 2:
            raise ConfigError(
                f"--labels {' '.join(arguments.labels)}: two or more distinct names are needed, background first."
            )
        return list(arguments.labels)
    if arguments.classes is None:
        return None
    if not 2 <= arguments.classes <= _MOST_CLASSES:
        raise ConfigError(
            f"--classes {arguments.classes}: a number from 2 to {_MOST_CLASSES} is needed, background included."
        )
    return ["background", *(f"class_{k}" for k in range(1, arguments.classes))]


def _print_report(console: Console, evaluation: Evaluation, summary: dict[str, Any]) -> None:
    metrics, classes = evaluation.metrics, evaluation.metrics.classes
    foreground = [classes[k] for k in metrics.foreground]
    shown = ", ".join(foreground[:6]) + (", ..." if len(foreground) > 6 else "")
    by_case = Table(title=f"Per case: mean over the foreground classes ({shown})")
    by_case.add_column("case")
    shown_metrics = [name for name in metrics.names if not name.startswith(_SHOWN_PER_CLASS_ONLY)]
    for metric in shown_metrics:
        by_case.add_column(metric, justify="right", min_width=6)
    names = sorted(evaluation.state.cases)
    for name in names[:_MOST_CASES_SHOWN]:
        table = summary["cases"][name]
        by_case.add_row(name, *(_number(_mean(table[metric][c] for c in foreground)) for metric in shown_metrics))
    console.print(by_case)
    if len(names) > _MOST_CASES_SHOWN:
        console.print(f"{len(names) - _MOST_CASES_SHOWN} more cases; --csv writes them all")

    by_class = Table(title=f"Per class, over {summary['num_cases']} cases")
    by_class.add_column("class, metric")  # one column: two would leave a class no room on a narrow screen
    for heading in ("case mean", "95 % interval", "pooled", "counted"):
        by_class.add_column(heading, justify="right", no_wrap=True)
    absent = [name for name in foreground if not any(summary["classes"][name].values())]
    for label, name in enumerate(classes):
        if name in absent:
            continue
        is_marked = label == metrics.background and name != "background"
        by_class.add_row(f"{name} (background)" if is_marked else name)
        for metric in metrics.names:
            entry = summary["metrics"][metric]["classes"][name]
            if label == metrics.background and entry["num_counted"] == 0:
                continue  # the background has no surface of its own
            counted = f"{entry['num_counted']} of {summary['num_cases']}"
            by_class.add_row(f"  {metric}", *_cells(entry, "case_mean", "ci95", "pooled"), counted)
        by_class.add_section()
    by_class.add_row("class mean")
    for metric in metrics.names:
        entry = summary["metrics"][metric]
        cells = _cells(entry, "foreground_mean", "foreground_ci95", "foreground_pooled")
        by_class.add_row(f"  {metric}", *cells, f"{entry['num_foreground_counted']} of {len(foreground)}")
    console.print(by_class)
    console.print(
        "case mean: over the cases counted (those with a score for the class); interval: bootstrap over cases; pooled: "
        "from the counts of all cases together; the mean over classes is unweighted and leaves the background out.",
    )
    accuracy = summary["accuracy"]
    console.print(
        f"accuracy over all pixels: case mean {_number(accuracy['case_mean'])}, interval "
        f"{_cells(accuracy, 'case_mean', 'ci95', 'pooled')[1]}, pooled {_number(accuracy['pooled'])}",
        soft_wrap=True,
    )
    for name, counts in summary.get("lesions", {}).items():
        console.print(
            f"{name}: {counts['num_detected']} of {counts['num_true']} true lesions detected, "
            f"{counts['num_false_positive']} of {counts['num_predicted']} predicted ones false",
            soft_wrap=True,
        )
    if absent:
        console.print(f"in no prediction and no target: {', '.join(absent)}", soft_wrap=True)
    for name in foreground:
        presence = summary["classes"][name]
        if presence["num_missed"] or presence["num_invented"]:
            console.print(
                f"{name}: missed in {presence['num_missed']} of the {presence['num_present']} cases that have it, "
                f"invented in {presence['num_invented']}; no distance exists there.",
                soft_wrap=True,
            )
    console.print(f"classes: {evaluation.classes_from}", soft_wrap=True)
    if evaluation.ignore_label is not None:
        console.print(f"label {evaluation.ignore_label} of the targets is scored nowhere", soft_wrap=True)
    if metrics.distances and metrics.unit == "px":
        console.print("distances are in pixels (px): pictures carry no spacing; --spacing-mm gives one", soft_wrap=True)
    if evaluation.unmatched:
        shown = ", ".join(evaluation.unmatched[:5])
        console.print(f"{len(evaluation.unmatched)} predictions without target left out: {shown}", soft_wrap=True)


def _cells(entry: dict[str, Any], mean: str, interval: str, pooled: str) -> tuple[str, str, str]:
    low, high = entry[interval]
    bounds = "-" if math.isnan(low) else f"{low:.4f} to {high:.4f}"
    return _number(entry[mean]), bounds, _number(entry[pooled]) if pooled in entry else ""


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _mean(values: Any) -> float:
    scored = [value for value in values if not math.isnan(value)]
    return sum(scored) / len(scored) if scored else math.nan


def _csv_cell(value: float) -> str:
    return "" if math.isnan(value) else repr(value)


def _csv(evaluation: Evaluation) -> str:
    metrics = evaluation.metrics
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    headings = ["case", "label", "class", *metrics.names, "num_target", "num_predicted", "accuracy_of_case"]
    if metrics.lesion_labels:
        headings += ["num_true_lesions", "num_detected_lesions", "num_predicted_lesions", "num_false_lesions"]
    writer.writerow(headings)
    for case in sorted(evaluation.state.cases):
        scores = evaluation.state.cases[case]
        for label, name in enumerate(metrics.classes):
            values = [float(scores.values[metric][label]) for metric in metrics.names]
            cells = [_csv_cell(value) for value in values]
            counts = [int(scores.confusion.num_target[label]), int(scores.confusion.num_predicted[label])]
            if metrics.lesion_labels:
                lesions = [int(n) for n in scores.lesions.counts[label]] if label in metrics.lesion_labels else [""] * 4
            else:
                lesions = []
            writer.writerow([case, label, name, *cells, *counts, _csv_cell(scores.confusion.accuracy), *lesions])
    return text.getvalue()
