"""The Triton kernels on CPU tensors, through Triton's interpreter: the same source, run as numpy calls.

The interpreter has to be chosen before triton is imported, so all cases run in one process of their own; each test here
looks at the findings of one case.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from statefield.kernels import conformance

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.xdist_group("triton_interpreter"),  # one worker, so that the process runs once
]

# In float32 every case; in the other dtypes one each of: many options, groups and constant weights, a strided map.
OTHER_DTYPES = {
    "selective_scan": ("b1_l7_d3_n3_g1", "b2_l7_d6_n4_g3_constantB_no_grad_last_strided"),
    "state_fusion": ("b1_1x5_n3_e2_dilations2_states",),
}
RUNS = [
    (op, name, dtype)
    for op, others in OTHER_DTYPES.items()
    for name in conformance.cases_named(op)
    for dtype in ("float32", *(("bfloat16", "float16", "float64") if name in others else ()))
]
PROGRAM = """
import json, sys, torch
from statefield.kernels import conformance
found = []
for op, name, dtype in json.load(sys.stdin):
    case = conformance.cases_named(op)[name]
    findings = conformance.check(op, "triton", case, "cpu", getattr(torch, dtype))
    found.append([[f.tensor, f.error, f.tolerance] for f in findings])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def interpreted():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        input=json.dumps(RUNS),
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(RUNS, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("run", RUNS, ids="-".join)
def test_interpreted_kernel_equals_the_reference_in_values_and_every_gradient(interpreted, run):
    findings = [conformance.Finding(*row) for row in interpreted[run]]
    assert [finding for finding in findings if not finding.passed] == []
    case = conformance.cases_named(run[0])[run[1]]
    given = conformance.scan_inputs if run[0] == "selective_scan" else conformance.fusion_inputs
    wanted = {name for name, value in given(case, torch.float32).items() if isinstance(value, torch.Tensor)}
    compared = {finding.tensor.removeprefix("grad_") for finding in findings}
    assert {name for name in wanted if not name.startswith("grad")} <= compared


def test_conformance_sees_a_wrong_gradient_and_an_unwritten_element(monkeypatch):
    from statefield.kernels.selective_scan import reference

    right = reference.backward

    def wrong(*arguments):
        grads = list(right(*arguments))
        grads[2] = grads[2] + (arguments[0].dtype == torch.float32) * 1e-3 * grads[2].abs().max()
        grads[3] = torch.empty_like(grads[3]) if arguments[0].dtype == torch.float32 else grads[3]
        return tuple(grads)

    monkeypatch.setattr(reference, "backward", wrong)
    case = conformance.cases_named("selective_scan")["b1_l7_d3_n3_g1"]
    findings = conformance.check("selective_scan", "reference", case, "cpu", torch.float32)
    assert [finding.tensor for finding in findings if not finding.passed] == ["grad_A", "grad_B"]


def test_public_function_reaches_the_interpreted_kernels():
    program = """
import torch
from statefield.kernels import implementations, selective_scan, state_fusion, use_kernels
def run():
    torch.manual_seed(0)
    u = torch.randn(1, 2, 5, requires_grad=True)
    y = selective_scan(u, u * 0.5, -torch.ones(2, 2), torch.randn(1, 2, 5), torch.randn(1, 2, 5), delta_softplus=True)
    y = state_fusion(y.reshape(1, 2, 5, 1), torch.randn(1, 1, 3, 3), torch.ones(1), dilations=(2,))
    return y, *torch.autograd.grad(y.sum(), u)
with use_kernels("triton"):
    found = run()
with use_kernels("reference"):
    wanted = run()
for a, b in zip(found, wanted):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
rows = [row for row in implementations() if row.implementation == "triton" and row.device == "cpu"]
assert rows and all(row.available for row in rows)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_library_and_its_operators_imports_no_triton():
    program = """
import sys
import statefield, statefield.kernels
from statefield.kernels import conformance, implementations
statefield.kernels.selective_scan
assert not any(name == "statefield.kernels.selective_scan.triton" for name in sys.modules)
assert not any(name.endswith(".triton_kernels") for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_gpu_benchmark_checks_times_and_prints_when_run_dry(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["sh", str(script), "--dry-run", "--out", str(tmp_path / "numbers.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["ok", "selective_scan"], ["ok", "state_fusion"]]
    assert [line.split()[0] for line in lines if "%" in line] == ["scan", "scan", "fusion", "fusion"]
    assert list(tmp_path.iterdir()) == [], "numbers of a dry run are not numbers"
