"""Every page of the documents stands in the site's navigation, once, and what stands there exists."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def _pages(entry: object) -> list[str]:
    """The files of a navigation's entry: {title: file or entries}, or a list of such."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in _pages(part)]


def test_the_navigation_has_every_page_once() -> None:
    navigation = _pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    written |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "statefield").rglob("README.md")}
    written |= {path.name for path in ROOT.glob("*.md")}
    assert sorted(navigation) == sorted(written)


def test_links_outside_docs_reach_files_that_the_site_has() -> None:
    """The hook copies files, not folders, and pages link to nothing above the project."""
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "statefield").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            if "://" not in link:
                target = (path.parent / link).resolve()
                assert target.is_file() and target.is_relative_to(ROOT), f"{path}: {link}"
