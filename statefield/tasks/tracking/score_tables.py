"""Tables of scores, and the forms in which people need them: on screen, CSV, LaTeX, JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Value = float | int | str | None


@dataclass(frozen=True)
class ScoreTable:
    """Rows (trackers, sequences, classes, attributes) against columns (scores).

    Args:
        title: the heading.
        lead: a sentence that says what the numbers are.
        heading: of the first column, such as "tracker".
        rows: label -> column -> value; rows share their columns and their order is kept. NaN and None are shown as "-".
        digits: decimals on screen, in LaTeX and in reports; CSV and JSON have all.
        lower_is_better: columns in which the smallest value is the best; in all others it is the largest.
        unranked: columns without a best value, such as counts of frames.
        best_by_row: the best value is sought in each row, where columns are trackers; then all columns rank alike.
    """

    title: str
    lead: str
    heading: str
    rows: Mapping[str, Mapping[str, Value]]
    digits: int = 2
    lower_is_better: frozenset[str] = frozenset()
    unranked: frozenset[str] = field(default_factory=frozenset)
    best_by_row: bool = False

    @property
    def columns(self) -> list[str]:
        return list(next(iter(self.rows.values()))) if self.rows else []

    def cell(self, row: str, column: str) -> str:
        """A value as it is shown."""
        return shown(self.rows[row].get(column), self.digits)

    def best(self, column: str) -> frozenset[str]:
        """The rows whose value in a column is a best one, by the digits shown; none where fewer than two compare."""
        if column in self.unranked:
            return frozenset()
        if self.best_by_row:
            return frozenset(row for row, values in self.rows.items() if column in self._top(values, column))
        return self._top({row: values.get(column) for row, values in self.rows.items()}, column)

    def _top(self, values: Mapping[str, Value], column: str) -> frozenset[str]:
        numbers: dict[str, float] = {}
        for name, value in values.items():
            if isinstance(value, (int, float)) and not math.isnan(value):
                numbers[name] = value
        if len(numbers) < 2:
            return frozenset()
        choose = min if column in self.lower_is_better else max
        top = shown(choose(numbers.values()), self.digits)
        return frozenset(name for name, value in numbers.items() if shown(value, self.digits) == top)


def shown(value: Value, digits: int) -> str:
    """A value as readers want it.

    >>> shown(53.482, 2), shown(12, 2), shown(float("nan"), 2), shown("a", 2)
    ('53.48', '12', '-', 'a')
    """
    if isinstance(value, str):
        return value
    if not _is_number(value):
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not math.isnan(value)


def screen_table(table: ScoreTable, width: int | None = None) -> Any:
    """The table for `rich.console.Console.print`; the best values are bold.

    Args:
        width: of the screen, in letters; a table that is wider, and has fewer rows than columns, is turned on its side.
    """
    from rich.table import Table
    from rich.text import Text

    best = {column: table.best(column) for column in table.columns}
    cells = {
        (row, c): Text(table.cell(row, c), style="bold" if row in best[c] else "") for row in table.rows for c in best
    }
    widths = [max(len(c), *(len(cells[row, c]) for row in table.rows)) + 3 for c in best] if table.rows else []
    is_turned = width is not None and sum(widths) + max(map(len, [*table.rows, ""])) + 4 > width
    drawn = Table(title=table.title, title_justify="left", caption=table.lead, caption_justify="left")
    if is_turned and len(table.rows) < len(best):
        drawn.add_column("score", no_wrap=True)
        for row in table.rows:
            drawn.add_column(Text(row), justify="right", overflow="fold")
        for column in best:
            drawn.add_row(column, *(cells[row, column] for row in table.rows))
        return drawn
    drawn.add_column(table.heading, overflow="fold", min_width=min(12, max(map(len, [*table.rows, table.heading]))))
    for column in best:
        drawn.add_column(column, justify="right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(Text(row), *(cells[row, column] for column in best))
    return drawn


def csv_text(tables: Sequence[ScoreTable]) -> str:
    """One row for each number: table, row, score, value with all its digits (empty where there is none)."""
    import csv  # here, for those who want a table on screen alone
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "score", "value"])
    for table in tables:
        for row, values in table.rows.items():
            for column, value in values.items():
                cell = repr(value) if _is_number(value) else value if isinstance(value, str) else ""
                writer.writerow([table.title, row, column, cell])
    return text.getvalue()


def latex_text(tables: Sequence[ScoreTable]) -> str:
    r"""Tables for papers, with booktabs' rules (\usepackage{booktabs}); the best values are bold."""
    parts = ["% needs \\usepackage{booktabs}"]
    for table in tables:
        best = {column: table.best(column) for column in table.columns}
        lines = [
            f"% {_one_line(table.lead)}",
            "\\begin{table}\n  \\centering",
            f"  \\caption{{{latex_escaped(table.title)}}}",
            f"  \\begin{{tabular}}{{l{'r' * len(table.columns)}}}\n    \\toprule",
            "    " + " & ".join(map(latex_escaped, [table.heading, *table.columns])) + r" \\",
            "    \\midrule",
        ]
        for row in table.rows:
            cells = [table.cell(row, c) for c in table.columns]
            cells = [
                rf"\textbf{{{latex_escaped(cell)}}}" if row in best[c] else latex_escaped(cell)
                for cell, c in zip(cells, table.columns, strict=True)
            ]
            lines.append("    " + " & ".join([latex_escaped(row), *cells]) + r" \\")
        parts.append("\n".join([*lines, "    \\bottomrule\n  \\end{tabular}\n\\end{table}"]))
    return "\n\n".join(parts) + "\n"


def latex_escaped(text: str) -> str:
    r"""Text from outside, such that LaTeX prints it.

    >>> latex_escaped("my_tracker 50%")
    'my\\_tracker 50\\%'
    """
    replaced = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(replaced.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def json_tables(tables: Sequence[ScoreTable]) -> list[dict[str, Any]]:
    """The tables with all digits, for `statefield.files.write_json`."""
    return [
        {"title": table.title, "lead": table.lead, "rows": {row: dict(values) for row, values in table.rows.items()}}
        for table in tables
    ]
