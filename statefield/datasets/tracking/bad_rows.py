"""Rows of a file that cannot be meant: the first is an error, or all are left out and counted, as the caller wills."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from statefield.errors import DataError

OnBad = Literal["error", "skip"]


@dataclass
class BadRows:
    """What is wrong in one file.

    Args:
        path: the file, named in the error.
        on_bad: "error" raises at the first bad row; "skip" counts it, and the reader leaves it out.
    """

    path: Path
    on_bad: OnBad = "error"
    counts: Counter[str] = field(default_factory=Counter)
    first_lines: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, line: int, what: str) -> None:
        """A row of line `line` (from 1) is bad: `kind` in few words for counting, `what` for the reader.

        Raises: DataError unless bad rows are skipped.
        """
        if self.on_bad == "error":
            raise DataError(
                f"{self.path}, line {line}: {what}. Correct the file, or leave such rows out and have them counted "
                "with --on-bad skip."
            )
        self.counts[kind] += 1
        self.first_lines.setdefault(kind, line)

    def told(self) -> list[str]:
        """A sentence for each kind of row that was left out."""
        return [
            f"{self.path}: {count} {'row' if count == 1 else 'rows'} left out, {kind} "
            f"({'line' if count == 1 else 'the first is line'} {self.first_lines[kind]})"
            for kind, count in self.counts.items()
        ]
