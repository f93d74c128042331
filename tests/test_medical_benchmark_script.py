"""What benchmarks/medical.py makes of the comparisons of several seeds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "medical.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_medical", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table(dice: float, seconds: int) -> list[dict[str, object]]:
    ours = {"name": "ours", "role": "model", "parameters": 7, "training": f"{seconds} s", "mean Dice": dice}
    thresholds = {"name": "cuts", "role": "baseline", "parameters": 2, "training": None, "mean Dice": 0.5}
    return [ours, thresholds]


def test_numbers_become_means_over_seeds_with_each_seed_beside_them(script: ModuleType) -> None:
    ours, thresholds = script.compared([table(0.8, 100), table(0.9, 300)])
    assert ours["mean Dice"] == pytest.approx(0.85) and ours["mean Dice by seed"] == "0.8000, 0.9000"
    assert ours["training"] == pytest.approx(200.0)
    assert ours["parameters"] == 7 and "parameters by seed" not in ours
    assert thresholds["training"] is None


def test_tables_of_other_contenders_are_refused(script: ModuleType) -> None:
    other = [row | {"name": "theirs"} for row in table(0.8, 100)]
    with pytest.raises(ValueError, match="different contenders"):
        script.compared([table(0.8, 100), other])
