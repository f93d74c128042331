"""`statefield change evaluate PREDICTIONS LABELS`: score maps of change against maps of change."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from statefield.errors import ConfigError
from statefield.files import write_json, write_text

if TYPE_CHECKING:
    from statefield.tasks.remote_sensing.change_evaluate import ChangeEvaluation

_EPILOG = """
Maps hold 0 and 1, 0 and 255, or 1 (unchanged) and 2 (changed), as OSCD's cm.tif does; which of them is recognised.
Every score is of all pixels of all maps together, never a mean over maps; the name of each says of which class.

examples:
  statefield change evaluate runs/oscd/predictions/ labels/ --json scores.json --csv scores.csv
  statefield change evaluate predict_BIT/ label/ --list list/demo.txt
  statefield change evaluate change.tif truth.tif
  statefield change evaluate predictions/ labels/ --ignore-label 128
"""
_MOST_CASES_SHOWN = 40
_COLUMNS = ("F1/change", "IoU/change", "Precision/change", "Recall/change")


def evaluate(argv: list[str]) -> int:
    """The verb: returns 0, or raises one of our errors."""
    options = _options(argv)

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from statefield.tasks.remote_sensing.change_evaluate import evaluate_maps

    screen = Console(stderr=True)
    with Progress(
        TextColumn("scoring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    ) as progress:
        bar = progress.add_task("", total=None)
        evaluation = evaluate_maps(
            options.predictions,
            options.labels,
            names=options.list,
            ignore=options.ignore_label,
            on_start=lambda count: progress.update(bar, total=count),
            on_case=lambda case: progress.update(bar, advance=1, description=case),
        )
    _print(evaluation)
    if options.json is not None:
        write_json(options.json, evaluation.summary())
        print(f"written: {options.json} (every number above, and every map's)")
    if options.csv is not None:
        write_text(options.csv, evaluation.csv())
        print(f"written: {options.csv} (a row for each map, and one for all together)")
    return 0


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="statefield change evaluate",
        description="Score maps of change against labels of the same name (PNG, TIFF or GeoTIFF): recall, precision,\n"
        "F1 and IoU of change, mIoU, OA and kappa.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("predictions", type=Path, help="folder of predicted maps (or one file)")
    parser.add_argument("labels", type=Path, help="folder of true maps (or one file)")
    parser.add_argument("--list", type=Path, metavar="FILE", help="score these cases alone: a name a line")
    parser.add_argument("--ignore-label", type=int, metavar="N", help="the labels' value that is scored nowhere")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row for each map, and one for all together")
    options = parser.parse_args(argv)
    for path in (options.json, options.csv):
        if path is not None and path.is_dir():
            raise ConfigError(f"{path}: a folder; give the name of a file to write.")
    return options


def _print(evaluation: ChangeEvaluation) -> None:
    """The scores, and a line for each map; plain text, for files and terminals alike."""
    summary = evaluation.summary()
    cases = sorted(evaluation.cases)
    width = max(len("all together"), *(len(case) for case in cases[:_MOST_CASES_SHOWN]))
    print("  ".join(["".ljust(width), *(name.rjust(16) for name in _COLUMNS)]))
    for case in cases[:_MOST_CASES_SHOWN]:
        _line(case.ljust(width), summary["cases"][case])
    if len(cases) > _MOST_CASES_SHOWN:
        print(f"({len(cases) - _MOST_CASES_SHOWN} more maps; --csv writes them all)")
    if len(cases) > 1:
        _line("all together".ljust(width), summary["scores"])
    print(f"\n{len(cases)} maps; coded {evaluation.codes[0]} in the predictions, {evaluation.codes[1]} in the labels")
    name_width = max(len(name) for name in summary["scores"])
    for name, value in summary["scores"].items():
        print(f"  {name:<{name_width}}  {value:.4f}")
    for note in summary["notes"]:
        print(f"note: {note}")


def _line(name: str, values: dict[str, float]) -> None:
    print("  ".join([name, *(f"{values[f'{column} (pooled)']:.4f}".rjust(16) for column in _COLUMNS)]))
