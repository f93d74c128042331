"""`statefield medical plan DATA`: a recipe that follows from the data, each setting with its reason."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from statefield.errors import ConfigError

if TYPE_CHECKING:
    from statefield.tasks.medical.budget import Budget
    from statefield.tasks.medical.fingerprint import Fingerprint, Progress
    from statefield.tasks.medical.plan import Plan

_WIDTH = 112
_EPILOG = """
Every training case is read once. What was found goes to fingerprint.json beside the recipe. Settings given as
--SETTING VALUE (as for `statefield medical train`) are kept, and the others follow from them.

examples:
  statefield medical plan data/Task09_Spleen
  statefield medical plan data/Task09_Spleen --output spleen.yaml --device gpu --memory 24GB --control
  statefield medical plan data/DRIVE --output drive.yaml --data.patch_size "[256, 256]"
  statefield medical plan --layout mni152 --output brain.yaml    data that an installed package ships
  statefield medical train --config spleen.yaml
"""


def plan(argv: list[str]) -> int:
    """The verb: reads the dataset, prints the decisions, writes recipe and fingerprint."""
    options, settings = _parser().parse_known_args(argv)

    from statefield.tasks.medical.recipe import given_settings, recipe_parser

    given = given_settings(recipe_parser(), settings)
    for name in ("data.root", "data.layout"):
        if name in given:
            raise ConfigError(f"--{name}: give the dataset's folder as DATA and its layout with --layout.")
    if options.layout != "auto":
        given["data.layout"] = options.layout
    output: Path = options.output
    beside = output.with_name("fingerprint.json")
    if output.exists() and not options.overwrite:
        raise ConfigError(f"{output} exists: replace it with --overwrite, or choose another place with --output.")
    budget = budget_of(options.device, options.memory)
    with reading_bar() as progress:
        found, planned = plan_dataset(
            options.data, given, budget, control=options.control, jobs=options.jobs, progress=progress
        )
    if beside.exists() and beside.read_text(encoding="utf-8") != found.text() and not options.overwrite:
        raise ConfigError(f"{beside} is of other data: replace it with --overwrite, or choose another --output.")

    from statefield.files import write_text

    print("\n".join(lines_of(planned)))
    write_text(output, planned.text())
    write_text(beside, found.text())
    print(f"\nwritten: {output}, {beside}\nto go on:\n  statefield medical train --config {output}")
    return 0


def plan_dataset(
    root: Path | None,
    given: dict[str, Any],
    budget: Budget,
    *,
    control: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> tuple[Fingerprint, Plan]:
    """Read a dataset and plan for it; `given` are settings by dotted names that stay as they are."""
    from statefield.datasets import open_dataset
    from statefield.tasks.medical.fingerprint import fingerprint_dataset
    from statefield.tasks.medical.plan import plan_recipe

    adapter, info = open_dataset(root, given.get("data.layout", "auto"), given.get("data.options"))
    found = fingerprint_dataset(adapter, info, root, jobs=jobs, progress=progress)
    return found, plan_recipe(found, budget, given=given, control=control)


def budget_of(device: str, memory: str | None) -> Budget:
    """What may be used of this machine; `memory` as "24GB", or a number of gigabytes."""
    from statefield.datasets.readers.mapped import parse_size
    from statefield.tasks.medical.budget import machine_budget

    if device not in ("auto", "cpu", "gpu"):
        raise ConfigError(f"a plan for the device {device!r} cannot be made: auto, cpu or gpu is needed.")
    if memory is None:
        return machine_budget(device)  # type: ignore[arg-type]
    size = parse_size(f"{memory}GB" if memory.replace(".", "", 1).isdigit() else memory)
    return machine_budget(device, size / 1e9)  # type: ignore[arg-type]


def lines_of(planned: Plan) -> list[str]:
    """The decisions as text: a line for each, and under it its reason."""
    from statefield.tasks.medical.decisions import flow

    width = max(len(decision.name) for decision in planned.decisions)
    lines = [f"{planned.title}:"]
    for decision in planned.decisions:
        value = decision.value if not decision.is_setting else flow(decision.value)
        lines.append(f"  {decision.name:<{width}}  {value}")
        lines += _indented(decision.reason)
    for note in planned.notes:
        lines += textwrap.wrap(f"note: {note}", _WIDTH, initial_indent="  ", subsequent_indent="  ")
    return lines


@contextmanager
def reading_bar() -> Iterator[Progress]:
    """A bar over the cases that are read; nothing is drawn where no terminal is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("reading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Bar(
        *columns, TextColumn("{task.description}"), console=console, transient=True, disable=not console.is_terminal
    )
    with bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, case: bar.update(task, completed=done, total=total, description=case)


def _indented(reason: str) -> Sequence[str]:
    return textwrap.wrap(reason, _WIDTH, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="statefield medical plan",
        usage="statefield medical plan DATA [-o RECIPE.yaml] [--device cpu|gpu] [--memory SIZE] [--SETTING VALUE ...]",
        description="Read a dataset's training cases and write a recipe that follows from them, with reasons.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("data", metavar="DATA", type=Path, nargs="?", help="the dataset's folder; embedded layouts (mni152) need none")
    add("--layout", default="auto", help="its layout (default: recognised; `statefield datasets` lists them)")
    add("-o", "--output", type=Path, default=Path("recipe.yaml"), help="the recipe's file (default: recipe.yaml)")
    add(
        "--device",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="what trains (default: a GPU where there is one)",
    )
    add("--memory", metavar="SIZE", help="memory that training may use, e.g. 8GB (default: follows from the machine)")
    add("--control", action="store_true", help="also train a net without a state-space layer, for comparison")
    add("--jobs", type=int, metavar="N", help="cases read at the same time (default: one a processor, four at most)")
    add("--overwrite", action="store_true", help="replace a recipe that is there")
    return parser
