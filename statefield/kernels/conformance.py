"""Does an implementation of an operator equal its definition? Values and every gradient, over a list of awkward cases.

`check("selective_scan", "triton", case, device, dtype)` runs one case on one implementation and compares each result
with the reference, which is run in float64 on the CPU from the same (rounded) inputs. Tests, `benchmarks/gpu.sh` and
whoever wants to know whether the kernels work on the machine at hand all go through here. Imports no triton by itself.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from statefield.kernels._op import state_dtype

# How far a result may be from the float64 reference, relative to the largest value of its tensor. Results in 16 bits
# are rounded to 8 (bfloat16) or 11 (float16) bits; float32 covers approximate exp2 on GPUs over long products.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 3e-5, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}


@dataclass(frozen=True)
class ScanCase:
    """One call of the selective scan. `absent` names optional tensors that are not given."""

    batch: int
    length: int
    channels: int
    states: int
    groups: int = 1
    constant: str = ""  # which of B and C are constant in time: "", "B", "C", "BC"
    absent: tuple[str, ...] = ()
    softplus: bool = True
    strided: bool = False  # u, delta, z transposed from [B, D, L]; B and C slices of wider rows
    segmented: bool = False  # cut in time, as for problems too small to fill a GPU

    @property
    def name(self) -> str:
        return "_".join(
            [
                f"b{self.batch}_l{self.length}_d{self.channels}_n{self.states}_g{self.groups}",
                *([f"constant{self.constant}"] if self.constant else []),
                *(f"no_{name}" for name in self.absent),
                *([] if self.softplus else ["no_softplus"]),
                *(["strided"] if self.strided else []),
                *(["segmented"] if self.segmented else []),
            ]
        )


@dataclass(frozen=True)
class FusionCase:
    """One call of state fusion; `reads`: "" gives the fused states, "C" reads them out, "CDu" adds the skip."""

    batch: int
    height: int
    width: int
    states: int
    channels: int
    dilations: tuple[int, ...] = (1, 3, 5)
    reads: str = "CDu"
    strided: bool = False

    @property
    def name(self) -> str:
        size = f"b{self.batch}_{self.height}x{self.width}_n{self.states}_e{self.channels}"
        dilations = "-".join(map(str, self.dilations))
        return f"{size}_dilations{dilations}_{self.reads or 'states'}{'_strided' if self.strided else ''}"


@dataclass(frozen=True)
class Finding:
    """How far one tensor is from the reference: max |difference| / max |reference|."""

    tensor: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # False for NaN


_BARE = ("D", "z", "delta_bias", "initial_state", "grad_last")

# Small enough for Triton's interpreter, which runs every program as numpy calls.
SCAN_CASES = (
    ScanCase(1, 1, 1, 1),
    ScanCase(1, 7, 3, 3),
    ScanCase(1, 33, 2, 16),
    ScanCase(2, 17, 4, 4, groups=2, absent=_BARE, softplus=False),
    ScanCase(1, 33, 3, 1, constant="C", absent=("z", "initial_state", "grad_last")),
    ScanCase(1, 40, 3, 2, constant="BC", absent=("D",), strided=True),
    ScanCase(2, 7, 6, 4, groups=3, constant="B", absent=("grad_last",), strided=True),
    ScanCase(1, 70, 2, 1, segmented=True),
    ScanCase(1, 65, 2, 2, groups=2, absent=_BARE, segmented=True),
)
FUSION_CASES = (
    FusionCase(1, 1, 1, 1, 1),
    FusionCase(1, 4, 3, 1, 3),
    FusionCase(2, 2, 1, 1, 2, reads="C"),
    FusionCase(1, 1, 5, 3, 2, dilations=(2,), reads=""),
    FusionCase(1, 3, 4, 2, 1, dilations=(7, 1), strided=True),
)
# What a GPU does in no time: several tiles, programs and warps in every direction.
LARGE_SCAN_CASES = (
    *SCAN_CASES,
    ScanCase(2, 1000, 192, 16),
    ScanCase(3, 3136, 96, 1, absent=("z", "initial_state", "grad_last")),
    ScanCase(1, 4099, 40, 16, groups=4),
    ScanCase(2, 129, 70, 8, groups=2, strided=True),
    ScanCase(2, 100, 48, 64),
    ScanCase(1, 50, 33, 256),
    ScanCase(300, 64, 64, 4, constant="C"),
)
LARGE_FUSION_CASES = (
    *FUSION_CASES,
    FusionCase(2, 56, 56, 1, 128),
    FusionCase(3, 14, 14, 1, 512),
    FusionCase(4, 7, 9, 4, 70, reads="C", strided=True),
    FusionCase(1, 33, 47, 2, 96, dilations=(2, 4), reads=""),
)


def check(
    op: str, implementation: str, case: ScanCase | FusionCase, device: str, dtype: torch.dtype
) -> tuple[Finding, ...]:
    """Compare the results of one case, forward and backward.

    Args:
        op: "selective_scan" or "state_fusion". implementation: "triton", "native", "chunked", "reference".
        case: of that operator. device: where the implementation runs. dtype: of u, delta, z, B, C, h; parameters and
            states are float32 (float64 for float64).

    Returns:
        one finding for each output and each gradient; a shape or dtype that differs from the contract is an error of
        infinity. Also "repeated": whether a second backward gave other bits (0 or infinity).
    """
    home = f"statefield.kernels.{op}"
    module, reference = (
        importlib.import_module(f"{home}.{implementation}"),
        importlib.import_module(f"{home}.reference"),
    )
    with _poisoned_memory():
        found = run(module, case, dtype, device)
        again = run(module, case, dtype, device) if device != "cpu" else found
    wanted = run(reference, case, dtype, in_float64=True)

    findings = []
    for name, reference_value in wanted.items():
        value = found[name]
        if reference_value is None or value is None:
            assert reference_value is None and value is None, name
            continue
        tolerance = max(TOLERANCES[value.dtype], TOLERANCES[state_dtype(dtype)])
        findings.append(Finding(name, _distance(value.cpu(), reference_value), tolerance))
    same = all(_equal_bits(value, again[name]) for name, value in found.items())
    return (*findings, Finding("repeated", 0.0 if same else float("inf"), 0.0))


def run(
    module: ModuleType,
    case: ScanCase | FusionCase,
    dtype: torch.dtype,
    device: str = "cpu",
    *,
    in_float64: bool = False,
) -> dict[str, Tensor | None]:
    """Forward and backward of a case by one implementation module: outputs and gradients by name.

    in_float64: the inputs, rounded to dtype, are then computed with in float64.
    """
    inputs = scan_inputs(case, dtype) if isinstance(case, ScanCase) else fusion_inputs(case, dtype)
    compute = _run_scan if isinstance(case, ScanCase) else _run_fusion
    wanted = torch.float64 if in_float64 else None
    with _cut_in_time(module, getattr(case, "segmented", False)):
        return compute(module, {name: _moved(value, device, wanted) for name, value in inputs.items()})


def scan_inputs(case: ScanCase, dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
    """The arguments of a scan's forward and backward by name, on the CPU; `grad_last` may be absent too."""
    random = _Random(seed)
    b, length, d, n = case.batch, case.length, case.channels, case.states
    state = state_dtype(dtype)

    def by_step(scale: float = 1.0, offset: float = 0.0) -> Tensor:
        return random(b, length, d, dtype=dtype, transposed=case.strided, scale=scale, offset=offset)

    inputs: dict[str, Any] = {
        "u": by_step(),
        "delta": by_step(0.5, 0.0 if case.softplus else 0.7),
        "A": -torch.exp(random(d, n, dtype=state, scale=0.5)),
        "D": random(d, dtype=state),
        "z": by_step(),
        "delta_bias": random(d, dtype=state, scale=0.3),
        "initial_state": random(b, d, n, dtype=state),
        "grad_out": by_step(),
        "grad_last": random(b, d, n, dtype=state),
        "delta_softplus": case.softplus,
    }
    for name in "BC":
        if name in case.constant:
            inputs[name] = random(d, n, dtype=state)
        else:
            wide = random(b, length, case.groups, n + 3 * case.strided, dtype=dtype)
            inputs[name] = wide[..., :n]
    return inputs | dict.fromkeys(case.absent)


def fusion_inputs(case: FusionCase, dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
    """The arguments of a fusion's forward and backward by name, on the CPU, in the state dtype of `dtype`."""
    random = _Random(seed)
    dtype = state_dtype(dtype)
    b, height, width, n, e, kernels = (
        case.batch, case.height, case.width, case.states, case.channels, len(case.dilations),
    )  # fmt: skip
    h = random(b, n, e, height, width, dtype=dtype)
    h = h.permute(0, 3, 4, 1, 2)
    read = "C" in case.reads
    return {
        "h": h if case.strided else h.contiguous(),
        "weight": random(kernels, e, 3, 3, dtype=dtype),
        "alpha": random(kernels, dtype=dtype),
        "C": random(b, height, width, n, dtype=dtype) if read else None,
        "D": random(e, dtype=dtype) if "D" in case.reads else None,
        "u": random(b, height, width, e, dtype=dtype) if "u" in case.reads else None,
        "grad": random(*((b, height, width, e) if read else (b, height, width, n, e)), dtype=dtype),
        "dilations": list(case.dilations),
    }


def _run_scan(module: ModuleType, inputs: dict[str, Any]) -> dict[str, Tensor | None]:
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
    given = [inputs[name] for name in names]
    softplus = inputs["delta_softplus"]
    out, last, states = module.forward(*given, softplus, True)
    grads = module.backward(inputs["grad_out"], inputs["grad_last"], states, *given, softplus)
    values = {"out": out, "last": last, "states": states}
    return values | {f"grad_{name}": grad for name, grad in zip(names, grads, strict=True)}


def _run_fusion(module: ModuleType, inputs: dict[str, Any]) -> dict[str, Tensor | None]:
    names = ("h", "weight", "alpha", "C", "D", "u")
    given = [inputs[name] for name in names]
    out = module.forward(*given, inputs["dilations"])
    grads = module.backward(inputs["grad"], *given, inputs["dilations"])
    return {"out": out} | {f"grad_{name}": grad for name, grad in zip(names, grads, strict=True)}


def _equal_bits(first: Tensor | None, second: Tensor | None) -> bool:
    return first is second or (first is not None and second is not None and torch.equal(first, second))


def _distance(value: Tensor, wanted: Tensor) -> float:
    if value.shape != wanted.shape:
        return float("inf")
    scale = wanted.abs().max().clamp_min(1e-30)
    return float((value.double() - wanted).abs().max() / scale)


def _moved(value: Any, device: str, dtype: torch.dtype | None = None) -> Any:
    """A tensor elsewhere, or in another dtype, with the same strides."""
    if not isinstance(value, Tensor):
        return value
    moved = torch.empty_strided(value.shape, value.stride(), dtype=dtype or value.dtype, device=device)
    return moved.copy_(value)


class _Random:
    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(
        self,
        *shape: int,
        dtype: torch.dtype,
        transposed: bool = False,
        scale: float = 1.0,
        offset: float = 0.0,
    ) -> Tensor:
        drawn = shape[:-2] + shape[:-3:-1] if transposed else shape
        values = scale * torch.randn(drawn, generator=self._generator, dtype=torch.float64) + offset
        return (values.transpose(-1, -2) if transposed else values).to(dtype)


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element that nobody writes is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def _cut_in_time(module: ModuleType, segmented: bool) -> Iterator[None]:
    """Let a scan believe in a GPU so large that it cuts time into segments as short as they get."""
    if not segmented or not hasattr(module, "multiprocessors"):
        yield
        return
    before = module.multiprocessors
    module.multiprocessors = lambda device: 10_000  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.multiprocessors = before  # type: ignore[attr-defined]


def cases_named(op: str, *, large: bool = False) -> dict[str, ScanCase | FusionCase]:
    """The cases of an operator by name: the small ones, or with `large` those for a GPU as well."""
    cases: tuple[ScanCase | FusionCase, ...]
    if op == "selective_scan":
        cases = LARGE_SCAN_CASES if large else SCAN_CASES
    else:
        cases = LARGE_FUSION_CASES if large else FUSION_CASES
    return {case.name: case for case in cases}
