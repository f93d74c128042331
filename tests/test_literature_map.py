"""The map from the literature names what is registered, and nothing that is not."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def literature() -> ModuleType:
    spec = importlib.util.spec_from_file_location("literature_map", ROOT / "benchmarks" / "literature.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recorded_map_is_what_source_and_registries_say(literature: ModuleType) -> None:
    tables = literature.mapped(tomllib.loads(literature.SOURCE.read_text(encoding="utf-8")), literature.registered())
    recorded = json.loads(literature.RESULT.read_text(encoding="utf-8"))
    assert recorded["tables"] == tables, "run `python benchmarks/literature.py && python benchmarks/tables.py`"
    page = (ROOT / "docs" / "literature.md").read_text(encoding="utf-8")
    assert all(f"rows: tables.{section} |" in page for section in tables), "a section is on no page"


def test_no_model_stands_twice_in_a_section(literature: ModuleType) -> None:
    sections = tomllib.loads(literature.SOURCE.read_text(encoding="utf-8"))
    for section, content in sections.items():
        names = [row[0] for row in content["models"]]
        assert len(set(names)) == len(names), section


KNOWN = {"net": {"a_net": "`a_net`"}, "route": {"snake": "route `snake`"}}
ROW = ["A model", "Mamba", "", "segmentation", "2401.00001", ["net:a_net"]]


def test_a_row_becomes_cells_and_what_is_unknown_becomes_none(literature: ModuleType) -> None:
    other = ["Another", "S4", "snake", "video", "", []]
    assert literature.mapped({"part": {"models": [ROW, other]}}, KNOWN)["part"] == [
        {
            "model": "A model",
            "family": "Mamba",
            "scan": None,
            "task": "segmentation",
            "paper": "[2401.00001](https://arxiv.org/abs/2401.00001)",
            "ours": "`a_net`",
        },
        {"model": "Another", "family": "S4", "scan": "snake", "task": "video", "paper": None, "ours": "not here"},
    ]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([*ROW[:5], []], "registered, but in no row of literature.toml: net:a_net"),
        ([*ROW[:5], ["net:a_net", "net:b_net"]], "part, A model: 'net:b_net' is not registered; .* a_net"),
        ([*ROW[:5], ["net:a_net", "class:statefield.errors.Nothing"]], "statefield.errors.Nothing does not exist"),
        ([*ROW[:4], "arXiv 1", ["net:a_net"]], "'arXiv 1' is no arXiv number"),
        (ROW[:5], "5 entries; 6 are needed"),
    ],
)
def test_a_map_that_does_not_fit_the_registries_is_refused(literature: ModuleType, row: list, says: str) -> None:
    with pytest.raises(literature.MapError, match=says):
        literature.mapped({"part": {"models": [row]}}, KNOWN)
