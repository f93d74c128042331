"""The Triton kernels on a real GPU, in every dtype, against the float64 reference."""

import pytest
import torch

from statefield.kernels import conformance

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to torch"),
]
RUNS = [(op, name) for op in ("selective_scan", "state_fusion") for name in conformance.cases_named(op, large=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(("op", "name"), RUNS, ids=["-".join(run) for run in RUNS])
def test_kernel_on_the_gpu_equals_the_reference_and_repeats_bit_for_bit(op, name, dtype):
    case = conformance.cases_named(op, large=True)[name]
    findings = conformance.check(op, "triton", case, "cuda", dtype)
    assert [finding for finding in findings if not finding.passed] == []
