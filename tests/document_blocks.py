"""The Python of the documents: its fenced blocks, and how a page of them is run.

A block is run unless a comment right above it says why not:

    <!-- not run: it trains for minutes -->

A block with a title is a file of that name: a module where a later block of the page imports it, else a script, which
is run after them. The other blocks are one program, in the order of the page.
"""

from __future__ import annotations

import re
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("statefield/**/*.md"))]

_BLOCK = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^>]+?) -->\n+)?"
    r"^(?P<indent> *)```python(?P<words>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$",
    flags=re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One fenced block: its place ("docs/metrics.md:113"), its file's name, and why it is not run ("": it is)."""

    place: str
    code: str
    title: str
    not_run: str


def python_blocks(path: Path) -> list[Block]:
    """The blocks of a page that are marked as Python, in order."""
    text = path.read_text(encoding="utf-8")
    blocks = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        title = re.search(r'title="([^"]+)"', match["words"])
        name = path.relative_to(ROOT).as_posix()
        blocks.append(Block(f"{name}:{line}", dedent(match["code"]), title[1] if title else "", match["reason"] or ""))
    return blocks


def run_page(path: Path, folder: Path, surroundings: dict[str, Any]) -> dict[str, Any]:
    """Run a page's blocks in order; returns the names that they leave.

    Files are written to `folder`, which has to be the working directory and on the path of modules.

    Args:
        surroundings: names that the page takes as given, such as an image.
    """
    names = dict(surroundings)
    for block in python_blocks(path):
        if block.not_run:
            continue
        if block.title:
            (folder / block.title).write_text(block.code, encoding="utf-8")
        else:
            exec(compile(block.code, block.place, "exec"), names)
    for block in python_blocks(path):
        if block.title and not block.not_run and Path(block.title).stem not in sys.modules:
            runpy.run_path(str(folder / block.title), run_name="__main__")
    return names
