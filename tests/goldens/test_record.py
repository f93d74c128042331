"""The record that `statefield models` shows is of the goldens that are here, and of what they say now."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import case
import check
import pytest
import record
import systems

from statefield.backbones import BACKBONES, agreement
from statefield.kernels import use_kernels

HERE = Path(__file__).parent
AGAIN = "run tests/goldens/check.py --record for native and reference, as record.py says"


def family(path: Path) -> str:
    golden = case.read_case(path)
    builder = systems.BUILDERS[f"{golden.system} {golden.cls}"].__module__
    return builder.removeprefix("backbone_") if builder.startswith("backbone_") else golden.system


def test_every_backbone_golden_is_recorded_as_it_is_now():
    recorded = json.loads(agreement.RECORD.read_text())
    here = [path for path in sorted(HERE.glob("*.npz")) if not path.name.startswith("ops_")]
    assert [path.name for path in here if agreement.is_family(family(path))] == list(recorded), AGAIN
    for path in here:
        entry = recorded.get(path.name)
        if entry is not None:
            assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest(), f"{path.name}: {AGAIN}"
            assert {"native", "reference"} <= set(entry["kernels"]), f"{path.name}: {AGAIN}"
            assert entry["family"] == family(path)


def test_a_recorded_error_is_what_the_check_gives():
    entry = json.loads(agreement.RECORD.read_text())["vssd_block.npz"]["kernels"]["reference"]
    with use_kernels("reference"):
        found = list(check.compare(case.read_case(HERE / "vssd_block.npz")))
    assert len(found) == entry["compared"]
    worst = max(one.share for one in found)
    assert worst < 1e-4
    assert entry["passes"] == all(one.agrees for one in found)
    assert entry["worst"] == pytest.approx(worst, abs=2e-5)  # processors round differently


def test_a_family_passes_only_if_all_its_files_do_on_all_implementations(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "RECORD", tmp_path / "goldens.json")
    good = record.Outcome(HERE / "vim_tiny.npz", "vim", passes=True, compared=3, worst=2e-6)
    bad = record.Outcome(HERE / "vim_mixer.npz", "vim", passes=False, compared=3, worst=2e-3)
    broken = record.Outcome(HERE / "vim_mixer.npz", "vim", passes=False, compared=0, worst=None)
    operator = record.Outcome(HERE / "ops_wkv_t6.npz", "wkv", passes=True, compared=3, worst=1e-6)
    elsewhere = record.Outcome(tmp_path / "vim_large.npz", "vim", passes=True, compared=3, worst=1e-6)

    def of_vim() -> agreement.Agreement | None:
        agreement._record.cache_clear()
        return agreement.agreement_of("vim_small_pyramid")

    record.record([operator, elsewhere], "native")
    assert of_vim() is None
    record.record([good], "native")
    assert of_vim() == agreement.Agreement(goldens=1, passes=True, worst=2e-6, kernels=("native",))
    record.record([bad], "reference")
    assert of_vim() == agreement.Agreement(2, passes=False, worst=2e-3, kernels=("native", "reference"))
    record.record([broken], "reference")
    assert of_vim() == agreement.Agreement(2, passes=False, worst=None, kernels=("native", "reference"))
    monkeypatch.undo()
    agreement._record.cache_clear()


def test_every_backbone_of_a_paper_with_code_has_goldens():
    without_code = {"ViM2", "MambaOut"}  # of the one nothing was released, the other is timm's own
    without = {info.family for name, info in BACKBONES.items() if agreement.agreement_of(name) is None}
    assert without - without_code == set()
