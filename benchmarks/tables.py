"""Rewrite the tables in README.md and docs/ from the numbers in benchmarks/results, so that none is typed by hand.

    python benchmarks/tables.py            rewrite every marked block
    python benchmarks/tables.py --check    change nothing; exit with 1 where a block is not what the results say

A block in a Markdown file names a result file, the list of rows in it, and the columns:

    <!-- table: mni152_demo.json | rows: comparison | columns: name; mean Dice = scores.mean_dice:.3f -->
    (everything up to the end mark is rewritten)
    <!-- end table -->

`rows` is a path of keys to a list of objects. Columns are separated by semicolons; one is a key (or path of keys) of a
row, optionally with a heading before `=` and a Python format after `:`. A value that is null is shown as "-". Under the
table stands what the numbers were measured with, from the file's "environment". A result file that does not exist yet
gives a line saying so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(
    r"(?P<open><!-- table: (?P<order>[^>]*?) -->\n)(?P<body>.*?)(?P<close><!-- end table -->)", re.DOTALL
)
_MEASURED_WITH = ("commit", "processor", "GPU", "threads", "torch", "python")


class TableError(ValueError):
    """A block that cannot be filled: the message names the file, the block and what is wrong."""


@dataclass(frozen=True)
class Column:
    """A heading, where its value is in a row, and how it is written."""

    heading: str
    key: str
    form: str

    @classmethod
    def parse(cls, text: str) -> Column:
        heading, equals, source = text.partition("=")
        key, _, form = (source if equals else heading).strip().partition(":")
        return cls(heading.strip() if equals else key.strip(), key.strip(), form.strip())

    def cell(self, row: Any) -> str:
        value = _at(row, self.key)
        if value is None:
            return "-"
        return format(value, self.form) if self.form else str(value)


def filled(text: str, results: Path, *, name: str = "text") -> str:
    """`text` with every block rewritten from the files in the folder `results`.

    Raises: TableError for a block without rows or columns, a key that is not there, or an end mark that is missing.
    """
    if text.count("<!-- table:") != len(_BLOCK.findall(text)):
        raise TableError(f"{name}: a `<!-- table: ... -->` block has no `<!-- end table -->`, or its mark is broken.")

    def fill(match: re.Match[str]) -> str:
        try:
            return match["open"] + _table(match["order"], results) + match["close"]
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(f"{name}, block {match['order']!r}: {error}") from error

    return _BLOCK.sub(fill, text)


def _table(order: str, results: Path) -> str:
    file, *parts = (part.strip() for part in order.split("|"))
    settings = dict(part.split(":", 1) for part in parts)
    if set(settings) != {"rows", "columns"}:
        raise TableError(f"{sorted(settings)} given; exactly `rows` and `columns` are needed.")
    path = results / file
    if not path.exists():
        return f"*No result is recorded yet in `benchmarks/results/{file}`.*\n"
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = _at(content, settings["rows"].strip())
    columns = [Column.parse(text) for text in settings["columns"].split(";")]
    numeric = [any(isinstance(_at(row, column.key), (int, float)) for row in rows) for column in columns]
    lines = [
        "| " + " | ".join(column.heading for column in columns) + " |",
        "|" + "|".join("---:" if right else "---" for right in numeric) + "|",
        *("| " + " | ".join(column.cell(row) for column in columns) + " |" for row in rows),
    ]
    environment = content.get("environment", {})
    known = [f"{name} {environment[name]}" for name in _MEASURED_WITH if environment.get(name)]
    source = f"From `benchmarks/results/{file}`" + (f": {', '.join(known)}." if known else ".")
    return "\n".join(lines) + f"\n\n<sub>{source}</sub>\n"


def _at(value: Any, path: str) -> Any:
    """The value at a dotted path of keys; KeyError names the key that is missing and those that are there."""
    for key in path.split("."):
        if key not in value:
            raise KeyError(f"no {key!r} (of {path!r}) among {sorted(value)}")
        value = value[key]
    return value


def documents(root: Path) -> list[Path]:
    """The files whose tables are kept up to date."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Rewrite the tables of README.md and docs/ from benchmarks/results.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a table is out of date")
    check = parser.parse_args(argv).check
    stale = []
    for path in documents(ROOT):
        text = path.read_text(encoding="utf-8")
        updated = filled(text, ROOT / "benchmarks" / "results", name=str(path.relative_to(ROOT)))
        if updated != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(updated, encoding="utf-8")
    if stale:
        print(f"{'out of date' if check else 'rewritten'}: {', '.join(stale)}")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
