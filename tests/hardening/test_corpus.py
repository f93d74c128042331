"""Broken and malicious inputs of every kind: one paragraph that names them, exit code 2, and nothing written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hardening.case import Case, bounded_memory, snapshot
from hardening.corpus import GROUPS

from statefield.cli.main import main

_CASES = [pytest.param(case, id=f"{group}-{case.name}") for group, cases in GROUPS.items() for case in cases]
_MORE_MEMORY = 2**30


@pytest.mark.parametrize("case", _CASES)
def test_a_bad_input_is_one_paragraph_and_nothing_is_written(
    case: Case,
    run_of: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = run_of(case.run) if case.run else None
    case.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    before = snapshot(tmp_path), snapshot(run) if run else {}
    capsys.readouterr()
    with bounded_memory(_MORE_MEMORY):
        code = main(case.words(tmp_path, run))
    shown = capsys.readouterr().err.strip()
    said = " ".join(shown.split())
    assert code == 2
    assert (snapshot(tmp_path), snapshot(run) if run else {}) == before
    assert re.match(r"statefield: [A-Z]\w+: ", said), said
    assert "\n\n" not in shown and "Traceback" not in shown and said.count("statefield: ") == 1
    for words in case.says:
        assert re.search(words, said), said


def test_the_corpus_has_its_size_and_every_case_its_name() -> None:
    sizes = {group: len(cases) for group, cases in GROUPS.items()}
    assert all(size >= 20 for size in sizes.values()), sizes
    assert sum(sizes.values()) >= 200
    for group, cases in GROUPS.items():
        assert len({case.name for case in cases}) == len(cases), group
