"""Every Triton kernel compiles for NVIDIA GPUs, without one, and keeps its tensors in registers."""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from statefield.errors import KernelUnavailable
from statefield.kernels import ahead_of_time

try:
    for tool in ("ptxas", "cuobjdump", "nvdisasm"):
        ahead_of_time.nvidia_tool(tool)
except KernelUnavailable as missing:
    pytest.skip(str(missing), allow_module_level=True)

from statefield.kernels.ahead_of_time import launches_of
from statefield.kernels.conformance import FusionCase, ScanCase

# A selective scan as VMamba and Mamba use it, and a state fusion as Spatial-Mamba does, small in batch and length.
SCAN = ScanCase(2, 64, 192, 16, absent=("initial_state", "grad_last"))
SCAN_N1 = ScanCase(2, 64, 128, 1, constant="C", absent=("D", "z", "initial_state", "grad_last"))
FUSION = FusionCase(2, 16, 16, 1, 128)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(("case", "kernels"), [(SCAN, 2), (FUSION, 4)], ids=["scan", "fusion"])
def test_kernels_of_the_usual_sizes_compile_and_spill_next_to_nothing(case, kernels, capability):
    launches = launches_of(case, torch.bfloat16)
    assert len(launches) == kernels
    for launch in launches:
        compiled = ahead_of_time.compile_launch(launch, capability)
        assert compiled.registers <= 255
        assert compiled.stack_bytes <= 64, compiled  # a few values that are read once a tile or chunk


def test_scan_with_one_state_compiles_without_spills():
    for launch in launches_of(SCAN_N1, torch.float32):
        assert ahead_of_time.compile_launch(launch, 90).stack_bytes == 0


def test_scan_cut_in_time_compiles_its_two_extra_kernels():
    case = ScanCase(1, 128, 32, 16, absent=("D", "initial_state", "grad_last"), segmented=True)
    launches = launches_of(case, torch.bfloat16)
    backward = [launch.name for launch in launches].index("scan_forward_kernel") + 1
    assert [launch.name for launch in launches[:backward]] == ["segment_kernel", "chain_kernel", "scan_forward_kernel"]
    assert [launch.name for launch in launches[backward:]] == ["segment_kernel", "chain_kernel", "scan_backward_kernel"]
    for launch in (*launches[: backward - 1], *launches[backward:-1]):
        assert ahead_of_time.compile_launch(launch, 90).stack_bytes == 0


@pytest.mark.parametrize("case", [ScanCase(1, 1, 1, 1), FusionCase(1, 1, 1, 1, 1)], ids=["scan", "fusion"])
def test_kernels_compile_where_every_size_is_one(case):
    """Triton turns an argument that is 1 into a constant, which is another program."""
    for launch in launches_of(case, torch.float32):
        assert ahead_of_time.compile_launch(launch, 90).stack_bytes == 0


def test_forward_scan_takes_one_exponential_a_state_and_step_and_asks_no_other_thread():
    launch = launches_of(SCAN, torch.bfloat16)[0]
    compiled = ahead_of_time.compile_launch(launch, 90)
    tile, states = launch.arguments["TILE"], launch.arguments["STATES"]
    # softplus and SiLU take one each a step; two steps' worth of room for what the compiler duplicates
    assert tile * states < compiled.instructions["MUFU.EX2"] <= tile * (states + 2)
    assert compiled.instructions.get("SHFL", 0) == 0
