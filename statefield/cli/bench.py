"""`statefield bench kernels`: check the operators, measure them, and hold them against the machine and the goals."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, DefaultHelpFormatter
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from statefield.bench.kernels import Goal, Report, Row


class ExampleLines(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the examples."""


def kernels(argv: list[str]) -> int:
    """Run the benchmark and print it; the exit status is 0, or 1 when an operator does not equal its reference."""
    parser = ArgumentParser(
        prog="statefield bench kernels",
        description="Measure the operators on this machine's CPU: each is first compared with its reference, then\n"
        "timed beside it, the machine's copy bandwidth and torch.exp's rate. Takes about a minute.\n\n"
        "examples:\n  statefield bench kernels\n  statefield bench kernels --quick\n"
        "  statefield bench kernels --json benchmarks/results/kernels_cpu.json",
        formatter_class=ExampleLines,
    )
    parser.add_argument("--json", type=Path | None, default=None, metavar="FILE", help="write all numbers there, too")
    parser.add_argument("--quick", action="store_true", help="small shapes, few repetitions: sees that all works")
    options = parser.parse_args(argv)

    from statefield.bench.kernels import run_kernels_benchmark  # here: it imports torch
    from statefield.files import write_json

    console = Console()
    with console.status("checking and measuring ..."):
        report = run_kernels_benchmark(quick=options.quick)
    _print(console, report)
    if options.json is not None:
        write_json(options.json, report.as_json())
        console.print(f"written: {options.json}", highlight=False, soft_wrap=True)
    return 0 if report.correct else 1


def _print(console: Console, report: Report) -> None:
    environment = report.environment
    console.print(
        f"{environment['processor']}, {environment['threads']}, torch {environment['torch']}.\n"
        f"Roofs of this run: copy {report.roofs.copy_gbps:.1f} GB/s, torch.exp {report.roofs.exp_gps:.2f} G/s.",
        highlight=False,
    )
    for operator, case in dict.fromkeys((row.operator, row.case) for row in report.rows):
        table = Table(title=f"{operator}: {case}", title_justify="left")
        for heading in ("direction", "by", "error"):
            table.add_column(heading)
        rows = [row for row in report.rows if (row.operator, row.case) == (operator, case)]
        weighed = any(row.extra_mib is not None for row in rows)
        for heading in ("ms", "of byte roof", "of exp roof", *(["extra MiB"] if weighed else [])):
            table.add_column(heading, justify="right")
        for row in rows:
            memory = "-" if row.extra_mib is None else f"{row.extra_mib:.0f}"
            table.add_row(row.direction, row.by, *_cells(row), *([memory] if weighed else []))
        console.print(table)
    print_goals(console, report.goals)
    print_load_warning(console, report.load_before)


def print_goals(console: Console, goals: Sequence[Goal]) -> None:
    """A table of goals and verdicts, where there are any."""
    table = Table("goal", "measured", "wanted", "", title="Goals", title_justify="left")
    for goal in goals:
        table.add_row(goal.name, _number(goal), goal.wanted, "[green]met[/]" if goal.met else "[bold red]missed[/]")
    if goals:
        console.print(table)


def print_load_warning(console: Console, load_before: float) -> None:
    """Say so where other programs were busy when the run began."""
    if load_before > 0.5:
        console.print(
            f"[bold yellow]warning[/] other programs were busy when this began (load {load_before:.1f}): "
            "the times are longer, and their ratios less sure, than on a machine at rest.",
            highlight=False,
        )


def _cells(row: Row) -> tuple[str, str, str, str]:
    error = f"{row.error:.0e}"
    if row.ms is None:
        return error, "[bold red]wrong[/]", "-", "-"
    return error, f"{row.ms:.2f}", _share(row.share_of_bytes), _share(row.share_of_exp)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _number(goal: Goal) -> str:
    return "wrong" if goal.measured is None else f"{goal.measured:.3g}"
