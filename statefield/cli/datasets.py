"""`statefield datasets`: the layouts that can be read, and which of them a folder has."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from statefield.datasets import ADAPTERS, SPLITS, DatasetAdapter, DatasetInfo, mismatches, open_dataset
from statefield.datasets.adapter import Layout
from statefield.datasets.change import CHANGE_ADAPTERS, ChangeAdapter, open_change_dataset
from statefield.errors import DatasetLayoutError


def datasets(argv: list[str]) -> int:
    """The verb: without a folder it lists the layouts; with one it says which fits, what is in it, or why none does."""
    parser = argparse.ArgumentParser(
        prog="statefield datasets",
        description="List the dataset layouts that can be read, or tell which one a folder has.",
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, help="a dataset's folder; the embedded layouts go by --layout alone"
    )
    parser.add_argument(
        "--table", action="store_true", help="list the layouts as the Markdown table of docs/datasets.md"
    )
    parser.add_argument(
        "--layout", default="auto", choices=["auto", *ADAPTERS, *CHANGE_ADAPTERS], help="expect this layout"
    )
    parser.add_argument(
        "--change", action="store_true", help="the layouts of pairs of images, in which something has changed"
    )
    arguments = parser.parse_args(argv)
    change = arguments.change or arguments.layout in CHANGE_ADAPTERS
    layouts: Mapping[str, Layout] = CHANGE_ADAPTERS if change else ADAPTERS
    console = Console(soft_wrap=True, highlight=False)
    if arguments.table:
        print(table(layouts))
        return 0
    if arguments.folder is None and arguments.layout == "auto":
        _list_layouts(console, layouts)
        return 0
    adapter: DatasetAdapter | ChangeAdapter
    info: DatasetInfo
    if change:
        adapter, info = open_change_dataset(arguments.folder, arguments.layout)
    else:
        adapter, info = open_dataset(arguments.folder, arguments.layout)
    _print_dataset(console, arguments.folder, adapter, info, layouts)
    return 0


def table(layouts: Mapping[str, Layout] = ADAPTERS) -> str:
    """Every layout as a row of a Markdown table: what it is, how it is divided and labelled, its terms and source."""
    rows = ["| layout | dataset | task | split | labels | terms | source |", "|---|---|---|---|---|---|---|"]
    for name, adapter in sorted(layouts.items()):
        cells = (f"`{name}`", *dataclasses.astuple(adapter.about))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _list_layouts(console: Console, layouts: Mapping[str, Layout]) -> None:
    for name, adapter in layouts.items():
        note = " (embedded: needs no folder)" if adapter.embedded else ""
        console.print(f"[bold]{name}[/bold]   {adapter.about.title}: {adapter.about.task}{note}", highlight=False)
        console.print(f"  source: {adapter.about.source}", markup=False)
        console.print(f"  terms:  {adapter.about.terms}", markup=False)
        for line in adapter.layout.splitlines():
            console.print(f"  {line}", markup=False)
        console.print()
    option = " --change" if layouts is CHANGE_ADAPTERS else ""
    console.print(f"statefield datasets{option} FOLDER tells which layout a folder has.")
    if not option:
        console.print("statefield datasets --change lists the layouts of pairs of images.")


def _print_dataset(
    console: Console,
    root: Path | None,
    adapter: DatasetAdapter | ChangeAdapter,
    info: DatasetInfo,
    layouts: Mapping[str, Layout],
) -> None:
    console.print(f"{root if root is not None else adapter.name}: layout [bold]{adapter.name}[/bold]")
    console.print(f"dimensions: {info.spatial_dims}")
    console.print(f"channels: {len(info.channels)} ({', '.join(info.channels)})", markup=False)
    console.print(
        f"classes: {len(info.classes)}: " + ", ".join(f"{k} {c}" for k, c in enumerate(info.classes)), markup=False
    )
    table = Table("split", "cases", "first", "why none")
    for split in SPLITS:
        try:
            records = adapter.records(root, split)
        except DatasetLayoutError as error:
            reason = str(error).rsplit("has no case: ", 1)
            if len(reason) == 1:  # a damaged layout, not merely an empty split
                raise
            table.add_row(split, "0", "", reason[1])
        else:
            table.add_row(split, str(len(records)), records[0].case, "")
    console.print(table)
    if root is not None:
        others = [f"{name} ({reason})" for name, reason in mismatches(root, layouts).items() if reason]
        console.print("not: " + "; ".join(others), markup=False)
