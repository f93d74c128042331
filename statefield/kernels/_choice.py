"""Which implementation of an operator runs: the table behind `implementations()` and `statefield doctor`.

An operator is written up to four times, and every time the same thing:

    reference   the loop that reads like the paper: the definition, for any device and any float dtype
    chunked     plain PyTorch in fewer, larger steps: serves where no native library was built
    native      C++ for the CPU (statefield/kernels/native)
    triton      for CUDA GPUs (and, slowly, for CPU tensors under TRITON_INTERPRET=1)

`STATEFIELD_KERNELS=native` or `with use_kernels("native"):` forces one by name and fails where it cannot run. Otherwise
the first available one of the device's order runs; when that is not the first of the order, the reason is logged once.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType

import torch

from statefield.errors import KernelUnavailable, UnknownName
from statefield.kernels import native
from statefield.registry import Registry

logger = logging.getLogger(__name__)

NAMES = ("reference", "chunked", "native", "triton")
_ORDER = {"cuda": ("triton", "chunked", "reference")}
_ORDER_ELSEWHERE = ("native", "chunked", "reference")

_forced: list[str] = []  # a process-wide stack, not a context variable: autograd runs CUDA backwards in other threads


@dataclass(frozen=True)
class KernelRow:
    """One line of the table of implementations. `reason` says why it is not available; empty where it is."""

    op: str
    implementation: str
    device: str
    available: bool
    chosen: bool
    reason: str


@dataclass
class Operator:
    """An operator and the modules that implement it: name -> module path. The modules are imported on first use.

    `chosen` remembers the module that serves a device type under a forced implementation's name (or none).
    """

    name: str
    homes: dict[str, str]
    chosen: dict[tuple[str, str | None], ModuleType] = field(default_factory=dict)

    @property
    def package(self) -> str:
        """The operator's folder as a package, where its cases.py lies."""
        return self.homes["reference"].rpartition(".")[0]

    def has(self, implementation: str) -> bool:
        """Whether the operator is written that way, whatever this machine can run."""
        return implementation in self.homes and importlib.util.find_spec(self.homes[implementation]) is not None

    def unavailable(self, implementation: str, device: str) -> str:
        """Why `implementation` cannot run on tensors of device type `device`; empty when it can."""
        if implementation not in self.homes:
            return f"{self.name} has no {implementation} implementation"
        if not self.has(implementation):
            return f"{self.homes[implementation]} is missing from this installation"
        return _CONDITIONS[implementation](device)

    def choice(self, device: str) -> str:
        """The name of the implementation that serves tensors of device type `device` ("cpu", "cuda").

        Raises:
            KernelUnavailable: the one forced by `use_kernels` or STATEFIELD_KERNELS cannot run there.
        """
        forced = forced_implementation()
        if forced is not None:
            # An operator that is plain PyTorch already needs no chunked form: its reference is that.
            name = "reference" if forced == "chunked" and "chunked" not in self.homes else forced
            reason = self.unavailable(name, device)
            if reason:
                raise KernelUnavailable(
                    f"the {name} implementation of {self.name} was asked for on {device}, but {reason}. Leave "
                    f"STATEFIELD_KERNELS unset to let statefield choose, or see `statefield doctor`."
                )
            return name
        order = [name for name in _ORDER.get(device, _ORDER_ELSEWHERE) if name in self.homes]
        return next(name for name in order if not self.unavailable(name, device))

    def implementation(self, device: str) -> ModuleType:
        """The module that serves tensors of device type `device`, with its functions `forward` and `backward`."""
        key = (device, forced_implementation())
        module = self.chosen.get(key)
        if module is None:
            name = self.choice(device)
            module = self.chosen[key] = importlib.import_module(self.homes[name])
            self._log_once(name, device)
        return module

    def _log_once(self, name: str, device: str) -> None:
        order = _ORDER.get(device, _ORDER_ELSEWHERE)
        if forced_implementation() is None and order[0] in self.homes and name != order[0]:
            reason = self.unavailable(order[0], device)
            logger.warning("%s on %s runs its %s implementation, which is slower: %s.", self.name, device, name, reason)


OPERATORS: Registry[Operator] = Registry("operator")


def operator(name: str, **homes: str) -> Operator:
    """File an operator under `name`; `homes` maps implementation names to module paths."""
    return OPERATORS.register(name)(Operator(name, homes))


def forced_implementation() -> str | None:
    """The name forced by the innermost `use_kernels`, else by STATEFIELD_KERNELS, else None."""
    if _forced:
        return _forced[-1]
    name = os.environ.get("STATEFIELD_KERNELS") or None
    if name is not None and name not in NAMES:
        raise UnknownName.among("value of STATEFIELD_KERNELS", name, NAMES)
    return name


@contextmanager
def use_kernels(implementation: str) -> Iterator[None]:
    """Force one implementation of every operator inside the block, in the whole process (all threads).

    >>> with use_kernels("reference"):
    ...     forced_implementation()
    'reference'
    """
    if implementation not in NAMES:
        raise UnknownName.among("kernel implementation", implementation, NAMES)
    _forced.append(implementation)
    try:
        yield
    finally:
        _forced.pop()


def implementations() -> list[KernelRow]:
    """Every operator, implementation and device: what can run here and what runs when nothing is forced."""
    rows = []
    for op in OPERATORS.values():
        for device in ("cpu", "cuda"):
            try:
                chosen = op.choice(device)
            except KernelUnavailable:
                chosen = ""
            for name in op.homes:
                reason = op.unavailable(name, device)
                if device == "cuda" and not torch.cuda.is_available():
                    reason = reason or "no CUDA device is visible to torch"
                rows.append(KernelRow(op.name, name, device, not reason, name == chosen and not reason, reason))
    return rows


def _anywhere(device: str) -> str:
    return ""


def _native(device: str) -> str:
    return native.unavailable() if device == "cpu" else f"the native kernels run on cpu tensors, not on {device}"


def _triton(device: str) -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "triton kernels run on GPUs (on CPU tensors only under TRITON_INTERPRET=1)"
    if device != "cpu" and not torch.cuda.is_available():
        return "no CUDA device is visible to torch"
    return ""


_CONDITIONS: dict[str, Callable[[str], str]] = {
    "reference": _anywhere,
    "chunked": _anywhere,
    "native": _native,
    "triton": _triton,
}
