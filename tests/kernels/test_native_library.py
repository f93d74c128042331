"""The native library: its vector functions, its loader, and an install without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from ctypes import c_int64, c_void_p
from pathlib import Path

import pytest
import torch

from statefield.errors import KernelUnavailable
from statefield.kernels import native

REPOSITORY = Path(__file__).parents[2]
ISAS = native.supported_isas() or (pytest.param("none", marks=pytest.mark.skip(reason=native.unavailable())),)
MATHS = {"exp": torch.exp, "softplus": torch.nn.functional.softplus, "sigmoid": torch.sigmoid}


def _apply(name: str, isa: str, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.setenv("STATEFIELD_ISA", isa)
    out = torch.full_like(x, torch.nan)
    function = native.function(f"{name}_f32", c_void_p, c_void_p, c_int64)
    native.check(function(native.pointer(out), native.pointer(x), x.numel()), name)
    return out


@pytest.mark.parametrize("name", MATHS)
@pytest.mark.parametrize("isa", ISAS)
def test_vector_functions_are_exact_to_float32(isa, name, monkeypatch):
    """Relative error 4e-7 for |x| < 1. Beyond, x log2(e) is rounded: the error grows as |x| 2^-24, as in mamba."""
    x = torch.linspace(-87, 87, 300_007)
    wanted = MATHS[name](x.double())
    error = (_apply(name, isa, x, monkeypatch).double() - wanted).abs() / wanted
    assert (error / x.abs().clamp(min=1)).max() < 4e-7


@pytest.mark.parametrize("isa", ISAS)
def test_vector_exp_at_the_ends_of_its_range(isa, monkeypatch):
    x = torch.tensor([0.0, -0.0, 200.0, torch.inf, -200.0, -torch.inf, torch.nan])
    found = _apply("exp", isa, x, monkeypatch)
    assert found[:2].tolist() == [1.0, 1.0]
    assert found[2:4].isinf().all()
    assert (found[4:6] >= 0).all() and (found[4:6] < 2e-38).all()
    assert found[6].isnan()


@pytest.mark.parametrize("name", MATHS)
@pytest.mark.parametrize("isa", ISAS)
def test_vector_functions_keep_nan_wherever_it_stands(isa, name, monkeypatch):
    x = torch.linspace(-3, 3, 37)
    x[::5] = torch.nan
    assert torch.equal(_apply(name, isa, x, monkeypatch).isnan(), x.isnan())


def test_small_outputs_are_plain_and_large_ones_are_the_same_tensors():
    like = torch.zeros(1)
    for shape in ((3, 5), (1 << 20, 3)):
        tensor = native.new_empty(like, shape, torch.float64)
        assert tensor.shape == shape and tensor.dtype == torch.float64 and tensor.is_contiguous()
        tensor.fill_(1.0)
        assert tensor.sum() == tensor.numel()


def test_an_instruction_set_that_does_not_run_here_is_an_error_that_lists_those_that_do(monkeypatch):
    if native.unavailable():
        pytest.skip(native.unavailable())
    monkeypatch.setenv("STATEFIELD_ISA", "avx1024")
    with pytest.raises(KernelUnavailable, match="plain"):
        native.isa()


def test_a_library_of_another_interface_version_is_refused(monkeypatch):
    if native.unavailable():
        pytest.skip(native.unavailable())
    monkeypatch.setattr(native, "ABI_VERSION", native.ABI_VERSION + 1)
    native._load.cache_clear()
    try:
        assert "interface version" in native.unavailable()
    finally:
        monkeypatch.undo()
        native._load.cache_clear()
    assert native.unavailable() == ""


def test_a_missing_library_is_a_reason_and_not_an_exception(monkeypatch):
    monkeypatch.setattr(native, "find_library", lambda: None)
    native._load.cache_clear()
    try:
        assert "was not built" in native.unavailable()
        assert native.supported_isas() == ()
        with pytest.raises(KernelUnavailable, match="no native kernels"):
            native.isa()
    finally:
        monkeypatch.undo()
        native._load.cache_clear()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_configuring_and_installing_without_a_compiler_succeeds_and_says_so(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("CXX", "CXXFLAGS")}
    tools = tmp_path / "tools"  # a machine that has cmake and a build tool, and no compiler
    tools.mkdir()
    for tool in ("cmake", "make", "ninja", "uname"):
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    environment["PATH"] = str(tools)
    build, target = tmp_path / "build", tmp_path / "target"
    configured = subprocess.run(
        [tools / "cmake", "-S", REPOSITORY, "-B", build],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert configured.returncode == 0, configured.stderr
    assert "installed without its native kernels" in " ".join(configured.stderr.split())
    for step in (["--build", build], ["--install", build, "--prefix", target]):
        subprocess.run([tools / "cmake", *step], env=environment, check=True, capture_output=True)
    assert not list(target.rglob("*.so"))
