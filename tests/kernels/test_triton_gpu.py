"""The Triton kernels on a real GPU, in every dtype, against the float64 reference."""

import pytest
import torch

from statefield.kernels import _choice, conformance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to torch"),
]
FAMILIES = conformance.families()
RUNS = [(name, variant) for name, family in FAMILIES.items() for variant in (*family.variants, *family.large)]
ORDERS = [(name, variant) for name, family in FAMILIES.items() for variant in family.in_other_memory_orders()]


def on_gpu(name):
    """Triton where the operator has it; an operator composed of others runs as it does by itself."""
    return "triton" if _choice.OPERATORS[name].has("triton") else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "variant"), RUNS, ids=["-".join(run) for run in RUNS])
def test_kernel_on_the_gpu_equals_the_reference_and_repeats_bit_for_bit(name, variant, dtype):
    findings = conformance.check(name, variant, on_gpu(name), device="cuda", dtype=dtype)
    assert [finding for finding in findings if not finding.passed] == []


@pytest.mark.parametrize("memory", ["gaps", "slices"])
@pytest.mark.parametrize(("name", "variant"), ORDERS, ids=["-".join(run) for run in ORDERS])
def test_kernel_on_the_gpu_reads_any_order_of_memory(name, variant, memory):
    findings = conformance.check(name, variant, on_gpu(name), device="cuda", memory=memory)
    assert [finding for finding in findings if not finding.passed] == []
