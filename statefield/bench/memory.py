"""How much memory a call takes beyond its inputs: pages that it really touches, whoever asked for them.

torch's profiler sees what torch allocates, but not the working memory of a C++ kernel, and counts memory that is asked
for and never touched. So the system is asked: its high-water mark of resident memory, reset just before the call. The
call runs in a process of its own, because memory that earlier calls gave back would serve it without being seen. There
the C library gives large blocks back to the system when they are freed, so that the mark is what was held at once.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# glibc raises this threshold as large blocks are freed, and from then on keeps what is freed in a heap full of holes:
# the same call then shows up to half as much again, by what was freed before it. Fixed, it does not.
_FREED_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "131072"}
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def extra_mib(prepare: str, given: Mapping[str, Any], warm_up: Mapping[str, Any], *, kernels: str = "") -> float | None:
    """The most resident memory during one call, less that just before it, in MiB; the call's outputs are part of it.

    Args:
        prepare: "module:function"; called with `given` by keyword, it makes the inputs and returns the call, a function
            of nothing.
        given: arguments that JSON can write.
        warm_up: arguments of a small call of the same kind, made first, so that loaded code and started threads are
            not counted.
        kernels: the implementation that is forced (STATEFIELD_KERNELS); what runs by itself when it is empty.

    Returns:
        MiB, sure to about 1; None where the system does not tell (it has to be Linux).
    """
    return extra_mib_of_each(prepare, [given], [warm_up], kernels=kernels)[0]


def extra_mib_of_each(
    prepare: str, given: Sequence[Mapping[str, Any]], warm_up: Sequence[Mapping[str, Any]], *, kernels: str = ""
) -> list[float | None]:
    """`extra_mib` of several calls, each in a process of its own: a copy of one that has imported all, to save time."""
    if not os.access(_RESET, os.W_OK):
        return [None] * len(given)
    cases = [(dict(case), dict(small)) for case, small in zip(given, warm_up, strict=True)]
    environment = {**os.environ, "STATEFIELD_KERNELS": kernels, **_FREED_AT_ONCE}
    command = [sys.executable, "-m", "statefield.bench.memory", prepare, json.dumps(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {prepare} {[case for case, _ in cases]} failed:\n{done.stderr}")
    return [float(line) for line in done.stdout.split()[-len(cases) :]]


def _measure(prepare: Callable[..., Callable[[], object]], given: dict[str, Any], warm_up: dict[str, Any]) -> float:
    prepare(**warm_up)()
    call = prepare(**given)
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # what the C library keeps of freed memory would serve the call without being seen
    _RESET.write_text("5")  # the high-water mark becomes what is resident now
    before = _kib("VmRSS")
    result = call()
    peak = _kib("VmHWM")
    del result
    return (peak - before) / 1024


def _kib(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def _main() -> None:
    module, _, function = sys.argv[1].partition(":")
    prepare = getattr(importlib.import_module(module), function)
    for given, warm_up in json.loads(sys.argv[2]):
        child = os.fork()  # this process has computed nothing yet, so no thread is lost
        if child == 0:
            print(_measure(prepare, given, warm_up), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            sys.exit(f"the process that measured {given} failed")


if __name__ == "__main__":
    _main()
