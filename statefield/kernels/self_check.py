"""Each kernel against its reference on this machine: at its first use, and in `statefield doctor`.

A kernel that was right on our machines may be wrong on another: a compiler, a driver or a processor with a fault of its
own. So before an implementation serves for the first time on a device type, its values and every gradient are compared
with the reference, on the operator's small odd case (cases.py); a wrong one is logged as an error and the next of the
order serves (_choice.py). That it was right is remembered on disk for this build of the kernels, torch and device
(see `_fingerprint`), so the time, a tenth of a second an operator for C++ and the compilation of a kernel on a GPU, is
paid once for an installation. That it was wrong is not remembered: it is found, and said, in every process.

STATEFIELD_SELF_CHECK=0 leaves the checks at first use out. The memory is the folder `statefield/self_check` in
XDG_CACHE_HOME (~/.cache); it can be deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from statefield.errors import ConfigError
from statefield.files import write_json
from statefield.kernels import native
from statefield.kernels._choice import OPERATORS, checking, implementations
from statefield.kernels.conformance import (
    Family,
    distance,
    draw,
    family_of,
    operators_without_cases,
    values_and_gradients,
)

logger = logging.getLogger(__name__)

# The largest difference in values and gradients, as a share of the reference's largest value, in float32. Where the
# user lets torch round the factors of float32 matrix products (to TF32, or to bfloat16) kernels made of them do so too.
ALLOWED = {"highest": 1e-4, "high": 1e-2, "medium": 5e-2}


@dataclass(frozen=True)
class CheckRow:
    """One implementation of one operator. `error` is NaN when it did not run; `problem` is empty when all is well."""

    op: str
    implementation: str
    device: str
    error: float
    problem: str


def self_check() -> list[CheckRow]:
    """Compare every available implementation with the reference, whatever is remembered, on this machine's devices."""
    return [
        _examine(row.op, row.implementation, row.device)
        for row in implementations()
        if row.can_run and row.implementation != "reference"
    ]


def reject(rows: Sequence[CheckRow]) -> None:
    """Use no implementation that a self-check found wrong, from the next call on in this process."""
    for row in rows:
        if row.problem:
            operator = OPERATORS[row.op]
            operator.rejected[row.device, row.implementation] = row.problem
            operator.chosen.pop((row.device, None), None)


def problem_at_first_use(op: str, implementation: str, device: str) -> str:
    """What is wrong with an implementation that is about to serve; empty when it is right, or was right before."""
    if not _enabled():
        return ""
    if op in operators_without_cases():
        logger.warning("Whether the kernels of %s are right cannot be checked: its folder has no cases.py.", op)
        return ""
    remembered = _remembered(op, implementation, device)
    if remembered is not None and remembered.is_file():
        return ""
    row = _examine(op, implementation, device)
    if not row.problem and remembered is not None:
        _remember(remembered, row)
    return row.problem


def _enabled() -> bool:
    setting = os.environ.get("STATEFIELD_SELF_CHECK") or "1"
    if setting not in ("0", "1"):
        raise ConfigError(f"STATEFIELD_SELF_CHECK is {setting!r}: it has to be 0 (no checks at first use) or 1.")
    return setting == "1"


def _examine(op: str, implementation: str, device: str) -> CheckRow:
    if op in operators_without_cases():
        return CheckRow(op, implementation, device, float("nan"), "its folder has no cases.py to check it by")
    family = family_of(op)
    place = f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device
    try:
        # In a thread of its own: an operator runs below autograd, and maybe below autocast, inference mode, vmap or a
        # counter of operations, all of which belong to the thread that called it and must not meet the check.
        with ThreadPoolExecutor(max_workers=1) as thread:
            error = thread.submit(_error, family, implementation, place).result()
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernel, and the caller has no memory either
    except Exception as problem:  # whatever a kernel fails with, it is told, and the next one serves
        told = f"it failed with {type(problem).__name__}: {str(problem).strip()}"
        return CheckRow(op, implementation, device, float("nan"), told)
    allowed = ALLOWED[_precision(device)]
    told = "" if error <= allowed else f"it differs from the reference by {error:.1e} of its largest value"
    return CheckRow(op, implementation, device, error, told)


def _precision(device: str) -> str:
    """How precise torch's float32 matrix products are: "highest", "high" or "medium"."""
    precision = torch.get_float32_matmul_precision()
    return (
        "high" if precision == "highest" and device == "cuda" and torch.backends.cuda.matmul.allow_tf32 else precision
    )


def _error(family: Family, implementation: str, device: str) -> float:
    """The largest difference from the reference in float64 on the CPU, over outputs and gradients."""
    # No threads of autograd's own: there `checking` would not hold.
    with torch.autograd.set_multithreading_enabled(False), checking(implementation):
        found = values_and_gradients(family, draw(family, family.odd, device=device))
    with torch.autograd.set_multithreading_enabled(False), checking("reference"):
        wanted = values_and_gradients(family, _exact(draw(family, family.odd)))
    errors = [distance(found[name].cpu(), expected) for name, expected in wanted.items()]
    return float("nan") if any(error != error for error in errors) else max(errors)


def _exact(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same numbers in float64."""
    return {
        name: value.detach().double().requires_grad_() if isinstance(value, Tensor) and value.requires_grad else value
        for name, value in arguments.items()
    }


def _remembered(op: str, implementation: str, device: str) -> Path | None:
    """The file that says that this very implementation was right on this very machine; None where there is no place."""
    folder = os.environ.get("XDG_CACHE_HOME") or None
    try:
        cache = Path(folder) if folder else Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        return None
    what = json.dumps(_fingerprint(implementation, device), sort_keys=True)
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    return cache / "statefield" / "self_check" / f"{op}-{implementation}-{device}-{digest}.json"


def _remember(file: Path, row: CheckRow) -> None:
    try:
        write_json(file, {"error": row.error, **_fingerprint(row.implementation, row.device)})
    except (OSError, ConfigError) as problem:  # nowhere to write: the check is then made in every process
        logger.info("that %s %s is right could not be remembered: %s.", row.implementation, row.op, problem)


def _fingerprint(implementation: str, device: str) -> dict[str, Any]:
    """All that a verdict depends on: our code, the library, torch, and the device."""
    found: dict[str, Any] = {
        "sources": _sources(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "matrix products": _precision(device),
    }
    library = native.library_path()
    if library is not None:
        stat = library.stat()
        found["library"] = [str(library), stat.st_size, stat.st_mtime_ns, native.isa()]
    if device == "cuda":
        found["gpu"] = [torch.cuda.get_device_name(), *torch.cuda.get_device_capability(), torch.version.cuda]
    if implementation == "triton":
        found["triton"] = importlib.metadata.version("triton")
    return found


@functools.cache
def _sources() -> str:
    """A digest of when the operators' Python files were last written: a kernel may be made of several."""
    folder = Path(__file__).parent
    files = [(str(file.relative_to(folder)), file.stat()) for file in sorted(folder.rglob("*.py"))]
    text = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
