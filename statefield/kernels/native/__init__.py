"""The C++ kernels: finds the library, checks its interface version, picks the instruction set, hands out functions.

The library has a plain C interface and is called through ctypes, which releases the GIL. torch must be imported first:
the library then shares the OpenMP pool that torch brings. How to add a kernel is told in README.md of this folder.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
from pathlib import Path
from typing import Any

import torch

from statefield.errors import KernelUnavailable
from statefield.kernels.native.memory import new_empty as new_empty

ABI_VERSION = 2  # equal to SF_ABI_VERSION in abi.h; raised together when an entry point changes its meaning
_FILE = "libstatefield_native.so"


def find_library() -> Path | None:
    """The library's file: beside this module in a wheel, in site-packages in an editable install.

    STATEFIELD_NATIVE_LIBRARY names another, for a source tree that is used without being installed.
    """
    named = os.environ.get("STATEFIELD_NATIVE_LIBRARY")
    if named:
        return Path(named)
    folders = [Path(folder) for folder in __path__]
    try:
        for entry in importlib.metadata.files("statefield") or ():
            if entry.name == _FILE:
                folders.append(Path(str(entry.locate())).parent)
    except importlib.metadata.PackageNotFoundError:
        pass  # running from a source tree that was never installed: only the folders above can hold it
    return next((folder / _FILE for folder in folders if (folder / _FILE).is_file()), None)


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, Path | None, str]:
    """The library, its path, and the reason why there is none (empty when there is one)."""
    path = find_library()
    if path is None:
        return (
            None,
            None,
            "the native library was not built (no C++ compiler at install time; install g++ and run pip install again)",
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, path, f"{path} could not be loaded ({error})"
    library.sf_abi_version.restype = ctypes.c_int
    library.sf_isa.restype = ctypes.c_char_p
    library.sf_isas_supported.restype = ctypes.c_char_p
    built = library.sf_abi_version()
    if built != ABI_VERSION:
        return None, path, f"{path} has interface version {built}, this statefield needs {ABI_VERSION}: install again"
    return library, path, ""


def unavailable() -> str:
    """Why the native kernels cannot run here; empty when they can."""
    return _load()[2]


def library_path() -> Path | None:
    """Where the library lies, or None."""
    return _load()[1]


def supported_isas() -> tuple[str, ...]:
    """The instruction sets that are both built and supported by this CPU, the best first."""
    library, _, _ = _load()
    return tuple(library.sf_isas_supported().decode().split()) if library is not None else ()


def isa() -> str:
    """The instruction set in use: "avx512", "avx2", "neon" or "plain". STATEFIELD_ISA forces one that runs here."""
    library, _, reason = _load()
    if library is None:
        raise KernelUnavailable(f"no native kernels: {reason}.")
    return _isa(library, os.environ.get("STATEFIELD_ISA") or "")


@functools.cache
def _isa(library: ctypes.CDLL, forced: str) -> str:
    if not forced:
        return library.sf_isa().decode()
    if forced not in supported_isas():
        raise KernelUnavailable(
            f"STATEFIELD_ISA={forced}, but this CPU and this build run {', '.join(supported_isas())}: choose one."
        )
    return forced


@functools.cache
def _function(name: str, variant: str, *argtypes: Any) -> Any:
    library, _, reason = _load()
    if library is None:
        raise KernelUnavailable(f"no native kernels: {reason}.")
    function = getattr(library, f"sf_{name}__{variant}")
    function.argtypes = argtypes
    function.restype = ctypes.c_int
    return function


def function(name: str, *argtypes: Any) -> Any:
    """The C function `sf_<name>` as built for the instruction set in use; it returns 0, or an error number."""
    return _function(name, isa(), *argtypes)


def check(status: int, name: str) -> None:
    """Raise for the error number that a kernel returned: 1 is memory, anything else a bug of ours."""
    if status == 1:
        raise MemoryError(f"the native kernel {name} could not allocate its working memory.")
    assert status == 0, f"native kernel {name} returned {status}"


def pointer(tensor: torch.Tensor | None) -> int | None:
    """The address of a contiguous CPU tensor's data, None (a null pointer) for None."""
    if tensor is None:
        return None
    assert tensor.is_contiguous(), "native kernels take contiguous tensors"
    assert tensor.device.type == "cpu", "native kernels take CPU tensors"
    return tensor.data_ptr()


def threads() -> int:
    """How many threads a kernel may use: what torch may use."""
    return torch.get_num_threads()
