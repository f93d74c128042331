"""Every number in a table of the documents stands in a result file."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_tables_in_the_documents_are_what_the_results_say(tables: ModuleType, capsys: pytest.CaptureFixture) -> None:
    assert tables.main(["--check"]) == 0, f"{capsys.readouterr().out}: run `python benchmarks/tables.py`"


RESULT = {
    "environment": {"commit": "0123456789ab", "processor": "A fast one", "torch": "2.15", "unrelated": "x"},
    "runs": {
        "rows": [
            {"name": "ours", "scores": {"dice": 0.95349}, "seed": 3},
            {"name": "control", "scores": {"dice": None}, "seed": 0},
        ]
    },
}
TEXT = """before
<!-- table: demo.json | rows: runs.rows | columns: name; mean Dice = scores.dice:.3f; seed -->
old | content
<!-- end table -->
after
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "demo.json").write_text(json.dumps(RESULT))
    return tmp_path


def test_a_block_is_rewritten_from_its_result_and_the_rest_is_left(tables: ModuleType, results: Path) -> None:
    filled = tables.filled(TEXT, results)
    assert filled.splitlines() == [
        "before",
        TEXT.splitlines()[1],
        "| name | mean Dice | seed |",
        "|---|---:|---:|",
        "| ours | 0.953 | 3 |",
        "| control | - | 0 |",
        "",
        "<sub>From `benchmarks/results/demo.json`: commit 0123456789ab, processor A fast one, torch 2.15.</sub>",
        "<!-- end table -->",
        "after",
    ]
    assert tables.filled(filled, results) == filled


def test_a_result_that_is_not_there_yet_is_said_to_be_missing(tables: ModuleType, tmp_path: Path) -> None:
    filled = tables.filled(TEXT, tmp_path)
    assert "*No result is recorded yet in `benchmarks/results/demo.json`.*" in filled
    assert "old" not in filled


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (TEXT.replace("scores.dice", "scores.iou"), "no 'iou' .* among .*'dice'"),
        (TEXT.replace("runs.rows", "rows"), "no 'rows' .* among .*'runs'"),
        (TEXT.replace(" | rows: runs.rows", ""), "exactly `rows` and `columns`"),
        (TEXT.replace("<!-- end table -->", ""), "has no `<!-- end table -->`"),
        (TEXT.replace("name;", "name:.3f;"), "Unknown format code"),
    ],
)
def test_a_block_that_cannot_be_filled_is_an_error_that_names_it(
    tables: ModuleType, results: Path, broken: str, says: str
) -> None:
    with pytest.raises(tables.TableError, match=says):
        tables.filled(broken, results, name="README.md")
