"""Which implementation of an operator runs: the table behind `implementations()` and `statefield doctor`.

An operator is written up to four times, and every time the same thing:

    reference   the loop that reads like the paper: the definition, for any device and any float dtype
    chunked     plain PyTorch in fewer, larger steps: serves where no native library was built
    native      C++ for the CPU (statefield/kernels/native)
    triton      for CUDA GPUs (and, slowly, for CPU tensors under TRITON_INTERPRET=1)

`STATEFIELD_KERNELS=native` or `with use_kernels("native"):` forces one by name and fails where it cannot run. Otherwise
the first one of the device's order runs that is available and, on this machine, equals the reference (self_check.py
compares them at first use); when that is not the first of the order, the reason is logged once.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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
_checked = threading.local()  # .implementation: what the self-check runs in this thread, whatever the others run


@dataclass(frozen=True)
class KernelRow:
    """One line of the table of implementations.

    `available`: it can run here, and was not found wrong. `reason` says why it is not; empty where it is. `can_run` is
    true for a wrong one, too.
    """

    op: str
    implementation: str
    device: str
    available: bool
    chosen: bool
    reason: str
    can_run: bool = True


@dataclass
class Operator:
    """An operator and the modules that implement it: name -> module path. The modules are imported on first use.

    `chosen` remembers the module that serves a device type under a forced implementation's name (or none), `rejected`
    what is wrong with an implementation that does not equal the reference on a device type of this machine.
    """

    name: str
    homes: dict[str, str]
    chosen: dict[tuple[str, str | None], ModuleType] = field(default_factory=dict)
    rejected: dict[tuple[str, str], str] = field(default_factory=dict)
    _choosing: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)

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
        return next(name for name in self._order(device) if not self._against(name, device))

    def implementation(self, device: str) -> ModuleType:
        """The module that serves tensors of device type `device`, with its functions `forward` and `backward`.

        Unless one is forced, the first use on a device type compares it with the reference there, and goes on to the
        next of the order where it is wrong. What is forced runs as it is.
        """
        key = (device, forced_implementation())
        module = self.chosen.get(key)
        if module is not None:
            return module
        if key[1] is None and not _may_check(device):
            return importlib.import_module(self.homes[self.choice(device)])
        with self._choosing if key[1] is None else nullcontext():  # what is forced may be asked for by the check itself
            if key not in self.chosen:
                name = self.choice(device) if key[1] is not None else self._trusted(device)
                self.chosen[key] = importlib.import_module(self.homes[name])
            return self.chosen[key]

    def _order(self, device: str) -> list[str]:
        return [name for name in _ORDER.get(device, _ORDER_ELSEWHERE) if name in self.homes]

    def _against(self, name: str, device: str) -> str:
        """Why `name` is not chosen by itself: it cannot run, or it was found wrong; empty when nothing is known."""
        return self.unavailable(name, device) or self.rejected.get((device, name), "")

    def _trusted(self, device: str) -> str:
        """The first of the order that can run and, checked now, equals the reference. Logs what it passes over."""
        from statefield.kernels import self_check  # here: it imports the operators, which import this module

        first, *_ = self._order(device)
        for name in self._order(device):
            if self._against(name, device):
                continue
            problem = "" if name == "reference" else self_check.problem_at_first_use(self.name, name, device)
            if problem:
                self.rejected[device, name] = problem
                text = "The %s implementation of %s is WRONG on this machine's %s, and is not used: %s."
                logger.error(text, name, self.name, device, problem)
                continue
            if name != first:
                text = "%s on %s runs its %s implementation, which is slower: %s."
                logger.warning(text, self.name, device, name, self._against(first, device))
            return name
        raise AssertionError("every operator has a reference, which nothing rejects")


OPERATORS: Registry[Operator] = Registry("operator")


def operator(name: str, **homes: str) -> Operator:
    """File an operator under `name`; `homes` maps implementation names to module paths."""
    return OPERATORS.register(name)(Operator(name, homes))


def forced_implementation() -> str | None:
    """What the self-check runs in this thread, else the name forced by the innermost `use_kernels`, else by
    STATEFIELD_KERNELS, else None.
    """
    checked = checked_implementation()
    if checked is not None:
        return checked
    if _forced:
        return _forced[-1]
    name = os.environ.get("STATEFIELD_KERNELS") or None
    if name is not None and name not in NAMES:
        raise UnknownName.among("value of STATEFIELD_KERNELS", name, NAMES)
    return name


def checked_implementation() -> str | None:
    """The implementation that the self-check runs in this thread; None where it does not run."""
    return getattr(_checked, "implementation", None)


@contextmanager
def checking(implementation: str | None) -> Iterator[None]:
    """Force one implementation of every operator in this thread alone: other threads must not run what is in doubt."""
    before = checked_implementation()
    _checked.implementation = implementation
    try:
        yield
    finally:
        _checked.implementation = before


def _may_check(device: str) -> bool:
    """Not while a CUDA graph records: a check waits for the device, which ends the recording. A later use makes it."""
    return device != "cuda" or not torch.cuda.is_current_stream_capturing()


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
                missing = op.unavailable(name, device)
                if device == "cuda" and not torch.cuda.is_available():
                    missing = missing or "no CUDA device is visible to torch"
                wrong = op.rejected.get((device, name), "")
                reason = missing or (f"wrong on this machine: {wrong}" if wrong else "")
                here = name == chosen and not missing
                rows.append(KernelRow(op.name, name, device, not reason, here, reason, not missing))
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
