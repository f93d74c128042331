"""Compiling Triton kernels for a GPU that is not there, and reading off what they cost it.

Triton's compiler needs no GPU: it turns a kernel and the types of its arguments into machine code for any target. Here
the types come from real launches: inside `recorded()` the launchers of every operator's triton.py run as ever, on
small CPU tensors, but what reaches a kernel is written down instead of run. So what is compiled is what is launched.
Which calls are compiled stands in each operator's cases.py (`compiled`).

Kept out of `statefield.kernels`: only tests and benchmarks import it, and it imports triton.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from statefield.errors import KernelUnavailable
from statefield.kernels import conformance
from statefield.kernels._choice import OPERATORS, use_kernels
from statefield.kernels.conformance import Family, Sized

_TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_COMPILER_OPTIONS = ("maxnreg", "num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True)
class Launch:
    """One kernel launch: the kernel, its grid, and its arguments by name."""

    kernel: JITFunction[Any]
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return self.kernel.__name__


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a launch for one compute capability (80, 90, 100)."""

    name: str
    capability: int
    registers: int  # a thread
    stack_bytes: int  # a thread; not 0 where registers were spilled
    shared_bytes: int  # a program
    instructions: dict[str, int] = field(repr=False)  # mnemonic -> count in the machine code


class _Recorder:
    def __init__(self, kernel: JITFunction[Any], launches: list[Launch]) -> None:
        self._kernel, self._launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def record(*args: Any, **kwargs: Any) -> None:
            options = {name: kwargs.pop(name) for name in _COMPILER_OPTIONS if name in kwargs}
            arguments = dict(zip(self._kernel.arg_names, args, strict=False)) | kwargs
            assert arguments.keys() == set(self._kernel.arg_names)
            self._launches.append(Launch(self._kernel, grid, arguments, options))

        return record


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Inside, every operator's Triton form serves CPU tensors, its launches of `*_kernel` functions are appended to the
    list, and no kernel runs: what they would have written is whatever memory held.
    """
    forms = {name: operator for name, operator in OPERATORS.items() if operator.has("triton")}
    modules = {name: importlib.import_module(operator.homes["triton"]) for name, operator in forms.items()}
    kernels = [
        (module, name, value)
        for module in [m for path, m in sys.modules.items() if path.startswith("statefield.kernels.")]
        for name, value in vars(module).items()
        if isinstance(value, JITFunction) and name.endswith("_kernel")
    ]
    launches: list[Launch] = []
    for module, name, kernel in kernels:
        setattr(module, name, _Recorder(kernel, launches))
    chosen = {name: dict(operator.chosen) for name, operator in forms.items()}
    for name, operator in forms.items():
        operator.chosen["cpu", "triton"] = modules[name]
    try:
        with use_kernels("triton"):
            yield launches
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)
        for name, operator in forms.items():
            operator.chosen.clear()
            operator.chosen.update(chosen[name])


def compiled_cases() -> dict[str, tuple[Family, Sized]]:
    """Every call that is compiled ahead of time, of every operator, by its name."""
    return {
        name: (family, sized) for family in conformance.families().values() for name, sized in family.compiled.items()
    }


def launches_of(family: Family, case: str | Sized, dtype: torch.dtype = torch.float32) -> list[Launch]:
    """Every launch of a call's forward and backward, in order. `dtype`: of a variant named by a string."""
    within = case.within if isinstance(case, Sized) else family.within.get(case, nullcontext)
    dtype = case.dtype if isinstance(case, Sized) else dtype
    given = conformance.draw(family, case, dtype, mixed=dtype.itemsize == 2)
    with recorded() as launches, within():
        conformance.values_and_gradients(family, given)
    return launches


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """Compile as Triton's launcher would: integers that are 1 are constants, multiples of 16 are known to be.

    Raises:
        KernelUnavailable: the NVIDIA tools that come inside the triton package are missing.
    """
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        kind = "constexpr"
        if isinstance(value, torch.Tensor):
            kind = _TYPES[value.dtype]
        elif isinstance(value, int) and not isinstance(value, bool) and not parameter.is_constexpr and value != 1:
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
        signature[parameter.name] = kind
        if kind == "constexpr":
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor) or value % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(launch.options))
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage = _run_tool("cuobjdump", "-res-usage", str(cubin))
        listing = _run_tool("nvdisasm", "-c", str(cubin))
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}
    return Compiled(
        launch.name, capability, found["REG"], found["STACK"], found["SHARED"], _count_instructions(listing)
    )


def nvidia_tool(name: str) -> Path:
    """The path of `cuobjdump`, `nvdisasm` or `ptxas` in the triton package.

    Raises:
        KernelUnavailable: it is not there.
    """
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.is_file():
        raise KernelUnavailable(f"{name} is not in the installed triton package: kernels cannot be compiled for a GPU.")
    return path


def _run_tool(name: str, *arguments: str) -> str:
    done = subprocess.run([nvidia_tool(name), *arguments], capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout


def _count_instructions(listing: str) -> dict[str, int]:
    """Counts by mnemonic, the function for MUFU (special function unit): {"FFMA": 96, "MUFU.EX2": 64, ...}."""
    counts: dict[str, int] = {}
    for mnemonic in re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9]+(?:\.[A-Z0-9]+)?)", listing, re.M):
        name = mnemonic if mnemonic.startswith("MUFU") else mnemonic.partition(".")[0]
        counts[name] = counts.get(name, 0) + 1
    return counts
