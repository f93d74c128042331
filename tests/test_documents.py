"""What the documents show works: code runs, commands exist with their options, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from statefield.cli.main import VERBS, main

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]


def blocks(language: str) -> list[str]:
    """Fenced blocks of the README in `language` ("" for commands)."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = [line for block in blocks("") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("statefield")]


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_python_in_the_readme_runs(index: int) -> None:
    exec(compile(blocks("python")[index], f"README.md, python block {index}", "exec"), {})


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_in_the_readme_exist_and_know_their_options(words: list[str], capsys: pytest.CaptureFixture) -> None:
    verb = next((count for count in (2, 1) if tuple(words[1 : 1 + count]) in VERBS), None)
    assert verb is not None, f"{' '.join(words)} is no command"
    options = [word for word in words if word.startswith("--")]
    if not options:
        return
    with pytest.raises(SystemExit) as stop:
        main([*words[1 : 1 + verb], "--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    for option in options:
        assert re.search(rf"{re.escape(option)}\b", told), f"{option} is not in its --help"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_of_the_project(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    missing = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert not missing


def test_makefile_knows_the_commands_of_the_documents() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    wanted = {name for path in DOCUMENTS for name in re.findall(r"^make (\w+)", path.read_text(), flags=re.MULTILINE)}
    assert {"demo", "test", "check"} <= wanted
    for name in wanted:
        assert re.search(rf"^{name}:", makefile, flags=re.MULTILINE), f"make {name}"
