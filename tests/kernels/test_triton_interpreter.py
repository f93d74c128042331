"""The Triton kernels on CPU tensors, through Triton's interpreter: the same source, run as numpy calls.

The interpreter has to be chosen before triton is imported, so an operator's cases run in one process of their own; each
test here looks at the findings of one case. Which variants go through it stands in cases.py (`interpreted`).
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from statefield.kernels import _choice, conformance

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
FAMILIES = {name: f for name, f in conformance.families().items() if _choice.OPERATORS[name].has("triton")}


def _runs(family):
    """In float32 every variant that is interpreted; of these the awkward ones in the other dtypes and memory orders."""
    variants = family.interpreted or family.variants
    awkward = [variant for variant in variants if variant.startswith("odd")]
    yield from ((family.name, variant, "float32", "dense") for variant in variants)
    yield from ((family.name, v, dtype, "dense") for v in awkward for dtype in ("bfloat16", "float16", "float64"))
    reordered = [variant for variant in variants if variant in family.in_other_memory_orders()]
    yield from ((family.name, variant, "float32", memory) for variant in reordered for memory in ("gaps", "slices"))


RUNS = {name: list(_runs(family)) for name, family in FAMILIES.items()}
# One worker an operator, so that its process runs once.
MARKED = [
    pytest.param(*run, marks=pytest.mark.xdist_group(f"interpreted_{run[0]}"), id="-".join(run))
    for runs in RUNS.values()
    for run in runs
]
PROGRAM = """
import json, sys, torch
from statefield.kernels import conformance
found = []
for name, variant, dtype, memory in json.load(sys.stdin):
    repeat = variant.startswith("odd") and dtype == "float64"
    findings = conformance.check(name, variant, "triton", dtype=getattr(torch, dtype), memory=memory, repeat=repeat)
    found.append([[f.tensor, f.error, f.tolerance] for f in findings])
print(json.dumps(found))
"""


# Triton 3.6's own interpreter, of its arrays of one element
OF_TRITON = "ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning"


@functools.cache
def interpreted(name):
    """What `check` found in each run of an operator."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", OF_TRITON, "-c", PROGRAM],
        input=json.dumps(RUNS[name]),
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(RUNS[name], json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("name", "variant", "dtype", "memory"), MARKED)
def test_interpreted_kernel_equals_the_reference_in_values_and_every_gradient(name, variant, dtype, memory):
    findings = [conformance.Finding(*row) for row in interpreted(name)[name, variant, dtype, memory]]
    assert [finding for finding in findings if not finding.passed] == []
    wanted = {f"grad.{key}" for key in conformance.tensors_of(conformance.draw(FAMILIES[name], variant))}
    assert wanted | {"out.0"} <= {finding.tensor for finding in findings}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_an_interpreted_subset_holds_an_awkward_variant(name):
    family = FAMILIES[name]
    assert any(variant.startswith("odd") for variant in family.interpreted or family.variants)


def test_conformance_sees_a_wrong_gradient_and_an_unwritten_element(monkeypatch):
    from statefield.kernels.selective_scan import chunked

    right = chunked.backward

    def wrong(*arguments):
        grads = list(right(*arguments))
        grads[2] = grads[2] + 1e-3 * grads[2].abs().max()
        grads[3] = torch.empty_like(grads[3])
        return tuple(grads)

    monkeypatch.setattr(chunked, "backward", wrong)
    findings = conformance.check("selective_scan", "seven_steps", "chunked")
    assert [finding.tensor for finding in findings if not finding.passed] == ["grad.A", "grad.B", "repeated"]


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
rows = {row.op: row for row in implementations() if row.implementation == "triton" and row.device == "cpu"}
assert rows["selective_scan"].available and rows["state_fusion"].available
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_library_and_its_operators_imports_no_triton():
    program = """
import sys
import statefield, statefield.kernels
from statefield.kernels import conformance, implementations
conformance.families()
statefield.kernels.selective_scan
ours = [name for name in sys.modules if name.startswith("statefield.kernels.")]
assert not any(name.endswith((".triton", ".triton_kernels")) for name in ours)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
