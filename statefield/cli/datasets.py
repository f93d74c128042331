"""`statefield datasets`: the layouts that can be read, and which of them a folder has."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from statefield.datasets import ADAPTERS, SPLITS, DatasetInfo, mismatches, open_dataset
from statefield.datasets.adapter import Layout, choose_layout
from statefield.datasets.change import CHANGE_ADAPTERS, open_change_dataset
from statefield.datasets.hyperspectral import SCENE_ADAPTERS
from statefield.datasets.scenes import SCENE_SETS, open_scenes
from statefield.errors import DatasetLayoutError


@dataclass(frozen=True)
class Field:
    """The layouts of one field. about: what a case of it is. open: root and layout -> adapter and its description."""

    about: str
    layouts: Mapping[str, Layout]
    open: Callable[[Path | None, str], tuple[Any, DatasetInfo]]


def _open_hyperspectral(root: Path | None, layout: str) -> tuple[Any, DatasetInfo]:
    adapter = choose_layout(root, layout, None, SCENE_ADAPTERS)
    return adapter, adapter.describe(root)


FIELDS = {
    "segmentation": Field("single images and volumes with a mask", ADAPTERS, open_dataset),
    "change": Field("pairs of images, in which something has changed", CHANGE_ADAPTERS, open_change_dataset),
    "hyperspectral": Field("one cube, and the class of some of its pixels", SCENE_ADAPTERS, _open_hyperspectral),
    "scene": Field("pictures that belong to a class as a whole", SCENE_SETS, open_scenes),
}
_DEFAULT = "segmentation"
_EPILOG = """
examples:
  statefield datasets                              every layout, by field
  statefield datasets data/Task09_Spleen           which layout of images and masks a folder has
  statefield datasets --field scene data/AID       ... of scenes
  statefield datasets --layout indian_pines        an embedded one
"""


def datasets(argv: list[str]) -> int:
    """The verb: without a folder it lists the layouts; with one it says which fits, what is in it, or why none does."""
    parser = argparse.ArgumentParser(
        prog="statefield datasets",
        description="List the dataset layouts that can be read, or tell which one a folder has.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, help="a dataset's folder; the embedded layouts go by --layout alone"
    )
    parser.add_argument(
        "--table", action="store_true", help="list the layouts as the Markdown table of docs/datasets.md"
    )
    names = [name for field in FIELDS.values() for name in field.layouts]
    parser.add_argument("--layout", default="auto", choices=["auto", *names], metavar="NAME", help="expect this layout")
    parser.add_argument(
        "--field",
        choices=list(FIELDS),
        help=f"the layouts of this field (default: all to list, {_DEFAULT} for a folder)",
    )
    parser.add_argument("--change", dest="field", action="store_const", const="change", help="short for --field change")
    arguments = parser.parse_args(argv)
    field = next((name for name, one in FIELDS.items() if arguments.layout in one.layouts), arguments.field)
    console = Console(soft_wrap=True, highlight=False)
    if arguments.table:
        print(table(FIELDS[field or _DEFAULT].layouts))
        return 0
    if arguments.folder is None and arguments.layout == "auto":
        _list_layouts(console, field)
        return 0
    chosen = FIELDS[field or _DEFAULT]
    try:
        adapter, info = chosen.open(arguments.folder, arguments.layout)
    except DatasetLayoutError as error:
        if field is None and (elsewhere := _elsewhere(arguments.folder)):
            raise DatasetLayoutError(f"{error}\n{elsewhere}") from error
        raise
    _print_dataset(console, arguments.folder, adapter, info, chosen.layouts)
    return 0


def table(layouts: Mapping[str, Layout] = ADAPTERS) -> str:
    """Every layout as a row of a Markdown table: what it is, how it is divided and labelled, its terms and source."""
    rows = ["| layout | dataset | task | split | labels | terms | source |", "|---|---|---|---|---|---|---|"]
    for name, adapter in sorted(layouts.items()):
        cells = (f"`{name}`", *dataclasses.astuple(adapter.about))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _elsewhere(root: Path | None) -> str:
    """Which layout of another field a folder has, in a sentence; "" for none."""
    if root is None or not root.is_dir():
        return ""
    for name, field in FIELDS.items():
        fitting = [layout for layout, reason in mismatches(root, field.layouts).items() if reason is None]
        if name != _DEFAULT and fitting:
            return (
                f"It is {field.about}: layout {' or '.join(fitting)}. `statefield datasets --field {name} {root}` "
                "tells what is in it."
            )
    return ""


def _list_layouts(console: Console, field: str | None) -> None:
    for kind, one in FIELDS.items():
        if field not in (None, kind):
            continue
        console.print(f"[bold]{kind}[/bold]: {one.about}\n", highlight=False)
        for name, adapter in one.layouts.items():
            note = " (embedded: needs no folder)" if adapter.embedded else ""
            console.print(f"[bold]{name}[/bold]   {adapter.about.title}: {adapter.about.task}{note}", highlight=False)
            console.print(f"  source: {adapter.about.source}", markup=False)
            console.print(f"  terms:  {adapter.about.terms}", markup=False)
            for line in adapter.layout.splitlines():
                console.print(f"  {line}", markup=False)
            console.print()
    option = "" if field is None else f" --field {field}"
    console.print(f"statefield datasets{option} FOLDER tells which layout a folder has.")
    if field is None:
        others = ", ".join(name for name in FIELDS if name != _DEFAULT)
        console.print(f"Fields other than {_DEFAULT} are named: --field {others}.")


def _print_dataset(
    console: Console, root: Path | None, adapter: Any, info: DatasetInfo, layouts: Mapping[str, Layout]
) -> None:
    console.print(f"{root if root is not None else adapter.name}: layout [bold]{adapter.name}[/bold]")
    console.print(f"dimensions: {info.spatial_dims}")
    console.print(f"channels: {len(info.channels)} ({', '.join(info.channels)})", markup=False)
    console.print(
        f"classes: {len(info.classes)}: " + ", ".join(f"{k} {c}" for k, c in enumerate(info.classes)), markup=False
    )
    if not hasattr(adapter, "records"):
        console.print("one scene: which pixels are trained on is a setting of the run")
    else:
        _print_splits(console, root, adapter)
    if root is not None:
        others = [f"{name} ({reason})" for name, reason in mismatches(root, layouts).items() if reason]
        console.print("not: " + "; ".join(others), markup=False)


def _print_splits(console: Console, root: Path | None, adapter: Any) -> None:
    rows = Table("split", "cases", "first", "why none")
    for split in SPLITS:
        try:
            records = adapter.records(root, split)
        except DatasetLayoutError as error:
            reason = str(error).rsplit("has no case: ", 1)
            if len(reason) == 1:  # a damaged layout, not merely an empty split
                raise
            rows.add_row(split, "0", "", reason[1])
        else:
            rows.add_row(split, str(len(records)), records[0].case, "")
    console.print(rows)
