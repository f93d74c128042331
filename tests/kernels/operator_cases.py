"""Inputs for every operator: what the conformance tests go through. A new operator gets a family here.

A family names its operator, the function that people call, and its variants: each makes named tensors and options from
a generator. The variant named in `tiny` is small enough for numerical gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from statefield.kernels import selective_scan, state_fusion, structure_aware_scan
from statefield.kernels.selective_scan.op import selective_scan_op
from statefield.kernels.state_fusion.op import state_fusion_op
from statefield.kernels.structure_aware_scan.op import structure_aware_scan_op

# The one table of tolerances: the largest difference from the reference, as a share of the reference's largest value.
# float64 and float32 differ by the order of sums and by our exp; 16-bit types by the rounding of results (2^-9, 2^-12).
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class Family:
    """Attributes: see the top of the file. `op` and `op_arguments` are what torch.library.opcheck is given."""

    name: str
    function: Callable[..., Tensor | tuple[Tensor, ...]]
    variants: dict[str, Callable[[Callable[..., Tensor]], dict[str, Any]]]
    op: Any
    op_arguments: Callable[[dict[str, Any]], tuple[Any, ...]]
    mapped: tuple[str, ...]  # arguments that torch.vmap may map
    tiny: str = "tiny"


def tensors_of(arguments: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in arguments.items() if isinstance(value, Tensor)}


def draw(family: Family, variant: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Any]:
    """The arguments of a variant; tensors require gradients. The same numbers in every dtype, rounded to it."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    arguments = family.variants[variant](randn)
    return {
        name: value.to(dtype).requires_grad_() if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def outputs_of(family: Family, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    found = family.function(**arguments)
    return found if isinstance(found, tuple) else (found,)


def values_and_gradients(family: Family, arguments: dict[str, Any]) -> dict[str, Tensor]:
    """Outputs by position and every gradient by argument name, of a weighted sum of all outputs."""
    outputs = outputs_of(family, arguments)
    generator = torch.Generator().manual_seed(99)
    weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in outputs]
    total = sum((out * weight).sum() for out, weight in zip(outputs, weights, strict=True))
    leaves = tensors_of(arguments)
    grads = torch.autograd.grad(total, list(leaves.values()))
    found = {f"out.{index}": out.detach() for index, out in enumerate(outputs)}
    return found | {f"grad.{name}": grad for name, grad in zip(leaves, grads, strict=True)}


def differences(found: dict[str, Tensor], wanted: dict[str, Tensor], dtype: torch.dtype) -> list[str]:
    """One line for each tensor that differs by more than the table allows, or in shape, or in dtype."""
    assert found.keys() == wanted.keys()
    lines = []
    for name, expected in wanted.items():
        got = found[name]
        if got.shape != expected.shape or got.dtype != expected.dtype:
            lines.append(f"{name}: {got.dtype} {list(got.shape)}, not {expected.dtype} {list(expected.shape)}")
            continue
        scale = max(expected.double().abs().max().item(), 1e-2)
        error = (got.double() - expected.double()).abs().max().item() / scale
        if not error <= TOLERANCE[dtype]:
            lines.append(f"{name}: differs by {error:.2e} of its largest value, allowed {TOLERANCE[dtype]:.0e}")
    return lines


def _scan(batch: int, length: int, channels: int, states: int, groups: int, **given: Any):
    """A variant of the selective scan. `given`: constant ("BC"), layout, options; `full` adds every optional tensor."""
    layout, full, constant = given.get("layout", "bld"), given.get("full", True), given.get("constant", "")

    def make(randn: Callable[..., Tensor]) -> dict[str, Any]:
        def rows(*tail: int) -> Tensor:
            x = randn(batch, length, *tail)
            return x.movedim(1, -1).contiguous() if layout == "bdl" else x

        arguments: dict[str, Any] = {
            "u": rows(channels),
            "delta": 0.5 * rows(channels),
            "A": -torch.exp(0.5 * randn(channels, states)),
            "B": randn(channels, states) if "B" in constant else rows(groups, states),
            "C": randn(channels, states) if "C" in constant else rows(groups, states),
            "delta_softplus": given.get("softplus", True),
            "layout": layout,
            "return_state": full,
        }
        if full:
            arguments |= {
                "D": randn(channels),
                "z": rows(channels),
                "delta_bias": 0.3 * randn(channels),
                "initial_state": randn(batch, channels, states),
            }
        return arguments

    return make


def _scan_op_arguments(arguments: dict[str, Any]) -> tuple[Any, ...]:
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
    return (*(arguments.get(name) for name in names), arguments["delta_softplus"], True)


def _fusion(batch: int, height: int, width: int, states: int, channels: int, **given: Any):
    dilations = given.get("dilations", (1, 3, 5))

    def make(randn: Callable[..., Tensor]) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "h": randn(batch, height, width, states, channels),
            "weight": randn(len(dilations), channels, 3, 3),
            "alpha": randn(len(dilations)),
            "dilations": dilations,
        }
        if given.get("full", True):
            arguments |= {
                "C": randn(batch, height, width, states),
                "D": randn(channels),
                "u": randn(batch, height, width, channels),
            }
        return arguments

    return make


def _fusion_op_arguments(arguments: dict[str, Any]) -> tuple[Any, ...]:
    names = ("h", "weight", "alpha", "C", "D", "u")
    return (*(arguments.get(name) for name in names), list(arguments["dilations"]))


def _structure_aware(batch: int, height: int, width: int, channels: int, states: int):
    def make(randn: Callable[..., Tensor]) -> dict[str, Any]:
        return {
            "u": randn(batch, height, width, channels),
            "delta": 0.5 * randn(batch, height, width, channels),
            "A": -torch.exp(0.5 * randn(channels, states)),
            "B": randn(batch, height, width, states),
            "C": randn(batch, height, width, states),
            "D": randn(channels),
            "weight": randn(3, channels, 3, 3),
            "alpha": randn(3),
            "delta_bias": 0.3 * randn(channels),
        }

    return make


def _structure_aware_op_arguments(arguments: dict[str, Any]) -> tuple[Any, ...]:
    names = ("u", "delta", "A", "B", "C", "D", "weight", "alpha", "delta_bias")
    return (*(arguments[name] for name in names), True, [1, 3, 5], True)


FAMILIES = {
    family.name: family
    for family in (
        Family(
            name="selective_scan",
            function=selective_scan,
            variants={
                "tiny": _scan(1, 5, 2, 2, 1),
                "one_step": _scan(1, 1, 1, 1, 1),
                "odd_grouped": _scan(2, 37, 12, 3, 2),
                "two_chunks": _scan(1, 65, 19, 16, 1),
                "one_state": _scan(1, 33, 40, 1, 1),
                "many_states": _scan(1, 7, 9, 19, 3),
                "without_options": _scan(2, 70, 24, 4, 1, full=False),
                "no_softplus": _scan(1, 33, 10, 8, 1, softplus=False),
                "constant_B": _scan(2, 33, 6, 4, 2, constant="B"),
                "constant_C": _scan(2, 33, 6, 1, 1, constant="C"),
                "constant_B_and_C": _scan(1, 40, 17, 4, 1, constant="BC"),
                "channels_before_length": _scan(2, 34, 9, 3, 3, layout="bdl"),
            },
            op=selective_scan_op,
            op_arguments=_scan_op_arguments,
            mapped=("u", "delta", "z", "B", "C", "initial_state"),
        ),
        Family(
            name="state_fusion",
            function=state_fusion,
            variants={
                "tiny": _fusion(1, 2, 3, 2, 2),
                "one_pixel": _fusion(1, 1, 1, 1, 1),
                "odd": _fusion(2, 9, 7, 3, 11),
                "wide": _fusion(1, 5, 17, 1, 40),
                "states_alone": _fusion(2, 7, 5, 1, 9, full=False),
                "other_dilations": _fusion(1, 6, 7, 2, 8, dilations=(2, 4)),
            },
            op=state_fusion_op,
            op_arguments=_fusion_op_arguments,
            mapped=("h", "C", "u"),
        ),
        Family(
            name="structure_aware_scan",
            function=structure_aware_scan,
            variants={
                "tiny": _structure_aware(1, 2, 3, 2, 1),
                "one_pixel": _structure_aware(1, 1, 1, 1, 1),
                "odd": _structure_aware(2, 5, 9, 11, 3),
            },
            op=structure_aware_scan_op,
            op_arguments=_structure_aware_op_arguments,
            mapped=("u", "delta", "B", "C"),
        ),
    )
}
