"""`statefield bench inference`: a large volume with many classes predicted in little memory, beside MONAI's inferer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from statefield.cli.bench import ExampleLines, print_goals, print_load_warning

if TYPE_CHECKING:
    from statefield.bench.inference import InferenceReport


def inference(argv: list[str]) -> int:
    """Run the benchmark and print it; the exit status is 0, or 1 when labels differ from MONAI's."""
    parser = ArgumentParser(
        prog="statefield bench inference",
        description="Predict a synthetic volume of 512 x 512 x 512 voxels and 100 classes on this machine's CPU, from\n"
        "file to file, and tell time and peak memory; and one of 192 x 192 x 192 and 20 classes beside MONAI's\n"
        "sliding-window inferer. Takes about ten minutes, and 3 GB of disk for a while.\n\n"
        "examples:\n  statefield bench inference\n  statefield bench inference --quick\n"
        "  statefield bench inference --json benchmarks/results/inference_cpu.json --scratch /data/tmp",
        formatter_class=ExampleLines,
    )
    parser.add_argument("--json", type=Path | None, default=None, metavar="FILE", help="write all numbers there, too")
    parser.add_argument("--scratch", type=Path | None, default=None, metavar="DIR", help="where the files go meanwhile")
    parser.add_argument("--quick", action="store_true", help="small volumes, few classes: sees that all works")
    options = parser.parse_args(argv)

    from statefield.bench.inference import run_inference_benchmark  # here: it imports torch
    from statefield.files import write_json

    console = Console()
    with console.status("predicting ..."):
        report = run_inference_benchmark(quick=options.quick, folder=options.scratch)
    _print(console, report)
    if options.json is not None:
        write_json(options.json, report.as_json())
        console.print(f"written: {options.json}", highlight=False, soft_wrap=True)
    return 0 if report.correct else 1


def _print(console: Console, report: InferenceReport) -> None:
    environment = report.environment
    console.print(
        f"{environment['processor']}, {environment['threads']}, torch {environment['torch']}.", highlight=False
    )
    table = Table("volume", "by", title="Volumes from file to file", title_justify="left")
    for heading in ("budget GB", "peak GB", "seconds", "labels as MONAI's"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in report.rows:
        numbers = (_number(row.budget_gb), _number(row.peak_gb), _number(row.seconds), _number(row.agreement, 6))
        table.add_row(row.volume, row.by, *numbers, row.how)
    console.print(table)
    print_goals(console, report.goals)
    print_load_warning(console, report.load_before)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.{digits}g}"
