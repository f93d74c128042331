"""A hook of MkDocs: pages and files outside docs/ become part of the site, and links lead on both to the same.

In the repository, links are relative to the file that has them (`../recipes/medical/drive.yaml`). On the site docs/ is
the top, and every other file of the project keeps its path: README.md is the front page, recipes/ lies beside pages.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "statefield/kernels/*/README.md"]
_LINK = re.compile(r"\]\((?P<target>[^)#\s]+)(?P<rest>#[^)]*)?\)")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages outside docs/, and every file of the project that a page links to."""
    documents = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    documents += sorted((ROOT / "docs").rglob("*.md"))
    linked = {
        target
        for document in documents
        for match in _LINK.finditer(document.read_text(encoding="utf-8"))
        if (target := _target(document, match["target"])) is not None
    }
    for path in sorted({*documents, *linked}):
        if files.get_file_from_path(_site_path(path)) is None:
            files.append(File.generated(config, _site_path(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """The page with the links that its place on the site needs."""
    source = Path(page.file.abs_src_path)
    here = Path(page.file.src_uri).parent

    def moved(match: re.Match[str]) -> str:
        target = _target(source, match["target"])
        if target is None:
            return match[0]
        return f"]({Path(os.path.relpath(_site_path(target), here)).as_posix()}{match['rest'] or ''})"

    return _LINK.sub(moved, markdown)


def _target(source: Path, link: str) -> Path | None:
    """The file of the project that a link leads to; None for addresses, and for what is no link but looks like one."""
    target = Path(os.path.normpath(source.parent / link))
    return target if "://" not in link and target.is_file() and target.is_relative_to(ROOT) else None


def _site_path(path: Path) -> str:
    return path.relative_to(ROOT).as_posix().removeprefix("docs/")
