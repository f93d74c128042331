"""benchmarks/gpu.sh and the build that it makes, as far as a machine without a GPU goes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from statefield.kernels import conformance

ROOT = Path(__file__).parents[1]


def load(name):
    specification = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


build_native = load("build_native")


def run(*words, **environment):
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    command = ["sh", str(ROOT / "benchmarks" / "gpu.sh"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_a_dry_run_checks_times_and_prints_a_table(tmp_path):
    done = run("--dry-run", "--op", "selective_scan", OUT=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("ok ")] == ["selective_scan"]
    timed = [line for line in lines if "%" in line]
    assert [line.split()[0] for line in timed] == ["selective_scan:"] * 2
    assert "forward" in timed[0] and "backward" in timed[1]
    assert "1 of 1 operators are right." in lines
    assert list(tmp_path.iterdir()) == [], "numbers of a dry run are not numbers"


def test_an_operator_that_is_not_there_is_named():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    done = run("--dry-run", "--op", "selectiv_scan")
    assert done.returncode == 2
    assert "no operator is named selectiv_scan" in done.stdout


def test_an_operator_that_is_wrong_dies_or_hangs_is_told_and_the_rest_goes_on(monkeypatch, tmp_path, capsys):
    gpu_kernels = load("gpu_kernels")
    roofs = {"bytes": 1e6, "exponentials": 1e6, "matrix_flops_bfloat16": 1e9, "matrix_flops_float32": 1e8}
    row = {
        "operator": "c", "case": "B 1", "dtype": "bfloat16", "direction": "forward", "milliseconds": 4.0,
        "bytes": 10**6, "exponentials": 3 * 10**6, "matrix_flops": 2 * 10**9,
        "times_faster": {"reference": 7.0, "chunked": None},
    }  # fmt: skip
    scripted = {
        "roofs": f"write({json.dumps(roofs)!r})",
        "a": "os.abort()",
        "b": "import time; time.sleep(60)",
        "c": f"write({json.dumps({'wrong': [], 'timed': [row]})!r})",
        "d": f"write({json.dumps({'wrong': ['odd float32: 3.0'], 'timed': []})!r})",
    }
    child = tmp_path / "gpu_operator.py"
    child.write_text(
        "import os, sys\nwrite = lambda text: open(sys.argv[-1], 'w').write(text)\n"
        + "".join(f"if sys.argv[1] == {name!r}:\n    {code}\n" for name, code in scripted.items())
    )
    monkeypatch.setattr(gpu_kernels, "__file__", str(tmp_path / "gpu_kernels.py"))
    monkeypatch.setattr(gpu_kernels.conformance, "families", lambda: dict.fromkeys("abcd"))
    monkeypatch.setattr(gpu_kernels.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_kernels, "describe_environment", lambda packages: {"GPU": "none"})
    monkeypatch.setattr(gpu_kernels, "first_uses", lambda: {})
    monkeypatch.setattr(sys, "argv", ["gpu_kernels.py", "--limit-s", "3", "--out", str(tmp_path / "numbers.json")])
    assert gpu_kernels.main() == 1
    shown = capsys.readouterr().out
    told = {line.split(":")[0]: line for line in shown.splitlines() if line.startswith("WRONG")}
    assert "ended with status -6" in told["WRONG a"]
    assert "given up after 3 s" in told["WRONG b"]
    assert "odd float32: 3.0" in told["WRONG d"]
    assert "1 of 4 operators are right." in shown
    assert re.search(
        r"c: B 1, bfloat16 +forward +4.000 +1.000 +3.000 +2.000 +75% +70% met +reference 7.0, chunked -", shown
    )
    written = json.loads((tmp_path / "numbers.json").read_text())
    assert written["rows"][0]["share"] == 0.75 and set(written["wrong"]) == set("abd")


def test_each_operator_says_what_is_timed_on_a_gpu():
    """All but the one that is composed of two others."""
    assert [name for name, family in conformance.families().items() if not family.measured] == ["structure_aware_scan"]


CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("machine", "isas"),
    [("x86_64", ["plain", "avx2", "avx512"]), ("aarch64", ["plain", "neon"]), ("riscv64", ["plain"])],
)
def test_the_build_without_cmake_takes_its_flags_from_cmake(machine, isas):
    flags = build_native.read_flags(CMAKE, machine)
    assert list(flags.by_isa) == isas
    assert {"-O3", "-std=c++17", "-fPIC", "-ffp-contract=fast", "-Wno-psabi"} <= set(flags.common)
    assert "-ffast-math" not in flags.common
    if machine == "x86_64":
        assert flags.by_isa["avx2"] == ("-mavx2", "-mfma") and flags.by_isa["plain"] == ()


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_a_library_built_without_cmake_loads_and_is_found_by_its_variable(monkeypatch, tmp_path):
    """Of the smallest kernel file alone: all of them take minutes."""
    for name in ("cpu.cpp", "elementwise.cpp", *(file.name for file in build_native.SOURCES.glob("*.h"))):
        shutil.copy(build_native.SOURCES / name, tmp_path / name)
    monkeypatch.setattr(build_native, "SOURCES", tmp_path)
    library = tmp_path / "out" / "library.so"
    assert build_native.main([str(library), "--without-cmake"]) == 0
    program = """
import torch
from statefield.kernels import native
assert not native.unavailable(), native.unavailable()
print(native.library_path(), *native.supported_isas())
"""
    environment = {**os.environ, "STATEFIELD_NATIVE_LIBRARY": str(library)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    path, *isas = done.stdout.split()
    assert path == str(library) and "plain" in isas


def test_a_missing_compiler_is_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build_native.main([str(tmp_path / "library.so"), "--without-cmake"]) == 1
    assert "no C++ compiler (no-such-compiler)" in capsys.readouterr().err
