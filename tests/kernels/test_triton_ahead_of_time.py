"""Every Triton kernel compiles for NVIDIA GPUs, without one, and keeps its tensors in registers."""

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from statefield.errors import KernelUnavailable
from statefield.kernels import _choice, ahead_of_time, conformance

try:
    for tool in ("ptxas", "cuobjdump", "nvdisasm"):
        ahead_of_time.nvidia_tool(tool)
except KernelUnavailable as missing:
    pytest.skip(str(missing), allow_module_level=True)

from statefield.kernels.ahead_of_time import launches_of

FAMILIES = {name: f for name, f in conformance.families().items() if _choice.OPERATORS[name].has("triton")}
CASES = ahead_of_time.compiled_cases()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "triton"))


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_operator_with_triton_kernels_names_what_is_compiled(name):
    assert FAMILIES[name].compiled


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", list(CASES))
def test_kernels_of_the_usual_sizes_compile_and_spill_next_to_nothing(name, capability):
    family, sized = CASES[name]
    launches = launches_of(family, sized)
    assert len(launches) >= 2, "a forward and a backward"
    for launch in launches:
        compiled = ahead_of_time.compile_launch(launch, capability)
        assert compiled.registers <= 255
        assert compiled.stack_bytes <= sized.stack_bytes, compiled  # a few values that are read once a tile or chunk


@pytest.mark.parametrize("name", list(FAMILIES))
def test_kernels_compile_where_every_size_is_one(name):
    """Triton turns an argument that is 1 into a constant, which is another program."""
    family = FAMILIES[name]
    smallest = next((variant for variant in family.variants if variant.startswith("one")), family.tiny)
    for launch in launches_of(family, smallest):
        assert ahead_of_time.compile_launch(launch, 90).stack_bytes == 0


def test_scan_cut_in_time_launches_its_two_extra_kernels_both_ways():
    launches = launches_of(*CASES["scan, N = 16, cut in time"])
    assert [launch.name for launch in launches] == [
        *("segment_kernel", "chain_kernel", "scan_forward_kernel"),
        *("segment_kernel", "chain_kernel", "scan_backward_kernel"),
    ]


def test_recording_runs_nothing_and_leaves_the_kernels_as_they_were():
    from statefield.kernels.selective_scan import triton

    before, chosen = triton.scan_forward_kernel, dict(_choice.OPERATORS["selective_scan"].chosen)
    assert len(launches_of(FAMILIES["selective_scan"], "one_step", torch.float32)) == 2
    assert triton.scan_forward_kernel is before
    assert _choice.OPERATORS["selective_scan"].chosen == chosen


def test_forward_scan_takes_one_exponential_a_state_and_step_and_asks_no_other_thread():
    launch = launches_of(*CASES["scan, N = 16, z"])[0]
    compiled = ahead_of_time.compile_launch(launch, 90)
    tile, states = launch.arguments["TILE"], launch.arguments["STATES"]
    # softplus and SiLU take one each a step; two steps' worth of room for what the compiler duplicates
    assert tile * states < compiled.instructions["MUFU.EX2"] <= tile * (states + 2)
    assert compiled.instructions.get("SHFL", 0) == 0
