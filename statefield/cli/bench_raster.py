"""`statefield bench raster`: change maps of rasters of up to 50,000 x 50,000 pixels, their memory, time and seams."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from statefield.cli.bench import ExampleLines, print_goals, print_load_warning

if TYPE_CHECKING:
    from statefield.bench.raster import RasterReport

_SAMPLES = "change_detection/changeformer_samples"


def raster(argv: list[str]) -> int:
    """Run the benchmark and print it; the exit status is 0, or 1 when an output is not what it has to be."""
    parser = ArgumentParser(
        prog="statefield bench raster",
        description="Predict pairs of sparse rasters, 5,000 to 50,000 pixels a side, on this machine's CPU, with data\n"
        "in a strip across the full width, and one that is full; tell peak memory, time and the net's share of it,\n"
        "and how far tiles are from the whole image. Takes up to twenty minutes, and 6 GB of disk for a while.\n\n"
        "examples:\n  statefield bench raster\n  statefield bench raster --quick\n"
        "  statefield bench raster --sides '[5000]' --json five_thousand.json\n"
        "  statefield bench raster --json benchmarks/results/raster_cpu.json --scratch /data/tmp",
        formatter_class=ExampleLines,
    )
    parser.add_argument("--json", type=Path | None, default=None, metavar="FILE", help="write all numbers there, too")
    parser.add_argument("--scratch", type=Path | None, default=None, metavar="DIR", help="where the files go meanwhile")
    parser.add_argument(
        "--patches",
        type=list[Path] | None,
        default=None,
        metavar="DIRS",
        help="folders of pictures of two dates in A/ and B/ to make the rasters of (default: those of the ChangeFormer "
        "samples where STATEFIELD_DATA names a folder that has them, else synthetic textures)",
    )
    parser.add_argument("--sides", type=list[int] | None, default=None, help="only strips of rasters of these sides")
    parser.add_argument("--quick", action="store_true", help="small rasters: sees that all works")
    options = parser.parse_args(argv)

    from statefield.bench.raster import run_raster_benchmark  # here: it imports torch
    from statefield.files import write_json

    console = Console()
    patches = options.patches if options.patches is not None else _samples()
    with console.status("...") as status:
        report = run_raster_benchmark(
            quick=options.quick,
            folder=options.scratch,
            patches=patches,
            sides=options.sides,
            tell=lambda what: status.update(f"{what} ..."),
        )
    _print(console, report)
    if options.json is not None:
        write_json(options.json, report.as_json())
        console.print(f"written: {options.json}", highlight=False, soft_wrap=True)
    return 0 if report.correct else 1


def _samples() -> list[Path]:
    data = os.environ.get("STATEFIELD_DATA")
    found = sorted((Path(data) / _SAMPLES).glob("samples_*")) if data else []
    return [folder for folder in found if (folder / "A").is_dir() and (folder / "B").is_dir()]


def _print(console: Console, report: RasterReport) -> None:
    environment = report.environment
    console.print(
        f"{environment['processor']}, {environment['threads']}, torch {environment['torch']}.\n"
        f"{report.net}, random weights; made of {report.patches}.",
        highlight=False,
    )
    table = Table("raster", "data", title="Change maps from files to file", title_justify="left")
    for heading in ("peak GB", "seconds", "in the net", "alone", "tiles", "skipped"):
        table.add_column(heading, justify="right")
    for row in report.rows:
        alone = "-" if row.alone_share is None else f"{100 * row.alone_share:.0f} %"
        shares = (f"{100 * row.net_share:.0f} %", alone)
        table.add_row(
            row.raster, row.data, f"{row.peak_gb:.3g}", f"{row.seconds:.0f}", *shares, str(row.tiles), str(row.skipped)
        )
    console.print(table)
    print_goals(console, report.goals)
    print_load_warning(console, report.load_before)
