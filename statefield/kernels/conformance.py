"""Does an implementation of an operator equal its definition? The cases of all operators, and how results compare.

Every operator's folder holds a `cases.py` with `FAMILY` (or `FAMILIES`, where one folder holds several operators):
named variants of its arguments. `families()` gathers them for all registered operators, and the conformance tests, the
start-up self-check, Triton's interpreter tests, the GPU tests, the GPU benchmark and the tables of registers go through
what it gives. A new operator is a folder with a cases.py; nothing else has to be told of it.

`check("selective_scan", "odd_grouped", "triton")` runs one variant on one implementation and compares each output and
each gradient with the reference, which is run in float64 on the CPU from the same rounded inputs. Imports no triton.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from statefield.errors import ConfigError, UnknownName
from statefield.kernels._choice import OPERATORS, use_kernels
from statefield.kernels._op import state_dtype

# The one table of tolerances: the largest difference from the reference, as a share of the reference's largest value.
# float64 and float32 differ by the order of sums and by our exp (approximate exp2 on GPUs, over long products); 16-bit
# types by the rounding of results to 8 (bfloat16) or 11 (float16) bits.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}
SMALLEST_SCALE = 1e-2  # a tensor whose largest value is smaller is compared as if that were its largest value

Randn = Callable[..., Tensor]  # sizes -> standard normal float64
Variant = Callable[[Randn], dict[str, Any]]  # -> the arguments of the public function
Memory = Literal["dense", "gaps", "slices"]


@dataclass(frozen=True)
class Sized:
    """A call of a size that models use: compiled ahead of time (a small batch will do), or timed on a GPU.

    Attributes:
        make: the arguments, as a variant's.
        dtype: of the family's `data`; parameters are in the state dtype, as a model in 16 bits holds them.
        within: a context in which its Triton form runs.
        stack_bytes: the most that a compiled kernel of it may spill, a thread.
        exponentials: how many a forward needs, for the roof of the special function units.
        matrix_flops: 2 for each multiply-add inside matrix products of a forward, for the roof of the tensor cores.
    """

    make: Variant
    dtype: torch.dtype = torch.float32
    within: Callable[[], AbstractContextManager[Any]] = nullcontext
    stack_bytes: int = 64
    exponentials: int = 0
    matrix_flops: int = 0


@dataclass(frozen=True)
class Family:
    """The cases of one operator.

    Attributes:
        name: the operator's.
        function: what people call, with a variant's arguments by keyword; returns a tensor or a tuple of tensors.
        variants: name -> what makes the arguments, small enough for the reference loop. Floating tensors get gradients.
            One name at least begins with "odd" (the first such is the operator's usual awkward case); those beginning
            with "odd", "constant" or "channels" also run with their memory in other orders.
        op: the torch.library operator. op_arguments: its arguments, from the public function's; for opcheck.
        mapped: arguments that torch.vmap may map; their first axis is the batch.
        tiny: the variant that is small enough for numerical gradients.
        data: arguments that come in 16 bits where a model runs in 16 bits, the others being parameters in float32;
            `mapped` when it is not given.
        interpreted: the variants that go through Triton's interpreter, which is slow (seconds for a dozen programs), an
            "odd" one among them; all when it is not given.
        within: variant -> a context in which its Triton form runs.
        large: variants for GPUs alone: several tiles, programs and warps in every direction.
        compiled: what is compiled ahead of time, to read off registers and spills.
        measured: what is timed on a GPU.
    """

    name: str
    function: Callable[..., Tensor | tuple[Tensor, ...]]
    variants: Mapping[str, Variant]
    op: Any
    op_arguments: Callable[[dict[str, Any]], tuple[Any, ...]]
    mapped: tuple[str, ...]
    tiny: str = "tiny"
    data: tuple[str, ...] | None = None
    interpreted: tuple[str, ...] = ()
    within: Mapping[str, Callable[[], AbstractContextManager[Any]]] = field(default_factory=dict)
    large: Mapping[str, Variant] = field(default_factory=dict)
    compiled: Mapping[str, Sized] = field(default_factory=dict)
    measured: Mapping[str, Sized] = field(default_factory=dict)

    @property
    def odd(self) -> str:
        """The variant that stands for the operator where one has to do."""
        return next(name for name in self.variants if name.startswith("odd"))

    def in_other_memory_orders(self) -> list[str]:
        return [name for name in self.variants if name.startswith(("odd", "constant", "channels"))]

    def variant(self, name: str) -> Variant:
        known = {**self.variants, **self.large}
        if name not in known:
            raise UnknownName.among(f"variant of {self.name}", name, known)
        return known[name]


@dataclass(frozen=True)
class Finding:
    """How far one tensor is from the reference: max |difference| / max |reference|."""

    tensor: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


@functools.cache
def families() -> dict[str, Family]:
    """The families of all registered operators by name.

    Raises:
        ConfigError: a cases.py that holds no family of its operator. (An operator without a cases.py is left out here;
            `operators_without_cases` names it, and a test asks.)
    """
    missing = operators_without_cases()
    return {name: family_of(name) for name in OPERATORS if name not in missing}


@functools.cache
def family_of(name: str) -> Family:
    """The family of one operator; see `families`."""
    home = f"{OPERATORS[name].package}.cases"
    module = importlib.import_module(home)
    held = getattr(module, "FAMILIES", None) or (module.FAMILY,)
    family = next((family for family in held if family.name == name), None)
    if family is None:
        raise ConfigError(f"{home} holds no family named {name}: give its FAMILY the name of the operator.")
    return family


def operators_without_cases() -> list[str]:
    """Registered operators whose folder has no cases.py, so that nothing checks them."""
    importlib.import_module("statefield.kernels")  # registers the operators
    return [name for name, op in OPERATORS.items() if importlib.util.find_spec(f"{op.package}.cases") is None]


def tensors_of(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The arguments that have gradients: floating tensors."""
    return {name: value for name, value in arguments.items() if _is_floating(value)}


def draw(
    family: Family,
    variant: str | Sized,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    *,
    device: str = "cpu",
    memory: Memory = "dense",
    mixed: bool = False,
) -> dict[str, Any]:
    """The arguments of a variant; floating tensors require gradients. The same numbers in every dtype, rounded to it.

    Args:
        mixed: parameters are in the state dtype, as models in 16 bits hold them; `data` alone is in `dtype`.
        memory: "gaps": every element has a gap beside it and axes are out of order; "slices": rows of wider rows. What
            lies between is NaN.
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    make = variant.make if isinstance(variant, Sized) else family.variant(variant)
    data = family.mapped if family.data is None else family.data
    arguments = {}
    for name, value in make(randn).items():
        if _is_floating(value):
            wanted = state_dtype(dtype) if mixed and name not in data else dtype
            value = _LAYOUTS[memory](value.to(wanted).to(device)).requires_grad_()
        elif isinstance(value, Tensor):
            value = value.to(device)
        arguments[name] = value
    return arguments


def outputs_of(family: Family, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    found = family.function(**arguments)
    return found if isinstance(found, tuple) else (found,)


def values_and_gradients(family: Family, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs by position ("out.0") and each gradient by argument name ("grad.u"), of a weighted sum of the outputs."""
    outputs = outputs_of(family, arguments)
    leaves = tensors_of(arguments)
    grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents(outputs))
    found = {f"out.{index}": out.detach() for index, out in enumerate(outputs)}
    return found | {f"grad.{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def cotangents(outputs: Sequence[Tensor]) -> list[Tensor]:
    """What flows back into each output: numbers of 8 bits, so that they are the same in every dtype."""
    generator = torch.Generator().manual_seed(99)
    return [torch.randn(out.shape, generator=generator).bfloat16().to(out.device, out.dtype) for out in outputs]


def differences(found: dict[str, Tensor], wanted: dict[str, Tensor], dtype: torch.dtype) -> list[str]:
    """One line for each tensor that differs by more than the table allows, or in shape, or in dtype."""
    assert found.keys() == wanted.keys()
    lines = []
    for name, expected in wanted.items():
        got = found[name]
        if got.shape != expected.shape or got.dtype != expected.dtype:
            lines.append(f"{name}: {got.dtype} {list(got.shape)}, not {expected.dtype} {list(expected.shape)}")
            continue
        error = distance(got, expected)
        if not error <= TOLERANCE[dtype]:
            lines.append(f"{name}: differs by {error:.2e} of its largest value, allowed {TOLERANCE[dtype]:.0e}")
    return lines


def distance(found: Tensor, wanted: Tensor) -> float:
    """max |found - wanted| / max |wanted|; infinity for another shape, NaN for NaN, 0 for nothing."""
    if found.shape != wanted.shape:
        return float("inf")
    if not wanted.numel():
        return 0.0
    exact = wanted.double()
    scale = exact.abs().max().clamp(min=SMALLEST_SCALE)
    return float((found.to(wanted.device).double() - exact).abs().max() / scale)


def check(
    name: str,
    variant: str,
    implementation: str | None,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    memory: Memory = "dense",
    repeat: bool = True,
) -> tuple[Finding, ...]:
    """Compare one variant of one operator with its reference, forward and backward, in memory filled with NaN.

    Args:
        name, variant: of the operator. implementation: "native", "triton", ...; None for what runs by itself.
        device, dtype, memory: of the tensors given to it; in 16 bits parameters are float32 (`draw`, mixed).
        repeat: run it a second time and ask for equal bits.

    Returns:
        one finding for each output and each gradient; a shape or dtype that differs from the contract (gradients have
        their input's) is an error of infinity. With `repeat` also "repeated": 0, or infinity where bits differ.
    """
    family = families()[name]
    given = draw(family, variant, dtype, device=device, memory=memory, mixed=dtype.itemsize == 2)
    forced = nullcontext() if implementation is None else use_kernels(implementation)
    around = family.within.get(variant, nullcontext) if implementation == "triton" else nullcontext
    with poisoned_memory(), forced, around():
        found = values_and_gradients(family, given)
        again = values_and_gradients(family, given) if repeat else found
    exact = {
        key: value.detach().cpu().double().requires_grad_() if _is_floating(value) else _on_cpu(value)
        for key, value in given.items()
    }
    with use_kernels("reference"):
        wanted = values_and_gradients(family, exact)

    findings = []
    for key, expected in wanted.items():
        value = found[key]
        kept = not key.startswith("grad.") or value.dtype == given[key.removeprefix("grad.")].dtype
        tolerance = max(TOLERANCE[value.dtype], TOLERANCE[state_dtype(dtype)])
        findings.append(Finding(key, distance(value.cpu(), expected) if kept else float("inf"), tolerance))
    if repeat:
        same = all(torch.equal(value, again[key]) for key, value in found.items())
        findings.append(Finding("repeated", 0.0 if same else float("inf"), 0.0))
    return tuple(findings)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside, torch fills fresh memory with NaN, so that an element that nobody writes is seen."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]


def _dense(x: Tensor) -> Tensor:
    return x


def _with_gaps(x: Tensor) -> Tensor:
    """The same numbers with a gap after every element and axes in reversed order in memory."""
    wide = x.new_full([2 * size for size in reversed(x.shape)], torch.nan)
    view = wide[tuple(slice(None, None, 2) for _ in x.shape)].permute(*reversed(range(x.dim())))
    view.copy_(x)
    return view


def _slice_of_wider(x: Tensor) -> Tensor:
    """The same numbers as a slice of a wider projection: dense in the last axis, strided in the others."""
    wide = x.new_full((*x.shape[:-1], x.shape[-1] + 5), torch.nan)
    view = wide[..., 2 : 2 + x.shape[-1]]
    view.copy_(x)
    return view


_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {"dense": _dense, "gaps": _with_gaps, "slices": _slice_of_wider}


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _on_cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else value
