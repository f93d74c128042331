"""`statefield bench backbones`: families on native and reference operators, beside attention, and beside controls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from statefield.cli.bench import ExampleLines, print_goals, print_load_warning

if TYPE_CHECKING:
    from statefield.bench.backbones import BackbonesReport


def backbones(argv: list[str]) -> int:
    """Run the benchmark and print it; the exit status is 0, or 1 when a family differs from its reference loops."""
    parser = ArgumentParser(
        prog="statefield bench backbones",
        description="Measure the backbones on this machine's CPU, one image at a time: each family on native\n"
        "operators and on the reference loops at 512 x 512 (its smallest model, one pass of the loops), Vim-tiny\n"
        "beside DeiT-tiny at 1248 x 1248, and each family's maps beside those of Swin-T, ConvNeXt-T and MambaOut-T\n"
        "at 224, 512 and 1024. Takes about a quarter of an hour.\n\n"
        "examples:\n  statefield bench backbones\n  statefield bench backbones --quick\n"
        "  statefield bench backbones --json benchmarks/results/backbones_cpu.json",
        formatter_class=ExampleLines,
    )
    parser.add_argument("--json", type=Path | None, default=None, metavar="FILE", help="write all numbers there, too")
    parser.add_argument("--quick", action="store_true", help="two families, small images: sees that all works")
    options = parser.parse_args(argv)

    from statefield.bench.backbones import run_backbones_benchmark  # here: it imports torch
    from statefield.files import write_json

    console = Console()
    with console.status("measuring ..."):
        report = run_backbones_benchmark(quick=options.quick)
    _print(console, report)
    if options.json is not None:
        write_json(options.json, report.as_json())
        console.print(f"written: {options.json}", highlight=False, soft_wrap=True)
    return 0 if report.correct else 1


def _print(console: Console, report: BackbonesReport) -> None:
    environment = report.environment
    console.print(
        f"{environment['processor']}, {environment['threads']}, torch {environment['torch']}. One image at a time.",
        highlight=False,
    )
    console.print(_against_reference(report))
    console.print(_long_image(report))
    for side in report.controls[0].at:
        console.print(_controls(report, side))
    print_goals(console, report.goals)
    print_load_warning(console, report.load_before)


def _against_reference(report: BackbonesReport) -> Table:
    side = report.against_reference[0].side
    table = Table(title=f"Native operators and reference loops, {side} x {side}", title_justify="left")
    for heading in ("family", "model", "our operators in it", "error"):
        table.add_column(heading)
    for heading in ("native ms", "reference ms", "times as fast"):
        table.add_column(heading, justify="right")
    for row in report.against_reference:
        numbers = (_number(row.native_ms), _number(row.reference_ms), _number(row.times_as_fast))
        error = f"{row.error:.0e}" if row.native_ms is not None else f"[bold red]wrong[/] {row.error:.0e}"
        table.add_row(row.family, row.model, row.operators, error, *numbers)
    return table


def _long_image(report: BackbonesReport) -> Table:
    side = report.long_image[0].side
    table = Table(title=f"A scan and attention, {side} x {side}", title_justify="left")
    for heading in ("model", "attention"):
        table.add_column(heading)
    for heading in ("ms", "peak MiB", "of that weights"):
        table.add_column(heading, justify="right")
    for row in report.long_image:
        table.add_row(row.model, row.attention, _number(row.ms), _number(row.peak_mib), _number(row.weights_mib))
    return table


def _controls(report: BackbonesReport, side: str) -> Table:
    table = Table(title=f"Maps for dense decoders, {side} x {side}", title_justify="left")
    for heading in ("family", "model"):
        table.add_column(heading)
    for heading in ("M parameters", "images/s", "ms", "peak MiB"):
        table.add_column(heading, justify="right")
    for row in report.controls:
        at = row.at[side]
        family = f"[bold]{row.family}[/] (control)" if row.is_control else row.family
        numbers = (_number(at.images_per_second), _number(at.ms), _number(at.peak_mib))
        table.add_row(family, row.model, f"{row.parameters / 1e6:.1f}", *numbers)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"
