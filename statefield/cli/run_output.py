"""What the `train` and `test` commands of every field share: their flags, their bars, and how they end."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from statefield.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from statefield.tasks.common.outcome import TestResult

CaseProgress = Callable[[str, int, int], None]


def add_run_flags(parser: ArgumentParser) -> None:
    """`--resume` and `--overwrite`, bare or with a value."""
    flag: dict[str, Any] = {"type": bool, "nargs": "?", "const": True, "default": False}
    parser.add_argument("--resume", help="continue the run folder's last checkpoint, to the same result", **flag)
    parser.add_argument("--overwrite", help="replace the run that is in the run folder", **flag)


def run_training(
    train: Callable[..., TestResult | None],
    recipe: Any,
    settings: Namespace,
    *,
    parts: str | None,
    then: str,
    callbacks: Sequence[Callback] = (),
) -> int:
    """A field's `train` with bars and the flags of `add_run_flags`; then what came out, and how to go on.

    parts: what the bar of the test counts, in the plural; None: `train` takes no `progress`. then: the next command.
    """
    from statefield.cli.training_progress import TrainingBar

    console = console_of_errors()
    with case_bar(console, parts or "") as progress:
        result = train(
            recipe,
            resume=settings.resume,
            overwrite=settings.overwrite,
            callbacks=[TrainingBar(console), *callbacks],
            announce=_announcing(console),
            **({} if parts is None else {"progress": progress}),
        )
    if result is not None:  # of several processes the first one speaks
        print_result(result)
        print(f"\nto go on:\n  {then}")
    return 0


def parser_of_test(field: str, *, description: str, epilog: str, cases: str, same: str) -> argparse.ArgumentParser:
    """The options of `statefield FIELD test`.

    cases: what a split holds, in the plural. same: what another dataset must have in common with the run's.
    """
    parser = argparse.ArgumentParser(
        prog=f"statefield {field} test",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--run", type=Path, required=True, help=f"the run folder of `statefield {field} train`")
    splits = ("test", "val", "train")
    parser.add_argument("--split", choices=splits, default="test", help=f"which {cases} (default: test)")
    parser.add_argument("--data", type=Path, help=f"another dataset's folder; {same} must be the same")
    parser.add_argument("--output", type=Path, help="where results go (default: RUN/test_SPLIT)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    return parser


def run_test(test: Callable[..., TestResult], options: argparse.Namespace, *, parts: str) -> int:
    """A field's `test` with a bar over its `parts`, by the options of `parser_of_test`; then what came out."""
    set_threads(options.threads)
    console = console_of_errors()
    with case_bar(console, parts) as progress:
        result = test(
            options.run,
            split=options.split,
            root=options.data,
            output=options.output,
            announce=_announcing(console),
            progress=progress,
        )
    print_result(result)
    return 0


def _announcing(console: Any) -> Callable[[str], None]:
    return lambda line: console.print(line, highlight=False, markup=False)


def set_threads(threads: int | None) -> None:
    """The option `--threads`: CPU threads of torch; None: as they are."""
    import torch

    if threads is None:
        return
    if threads < 1:
        raise ConfigError(f"--threads {threads}: at least 1 is needed.")
    torch.set_num_threads(threads)


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and leaves the lines of the examples as they are."""


def console_of_errors() -> Any:
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def case_bar(console: Any, unit: str) -> Iterator[CaseProgress]:
    """A bar over the parts (`unit`, in the plural) of the case being predicted; nothing is drawn without a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        console=console,
        transient=True,
    )
    tasks: list[Any] = []

    def show(case: str, done: int, total: int) -> None:
        if not tasks:
            bar.start()
            tasks.append(bar.add_task("", total=total))
        bar.update(tasks[0], description=case, completed=done, total=total)

    try:
        yield show
    finally:
        if tasks:
            bar.stop()


def print_result(result: TestResult) -> None:
    """The comparison as a table, then where everything is; plain text, for files and terminals alike."""
    print()
    print(_table(result))
    folder = result.folder
    places = [
        ("report", result.report),
        ("scores", folder.metrics),
        ("predictions", folder.predictions),
        ("weights", folder.weights),
        ("history", folder.history),
        ("recipe", folder.config),
    ]
    print("\nfiles:")
    for name, path in places:
        if path.exists():
            print(f"  {name:<12} {path}")


def _table(result: TestResult) -> str:
    from statefield.tasks.common.report import format_value

    columns = list(result.comparison[0].values)
    rows = [["", *columns]]
    for row in result.comparison:
        values = [_score(row.values.get(column), format_value) for column in columns]
        rows.append([f"{row.name} ({row.role})", *values])
    widths = [max(len(line[index]) for line in rows) for index in range(len(rows[0]))]
    return "\n".join(_line(line, widths) for line in rows)


def _score(value: Any, format_value: Any) -> str:
    """Scores with four decimals, as contenders are often that close; everything else as in the report."""
    return f"{value:.4f}" if isinstance(value, float) and 0 <= value <= 1 else format_value(value)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = cells
    return "  ".join([first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True))])
