"""`statefield doctor` and `statefield bench` on this machine, and on one without a native library."""

from __future__ import annotations

import json

import pytest

from statefield.bench import kernels as protocol
from statefield.cli import doctor as doctor_command
from statefield.cli.main import main
from statefield.kernels import native, self_check
from statefield.kernels._choice import OPERATORS


@pytest.fixture(autouse=True)
def own_choices(monkeypatch):
    """What a test finds wrong with a kernel does not outlive it."""
    for operator in OPERATORS.values():
        monkeypatch.setattr(operator, "chosen", {})
        monkeypatch.setattr(operator, "rejected", {})


@pytest.fixture
def without_native(monkeypatch):
    monkeypatch.setattr(native, "unavailable", lambda: "the native library was not built (no C++ compiler)")
    monkeypatch.setattr(native, "library_path", lambda: None)


def _plain(text: str) -> str:
    return " ".join(text.split())


def test_doctor_shows_versions_kernels_and_a_passed_self_check(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for word in ("statefield", "torch", "timm", "selective_scan", "state_fusion", "runs", "Self-check", "equal"):
        assert word in shown
    assert "wrong" not in shown


def test_doctor_in_brief_without_a_compiler_succeeds_and_says_what_is_slower(capsys, without_native):
    assert main(["doctor", "--brief"]) == 0
    shown = _plain(capsys.readouterr().out)
    assert "without its native kernels" in shown
    assert "no C++ compiler" in shown
    assert "times as long" in shown


def test_doctor_fails_when_a_kernel_is_wrong(capsys, monkeypatch):
    row = self_check.CheckRow("selective_scan", "native", "cpu", 0.5, "it differs from the reference by 5.0e-01")
    monkeypatch.setattr(self_check, "self_check", lambda: [row])
    assert main(["doctor", "--brief"]) == 1
    assert "wrong native selective_scan on cpu" in _plain(capsys.readouterr().out)
    assert OPERATORS["selective_scan"].choice("cpu") == "chunked", "what is found wrong does not run"


def test_doctor_shows_the_error_and_the_verdict_of_each_and_what_runs_instead(capsys, monkeypatch):
    if native.unavailable():
        pytest.skip(native.unavailable())
    from statefield.kernels.selective_scan import native as scan

    right = scan.forward
    monkeypatch.setattr(scan, "forward", lambda *a: (right(*a)[0] * 1.5, *right(*a)[1:]))
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["doctor"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "selective_scan" in line and " cpu " in line]
    shown = [_plain(line) for line in lines]
    assert any("native" in line and "wrong on this machine" in line for line in shown)
    assert any("chunked" in line and "runs" in line for line in shown)
    assert any("native" in line and "5.0e-01" in line and "differs from the reference" in line for line in shown)
    assert any("chunked" in line and "equal" in line for line in shown)


def test_doctor_warns_of_the_package_that_installs_over_albumentations(capsys, monkeypatch):
    real = doctor_command._version
    monkeypatch.setattr(doctor_command, "_version", lambda name: "2.1" if name == "albumentationsx" else real(name))
    assert main(["doctor", "--brief"]) == 0
    shown = _plain(capsys.readouterr().out)
    assert "AGPL" in shown and "pip uninstall" in shown


def test_self_check_finds_a_kernel_that_computes_something_else(monkeypatch):
    if native.unavailable():
        pytest.skip(native.unavailable())
    from statefield.kernels.selective_scan import native as scan

    right = scan.forward
    monkeypatch.setattr(scan, "forward", lambda *a: (right(*a)[0] * 1.01, *right(*a)[1:]))
    problems = {(row.op, row.implementation): row.problem for row in self_check.self_check() if row.device == "cpu"}
    assert "differs from the reference" in problems["selective_scan", "native"]
    assert problems["selective_scan", "chunked"] == ""


def test_bench_prints_and_writes_every_operator_with_its_environment(capsys, tmp_path):
    target = tmp_path / "kernels.json"
    assert main(["bench", "kernels", "--quick", "--json", str(target)]) == 0
    shown = capsys.readouterr().out
    report = json.loads(target.read_text())
    assert {row["operator"] for row in report["rows"]} == set(protocol.measures())
    assert {"torch", "processor", "threads", "python"} <= set(report["environment"])
    assert report["correct"] is True and report["roofs"]["copy_gbps"] > 0 and report["roofs"]["exp_gps"] > 0
    assert all(row["ms"] > 0 and row["error"] <= protocol.ALLOWED for row in report["rows"])
    assert "selective_scan" in shown and "Roofs" in shown


def test_bench_gives_no_time_to_a_wrong_kernel(capsys, monkeypatch, tmp_path):
    if native.unavailable():
        pytest.skip(native.unavailable())
    from statefield.kernels.selective_scan import native as scan

    right = scan.forward
    monkeypatch.setattr(scan, "forward", lambda *a: (right(*a)[0] + 1.0, *right(*a)[1:]))
    target = tmp_path / "kernels.json"
    assert main(["bench", "kernels", "--quick", "--json", str(target)]) == 1
    rows = json.loads(target.read_text())["rows"]
    timed = {(row["operator"], row["by"]): row["ms"] for row in rows}
    assert timed["selective_scan", "native"] is None
    assert timed["selective_scan", "chunked"] > 0
    assert "wrong" in capsys.readouterr().out


@pytest.mark.slow
def test_bench_backbones_prints_and_writes_families_controls_and_attention(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "160")
    target = tmp_path / "backbones.json"
    assert main(["bench", "backbones", "--quick", "--json", str(target)]) == 0
    shown = capsys.readouterr().out
    report = json.loads(target.read_text())
    assert report["correct"] is True
    assert {row["family"] for row in report["against_reference"]} == {"Spatial-Mamba", "Vim"}
    assert all(row["native_ms"] > 0 and row["reference_ms"] > 0 for row in report["against_reference"])
    assert [row["attention"] for row in report["long_image"]] == ["-", "fused", "materialised"]
    assert {row["family"] for row in report["controls"] if row["is_control"]} == {"Swin-T", "ConvNeXt-T", "MambaOut-T"}
    for row in report["controls"]:
        at = row["at"]["64"]
        assert at["images_per_second"] == pytest.approx(1e3 / at["ms"])
        assert at["peak_mib"] is None or at["peak_mib"] > at["extra_mib"] > 0
    for word in ("spatial_mamba_nano", "routed_scan", "deit_tiny_patch16_224", "convnext_tiny", "(control)"):
        assert word in shown
