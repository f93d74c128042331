"""How much memory a call takes beyond its inputs: pages that it really touches, whoever asked for them.

torch's profiler sees what torch allocates, but not the working memory of a C++ kernel, and counts memory that is asked
for and never touched. So the system is asked: its high-water mark of resident memory, reset just before the call. The
call runs in a process of its own, because memory that earlier calls gave back would serve it without being seen.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
    if not os.access(_RESET, os.W_OK):
        return None
    environment = {**os.environ, "STATEFIELD_KERNELS": kernels}
    command = [
        sys.executable,
        "-m",
        "statefield.bench.memory",
        prepare,
        json.dumps(dict(given)),
        json.dumps(dict(warm_up)),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {prepare} {dict(given)} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


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
    print(
        _measure(getattr(importlib.import_module(module), function), json.loads(sys.argv[2]), json.loads(sys.argv[3]))
    )


if __name__ == "__main__":
    _main()
