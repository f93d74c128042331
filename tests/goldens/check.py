#!/usr/bin/env python
"""Compare our models and operators with what the papers' own code computed: `python check.py FILE.npz ...`

Each file names a system and its arguments; systems.py maps them to ours. The official weights are loaded as a user's
checkpoint is, strictly. One line is printed for every output and gradient, with the largest difference as a share of
the golden's standard deviation; agreement is 1e-4 of it, or the file's `suggested_atol` where that is larger. The exit
status is 1 when a file misses: also one that is broken, or of a system that the table does not know.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from case import BrokenGolden, Expected, GoldenCase, read_case
from record import Outcome, record
from systems import BUILDERS, Built
from torch import Tensor

from statefield.backbones.checkpoints import load_entries
from statefield.kernels import use_kernels


@dataclass(frozen=True)
class Comparison:
    """One output or gradient beside the golden's."""

    expected: Expected
    error: float
    dtype: torch.dtype = torch.float32  # what ours was computed in

    @property
    def agrees(self) -> bool:
        return self.error <= self.expected.tolerance  # False for NaN

    @property
    def share(self) -> float:
        """The error as a share of the golden's standard deviation, absolute where that is 0."""
        return self.error / (self.expected.std if self.expected.std > 0 else 1.0)

    def line(self) -> str:
        scale, unit = (self.expected.std, "of std") if self.expected.std > 0 else (1.0, "absolute")
        name = f"{self.expected.label}  {self.expected.description}".strip()
        name += " (in float64)" if self.dtype == torch.float64 else ""
        return (
            f"  {'ok  ' if self.agrees else 'MISS'}  {self.share:.1e} {unit}, "
            f"{self.expected.tolerance / scale:.1e} allowed  {name}"
        )


def compare(case: GoldenCase) -> list[Comparison]:
    """Run our counterpart of a golden and compare every output, then every gradient.

    Where the golden says that float32 itself moves a value by a tenth of the bound or more, two right programs may
    differ by more than it allows: such a value that misses is computed once more in float64, and has to meet the same
    tolerance there. Nothing else is asked twice.
    """
    compared = list(_compare(case, case.dtype))
    doubtful = [one.expected.label for one in compared if not one.agrees and one.expected.ill_conditioned]
    if doubtful and case.dtype == torch.float32:
        exact = {one.expected.label: one for one in _compare(case, torch.float64)}
        compared = [exact[one.expected.label] if one.expected.label in doubtful else one for one in compared]
    return compared


def _compare(case: GoldenCase, dtype: torch.dtype) -> Iterator[Comparison]:
    built = BUILDERS[f"{case.system} {case.cls}"](case.kwargs)
    parameters = _load(built, case, dtype)
    inputs = {name: _of_dtype(value, dtype) for name, value in case.inputs.items()}
    with contextlib.nullcontext() if case.gradients else torch.no_grad():
        ours = built.run(inputs)
    for index, expected in enumerate(case.outputs):
        yield Comparison(expected, expected.error(_output(ours, index, expected)), dtype)
    if case.gradients:
        sources = {name: _differentiable(name, inputs, parameters) for name in case.gradients}
        first = _output(ours, 0, case.outputs[0])
        assert case.cotangent is not None
        total = (first * case.cotangent.to(first.dtype)).sum()
        gradients = torch.autograd.grad(total, list(sources.values()), materialize_grads=True)
        for name, gradient in zip(sources, gradients, strict=True):
            yield Comparison(case.gradients[name], case.gradients[name].error(gradient), dtype)


def _of_dtype(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().to(dtype).requires_grad_()
    return value


def _load(built: Built, case: GoldenCase, dtype: torch.dtype) -> dict[str, Tensor]:
    """Load the official weights; returns our parameters by their official names."""
    if built.module is None:
        return {}
    ours = {key: _renamed(built, key, shape) for key, shape in case.shapes.items()}
    kept = tuple(name for key, name in ours.items() if name and key not in case.weights)
    load_entries(built.module.eval(), case.weights, source=str(case.path), fresh=kept, filter_fn=built.filter_fn)
    built.module.to(dtype)
    parameters = dict(built.module.named_parameters())
    return {key: parameters[name] for key, name in ours.items() if name in parameters}


def _renamed(built: Built, key: str, shape: tuple[int, ...]) -> str | None:
    """Our name; None for what the filter leaves out because nothing reads it."""
    if built.filter_fn is None:
        return key
    names = list(built.filter_fn({key: torch.empty(shape, device="meta")}, built.module))
    if len(names) > 1:
        raise BrokenGolden(f"{key} becomes {len(names)} parameters of ours: its gradient cannot be compared")
    return names[0] if names else None


def _output(ours: dict[str, Tensor], index: int, expected: Expected) -> Tensor:
    for name, output in ours.items():
        if expected.description.startswith(name):
            return output
    if index >= len(ours):
        raise BrokenGolden(f"{expected.label} ({expected.description}) is not among our outputs: {', '.join(ours)}")
    return list(ours.values())[index]


def _differentiable(name: str, inputs: dict[str, Any], parameters: dict[str, Tensor]) -> Tensor:
    source = inputs.get(name, parameters.get(name))
    if not isinstance(source, Tensor):
        raise BrokenGolden(f"grad.{name} is neither an input nor a parameter of ours")
    return source


def check_file(path: Path, debug: bool = False) -> Outcome:
    """Print the comparison of one file; returns whether all of it agrees, and how far it is off at worst."""
    print(path)
    family = None
    try:
        case = read_case(path)
        print(f"  {case.system} {case.cls}")
        builder = BUILDERS[f"{case.system} {case.cls}"].__module__
        family = builder.removeprefix("backbone_") if builder.startswith("backbone_") else case.system
        compared = compare(case)
        for comparison in compared:
            print(comparison.line(), flush=True)
    except Exception as error:  # one bad file must not hide what the others say; it is counted and told
        if debug:
            traceback.print_exc()
        print(f"  MISS  {path.name}: {type(error).__name__}: {error}")
        return Outcome(path, family, passes=False, compared=0, worst=None)
    passes, worst = all(one.agrees for one in compared), max(one.share for one in compared)
    return Outcome(path, family, passes=passes, compared=len(compared), worst=worst)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    parser.add_argument(
        "--kernels",
        choices=("reference", "chunked", "native", "triton"),
        help="the implementation to check (triton on the CPU needs TRITON_INTERPRET=1, and minutes)",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="write what came out to the record that `statefield models` reads, one entry a file and implementation",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a file that cannot be checked")
    options = parser.parse_args(arguments)
    with use_kernels(options.kernels) if options.kernels else contextlib.nullcontext():
        outcomes = [check_file(path, options.debug) for path in options.files]
    if options.record:
        record(outcomes, options.kernels or "default")
    passed = sum(outcome.passes for outcome in outcomes)
    print(f"{passed} of {len(outcomes)} files pass")
    return 0 if passed == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
