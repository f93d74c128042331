"""Every family of backbones, and the nets of each field, run in onnxruntime as they do here.

A row of the benchmark takes ten seconds. Variants whose operators another row has are left to the benchmark, and what
it recorded is held here to have all rows.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from statefield.tasks.common.export import export

ROOT = Path(__file__).resolve().parents[4]


def _benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("export_benchmark", ROOT / "benchmarks" / "export.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BENCHMARK = _benchmark()
SUBJECTS = BENCHMARK.subjects()


VARIANTS = (
    ", one size of maps", "VMamba, vanilla", "Res-VMamba", "EfficientViM, distilled", "change: semantic",
    "change: damage", "medical: u_mamba", "medical: xlstm_unet", "medical: mhs_vm",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in SUBJECTS if not any(variant in row for variant in VARIANTS)])
def test_the_file_equals_the_net(row, tmp_path):
    torch.manual_seed(0)
    subject = SUBJECTS[row]()
    BENCHMARK.moved(subject.net)
    found = export(subject, tmp_path / "model.onnx", timed=False)
    assert found.agreement.passed


def test_the_recorded_table_has_every_family_and_its_refusals_have_reasons():
    if not BENCHMARK.RESULT.exists():
        pytest.skip("benchmarks/results/export.json is not recorded: python benchmarks/export.py")
    rows = {row["family"]: row for row in json.loads(BENCHMARK.RESULT.read_text(encoding="utf-8"))["rows"]}
    assert set(rows) == set(SUBJECTS)
    for row in rows.values():
        assert row["result"] == "exported" or row["result"].startswith("refused: ")
        assert row["result"] != "exported" or row["difference"] <= 1e-4
